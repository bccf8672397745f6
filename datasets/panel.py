"""Many univariate series on regular grids: what pandas tables, files and lists of series become."""

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tsseq import memory
from tsseq.datasets import columns, time_index
from tsseq.datasets.series import Series
from tsseq.frequency import Frequency, parse

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Grid:
    """Regular places in time: time stamps or periods with their frequency, or integers with none."""

    index: pd.Index
    frequency: Frequency | None

    def future(self, horizon: int) -> pd.Index:
        """The `horizon` places after the last."""
        if isinstance(self.index, pd.PeriodIndex):
            return pd.period_range(self.index[-1] + 1, periods=horizon, freq=self.index.freq)
        if isinstance(self.index, pd.DatetimeIndex):
            assert self.frequency is not None
            return time_index.future(self.index, self.frequency, horizon)
        step = int(self.index[1] - self.index[0]) if len(self.index) > 1 else 1
        return pd.Index(int(self.index[-1]) + step * np.arange(1, horizon + 1))


@dataclass(frozen=True)
class Panel:
    """Series in order of appearance. `values[i]` (float64, NaN where missing) lie on `grids[i]`.

    Every series has at least one observed value, and no infinite ones.
    """

    ids: pd.Index
    values: list[Values]
    grids: list[Grid]
    _futures: dict[tuple[int, int], pd.Index] = field(default_factory=dict, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.values)

    def future(self, row: int, horizon: int) -> pd.Index:
        """The `horizon` places after series `row`; series that share a grid share the answer."""
        key = (id(self.grids[row]), horizon)
        if key not in self._futures:
            self._futures[key] = self.grids[row].future(horizon)
        return self._futures[key]


def from_pandas(
    data: pd.DataFrame | pd.Series,
    *,
    id_column: str | None = None,
    time_column: str | None = None,
    target_column: str | Sequence[str] | None = None,
    freq: Any = None,
) -> Panel:
    """Read a long table (one row per series and time), a wide one (one column per series), or one series.

    What is not named is looked for: time in an index of dates or periods, a column of dates or one called
    timestamp, date, ds, ..., or the whole numbers of the index; series in a column called item_id, unique_id, ...;
    values in every numeric column of a wide table, or the only one (or target, y, value) of a long one.

    Dates may be text, and whole numbers if all are YYYYMMDD or all YYYYMM; `tsseq.datasets.time_stamps.read` says
    how they are read.

    `freq` is needed where the time stamps do not show it, and with it absent rows become missing values.
    Raises ValueError, in one line, for anything that is not a panel of increasing, finite series.
    """
    return from_table(columns.read(data, id_column, time_column, target_column), freq)


def from_table(table: columns.Table, freq: Any = None) -> Panel:
    """As `from_pandas`, from columns that are already found."""
    series = (
        (name, columns.checked(numbers, name, rows), stamps, rows) for name, numbers, stamps, rows in table.series()
    )
    return Panel(table.ids, *on_grids(series, freq, table.many))


def on_grids(
    series: Iterable[tuple[Hashable, Values, pd.Index, NDArray[np.int64]]], freq: Any = None, many: bool = False
) -> tuple[list[Values], list[Grid]]:
    """Values (time, or time × column) on regular grids, NaN in absent rows, and the grids, shared where equal.

    `series` are those of `columns.Table.series`; messages name them if there are `many`.
    """
    wanted = None if freq is None else parse(freq)
    grids: dict[bytes, tuple[Grid, NDArray[np.int64]]] = {}
    values, places = [], []
    for name, numbers, stamps, rows in series:
        key = np.asarray(_numbers(stamps)).tobytes()
        if key not in grids:
            grids[key] = _grid(stamps, rows, wanted, f"series {name!r}: " if many else "")
        grid, position = grids[key]
        on_grid = numbers
        if len(grid.index) != len(numbers):
            memory.require(8 * len(grid.index) * numbers[0].size, f"series {name!r} with its absent rows")
            on_grid = np.full((len(grid.index), *numbers.shape[1:]), np.nan)
            on_grid[position] = numbers
        values.append(on_grid)
        places.append(grid)
    return values, places


