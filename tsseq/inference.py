"""What wraps a forecaster at forecast time: each an option, none of it trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from tsseq.array_typing import Tensor
from tsseq.forecaster import Context, Forecast, Forecaster, as_series
from tsseq.quantiles import mean_of_quantiles, resample_levels


@dataclass(frozen=True)
class InferenceConfig:
    """How a forecast is made from a trained network.

    flip          average with the mirrored forecast of the mirrored history; costs a second pass
    nonnegative   no quantile below zero for a history that never is; free
    """

    flip: bool = True
    nonnegative: bool = True


FAST = InferenceConfig(flip=False)


class Predictor:
    """A `Forecaster` with an `InferenceConfig`; same `forecast`, better numbers."""

    def __init__(self, forecaster: Forecaster, config: InferenceConfig | None = None) -> None:
        self.forecaster, self.config = forecaster, config or InferenceConfig()

    def forecast(self, context: Context, horizon: int, quantile_levels: Sequence[float] | None = None) -> Forecast:
        """See `Forecaster.forecast`."""
        series = as_series(context)
        known = self.forecaster.config.levels
        quantiles = self._quantiles(series, horizon)
        if self.config.nonnegative:
            quantiles = torch.where(_never_negative(series), quantiles.clamp(min=0), quantiles)
        levels = known if quantile_levels is None else tuple(quantile_levels)
        return Forecast(resample_levels(quantiles, known, levels), mean_of_quantiles(quantiles, known), levels)

    def _quantiles(self, series: list[Tensor], horizon: int) -> Tensor:
        quantiles = self.forecaster.forecast(series, horizon).quantiles
        if self.config.flip:
            mirrored = self.forecaster.forecast([-values for values in series], horizon).quantiles
            quantiles = (quantiles - mirrored.flip(-1)) / 2
        return quantiles


def _never_negative(series: list[Tensor]) -> Tensor:
    flags = [bool((values[~values.isnan()] >= 0).all()) for values in series]
    return torch.tensor(flags)[:, None, None]
