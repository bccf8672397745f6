"""Scores of probabilistic forecasts, as GIFT-Eval and gluonts define them, over all windows at once.

Missing labels (NaN) are left out. Relative scores (MASE, MSIS, MAPE, sMAPE) leave out the points whose
denominator is zero; the aggregate is a ratio of sums over windows and horizon, so scores of parts combine
exactly: add the results of `error_sums` and take `scores` of the total.

Missing values are NaN throughout; all arithmetic is in float64.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

DECILES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
COLUMNS = (
    "MSE[mean]",
    "MSE[0.5]",
    "MAE[0.5]",
    "MASE[0.5]",
    "MAPE[0.5]",
    "sMAPE[0.5]",
    "MSIS",
    "RMSE[mean]",
    "NRMSE[mean]",
    "ND[0.5]",
    "mean_weighted_sum_quantile_loss",
)
MASE, CRPS = "MASE[0.5]", "mean_weighted_sum_quantile_loss"
INTERVAL_ALPHA = 0.05
SMALLEST_LOSS = 1e-3


def seasonal_error(history: ArrayLike, seasonality: int) -> float:
    """Mean absolute change over one season within the history of one series: the unit of MASE.

    A history shorter than one season is measured at lag 1. NaN where there is nothing to compare.
    """
    y = np.asarray(history, np.float64)
    lag = seasonality if seasonality <= len(y) else 1
    change = np.abs(y[lag:] - y[: len(y) - lag])
    change = change[~np.isnan(change)]
    return float(change.mean()) if len(change) else float("nan")


def error_sums(label: ArrayLike, mean: ArrayLike, quantiles: ArrayLike, seasonal_errors: ArrayLike) -> dict[str, float]:
    """Sums and counts from which `scores` makes the eleven columns of GIFT-Eval.

    label            window × horizon, NaN where missing
    mean             window × horizon
    quantiles        window × horizon × 9, at the deciles
    seasonal_errors  window, see `seasonal_error`

    Raises ValueError for shapes that do not match or forecasts that are not finite.
    """
    y, m, q, unit = (np.asarray(a, np.float64) for a in (label, mean, quantiles, seasonal_errors))
    _check(y, m, q, unit)
    observed = ~np.isnan(y)
    median, unit = q[..., 4], unit[:, None]
    error, size = np.abs(y - median), np.abs(y)
    lower, upper = _tail(q[..., 0], q[..., 1]), _tail(q[..., 8], q[..., 7])
    interval = upper - lower + 2 / INTERVAL_ALPHA * (np.maximum(lower - y, 0) + np.maximum(y - upper, 0))
    loss = 2 * np.abs((y[..., None] - q) * ((q >= y[..., None]) - np.array(DECILES)))
    sums = {
        "count": float(observed.sum()),
        "label": float(size[observed].sum()),
        "squared mean": float(np.square(y - m)[observed].sum()),
        "squared median": float(np.square(error)[observed].sum()),
        "absolute": float(error[observed].sum()),
        "quantile loss": float(loss[observed].sum()) / len(DECILES),
        "covered": float(((q[..., 0] <= y) & (y <= q[..., 8]))[observed].sum()),
    }
    for name, numerator, denominator in (
        ("scaled", error, np.broadcast_to(unit, y.shape)),
        ("interval", interval, np.broadcast_to(unit, y.shape)),
        ("percentage", error, size),
        ("symmetric", 2 * error, size + np.abs(median)),
    ):
        defined = observed & (denominator > 0)
        sums[name] = float((numerator[defined] / denominator[defined]).sum())
        sums[f"{name} count"] = float(defined.sum())
    logs = _log_losses(np.where(observed, loss.mean(-1), np.nan), unit[:, 0])
    return sums | {"log loss": float(logs.sum()), "log loss count": float(len(logs))}


def coverage(sums: dict[str, float]) -> float:
    """Share of the labels inside the interval between the first and the last decile, from (added) `error_sums`."""
    return sums["covered"] / sums["count"] if sums["count"] else float("nan")


def log_loss(sums: dict[str, float]) -> float:
    """Mean over windows of the logarithm of a window's quantile loss in units of its seasonal error, from (added)
    `error_sums`: every series counts alike, and the difference of two models is the mean log ratio of their losses.
    """
    return sums["log loss"] / sums["log loss count"] if sums["log loss count"] else float("nan")


def scores(sums: dict[str, float]) -> dict[str, float]:
    """The eleven columns of the GIFT-Eval leaderboard from (added) `error_sums`, in its order."""

    def ratio(a: str, b: str) -> float:
        return sums[a] / sums[b] if sums[b] else float("nan")

    root = ratio("squared mean", "count") ** 0.5
    size = ratio("label", "count")
    values = (
        ratio("squared mean", "count"),
        ratio("squared median", "count"),
        ratio("absolute", "count"),
        ratio("scaled", "scaled count"),
        ratio("percentage", "percentage count"),
        ratio("symmetric", "symmetric count"),
        ratio("interval", "interval count"),
        root,
        root / size if size else float("nan"),
        ratio("absolute", "label"),
        ratio("quantile loss", "label"),
    )
    return dict(zip(COLUMNS, values, strict=True))


def mase(label: ArrayLike, forecast: ArrayLike, seasonal_errors: ArrayLike) -> float:
    """Mean absolute scaled error (Hyndman and Koehler 2006) of a point forecast, both window × horizon."""
    y, f = np.asarray(label, np.float64), np.asarray(forecast, np.float64)
    unit = np.broadcast_to(np.asarray(seasonal_errors, np.float64)[:, None], y.shape)
    defined = ~np.isnan(y) & (unit > 0)
    return float((np.abs(y - f)[defined] / unit[defined]).mean()) if defined.any() else float("nan")


def weighted_quantile_loss(label: ArrayLike, quantiles: ArrayLike, levels: Sequence[float] = DECILES) -> float:
    """Twice the pinball loss over the sum of absolute labels, averaged over levels: GIFT-Eval's CRPS.

    `label` is window × horizon and `quantiles` window × horizon × quantile.
    """
    y, q = np.asarray(label, np.float64), np.asarray(quantiles, np.float64)
    observed = ~np.isnan(y)
    loss = 2 * np.abs((y[..., None] - q) * ((q >= y[..., None]) - np.asarray(levels)))
    size = np.abs(y[observed]).sum()
    return float(loss[observed].sum() / len(levels) / size) if size else float("nan")


def geometric_mean(ratios: ArrayLike) -> float:
    """The leaderboard's aggregate over configurations of score / score of Seasonal Naive."""
    return float(np.exp(np.log(np.asarray(ratios, np.float64)).mean()))


