"""Covariates for any zero-shot forecaster: a ridge regression fitted to the context alone, around the forecaster.

What the covariates explain linearly is taken out of the history, the forecaster continues the rest, and what they
explain of the future is added back. Whether that helps is tried on the last windows of each history, so a series
that its covariates do not explain keeps its plain forecast.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
SHORTEST = 12


class Model(Protocol):
    """A `Forecaster`, a `Predictor`, or whatever forecasts series × time as they do."""

    def forecast(self, context: Any, horizon: int, quantile_levels: Sequence[float]) -> Any: ...


@dataclass(frozen=True)
class CovariateConfig:
    """A covariate acts with delays of 0 to `lags` steps. The ridge penalty, relative to the features' variance, is
    chosen among `penalties` by generalised cross-validation (Golub, Heath and Wahba 1979).

    The regression is of levels, or of changes from step to step, or left out: whichever forecasts the last `windows`
    windows of the history best, a correction by a share of `margin` better than none at least.
    """

    lags: int = 2
    penalties: tuple[float, ...] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
    windows: int = 3
    margin: float = 0.02

    def __post_init__(self) -> None:
        if self.lags < 0 or self.windows < 1 or not self.penalties or min(self.penalties) <= 0:
            raise ValueError(
                "expected lags of at least 0, windows of at least 1 and positive penalties, "
                f"got {self.lags}, {self.windows} and {self.penalties}"
            )


@dataclass(frozen=True)
class CovariateForecast:
    """quantiles (series × horizon × level) and mean (series × horizon), as in `tsseq.Forecast`, and for each series
    which regression was used: "none", "levels" or "changes"."""

    quantiles: Array
    mean: Array
    levels: tuple[float, ...]
    chosen: tuple[str, ...]


def forecast_with_covariates(
    model: Model,
    context: Array,
    past: Array,
    future: Array,
    levels: Sequence[float],
    *,
    nonnegative: bool = True,
    config: CovariateConfig | None = None,
) -> CovariateForecast:
    """Forecast series whose covariates are known.

    context   series × time, NaN where missing and before the start of a shorter series
    past      series × time × covariate, beside the context
    future    series × horizon × covariate; NaN where not known, as for covariates of the past: these are forecast
              by the model themselves

    `nonnegative` keeps forecasts of a series that never is below zero from falling below it. Raises ValueError for
    shapes that do not match and for infinite covariates.
    """
    config = config or CovariateConfig()
    _check(context, past, future)
    horizon = future.shape[1]
    candidates = _Candidates(model, config)
    chosen = candidates.choose(context, past, np.asarray(np.isnan(future)))
    shifts = candidates.shifts(context, past, future)[chosen, np.arange(len(context))]
    result = model.forecast(context - shifts[:, : context.shape[1]], horizon, tuple(levels))
    ahead = shifts[:, context.shape[1] :]
    quantiles, mean = np.asarray(result.quantiles) + ahead[..., None], np.asarray(result.mean) + ahead
    if nonnegative:
        never_negative = np.asarray(~(context < 0).any(1))
        quantiles = np.where(never_negative[:, None, None], quantiles.clip(min=0), quantiles)
        mean = np.where(never_negative[:, None], mean.clip(min=0), mean)
    return CovariateForecast(quantiles, mean, tuple(levels), tuple(KINDS[k] for k in chosen))


def constant_columns(past: Array) -> NDArray[np.bool_]:
    """Covariates (of series × time × covariate) that never change in any history and so cannot explain anything."""
    seen = np.where(np.isnan(past), -np.inf, past).max(1) > np.where(np.isnan(past), np.inf, past).min(1)
    return np.asarray(~seen.any(0))


KINDS = ("none", "levels", "changes")


class _Candidates:
    """The three ways to use covariates, tried on the same model."""

    def __init__(self, model: Model, config: CovariateConfig) -> None:
        self.model, self.config = model, config

    def choose(self, context: Array, past: Array, unknown: NDArray[np.bool_]) -> NDArray[np.int64]:
        """For each series the position in KINDS of what forecasts its last windows best.

        What is `unknown` of the future (series × horizon × covariate) is not looked at here either.
        """
        length = context.shape[1]
        horizon = max(1, min(unknown.shape[1], length // 5))
        count = min(self.config.windows, length // (2 * horizon) - 1)
        if length < SHORTEST or count < 1:
            return np.zeros(len(context), np.int64)
        losses = np.zeros((len(KINDS), len(context)))
        for window in range(count, 0, -1):
            cut, end = length - window * horizon, length - (window - 1) * horizon
            ahead = np.where(unknown[:, :horizon], np.nan, past[:, cut:end])
            shifts = self.shifts(context[:, :cut], past[:, :cut], ahead)
            rest = (context[:, :cut] - shifts[..., :cut]).reshape(-1, cut)
            forecast = np.asarray(self.model.forecast(rest, horizon, (0.5,)).quantiles).reshape(*shifts.shape[:2], -1)
            error = np.abs(context[:, cut:end] - forecast - shifts[..., cut:])
            losses += np.where(np.isnan(error), 0.0, error).sum(-1)
        losses[1:] *= 1 + self.config.margin
        return np.asarray(losses.argmin(0))

    def shifts(self, context: Array, past: Array, future: Array) -> Array:
        """What the covariates explain of history and future: KINDS × series × (time + horizon)."""
        features = _lagged(self._complete(past, future), past.shape[1], self.config.lags)
        history = features[:, : past.shape[1]]
        observed = ~np.isnan(context)
        levels = ridge(history, context, observed, self.config.penalties)
        steps = observed[:, 1:] & observed[:, :-1]
        changes = ridge(np.diff(history, axis=1), np.diff(context, axis=1), steps, self.config.penalties)
        weights = np.stack([np.zeros_like(levels), levels, changes])
        return np.asarray(np.einsum("stf,ksf->kst", features, weights))

    def _complete(self, past: Array, future: Array) -> Array:
        """Covariates without gaps: the past takes the last value seen, and the model forecasts the future."""
        filled = _fill(past)
        series, covariate = np.asarray(np.isnan(future).any(1)).nonzero()
        if len(series):
            forecast = self.model.forecast(filled[series, :, covariate], future.shape[1], (0.5,))
            guess = future.copy()
            guess[series, :, covariate] = np.asarray(forecast.quantiles)[..., 0]
            future = np.where(np.isnan(future), guess, future)
        return np.concatenate([filled, future], axis=1)


def ridge(features: Array, target: Array, observed: NDArray[np.bool_], penalties: Sequence[float]) -> Array:
    """Coefficients of a ridge regression with an intercept for each series: series × feature.

    `features` is series × time × feature and `target` series × time; only `observed` steps count. Features are
    brought to unit variance first, and constant ones get zero. The penalty of each series is the one with the lowest
    generalised cross-validation score.
    """
    weight = observed / np.maximum(observed.sum(1, keepdims=True), 1)
    target = np.where(observed, target, 0.0)
    centred = features - np.einsum("st,stf->sf", weight, features)[:, None]
    y = target - (weight * target).sum(1, keepdims=True)
    deviation = np.sqrt(np.einsum("st,stf->sf", weight, centred**2))
    magnitude = np.abs(features).max(1, initial=0.0)
    unit = np.where(deviation > 1e-9 * magnitude, deviation, np.inf)
    centred = centred / unit[:, None]
    values, vectors = np.linalg.eigh(np.einsum("st,stf,stg->sfg", weight, centred, centred, optimize=True))
    values = values.clip(min=0)
    loading = np.einsum("sfg,st,stf->sg", vectors, weight * y, centred, optimize=True)
    count = observed.sum(1)
    best, score = np.zeros_like(loading), np.full(len(features), np.inf)
    for penalty in penalties:
        solution = loading / (values + penalty)
        residual = (weight * y**2).sum(1) - (solution * (2 * loading - values * solution)).sum(1)
        freedom = 1 - ((values / (values + penalty)).sum(1) + 1) / np.maximum(count, 1)
        this = np.where(freedom > 0, residual / np.maximum(freedom, 1e-12) ** 2, np.inf)
        best = np.where((this < score)[:, None], solution, best)
        score = np.minimum(this, score)
    coefficients: Array = np.einsum("sfg,sg->sf", vectors, best) / unit
    return coefficients


def _lagged(covariates: Array, length: int, lags: int) -> Array:
    """Each covariate and its last values, relative to its mean in the history; before the first there is the mean."""
    centred = covariates - covariates[:, :length].mean(1, keepdims=True)
    delayed = [np.pad(centred[:, : centred.shape[1] - lag], ((0, 0), (lag, 0), (0, 0))) for lag in range(lags + 1)]
    return np.concatenate(delayed, axis=-1)


def _fill(values: Array) -> Array:
    """Each NaN takes the last value seen before it, leading ones the first, zero where there is none."""
    observed = ~np.isnan(values)
    time = np.arange(values.shape[1])[:, None]
    first = observed.argmax(1)[:, None]
    last = np.maximum.accumulate(np.where(observed, time, first), axis=1)
    return np.nan_to_num(np.take_along_axis(values, last, axis=1), nan=0.0)


def _check(context: Array, past: Array, future: Array) -> None:
    series, length = context.shape
    if past.shape[:2] != (series, length) or future.shape[::2] != (series, past.shape[2]) or not future.shape[1]:
        raise ValueError(
            f"expected covariates of shape ({series}, {length}, count) and ({series}, horizon, count) for a context of "
            f"shape {context.shape}, got {past.shape} and {future.shape}"
        )
    if np.isinf(past).any() or np.isinf(future).any():
        raise ValueError("expected finite covariates or NaN for missing, got an infinite value")
