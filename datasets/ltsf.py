"""Long-horizon point forecasting on a single multivariate series: the ETT, exchange and illness sets.

The protocol of Informer (Zhou et al. 2021) that DLinear (Zeng et al. 2023) and xLSTMTime (Alharthi and Mahmood
2024) follow: each channel standardised by its training part, every window of the test part forecast, errors
averaged in standardised units.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tsseq.datasets.series import read_parquet

HORIZONS = (96, 192, 336, 720)
ILLNESS_HORIZONS = (24, 36, 48, 60)
# Hours (or quarters of an hour) in the 12, 4 and 4 months of the ETT split; the rest is not used.
ETT_MONTHS = (12, 4, 4)
SHARES = (0.7, 0.1, 0.2)


@dataclass(frozen=True)
class Benchmark:
    """One set, standardised.

    values  channel × time, float32, zero mean and unit variance over the training part
    parts   stops of the training, validation and test parts along time
    """

    name: str
    values: NDArray[np.float32]
    parts: tuple[int, int, int]

    @property
    def horizons(self) -> tuple[int, ...]:
        return ILLNESS_HORIZONS if "illness" in self.name else HORIZONS

    def windows(
        self, context: int, horizon: int, part: str = "test"
    ) -> Iterator[tuple[NDArray[np.float32], NDArray[np.float32]]]:
        """Every window whose future lies in `part` (train, validation or test), oldest first.

        Yields a context channel × time and the label channel × horizon; the context may reach back into the
        part before, as in the papers.
        """
        which = ("train", "validation", "test").index(part)
        first = context if which == 0 else self.parts[which - 1]
        for cut in range(max(first, context), self.parts[which] - horizon + 1):
            yield self.values[:, cut - context : cut], self.values[:, cut : cut + horizon]


def load(data_dir: str | Path, name: str) -> Benchmark:
    """Read `ltsf_<name>.parquet` or `<name>.csv` (a date column and one column per channel) from `data_dir`.

    Raises ValueError if neither file is there, and for more than one series or values that are missing or infinite.
    """
    folder = Path(data_dir)
    packed, plain = folder / f"ltsf_{name}.parquet", folder / f"{name}.csv"
    if packed.is_file():
        path, rows = packed, read_parquet(packed)
        if len(rows) > 1:
            raise ValueError(f"{path}: expected one series of several channels, got {len(rows)} series")
        values = np.stack(rows[0].channels()).astype(np.float64)
    elif plain.is_file():
        path, values = plain, pd.read_csv(plain).select_dtypes("number").to_numpy(np.float64).T
    else:
        raise ValueError(f"expected {packed.name} or {plain.name} in {folder}, got neither")
    if not values.size or not np.isfinite(values).all():
        raise ValueError(f"{path}: expected columns of finite numbers, got none or missing or infinite ones")
    parts = split(name, values.shape[1])
    training = values[:, : parts[0]]
    # A channel that never moves in training keeps its own scale.
    scale = training.std(axis=1, keepdims=True)
    scaled = (values - training.mean(axis=1, keepdims=True)) / np.where(scale > 0, scale, 1.0)
    return Benchmark(name, scaled.astype(np.float32), parts)


def split(name: str, length: int) -> tuple[int, int, int]:
    """Where the training, validation and test parts of a set of `length` steps stop."""
    if name.startswith("ETT"):
        month = 30 * 24 * (4 if name.startswith("ETTm") else 1)
        stops = np.cumsum(ETT_MONTHS) * month
    else:
        training, test = int(length * SHARES[0]), int(length * SHARES[2])
        stops = np.array([training, length - test, length])
    if stops[-1] > length:
        raise ValueError(f"expected at least {stops[-1]} steps in {name}, got {length}")
    return int(stops[0]), int(stops[1]), int(stops[2])
