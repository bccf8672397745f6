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
        lengths = context.shape[1] - _starts(context)
        horizons = np.minimum(unknown.shape[1], lengths // 5).clip(min=1)
        counts = np.minimum(self.config.windows, lengths // (2 * horizons) - 1)
        counts[lengths < SHORTEST] = 0
        chosen = np.zeros(len(context), np.int64)
        for horizon, count in np.unique(np.stack([horizons, counts], 1)[counts > 0], axis=0):
            same = (horizons == horizon) & (counts == count)
            chosen[same] = self._choose(context[same], past[same], unknown[same, :horizon], int(count))
        return chosen

    def _choose(self, context: Array, past: Array, unknown: NDArray[np.bool_], count: int) -> NDArray[np.int64]:
        """Of series that are tried on the same windows, `count` of the length of `unknown`."""
        length, horizon = context.shape[1], unknown.shape[1]
        losses = np.zeros((len(KINDS), len(context)))
        for window in range(count, 0, -1):
            cut, end = length - window * horizon, length - (window - 1) * horizon
            ahead = np.where(unknown, np.nan, past[:, cut:end])
            shifts = self.shifts(context[:, :cut], past[:, :cut], ahead)
            rest = (context[:, :cut] - shifts[..., :cut]).reshape(-1, cut)
            forecast = np.asarray(self.model.forecast(rest, horizon, (0.5,)).quantiles).reshape(*shifts.shape[:2], -1)
            error = np.abs(context[:, cut:end] - forecast - shifts[..., cut:])
            losses += np.where(np.isnan(error), 0.0, error).sum(-1)
        losses[1:] *= 1 + self.config.margin
        return np.asarray(losses.argmin(0))

    def shifts(self, context: Array, past: Array, future: Array) -> Array:
        """What the covariates explain of history and future: KINDS × series × (time + horizon)."""
        length = past.shape[1]
        inside = np.arange(length + future.shape[1]) >= _starts(context)[:, None]
        features = _lagged(self._complete(past, future), inside, length, self.config.lags)
        observed = ~np.isnan(context)
        levels = ridge(features[:, :length], context, observed, self.config.penalties)
        steps = observed[:, 1:] & observed[:, :-1]
        changes = np.where(inside[:, : length - 1, None], np.diff(features[:, :length], axis=1), 0.0)
        slopes = ridge(changes, np.diff(context, axis=1), steps, self.config.penalties)
        weights = np.stack([np.zeros_like(levels), levels, slopes])
        return np.asarray(np.einsum("stf,ksf->kst", features, weights))

    def _complete(self, past: Array, future: Array) -> Array:
        """Covariates without gaps: the past takes the last value seen, and the model forecasts the future."""
        filled = _fill(past)
        series, covariate = np.asarray(np.isnan(future).any(1)).nonzero()
        if len(series):
            begun = np.maximum.accumulate(~np.isnan(past), axis=1)
            histories = np.where(begun, filled, np.nan)[series, :, covariate]
            forecast = self.model.forecast(histories, future.shape[1], (0.5,))
            guess = future.copy()
            guess[series, :, covariate] = np.nan_to_num(np.asarray(forecast.quantiles)[..., 0])
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


def _starts(context: Array) -> NDArray[np.int64]:
    """Where each series begins: the position of its first value. What lies before says nothing of it, and how much
    does hangs on the other series of the batch."""
    observed = ~np.isnan(context)
    return np.asarray(np.where(observed.any(1), observed.argmax(1), context.shape[1]), np.int64)


def _lagged(covariates: Array, inside: NDArray[np.bool_], length: int, lags: int) -> Array:
    """Each covariate and its last values, relative to its mean in the history; before the first there is the mean."""
    own = inside[..., None]
    total = np.where(own, covariates, 0.0)[:, :length].sum(1, keepdims=True)
    centred = np.where(own, covariates - total / inside[:, None, :length].sum(2, keepdims=True).clip(min=1), 0.0)
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
