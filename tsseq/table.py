"""Forecasts of pandas tables: `tsseq.forecast`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tsseq import memory
from tsseq.datasets import columns, covariate_columns
from tsseq.datasets.panel import Panel, from_pandas
from tsseq.metrics import DECILES

ENTRY = 20  # bytes of memory that an entry of the table was seen to take while it is made


class Model(Protocol):
    """Whatever forecasts a list of series of any lengths: a `Forecaster`, a `Predictor`, an own class."""

    def forecast(self, context: Any, horizon: int, quantile_levels: Sequence[float]) -> Any: ...


def forecast(
    data: pd.DataFrame | pd.Series,
    horizon: int,
    *,
    id_column: str | None = None,
    time_column: str | None = None,
    target_column: str | Sequence[str] | None = None,
    freq: Any = None,
    covariates: str | Sequence[str] = (),
    future: pd.DataFrame | None = None,
    quantile_levels: Sequence[float] = DECILES,
    model: Model | str | Path | None = None,
    device: str | None = None,
) -> pd.DataFrame:
    """Forecast every series of a pandas table, zero-shot, in one batched call.

    `data` is long (one row per series and time), wide (one column per series) or a single series, in time order;
    NaN is missing. Columns that are not named are guessed, see `tsseq.datasets.panel.from_pandas`. `freq` takes
    any pandas alias, old or new; it is needed only where the time stamps do not show it, and with it absent rows
    count as missing values. `model` is a checkpoint's name or path (default: the one that ships with tsseq), or
    an object with a `forecast` method.

    `covariates` names columns that may help, for each series that they do (see `tsseq.covariates`); `future` has the
    same columns of time and names for the steps to come, and those covariates that are known ahead. Without any time
    its rows are the next steps. Covariates that it lacks are forecast themselves. Ignored columns are named in a
    warning.

    Returns one row per series and step: item_id, timestamp, mean, and a column per quantile level, named
    "0.1" and so on. Series keep their order and the type of their names.

    Raises ValueError for an empty table, no numeric column, text among numbers, unsorted or repeated time stamps,
    an unknown or undeterminable frequency, a horizon below one or beyond what pandas' dates or memory hold, and
    series that hold infinite values or nothing.
    """
    names = {"id_column": id_column, "time_column": time_column, "target_column": target_column, "freq": freq}
    beside = None
    if covariates or future is not None:
        panel, beside = read_with_covariates(data, covariates, future, horizon, **names)
    else:
        panel = from_pandas(data, **names)
    return forecast_panel(panel, horizon, quantile_levels, resolve(model, device), beside)


@dataclass(frozen=True)
class Beside:
    """Covariates beside each series and ahead of it: `values` holds (time + horizon) × covariate for each."""

    names: tuple[str, ...]
    values: list[NDArray[np.float64]]


def read_with_covariates(
    data: pd.DataFrame | pd.Series,
    covariates: str | Sequence[str],
    future: pd.DataFrame | None,
    horizon: int,
    **names: Any,
) -> tuple[Panel, Beside]:
    """The panel of `forecast` and the covariates beside it; `names` are those of `from_pandas`."""
    if not covariates:
        raise ValueError("expected the covariates that the table of the future is about, got none: name them")
    check_horizon(horizon)
    panel, values = covariate_columns.read(data, covariates, future, horizon, **names)
    return panel, Beside(tuple(dict.fromkeys(columns.as_list(covariates))), values)


def forecast_panel(
    panel: Panel, horizon: int, quantile_levels: Sequence[float], model: Model, covariates: Beside | None = None
) -> pd.DataFrame:
    """As `forecast`, from a panel that is already read."""
    check_horizon(horizon)
    levels = check_levels(quantile_levels)
    rising = sorted(levels)
    memory.require(len(panel) * horizon * (len(levels) + 3) * ENTRY, f"a table of {len(panel)} × {horizon} forecasts")
    futures = _futures(panel, horizon)
    result = _forecast(panel, horizon, tuple(rising), model, covariates)
    quantiles = np.asarray(result.quantiles, np.float64).reshape(len(panel) * horizon, len(levels))
    table = pd.DataFrame(
        {
            "item_id": panel.ids.repeat(horizon),
            "timestamp": futures[0].append(futures[1:]) if len(futures) > 1 else futures[0],
            "mean": np.asarray(result.mean, np.float64).ravel(),
        }
    )
    for level in levels:
        table[str(level)] = quantiles[:, rising.index(level)]
    return table


def _forecast(panel: Panel, horizon: int, levels: tuple[float, ...], model: Model, beside: Beside | None) -> Any:
    if beside is None:
        return model.forecast(panel.values, horizon, levels)
    from tsseq.inference import Predictor
    from tsseq.with_covariates import Covariates, forecast_series

    length = max(map(len, panel.values))
    if isinstance(model, Predictor):
        length = min(length, model.config.reach(model.forecaster.config.max_context))
    context = np.stack([_last(values, length) for values in panel.values])
    covariates = np.stack([_last(values, length + horizon) for values in beside.values])
    known = Covariates(covariates[:, :length], covariates[:, length:], beside.names)
    return forecast_series(model, context, horizon, levels, known)


def _last(values: NDArray[np.float64], length: int) -> NDArray[np.float64]:
    """The last `length` steps, with NaN before a shorter series."""
    before = max(length - len(values), 0)
    return np.pad(values[-length:], [(before, 0), *[(0, 0)] * (values.ndim - 1)], constant_values=np.nan)


def _futures(panel: Panel, horizon: int) -> list[pd.Index]:
    try:
        return [panel.future(row, horizon) for row in range(len(panel))]
    except (OverflowError, pd.errors.OutOfBoundsDatetime, pd.errors.OutOfBoundsTimedelta) as error:
        raise ValueError(f"expected a horizon whose time stamps pandas can hold, got {horizon} steps") from error


def resolve(model: Model | str | Path | None = None, device: str | None = None, *, fast: bool = False) -> Model:
    """A model to call: a checkpoint by name or path, wrapped in a `Predictor` (one pass if `fast`), or the object
    itself.

    Raises ValueError for a checkpoint that is not one of ours or a device that this machine lacks.
    """
    if model is not None and not isinstance(model, str | Path):
        return model
    from tsseq.checkpoint import load
    from tsseq.device import checked
    from tsseq.inference import FAST, InferenceConfig, Predictor

    forecaster = load("base" if model is None else model)
    forecaster = forecaster if device is None else forecaster.to(checked(device))
    return Predictor(forecaster, FAST if fast else InferenceConfig())


def check_horizon(horizon: int) -> None:
    """ValueError unless `horizon` is a whole number of steps, one or more."""
    if isinstance(horizon, bool) or not isinstance(horizon, int | np.integer) or horizon < 1:
        raise ValueError(f"expected a horizon of one step or more, got {horizon!r}")


def check_levels(quantile_levels: Sequence[float]) -> list[float]:
    """The levels as floats; ValueError unless they are distinct and inside (0, 1)."""
    levels = [float(level) for level in quantile_levels]
    if not levels or not all(0 < level < 1 for level in levels) or len(set(levels)) < len(levels):
        raise ValueError(f"expected distinct quantile levels between 0 and 1, got {levels}")
    return levels
