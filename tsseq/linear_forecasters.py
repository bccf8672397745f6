"""Small forecasters that are trained on the user's own series: DLinear, NLinear and xLSTMTime, and their training.

They map a standardised window batch × channel × context to batch × channel × horizon and know no other length.
"""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Generator, nn
from torch.nn import functional as F

from tsseq.array_typing import Float, Tensor
from tsseq.backbone import Backbone, BackboneConfig


class DLinear(nn.Module):
    """A linear map of the trend (moving average over `kernel`) plus one of the rest, shared by all channels.

    With `start_at_mean` both maps start as the mean of the context. Zeng et al., "Are transformers effective for time
    series forecasting?", arXiv 2205.13504.
    """

    def __init__(self, context: int, horizon: int, *, kernel: int = 25, start_at_mean: bool = False) -> None:
        super().__init__()
        _check(context, horizon, kernel)
        self.kernel = kernel
        self.trend, self.rest = nn.Linear(context, horizon), nn.Linear(context, horizon)
        if start_at_mean:
            nn.init.constant_(self.trend.weight, 1 / context)
            nn.init.constant_(self.rest.weight, 1 / context)

    def forward(self, x: Float[Tensor, "batch channel context"]) -> Float[Tensor, "batch channel horizon"]:
        trend = moving_average(x, self.kernel)
        y: Tensor = self.trend(trend) + self.rest(x - trend)
        return y


class NLinear(nn.Module):
    """A linear map of the context minus its last value, which is added back; shared by all channels.

    Zeng et al., "Are transformers effective for time series forecasting?", arXiv 2205.13504.
    """

    def __init__(self, context: int, horizon: int) -> None:
        super().__init__()
        _check(context, horizon)
        self.map = nn.Linear(context, horizon)

    def forward(self, x: Float[Tensor, "batch channel context"]) -> Float[Tensor, "batch channel horizon"]:
        last = x[..., -1:]
        y: Tensor = self.map(x - last) + last
        return y


