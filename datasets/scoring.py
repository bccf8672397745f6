"""The errors of a forecaster over all windows of a set."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

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

    At most `batch_size` windows go into one call; `on_windows` hears of every batch that is done.
    """
    total: dict[str, float] = {}
    for batch in windows.batches(batch_size):
        units = [seasonal_error(context, seasonality) for context in batch.contexts]
        forecast = forecaster.forecast(batch.contexts, batch.labels.shape[1], DECILES)
        part = error_sums(batch.labels, forecast.mean, forecast.quantiles, units)
        total = {name: total.get(name, 0.0) + value for name, value in part.items()}
        on_windows(len(batch))
    return total
