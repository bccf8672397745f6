"""Laws of the future given the past, where they are known: targets for an expected loss, not one realised path."""

import math

import torch
from torch import Tensor

from tsseq.array_typing import Float
from tsseq.synthetic.scan import linear_scan


def gaussian_process(
    autocovariance: Float[Tensor, "batch lag"], history: Float[Tensor, "batch time"], horizon: int
) -> tuple[Float[Tensor, "batch horizon"], Float[Tensor, "batch horizon"]]:
    """Mean and standard deviation of the next `horizon` values of a zero-mean stationary Gaussian process.

    The autocovariance is needed at lags 0 to time + horizon - 1. Cubic in the length of the history, in float64.
    Raises ValueError for too few lags.
    """
    length = history.shape[-1]
    if autocovariance.shape[-1] < length + horizon:
        raise ValueError(f"expected at least {length + horizon} lags, got {autocovariance.shape[-1]}")
    steps = torch.arange(length + horizon, device=history.device)
    joint = autocovariance.double()[:, (steps[:, None] - steps).abs()]
    root = torch.linalg.cholesky(joint[:, :length, :length])
    cross = torch.linalg.solve_triangular(root, joint[:, :length, length:], upper=False)
    white = torch.linalg.solve_triangular(root, history.double()[..., None], upper=False)
    mean = (cross * white).sum(1)
    variance = autocovariance[:, :1].double() - cross.square().sum(1)
    return mean.float(), variance.clamp(min=0).sqrt().float()


def ornstein_uhlenbeck(
    relaxation: Float[Tensor, "batch horizon"],
    mean: Float[Tensor, "batch horizon"],
    volatility: Float[Tensor, "batch horizon"],
    last: Float[Tensor, "batch 1"],
) -> tuple[Float[Tensor, "batch horizon"], Float[Tensor, "batch horizon"]]:
    """Mean and standard deviation of the future of `sde.ornstein_uhlenbeck`, given its last value and its regimes.

    The first three are the parameters in force at the future steps; shocks are taken as Gaussian.
    """
    decay = torch.exp(-1 / relaxation)
    drive = (1 - decay) * mean
    drive[:, :1] += decay[:, :1] * last
    variance = linear_scan(decay.square(), volatility.square() * (1 - decay.square()))
    return linear_scan(decay, drive), variance.sqrt()


def curve_plus_noise(
    curve: Float[Tensor, "batch horizon"],
    scale: Float[Tensor, "batch horizon"],
    correlation: Float[Tensor, "batch 1"],
    last: Float[Tensor, "batch 1"],
) -> tuple[Float[Tensor, "batch horizon"], Float[Tensor, "batch horizon"]]:
    """Mean and standard deviation of a known future `curve` plus `scale` times a Gaussian AR(1) of unit variance.

    `correlation` is that of neighbouring steps, 0 for white noise, and `last` the noise of the last known step in
    units of the scale there.
    """
    ahead = torch.arange(1, curve.shape[-1] + 1, device=curve.device)
    kept = correlation.pow(ahead)
    return curve + scale * kept * last, scale * (1 - kept.square()).sqrt()


def expected_quantile_loss(
    forecast: Float[Tensor, "*shape"],
    level: Float[Tensor, "*shape"],
    mean: Float[Tensor, "*shape"],
    scale: Float[Tensor, "*shape"],
) -> Float[Tensor, "*shape"]:
    """E max(level (y - q), (level - 1) (y - q)) for the forecast q and normal y: s (φ(z) + z (Φ(z) - level)).

    z = (q - mean) / s; the gradient in q is Φ(z) - level. A scale of zero gives the loss of the mean.
    """
    error = forecast - mean
    z = error / scale.clamp(min=1e-12)
    density = torch.exp(-0.5 * z.square()) / math.sqrt(2 * math.pi)
    loss: Tensor = scale * density + error * (torch.special.ndtr(z) - level)
    return loss