def from_series(series: Sequence[Series], freq: Any = None) -> Panel:
    """Series that name their own start and frequency; `freq` stands in where they do not."""
    if not series:
        raise ValueError("expected at least one series, got an empty table")
    ids, values, grids = [], [], []
    known: dict[tuple[str | None, Any, int], Grid] = {}
    for one in series:
        channels = one.channels()
        key = (one.start, one.freq or freq, one.target.shape[-1])
        if key not in known:
            known[key] = _grid_from(*key)
        for number, channel in enumerate(channels):
            ids.append(one.item_id if one.target.ndim == 1 else f"{one.item_id}_dim{number}")
            values.append(columns.checked(channel.astype(np.float64), ids[-1], np.arange(len(channel))))
        grids += [known[key]] * len(channels)
    return Panel(pd.Index(ids), values, grids)


def _grid_from(start: str | None, alias: Any, length: int) -> Grid:
    if not start or not alias:
        return Grid(pd.RangeIndex(length), None)
    frequency = parse(alias)
    first = pd.DatetimeIndex([pd.Timestamp(start)])
    return Grid(pd.Index(first.append(time_index.future(first, frequency, length - 1))), frequency)


def _grid(
    stamps: pd.Index, rows: NDArray[np.int64], wanted: Frequency | None, with_name: str
) -> tuple[Grid, NDArray[np.int64]]:
    """The regular grid under increasing stamps, and the place of each stamp on it."""
    numbers = _numbers(stamps)
    steps = np.diff(numbers)
    if (steps <= 0).any():
        at = int(np.argmax(steps <= 0)) + 1
        fault = "twice" if steps[at - 1] == 0 else f"after {stamps[at - 1]}"
        raise ValueError(f"{with_name}expected increasing time stamps, got {stamps[at]} {fault} in row {rows[at] + 1}")
    try:
        if isinstance(stamps, pd.DatetimeIndex):
            return _grid_of_stamps(stamps, wanted)
        if isinstance(stamps, pd.PeriodIndex):
            return _grid_of_periods(stamps, wanted)
        if wanted is not None:
            raise ValueError(f"expected time stamps to go with freq {wanted.offset_alias!r}, got integers")
        if len(steps) and (steps != steps[0]).any():
            at = int(np.argmax(steps != steps[0])) + 1
            raise ValueError(f"expected evenly spaced integers, got {stamps[at]} after {stamps[at - 1]}")
    except ValueError as error:
        raise ValueError(f"{with_name}{error}") from error
    return Grid(stamps, None), np.arange(len(stamps))


def _grid_of_stamps(stamps: pd.DatetimeIndex, wanted: Frequency | None) -> tuple[Grid, NDArray[np.int64]]:
    frequency = wanted or time_index.carried(stamps) or time_index.infer(stamps)
    place = time_index.positions(stamps, frequency)
    if place[-1] + 1 > len(stamps):
        after = time_index.future(stamps, frequency, int(place[-1]), origin=0)
        stamps = pd.DatetimeIndex(stamps[:1].append(after))
    return Grid(stamps, frequency), place


def _grid_of_periods(stamps: pd.PeriodIndex, wanted: Frequency | None) -> tuple[Grid, NDArray[np.int64]]:
    frequency = parse(stamps.freq)
    if wanted is not None and wanted.period_alias != frequency.period_alias:
        raise ValueError(f"expected freq {frequency.period_alias!r} as in the periods, got {wanted.period_alias!r}")
    steps = np.diff(_numbers(stamps))
    if (steps != frequency.multiple).any() and wanted is None:
        at = int(np.argmax(steps != frequency.multiple)) + 1
        raise ValueError(f"expected consecutive periods or a freq, got {stamps[at]} after {stamps[at - 1]}")
    place = np.concatenate([[0], np.cumsum(steps)]) // frequency.multiple
    if place[-1] >= time_index.MAX_GRID:
        raise ValueError(
            f"expected at most {time_index.MAX_GRID} steps of {frequency.period_alias!r}, got {place[-1] + 1}"
        )
    return Grid(pd.period_range(stamps[0], stamps[-1], freq=stamps.freq), frequency), place


def _numbers(stamps: pd.Index) -> NDArray[np.int64]:
    return np.asarray(getattr(stamps, "asi8", stamps), np.int64)
