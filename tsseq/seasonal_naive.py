"""Seasonal Naive, the yardstick of GIFT-Eval: last season again, with normal errors that grow by the season."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tsseq.metrics import DECILES


class NaiveForecast(NamedTuple):
    """`tsseq.Forecast` in NumPy: quantiles batch × horizon × quantile, mean batch × horizon."""

    quantiles: NDArray[np.float64]
    mean: NDArray[np.float64]
    levels: tuple[float, ...]


@dataclass(frozen=True)
class SeasonalNaive:
    """Repeats the last `seasonality` values; the error of the k-th season ahead has variance k sigma².

    sigma² is the mean square of the in-sample seasonal differences (Hyndman and Athanasopoulos, Forecasting:
    principles and practice, 5.5). Missing values take the last observed one, leading ones the first observed.
    Phases that a history shorter than one season has not seen take its last value; a history without any
    observation is forecast as zero, as gluonts imputes it.
    """

    seasonality: int = 1

    def forecast(
        self, context: Sequence[Any], horizon: int, quantile_levels: Sequence[float] = DECILES
    ) -> NaiveForecast:
        """Forecast series of any lengths, oldest value first; same interface as `tsseq.Forecaster.forecast`."""
        from scipy.special import ndtri  # a third of a second to import, which other users of this package save

        mean = np.empty((len(context), horizon))
        sigma = np.empty(len(context))
        for row, series in enumerate(context):
            y = fill_missing(np.asarray(series, np.float64))
            mean[row] = self._repeat(y, horizon)
            change = y[self.seasonality :] - y[: max(len(y) - self.seasonality, 0)]
            sigma[row] = np.sqrt(change @ change / len(change)) if len(change) else 0.0
        growth = np.sqrt(np.arange(horizon) // self.seasonality + 1)
        spread = sigma[:, None] * growth
        quantiles = mean[..., None] + spread[..., None] * ndtri(np.asarray(quantile_levels))
        return NaiveForecast(quantiles, mean, tuple(quantile_levels))

    def _repeat(self, y: NDArray[np.float64], horizon: int) -> NDArray[np.float64]:
        missing = max(self.seasonality - len(y), 0)
        season = np.concatenate([np.full(missing, y[-1]), y[-self.seasonality :]])
        return np.resize(season, horizon)


def fill_missing(y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Each NaN takes the last value seen before it, leading ones the first value; all zero if none is seen."""
    observed = ~np.isnan(y)
    if observed.all():
        return y
    if not observed.any():
        return np.zeros_like(y)
    last = np.maximum.accumulate(np.where(observed, np.arange(len(y)), observed.argmax()))
    return y[last]
