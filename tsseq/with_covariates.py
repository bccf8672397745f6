"""A forecast that uses covariates where they help: what tables and both adapters share."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tsseq.covariates import Model, constant_columns, forecast_with_covariates
from tsseq.inference import Predictor

Array = NDArray[np.float64]


class Arrays(NamedTuple):
    """quantiles  series × horizon × level;  mean  series × horizon"""

    quantiles: NDArray[Any]
    mean: NDArray[Any]


@dataclass(frozen=True)
class Covariates:
    """past    series × time × covariate, NaN where missing
    future  series × horizon × covariate, NaN where not known
    names   of the covariates, for warnings
    """

    past: Array
    future: Array
    names: Sequence[Any]

    def useful(self) -> Covariates | None:
        """Without those that are constant in every history, which are named in a warning; None if none is left."""
        idle = constant_columns(self.past)
        if idle.any():
            warn_of_ignored([name for name, is_idle in zip(self.names, idle, strict=True) if is_idle], "never change")
        if idle.all():
            return None
        names = [name for name, is_idle in zip(self.names, idle, strict=True) if not is_idle]
        return Covariates(self.past[..., ~idle], self.future[..., ~idle], names)


def warn_of_ignored(names: Sequence[Any], reason: str) -> None:
    """Warn that these covariates are not used."""
    warnings.warn(f"covariates ignored, as they {reason}: {', '.join(map(str, names))}", stacklevel=2)


def forecast_series(
    model: Model, context: Any, horizon: int, levels: Sequence[float], covariates: Covariates | None = None
) -> Arrays:
    """Forecast `context`: a list of series, or with covariates an array of series × time, in one batched call."""
    covariates = None if covariates is None else covariates.useful()
    if covariates is None:
        plain = model.forecast(context, horizon, levels)
        return Arrays(np.asarray(plain.quantiles), np.asarray(plain.mean))
    nonnegative = isinstance(model, Predictor) and model.config.nonnegative
    if isinstance(model, Predictor):
        # The sign of what is left once the covariates are taken out means nothing.
        model = Predictor(model.forecaster, dataclasses.replace(model.config, nonnegative=False))
    result = forecast_with_covariates(
        model, context, covariates.past, covariates.future, levels, nonnegative=nonnegative
    )
    return Arrays(result.quantiles, result.mean)
