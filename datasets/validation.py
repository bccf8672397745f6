"""Sets of series on which options may be chosen: families of synthetic ones, and a folder of real ones."""

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Generator

from tsseq.datasets.gift_eval import HORIZONS, M4_HORIZONS, windows_of
from tsseq.datasets.series import Series, read_parquet
from tsseq.datasets.windows import Windows, last_windows
from tsseq.frequency import parse, seasonality
from tsseq.synthetic import PRIORS


@dataclass(frozen=True)
class ValidationSet:
    """Windows of one kind and one horizon; `seasonality` is that of the naive forecast to compare with."""

    source: str
    name: str
    windows: Windows
    seasonality: int = 1

    @property
    def horizon(self) -> int:
        return int(self.windows.labels.shape[1])


def from_prior(family: str, series: int, length: int, horizons: Sequence[int], seed: int) -> list[ValidationSet]:
    """One set for each horizon: the same histories of `length` values, in units of their own spread.

    Synthetic series have no natural season, so they are compared with their last value. Raises ValueError for an
    unknown family, or sizes below 1.
    """
    if family not in PRIORS:
        raise ValueError(f"unknown family {family!r}: expected one of {', '.join(PRIORS)}")
    _check([series, length, *horizons])
    drawn = PRIORS[family]().sample(Generator().manual_seed(seed), series, length + max(horizons)).numpy()
    spread = drawn[:, :length].std(1, keepdims=True, dtype=np.float64)
    values = (drawn / np.where(spread > 0, spread, 1.0)).astype(np.float32)
    histories = list(values[:, :length])
    return [
        ValidationSet("synthetic", family, Windows(histories, values[:, length : length + horizon]))
        for horizon in horizons
    ]


def from_folder(folder: Path, horizons: Sequence[int] | None = None) -> list[ValidationSet]:
    """The last windows of the series in the *.parquet files of a folder, cut as GIFT-Eval cuts them.

    Without `horizons` a series is forecast as far as its item_id says (`...|h=18`), else as GIFT-Eval does at its
    frequency. Series that leave less than a season of history are left out, and with a warning files that tell no
    frequency. Raises ValueError for horizons below 1, or if nothing remains.
    """
    _check(horizons or [1])
    sets = [one for path in sorted(folder.glob("*.parquet")) for one in _from_file(folder.name, path, horizons)]
    if not sets:
        raise ValueError(f"expected *.parquet files in {folder} with series long enough to score, found none")
    return sets


def _check(sizes: Sequence[int]) -> None:
    if min(sizes) < 1:
        raise ValueError(f"expected series, length and horizons of at least 1, got {min(sizes)}")


def _from_file(source: str, path: Path, horizons: Sequence[int] | None) -> list[ValidationSet]:
    groups: dict[tuple[int, int], list[Series]] = {}
    try:
        for series in read_parquet(path):
            season = seasonality(series.freq)
            for horizon in horizons or [_horizon(series)]:
                if series.target.shape[-1] > horizon + max(season, 2):
                    groups.setdefault((horizon, season), []).append(series)
    except ValueError as error:
        warnings.warn(f"{path.name} is left out: {error}", stacklevel=3)
        return []
    several = len({season for _, season in groups}) > 1
    return [
        ValidationSet(source, f"{path.stem}@{season}" if several else path.stem, _windows(members, horizon), season)
        for (horizon, season), members in groups.items()
    ]


def _windows(series: list[Series], horizon: int) -> Windows:
    return last_windows(series, horizon, windows_of(min(one.target.shape[-1] for one in series), horizon))


def _horizon(series: Series) -> int:
    said = re.search(r"\|h=(\d+)$", series.item_id)
    unit = parse(series.freq).unit
    return int(said[1]) if said else next(h for name, h in (M4_HORIZONS | HORIZONS).items() if name in unit)
