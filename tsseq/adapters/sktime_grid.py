"""Rows of an sktime table as places on one regular grid, and back: what stands between pandas and tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tsseq.datasets import time_index
from tsseq.frequency import Frequency, parse

Places = NDArray[np.int64]
Values = NDArray[np.float64]


@dataclass(frozen=True)
class Grid:
    """Where each row of a table belongs.

    instances   the names of the series in the order of their first rows, None for a single series; sktime pairs
                forecasts with series by position
    series      row: position of its series in `instances`
    place       row: steps after the cutoff, 0 at the cutoff, negative before it
    """

    instances: pd.Index | None
    series: Places
    place: Places

    def __len__(self) -> int:
        return 1 if self.instances is None else len(self.instances)

    def scatter(self, table: pd.DataFrame, first: int, last: int) -> Values:
        """The table as series × column × time from place `first` to `last`; NaN where it has no row."""
        inside = (self.place >= first) & (self.place <= last) & (self.series >= 0)
        numbers = table.to_numpy(dtype=np.float64, na_value=np.nan)
        values = np.full((len(self), last - first + 1, numbers.shape[1]), np.nan)
        values[self.series[inside], self.place[inside] - first] = numbers[inside]
        return values.transpose(0, 2, 1)

    def like(self, other: Grid) -> Grid:
        """The same rows with series numbered as in `other`; those that it lacks get -1."""
        if self.instances is None or other.instances is None:
            return self
        number = other.instances.get_indexer(self.instances)
        return Grid(other.instances, np.asarray(number, np.int64)[self.series], self.place)


def align(index: pd.Index, cutoff: pd.Index, frequency: Frequency | None) -> Grid:
    """Place the rows of a table with this `index`; `frequency` is needed for time stamps only."""
    if not isinstance(index, pd.MultiIndex):
        return Grid(None, np.zeros(len(index), np.int64), places(index, cutoff, frequency))
    instances, series = _instances(index)
    used, code = np.unique(index.codes[-1], return_inverse=True)
    return Grid(instances, series, places(index.levels[-1][used], cutoff, frequency)[code])


def places(index: pd.Index, cutoff: pd.Index, frequency: Frequency | None) -> Places:
    """Steps of each entry after the cutoff (an index of one entry). Raises ValueError for an entry off the grid."""
    if isinstance(index, pd.PeriodIndex):
        assert isinstance(cutoff, pd.PeriodIndex) and index.freq is not None
        steps = np.asarray(index.asi8 - cutoff.asi8[0], np.int64)
        multiple = index.freq.n
        if (steps % multiple).any():
            at = int(np.argmax(steps % multiple != 0))
            raise ValueError(f"expected periods whole steps of {index.freqstr!r} from {cutoff[0]}, got {index[at]}")
        return steps // multiple
    if isinstance(index, pd.DatetimeIndex):
        return _places_of_stamps(index, pd.DatetimeIndex(cutoff), frequency)
    return np.asarray(index, np.int64) - int(cutoff[0])


def find_frequency(index: pd.Index, freq: Any = None) -> Frequency | None:
    """The frequency of the time stamps of a table: `freq` if given, that of the index, or the one that they show.

    None where there are no time stamps, or a single one. Raises ValueError for irregular ones.
    """
    stamps = index.levels[-1] if isinstance(index, pd.MultiIndex) else index
    if not isinstance(stamps, pd.DatetimeIndex):
        return None
    known = time_index.carried(stamps) if freq is None else parse(freq)
    if known is not None:
        return known
    if isinstance(index, pd.MultiIndex):
        stamps = stamps[np.unique(index.codes[-1])].sort_values()
    return time_index.infer(stamps) if len(stamps) > 1 else None


def with_frequency(cutoff: pd.Index, frequency: Frequency) -> pd.Index:
    """The cutoff, time stamps of which carry this frequency, and none where no pandas offset says it (the 15th of each
    month); sktime gives them what their last rows look like."""
    if not isinstance(cutoff, pd.DatetimeIndex):
        return cutoff
    bare = cutoff[[0]]  # without its frequency
    try:
        return pd.DatetimeIndex(bare, freq=frequency.offset_alias)
    except ValueError:
        return bare


def future_index(cutoff: pd.Index, steps: Places, frequency: Frequency | None) -> pd.DatetimeIndex:
    """The time stamps `steps` after the cutoff, for frequencies that pandas cannot attach to an index."""
    if frequency is None:
        raise ValueError(f"expected a frequency after the single time stamp {cutoff[0]}: pass freq, such as freq='D'")
    return time_index.future(pd.DatetimeIndex(cutoff), frequency, int(steps.max()))[steps - 1]


def _places_of_stamps(index: pd.DatetimeIndex, cutoff: pd.DatetimeIndex, frequency: Frequency | None) -> Places:
    stamps = pd.DatetimeIndex(index.append(cutoff)).unique().sort_values()
    if len(stamps) == 1:
        return np.zeros(len(index), np.int64)
    if frequency is None:
        raise ValueError(f"expected a frequency after the single time stamp {cutoff[0]}: pass freq, such as freq='D'")
    place = time_index.positions(stamps, frequency)
    return place[stamps.get_indexer(index)] - place[stamps.get_indexer(cutoff)]


def to_rows(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """series × column × ... × step to one row per series and step."""
    moved = np.moveaxis(values, -1, 1)
    return moved.reshape(moved.shape[0] * moved.shape[1], -1)


def merge(old: pd.DataFrame, new: pd.DataFrame) -> pd.DataFrame:
    """All rows of both, each series in the order of time; of two for one time the new one, but for what it misses."""
    both = pd.concat([old, new])
    merged = new.combine_first(old)[old.columns] if both.index.duplicated().any() else both
    if not isinstance(merged.index, pd.MultiIndex):
        return merged.sort_index()
    instances, _ = _instances(both.index)
    series = instances.get_indexer(merged.index.droplevel(-1))
    return merged.iloc[np.lexsort((merged.index.get_level_values(-1), series))]


def _instances(index: pd.Index) -> tuple[pd.Index, Places]:
    """Names of the series, and for each row the position of its name."""
    assert isinstance(index, pd.MultiIndex)
    sizes = [len(level) for level in index.levels[:-1]]
    flat = np.ravel_multi_index([np.asarray(codes, np.int64) for codes in index.codes[:-1]], sizes)
    _, first, inverse = np.unique(flat, return_index=True, return_inverse=True)
    order = first.argsort()
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    return index[first[order]].droplevel(-1), rank[inverse]
