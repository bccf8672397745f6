"""Covariates of a pandas table: columns beside the series, and what is known of them ahead."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tsseq.datasets import columns
from tsseq.datasets.columns import Roles, Table
from tsseq.datasets.panel import Panel, from_table, on_grids
from tsseq.datasets.time_stamps import is_time

Values = NDArray[np.float64]


def read(
    data: pd.DataFrame | pd.Series,
    covariates: str | Sequence[str],
    future: pd.DataFrame | None,
    horizon: int,
    *,
    id_column: str | None = None,
    time_column: str | None = None,
    target_column: str | Sequence[str] | None = None,
    freq: Any = None,
) -> tuple[Panel, list[Values]]:
    """The panel without its `covariates`, and these beside each series, (time + horizon) × covariate.

    `data` and the other arguments are as in `from_pandas`; the covariates of a wide table belong to all of its series.
    `future` has the same columns of time and names, and those covariates that are known ahead. What it does not say is
    NaN. Its rows are the next steps where it says no time: no column of it, and an index that counts from 0. Raises
    ValueError as `from_pandas` does, and where the two tables do not fit together.
    """
    frame, names = columns.as_frame(data), list(dict.fromkeys(columns.as_list(covariates)))
    columns.require(frame, names)
    series = frame.drop(columns=names)
    roles = columns.find(series, id_column, time_column, target_column)
    if roles.unused:
        warnings.warn(f"columns not used: {columns.listed(roles.unused)}", stacklevel=4)
    history = columns.take(series, roles)
    panel = from_table(history, freq)
    ids = history.ids if history.many else history.ids[:1]
    beside = Table(ids, [_matrix(frame, names)], history.stamps, history.codes, history.rows)
    try:
        if future is not None:
            beside = _continued(beside, _ahead(future, frame, roles, panel, names))
        rows, _ = on_grids(beside.series(), freq, beside.many)
    except ValueError as error:
        if future is None:
            raise
        raise ValueError(f"table of the future: {error}") from error
    rows = rows if history.many else rows * len(panel)
    return panel, [_cut(row, len(values) + horizon) for row, values in zip(rows, panel.values, strict=True)]


def _matrix(frame: pd.DataFrame, names: list[str]) -> Values:
    """row × covariate, NaN where missing and in columns that the table lacks."""
    matrix = np.full((len(frame), len(names)), np.nan)
    for place, name in enumerate(names):
        if name in frame.columns:
            try:
                matrix[:, place] = columns.to_numbers(frame[name], name)
            except ValueError as error:
                raise ValueError(f"covariate {name!r}: {error}") from error
            columns.require_finite(matrix[:, place], f"covariate {name!r}", np.arange(len(frame)))
    return matrix


def _ahead(future: pd.DataFrame, frame: pd.DataFrame, roles: Roles, panel: Panel, names: list[str]) -> Table:
    """The table of the future, checked, with the names and the kind of time that the data have."""
    ahead = columns.as_frame(future)
    time_column = _time_column(ahead, frame, roles, names)
    keys = [name for name in (roles.id_column, time_column) if name is not None]
    if not set(keys) <= set(ahead.columns) or not set(names) & set(ahead.columns):
        wanted = f"columns {columns.listed(keys)} and" if keys else "one or more of"
        raise ValueError(f"expected {wanted} {columns.listed(names)}, got {columns.listed(ahead.columns)}")
    unused = [name for name in ahead.columns if name not in (*keys, *names)]
    if unused:
        warnings.warn(f"columns of the future not used: {columns.listed(unused)}", stacklevel=5)
    codes = None
    if roles.id_column is not None:
        codes = np.asarray(panel.ids.get_indexer(ahead[roles.id_column]), np.int64)
        if (codes < 0).any():
            name = ahead[roles.id_column].iloc[codes.argmin()]
            raise ValueError(f"expected only series of the data, got {name!r} in row {codes.argmin() + 1}")
    stamps = _stamps(ahead, time_column, roles, panel)
    return Table(panel.ids, [_matrix(ahead, names)], stamps, codes, np.arange(len(ahead)))


def _time_column(ahead: pd.DataFrame, frame: pd.DataFrame, roles: Roles, names: list[str]) -> Any:
    """The column of time; None for the index. What is the index of the data may be a column of the future."""
    if roles.time_column is not None or is_time(ahead.index):
        return roles.time_column
    index = frame.index.name
    if index is not None and index in ahead.columns and index not in names:
        return index
    return columns.find_time(ahead, [roles.id_column, *names]) if is_time(roles.stamps) else None


def _stamps(ahead: pd.DataFrame, time_column: Any, roles: Roles, panel: Panel) -> pd.Index:
    if time_column is None and not is_time(ahead.index):
        if roles.id_column is not None:
            raise ValueError("expected a column of time, which says when its rows are")
        if ahead.index.equals(pd.RangeIndex(len(ahead))):
            return panel.grids[0].future(len(ahead))
    stamps = _as_in(roles.stamps, columns.stamps_of(ahead, time_column))
    if _kind(stamps) != _kind(roles.stamps):
        where = "the index" if time_column is None else f"column {time_column!r}"
        raise ValueError(f"expected {_kind(roles.stamps)} as in the data, got {_kind(stamps)} in {where}")
    return stamps


def _as_in(history: pd.Index, stamps: pd.Index) -> pd.Index:
    """The stamps in the history's time zone or as its kind of stamps, where they are the same times."""
    if isinstance(history, pd.DatetimeIndex):
        if isinstance(stamps, pd.DatetimeIndex) and None not in (history.tz, stamps.tz):
            return stamps.tz_convert(history.tz)
        if isinstance(stamps, pd.PeriodIndex):
            return next((at(stamps) for at in (_start, _last_day) if _are(history, at, stamps.freqstr)), stamps)
    if isinstance(history, pd.PeriodIndex) and isinstance(stamps, pd.DatetimeIndex):
        if any(_are(stamps, at, history.freqstr) for at in (_start, _last_day)):
            return stamps.to_period(history.freqstr)
    return stamps


def _are(stamps: pd.DatetimeIndex, at: Callable[[pd.PeriodIndex], pd.DatetimeIndex], freq: str) -> bool:
    """Whether all the stamps are at this moment of their periods."""
    return stamps.tz is None and bool((at(stamps.to_period(freq)) == stamps).all())


def _start(periods: pd.PeriodIndex) -> pd.DatetimeIndex:
    return periods.start_time


def _last_day(periods: pd.PeriodIndex) -> pd.DatetimeIndex:
    return periods.end_time.normalize()


def _kind(stamps: pd.Index) -> str:
    if isinstance(stamps, pd.PeriodIndex):
        return f"periods of {stamps.freqstr!r}"
    if isinstance(stamps, pd.DatetimeIndex):
        return "time stamps with a time zone" if stamps.tz is not None else "time stamps without a time zone"
    return "integers"


def _continued(beside: Table, ahead: Table) -> Table:
    """The rows of both; messages count those of each from its first."""
    codes = None if beside.codes is None or ahead.codes is None else np.concatenate([beside.codes, ahead.codes])
    matrix = np.concatenate([beside.numbers[0], ahead.numbers[0]])
    stamps = beside.stamps.append(ahead.stamps)
    return Table(beside.ids, [matrix], stamps, codes, np.concatenate([beside.rows, ahead.rows]))


def _cut(rows: Values, length: int) -> Values:
    """The first `length` rows, with NaN after fewer."""
    return np.pad(rows[:length], [(0, max(length - len(rows), 0)), (0, 0)], constant_values=np.nan)
