"""What a family of series looks like in numbers: spectrum, autocorrelation, season, difficulty."""

import torch
from torch import Tensor

from tsseq.array_typing import Float, Int
from tsseq.synthetic.curves import standardise
from tsseq.synthetic.scan import fft_length


def autocorrelation(series: Float[Tensor, "batch time"]) -> Float[Tensor, "batch time"]:
    """At lags 0, …, time - 1; the biased estimate, which tends to zero at the longest lags."""
    length = series.shape[-1]
    size = fft_length(length)
    power = torch.fft.rfft(standardise(series.double()), n=size).abs().square()
    covariance: Tensor = torch.fft.irfft(power, n=size)[..., :length]
    return (covariance / covariance[..., :1].clamp(min=1e-12)).float()


def periodogram(series: Float[Tensor, "batch time"]) -> Float[Tensor, "batch frequency"]:
    """Power at k / time cycles per step, k = 1, …, time // 2, of standardised series under a Hann window."""
    window = torch.hann_window(series.shape[-1], device=series.device)
    power: Tensor = torch.fft.rfft(standardise(series) * window).abs().square()
    return power[..., 1:] / window.square().sum()


def seasonality(series: Float[Tensor, "batch time"], least: float = 0.2) -> Int[Tensor, " batch"]:
    """The lag of the highest local maximum of the autocorrelation between 2 and a third of the length, else 1.

    The biased estimate prefers a period to its multiples, and moves long ones by a step or so.
    """
    length = series.shape[-1]
    found = autocorrelation(series - moving_mean(series, max(length // 8, 3)))
    inner = found[:, 2 : max(length // 3, 3)]
    before, after = found[:, 1 : 1 + inner.shape[-1]], found[:, 3 : 3 + inner.shape[-1]]
    peaks = inner[:, : after.shape[-1]].clone()
    peaks[(peaks < before[:, : peaks.shape[-1]]) | (peaks < after) | (peaks < least)] = 0
    height, lag = peaks.max(-1)
    return torch.where(height > 0, lag + 2, 1)


def moving_mean(series: Float[Tensor, "batch time"], width: int) -> Float[Tensor, "batch time"]:
    """Centred mean over `width` steps, the ends held."""
    left = width // 2
    padded = torch.nn.functional.pad(series[:, None], (left, width - 1 - left), mode="replicate")
    return torch.nn.functional.avg_pool1d(padded, width, stride=1)[:, 0]


def seasonal_naive_mase(series: Float[Tensor, "batch time"], horizon: int) -> Float[Tensor, " batch"]:
    """MASE of Seasonal Naive on the last `horizon` steps at the season found by `seasonality`; NaN for a flat past."""
    history, future = series[:, :-horizon], series[:, -horizon:]
    period = seasonality(history)[:, None]
    length = history.shape[-1]
    time = torch.arange(length, device=series.device)
    change = (history - history.gather(-1, (time - period).clamp(min=0))).abs()
    seen = time >= period
    unit = (change * seen).sum(-1) / seen.sum(-1)
    ahead = torch.arange(horizon, device=series.device)
    error = (future - history.gather(-1, length - period + ahead % period)).abs().mean(-1)
    return torch.where(unit > 0, error / unit, torch.nan)