class XLSTMTime(nn.Module):
    """DLinear on instance-normalised series, refined by a stack of sLSTM blocks that runs over the channels.

    RevIN (mean and deviation of each window out, an affine map per channel, all undone at the end) → DLinear →
    Linear(horizon → width) → `layers` sLSTM blocks with the channels as their sequence → Linear(width → horizon).
    So the order of the channels matters. Alharthi and Mahmood, "xLSTMTime", arXiv 2407.10240.
    """

    def __init__(
        self, context: int, horizon: int, *, channels: int, width: int = 256, layers: int = 3, kernel: int = 25
    ) -> None:
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.ones(channels, 1)), nn.Parameter(torch.zeros(channels, 1))
        self.linear = DLinear(context, horizon, kernel=kernel, start_at_mean=True)
        self.read_in, self.read_out = nn.Linear(horizon, width), nn.Linear(width, horizon)
        self.stack = Backbone(BackboneConfig(("slstm",), width, layers, mlp_width=64 * -(-13 * width // 640)))

    def forward(self, x: Float[Tensor, "batch channel context"]) -> Float[Tensor, "batch channel horizon"]:
        mean = x.mean(-1, keepdim=True)
        deviation = torch.sqrt(x.var(-1, keepdim=True, correction=0) + 1e-5)
        forecast = self.linear((x - mean) / deviation * self.scale + self.shift)
        y: Tensor = self.read_out(self.stack(self.read_in(forecast))[0])
        return (y - self.shift) / (self.scale + 1e-10) * deviation + mean


@dataclass(frozen=True)
class WindowTraining:
    """Adam on the windows of the training part in random order, without those left over by the last full batch.

    The learning rate halves after each epoch but the first, as in DLinear's published code, or rises and falls once
    over all of them (`one_cycle`). `absolute` takes the mean absolute error as the loss, otherwise the mean square.
    Training stops after `patience` epochs without a better loss on the validation part; the best epoch is kept.
    """

    epochs: int = 10
    batch_size: int = 32
    learning_rate: float = 5e-3
    one_cycle: bool = False
    absolute: bool = False
    patience: int = 3

    def __post_init__(self) -> None:
        if min(self.epochs, self.batch_size, self.patience) < 1:
            raise ValueError("expected epochs, batch_size and patience of at least 1")


class WindowErrors(NamedTuple):
    """Mean square and mean absolute error over all windows, channels and steps."""

    mse: float
    mae: float


def train_forecaster(
    model: nn.Module,
    values: Float[Tensor, "channel time"],
    stops: tuple[int, int],
    context: int,
    horizon: int,
    training: WindowTraining,
    *,
    generator: Generator,
    report: Callable[[int, WindowErrors], None] | None = None,
) -> WindowErrors:
    """Train in place; returns the errors on the validation part, which runs from the first to the second of `stops`.

    `generator` orders the windows. `report` hears the number of every epoch and its validation errors.

    Raises ValueError if a part is too short for one window.
    """
    windows = _windows(values, context, stops[0], context, horizon)
    batches = max(1, len(windows) // training.batch_size)
    optimizer = torch.optim.Adam(model.parameters(), lr=training.learning_rate)
    schedule: torch.optim.lr_scheduler.LRScheduler
    if training.one_cycle:
        total = training.epochs * batches
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, training.learning_rate, total, pct_start=0.2)
    else:
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5 ** max(0, step // batches - 1))
    loss_of = F.l1_loss if training.absolute else F.mse_loss
    best, weights, since = WindowErrors(float("inf"), float("inf")), deepcopy(model.state_dict()), 0
    for epoch in range(training.epochs):
        model.train()
        for rows in _order(len(windows), generator)[: batches * training.batch_size].split(training.batch_size):
            batch = windows[rows.to(windows.device)]
            optimizer.zero_grad(set_to_none=True)
            loss_of(model(batch[..., :context]), batch[..., context:]).backward()
            optimizer.step()
            schedule.step()
        errors = score_windows(model, values, stops, context, horizon)
        since += 1
        if errors[training.absolute] < best[training.absolute]:
            best, weights, since = errors, deepcopy(model.state_dict()), 0
        if report is not None:
            report(epoch, errors)
        if since == training.patience:
            break
    model.load_state_dict(weights)
    return best


def _order(count: int, generator: Generator) -> Tensor:
    """A permutation, drawn as in the epochs of DLinear's published code.

    There three data loaders draw from the generator: those of the training and the validation part a number for their
    workers and one to seed their order, that of the test part a number for its workers.
    """
    draws = [int(torch.empty((), dtype=torch.int64).random_(generator=generator)) for _ in range(5)]
    return torch.randperm(count, generator=Generator().manual_seed(draws[1]))


@torch.no_grad()
def score_windows(
    model: nn.Module, values: Float[Tensor, "channel time"], part: tuple[int, int], context: int, horizon: int
) -> WindowErrors:
    """Errors over every window whose future lies within `part`, from its first step to before its second."""
    model.eval()
    windows = _windows(values, part[0], part[1], context, horizon)
    square = absolute = 0.0
    for batch in windows.split(256):
        error = model(batch[..., :context]) - batch[..., context:]
        square += float(error.square().sum())
        absolute += float(error.abs().sum())
    count = len(windows) * values.shape[0] * horizon
    return WindowErrors(square / count, absolute / count)


def _windows(values: Tensor, first: int, stop: int, context: int, horizon: int) -> Tensor:
    """Views window × channel × (context + horizon) whose future starts at `first` or later and ends by `stop`."""
    if first < context or stop - first < horizon:
        raise ValueError(
            f"expected at least {context} steps before and {horizon} within steps {first} to {stop} of the series"
        )
    return values[:, first - context : stop].unfold(1, context + horizon, 1).transpose(0, 1)


def moving_average(x: Float[Tensor, "batch channel time"], kernel: int) -> Float[Tensor, "batch channel time"]:
    """Centred mean over an odd number of positions; the ends repeat the first and last value."""
    padded = F.pad(x, (kernel // 2, kernel // 2), mode="replicate")
    return F.avg_pool1d(padded, kernel, stride=1)


def _check(context: int, horizon: int, kernel: int = 1) -> None:
    if context < 1 or horizon < 1:
        raise ValueError(f"context and horizon must be at least 1, got {context} and {horizon}")
    if kernel < 1 or kernel % 2 == 0:
        raise ValueError(f"kernel must be odd and positive, got {kernel}")
