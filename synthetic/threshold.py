"""Threshold autoregression: the law of the next step depends on which side of a level the series is (Tong, 1990)."""

from dataclasses import dataclass
from importlib.util import find_spec
from typing import ClassVar

import numpy as np
import torch
from torch import Generator, Tensor

from tsseq.array_typing import Float
from tsseq.synthetic.base import Prior
from tsseq.synthetic.draws import chance, log_uniform, normal, uniform
from tsseq.synthetic.noise import innovations

BOUND = 60.0
"""Values are held within ±BOUND shocks: regimes that are stable alone may drive each other apart."""

BURN_IN = 128


def threshold_autoregression(
    shocks: Float[Tensor, "batch time"],
    above: Float[Tensor, "batch 4"],
    below: Float[Tensor, "batch 4"],
    threshold: Float[Tensor, "batch 1"],
) -> Float[Tensor, "batch time"]:
    """x_t = c + a x_{t-1} + b x_{t-2} + s e_t from rest at the threshold; the two sets (c, a, b, s) take turns.

    Those `above` hold where x_{t-1} > threshold. One kernel on a GPU with Triton, elsewhere a loop in NumPy.
    """
    if shocks.is_cuda and find_spec("triton"):
        from tsseq.synthetic import triton_loops

        return triton_loops.threshold_autoregression(shocks, above, below, threshold, BOUND)
    high, low = above.t().cpu().numpy(), below.t().cpu().numpy()
    drive, level = shocks.t().cpu().numpy(), threshold[:, 0].cpu().numpy()
    out, last, before = np.empty_like(drive), level, level
    for time, e in enumerate(drive):
        c, a, b, s = np.where(last > level, high, low)
        before, last = last, np.minimum(np.maximum(c + a * last + b * before + s * e, -BOUND), BOUND)
        out[time] = last
    return torch.from_numpy(out.T.copy()).to(shocks.device)


@dataclass(frozen=True)
class ThresholdAutoregression(Prior):
    """Two regimes with roots, intercepts and shocks of their own.

    Intercepts that push across the threshold make cycles that no linear model has, those that push away make two
    states with rare changes. A share `noisy` is seen through measurement noise.
    """

    noisy: float = 0.3
    sequential: ClassVar[bool] = True

    def sample(self, generator: Generator, batch_size: int, length: int) -> Float[Tensor, "batch time"]:
        shape = (batch_size, 1)
        shocks = innovations(generator, batch_size, BURN_IN + length, heavy=0.15)
        threshold = 0.5 * normal(generator, shape)
        # Two thirds have fixed points on either side of the threshold: both reached, or each beyond the other's side.
        push = log_uniform(generator, shape, 0.3, 3.0) * (1.0 - 2.0 * chance(generator, shape, 0.5))
        mirrored = torch.where(chance(generator, shape, 0.67), -push, 0.5 * normal(generator, shape))
        above, below = (self._regime(generator, threshold, side) for side in (push, mirrored))
        series = threshold_autoregression(shocks, above, below, threshold)[:, BURN_IN:]
        scale = series.square().mean(-1, keepdim=True).sqrt().clamp(min=1e-6)
        noise = log_uniform(generator, shape, 0.01, 0.3) * chance(generator, shape, self.noisy) * scale
        return torch.addcmul(series, noise, normal(generator, (batch_size, length)))

    def _regime(self, generator: Generator, threshold: Tensor, push: Tensor) -> Tensor:
        """Two real roots, or complex ones for a third; the fixed point lies `push` standard deviations off."""
        shape = tuple(push.shape)
        radius = 1 - log_uniform(generator, shape, 0.005, 0.7)
        other = uniform(generator, shape, -0.6, 0.6) * chance(generator, shape, 0.5)
        angle = 2 * torch.pi / log_uniform(generator, shape, 5.0, 100.0)
        cyclic = chance(generator, shape, 0.33)
        first = torch.where(cyclic, 2 * radius * torch.cos(angle), radius + other)
        second = torch.where(cyclic, -radius.square(), -radius * other)
        size = log_uniform(generator, shape, 0.3, 1.0)
        spread = size / (1 - radius.square()).sqrt()
        intercept = (threshold + push * spread) * (1 - first - second)
        return torch.cat([intercept, first, second, size], dim=-1)