def _tail(outer: Array, inner: Array) -> Array:
    """The 2.5% quantile beyond the 10% (`outer`) and 20% (`inner`) ones, along an exponential tail.

    MSIS asks for levels that a nine-decile forecast lacks; gluonts extrapolates them so, its rounding guard
    of 1e-8 included. The upper tail is the mirror image.
    """
    guard = 1e-8
    at, near, far = INTERVAL_ALPHA / 2 + guard, 0.1 + guard, 0.2 + guard
    scale = (inner - outer) / np.log(far / near + guard)
    return np.asarray(inner + scale * np.log(at / far + guard), np.float64)


def _log_losses(loss: Array, unit: Array) -> Array:
    """For the windows that can be scored; losses (window × horizon) too small to matter count as the smallest."""
    defined = (unit > 0) & ~np.isnan(loss).all(1)
    scaled = np.nanmean(loss[defined], axis=1) / unit[defined]
    return np.asarray(np.log(np.maximum(scaled, SMALLEST_LOSS)), np.float64)


def _check(y: Array, mean: Array, quantiles: Array, unit: Array) -> None:
    expected = (y.shape, (*y.shape, len(DECILES)), y.shape[:1])
    got = (mean.shape, quantiles.shape, unit.shape)
    if y.ndim != 2 or got != expected:
        raise ValueError(
            f"expected a mean, quantiles and seasonal errors of shapes {expected} for labels {y.shape}, got {got}"
        )
    if not (np.isfinite(mean).all() and np.isfinite(quantiles).all()):
        raise ValueError("expected finite forecasts, got NaN or infinite values")
