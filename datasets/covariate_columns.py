"""Covariates of a pandas table: columns beside the series, and what is known of them ahead."""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tsseq.datasets import columns
from tsseq.datasets.panel import Panel, from_pandas

Values = NDArray[np.float64]


def read(
    data: pd.DataFrame | pd.Series,
    covariates: Sequence[str],
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
    NaN. Raises ValueError as `from_pandas` does, and where the two tables do not fit together.
    """
    frame, ahead = columns.as_frame(data), None if future is None else columns.as_frame(future)
    names = list(dict.fromkeys(covariates))
    columns.require(frame, names)
    series = frame.drop(columns=names)
    roles = columns.find(series, id_column, time_column, target_column)
    given = {"id_column": roles.id_column, "time_column": roles.time_column, "freq": freq}
    panel = from_pandas(series, target_column=roles.targets, **given)
    keys = [name for name in (roles.id_column, roles.time_column) if name is not None]
    if ahead is not None:
        ahead = _in_time(frame, ahead, roles, names, keys)
    each = [_beside(panel, frame, ahead, name, keys, horizon, given) for name in names]
    return panel, [np.stack(rows, axis=-1) for rows in zip(*each, strict=True)]


def _in_time(
    frame: pd.DataFrame, ahead: pd.DataFrame, roles: columns.Roles, names: list[str], keys: list[Any]
) -> pd.DataFrame:
    """`ahead`, checked, with row numbers that continue those of `frame` where nothing else says when a row is."""
    lacking = [name for name in keys if name not in ahead.columns]
    if lacking or not set(names) & set(ahead.columns):
        wanted = f"columns {columns.listed(keys)} and" if keys else "one or more of"
        raise ValueError(
            f"expected {wanted} {columns.listed(names)} in the table of the future, got {columns.listed(ahead.columns)}"
        )
    unused = [name for name in ahead.columns if name not in (*keys, *names)]
    if unused:
        warnings.warn(f"columns of the future not used: {columns.listed(unused)}", stacklevel=4)
    if roles.id_column is not None:
        strange = ~ahead[roles.id_column].isin(frame[roles.id_column])
        if strange.any():
            name = ahead.loc[strange, roles.id_column].iloc[0]
            raise ValueError(f"expected only series of the data in the table of the future, got {name!r}")
    if roles.time_column is None and not columns.is_time(frame.index):
        if roles.id_column is not None:
            raise ValueError("expected a column of time, which says when the rows of the table of the future are")
        ahead = ahead.set_axis(frame.index[-1] + 1 + np.arange(len(ahead)))
    return ahead


def _beside(
    panel: Panel,
    frame: pd.DataFrame,
    ahead: pd.DataFrame | None,
    name: str,
    keys: list[Any],
    horizon: int,
    given: dict[str, Any],
) -> list[Values]:
    """One covariate on the grid of each series and `horizon` steps on."""
    table = frame[[*keys, name]]
    if ahead is not None and name in ahead.columns:
        table = pd.concat([table, ahead[[*keys, name]]])
    try:
        read = from_pandas(table, target_column=name, **given).values
    except ValueError as error:
        raise ValueError(f"covariate {name!r}: {error}") from error
    if given["id_column"] is None:
        read = read * len(panel)
    return [_cut(row, len(values) + horizon) for row, values in zip(read, panel.values, strict=True)]


def _cut(row: Values, length: int) -> Values:
    """The first `length` values, with NaN after a shorter row."""
    return np.pad(row[:length], (0, max(length - len(row), 0)), constant_values=np.nan)
