"""The errors of a forecaster over all windows of a set."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from tsseq.datasets.windows import Windows
from tsseq.metrics import DECILES, error_sums, seasonal_error


class Predictor(Protocol):
    """What scoring asks of a forecaster: series of any lengths in, quantiles out."""

    def forecast(self, context: Any, horizon: int, quantile_levels: Sequence[float]) -> Any: ...


def total_errors(
    forecaster: Predictor,
    windows: Windows,
    seasonality: int,
    batch_size: int = 4096,
    on_windows: Callable[[int], None] = lambda count: None,
) -> dict[str, float]:
    """The added `error_sums` of all windows, from which `tsseq.metrics.scores` makes scores.

    At most `batch_size` windows go into one call; `on_windows` hears of every batch that is done. What follows a
    history without any observation counts as forecast as zero, which is what gluonts imputes.

    Raises ValueError if nothing that is to be forecast was observed.
    """
    total: dict[str, float] = {}
    for batch in windows.batches(batch_size):
        units = [seasonal_error(context, seasonality) for context in batch.contexts]
        forecast = forecaster.forecast(batch.contexts, batch.labels.shape[1], DECILES)
        empty = np.array([np.isnan(context).all() for context in batch.contexts])[:, None]
        mean, quantiles = np.where(empty, 0.0, forecast.mean), np.where(empty[..., None], 0.0, forecast.quantiles)
        part = error_sums(batch.labels, mean, quantiles, units)
        total = {name: total.get(name, 0.0) + value for name, value in part.items()}
        on_windows(len(batch))
    if not total["count"]:
        raise ValueError("expected at least one observed value among those to be forecast, got none")
    return total
