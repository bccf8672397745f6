"""Which columns of a table are time, series and values; checks that they hold what they should."""

import warnings
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tsseq.datasets import time_stamps
from tsseq.datasets.time_stamps import is_time

ID_NAMES = ("item_id", "unique_id", "series_id", "series", "id")
TIME_NAMES = (
    "timestamp",
    "datetime",
    "date",
    "time",
    "ds",
    "period",
    "year",
    "quarter",
    "month",
    "week",
    "day",
    "hour",
    "unnamed: 0",
)
TARGET_NAMES = ("target", "y", "value")
LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Table:
    """Numeric columns with their time stamps; `codes` (row -> series) where the table is long.

    `rows` numbers the rows for messages, from 0.
    """

    ids: pd.Index
    numbers: list[NDArray[np.float64]]
    stamps: pd.Index
    codes: NDArray[np.int64] | None
    rows: NDArray[np.int64]

    @property
    def many(self) -> bool:
        """Whether messages should say which series they are about."""
        return self.codes is not None

    def series(self) -> Iterator[tuple[Hashable, NDArray[np.float64], pd.Index, NDArray[np.int64]]]:
        """Name, values, time stamps and row numbers of each series."""
        if self.codes is None:
            for name, numbers in zip(self.ids, self.numbers, strict=True):
                yield name, numbers, self.stamps, self.rows
            return
        order = np.argsort(self.codes, kind="stable")
        stops = np.cumsum(np.bincount(self.codes, minlength=len(self.ids)))
        for name, own in zip(self.ids, np.split(order, stops[:-1]), strict=True):
            yield name, self.numbers[0][own], self.stamps[own], self.rows[own]


@dataclass(frozen=True)
class Roles:
    """Which column is what; a `time_column` of None stands for the index, an `id_column` of None for one per series.

    `stamps` is the time of each row: a DatetimeIndex, a PeriodIndex or integers.
    """

    id_column: Any
    time_column: Any
    stamps: pd.Index
    targets: list[Any]
    unused: list[Any]


def read(
    data: pd.DataFrame | pd.Series,
    id_column: str | None,
    time_column: str | None,
    target_column: str | Sequence[str] | None,
) -> Table:
    """Find and check the columns; see `tsseq.datasets.panel.from_pandas` for what is looked for."""
    frame = as_frame(data)
    found = find(frame, id_column, time_column, target_column)
    if found.unused:
        warnings.warn(f"columns not used: {listed(found.unused)}", stacklevel=4)
    return take(frame, found)


def take(frame: pd.DataFrame, found: Roles) -> Table:
    """The columns that were found."""
    id_column, targets = found.id_column, found.targets
    rows = np.arange(len(frame))
    numbers = [to_numbers(frame[name], name) for name in targets]
    if id_column is None:
        return Table(pd.Index(targets), numbers, found.stamps, None, rows)
    if len(targets) != 1:
        raise ValueError(f"expected one target column beside the series column {id_column!r}, got {listed(targets)}")
    codes, ids = pd.factorize(frame[id_column])
    if (codes < 0).any():
        raise ValueError(f"expected a name for each row in column {id_column!r}, got none in row {codes.argmin() + 1}")
    return Table(pd.Index(ids), numbers, found.stamps, np.asarray(codes, np.int64), rows)


def find(
    frame: pd.DataFrame, id_column: str | None, time_column: str | None, target_column: str | Sequence[str] | None
) -> Roles:
    """The named columns, and by their names and contents those that are not named."""
    require(frame, [name for name in (id_column, time_column, *as_list(target_column)) if name is not None])
    time_column = time_column or find_time(frame, [id_column, *as_list(target_column)])
    stamps = stamps_of(frame, time_column)
    rest = [name for name in frame.columns if name not in (time_column, id_column)]
    if id_column is None:
        has_time = time_column is not None or is_time(frame.index)
        id_column = _find_id(frame, rest, stamps, has_time)
        rest = [name for name in rest if name != id_column]
    targets = as_list(target_column) or _find_targets(frame, rest, id_column)
    return Roles(id_column, time_column, stamps, targets, [name for name in rest if name not in targets])


def require(frame: pd.DataFrame, names: Sequence[Any]) -> None:
    """ValueError unless all `names` are columns."""
    for name in names:
        if name not in frame.columns:
            raise ValueError(f"expected a column {name!r}, got {listed(frame.columns)}")


def stamps_of(frame: pd.DataFrame, time_column: Any) -> pd.Index:
    """The time of each row, from a column or, for None, the index."""
    if time_column is not None:
        return time_stamps.read(frame[time_column], f"column {time_column!r}")
    try:
        return time_stamps.read(frame.index, "the index")
    except ValueError as error:
        raise ValueError(f"{error} (after reset_index(drop=True) rows count 0, 1, 2)") from error


def checked(numbers: NDArray[np.float64], name: Hashable, rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """The same values; ValueError if one is infinite (or beyond float32) or none is observed."""
    require_finite(numbers, f"series {name!r}", rows)
    if np.isnan(numbers).all():
        raise ValueError(f"series {name!r}: expected at least one observed value, got only missing ones")
    return numbers


def require_finite(numbers: NDArray[np.float64], what: str, rows: NDArray[np.int64]) -> None:
    """ValueError if a value is infinite or beyond float32."""
    beyond = np.abs(numbers) > LARGEST
    if beyond.any():
        at = int(beyond.argmax())
        raise ValueError(f"{what}: expected finite values, got {numbers[at]:g} in row {rows[at] + 1}")


def as_frame(data: pd.DataFrame | pd.Series) -> pd.DataFrame:
    """A table with one row index, which is of dates, periods or integers where its entries can be read so."""
    if isinstance(data, pd.Series):
        data = data.to_frame("0" if data.name is None else data.name)
    if not isinstance(data, pd.DataFrame):
        raise ValueError(f"expected a pandas DataFrame or Series, got {type(data).__name__}")
    if data.empty:
        raise ValueError("expected at least one row and one column, got an empty table")
    if not data.columns.is_unique:
        twice = data.columns[data.columns.duplicated()][0]
        raise ValueError(f"expected distinct column names, got {twice!r} twice")
    if isinstance(data.index, pd.MultiIndex):
        names = [("item_id", "timestamp")[min(i, 1)] if n is None else n for i, n in enumerate(data.index.names)]
        return data.reset_index(names=names)
    try:
        return data.set_axis(time_stamps.read(data.index, "the index"))
    except ValueError:  # labels, which say no time; a column may
        return data


def find_time(frame: pd.DataFrame, taken: Sequence[Any] = ()) -> Any:
    """The column that looks like time, if it is not `taken`; None where the index is the time, or nothing is."""
    if is_time(frame.index):
        return None
    open_columns = [name for name in frame.columns if name not in taken]
    dated = [name for name in open_columns if is_time(frame[name])]
    called = [name for name in open_columns if str(name).lower() in TIME_NAMES and not _is_fraction(frame[name])]
    called.sort(key=lambda name: TIME_NAMES.index(str(name).lower()))
    readable = [name for name in open_columns[:1] if _is_text(frame[name]) and time_stamps.reads_as_time(frame[name])]
    return next(iter([*dated, *called, *readable]), None)


def _find_id(frame: pd.DataFrame, rest: list[Any], stamps: pd.Index, has_time: bool) -> Any:
    called = [name for name in rest if str(name).lower() in ID_NAMES]
    if called:
        return min(called, key=lambda name: ID_NAMES.index(str(name).lower()))
    labels = [name for name in rest if is_label(frame[name])]
    if labels and (not has_time or stamps.has_duplicates):
        if len(labels) == 1 and has_time:
            return labels[0]
        if len(labels) < len(rest):
            raise ValueError(f"expected to be told which column names the series: pass id_column ({listed(labels)})")
    return None


def _find_targets(frame: pd.DataFrame, rest: list[Any], id_column: Any) -> list[Any]:
    numeric = [name for name in rest if _is_number(frame[name]) or _holds_numbers(frame[name])]
    if not numeric:
        raise ValueError(f"expected a numeric column, got {listed(frame.columns)}")
    called = [name for name in numeric if str(name).lower() in TARGET_NAMES]
    return called[:1] if id_column is not None and called else numeric


def to_numbers(column: pd.Series, name: Hashable) -> NDArray[np.float64]:
    """NaN where missing; ValueError for text that is not a number."""
    if _is_number(column):
        return np.asarray(column.to_numpy(dtype=np.float64, na_value=np.nan))
    numbers = pd.to_numeric(column, errors="coerce")
    text = column.notna() & numbers.isna()
    if text.any():
        row = int(np.argmax(text.to_numpy()))
        raise ValueError(f"expected numbers in column {name!r}, got {column.iloc[row]!r} in row {row + 1}")
    return np.asarray(numbers.to_numpy(dtype=np.float64, na_value=np.nan))


def _is_number(column: pd.Series) -> bool:
    dtype = column.dtype
    return pd.api.types.is_numeric_dtype(dtype) and not pd.api.types.is_complex_dtype(dtype)


def _is_fraction(column: pd.Series) -> bool:
    return bool(_is_number(column) and (column != column.round()).any())


def _is_text(column: pd.Series) -> bool:
    return not _is_number(column) and not is_time(column)


def is_label(column: pd.Series) -> bool:
    """Whether a column is text that is not of numbers."""
    return _is_text(column) and not _holds_numbers(column)


def _holds_numbers(column: pd.Series) -> bool:
    """Whether a text column is one of numbers, with at most a few words astray among them."""
    if not _is_text(column):
        return False
    written = column.dropna().astype(object)
    return bool(len(written) and pd.to_numeric(written, errors="coerce").notna().mean() >= 0.5)


def as_list(names: str | Sequence[str] | None) -> list[Any]:
    """Names that are given as a list, as one or not at all."""
    return [] if names is None else [names] if isinstance(names, str) else list(names)


def listed(names: Any) -> str:
    return ", ".join(repr(name) if isinstance(name, str) else str(name) for name in names)
