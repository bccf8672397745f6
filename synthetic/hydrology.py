"""Rain and rivers: showers that cluster, catchments that answer with a sharp rise and a slow recession."""

from dataclasses import dataclass

import torch
from torch import Generator

from tsseq.array_typing import Float, Tensor
from tsseq.synthetic.base import Prior
from tsseq.synthetic.curves import smooth_path, time_steps
from tsseq.synthetic.draws import chance, log_uniform, normal, pick, uniform
from tsseq.synthetic.noise import autoregressive
from tsseq.synthetic.scan import exponential_filter


def rainfall(
    generator: Generator, wetness: Float[Tensor, "batch time"], day: Float[Tensor, "batch 1"]
) -> Float[Tensor, "batch time"]:
    """Zero while `wetness` plus local weather is below a threshold (at most the highest); then heavy-tailed.

    `wetness` has about unit scale; `day` is the number of steps in a day.
    """
    shape, length = tuple(day.shape), wetness.shape[-1]
    local = autoregressive(generator, day * log_uniform(generator, shape, 0.05, 2.0), length)
    moisture = wetness + local
    threshold = torch.minimum(uniform(generator, shape, -0.5, 1.5), moisture.amax(-1, keepdim=True) - 0.3)
    excess = (moisture - threshold).clamp(min=0)
    spread = uniform(generator, shape, 0.2, 0.9)
    return excess.pow(1.5) * torch.exp(spread * normal(generator, (shape[0], length)))


@dataclass(frozen=True)
class Hydrology(Prior):
    """River flow: seasonal rain through a fast and a slow linear reservoir, with a melt season now and then."""

    def sample(self, generator: Generator, batch_size: int, length: int) -> Float[Tensor, "batch time"]:
        shape = (batch_size, 1)
        day = pick(generator, shape, (1, 1, 1, 24, 4, 1 / 7, 1 / 30.44))
        years = time_steps(generator, length) / (day * 365.25) + uniform(generator, shape)
        season = torch.cos(2 * torch.pi * years) * uniform(generator, shape, 0.0, 1.0)
        climate = smooth_path(generator, day * log_uniform(generator, shape, 200.0, 3000.0), length)
        rain = rainfall(generator, season + 0.4 * climate, day)
        dry = torch.exp(-torch.cos(2 * torch.pi * (years - 0.1)) * uniform(generator, shape, 0.0, 0.7))
        fast = exponential_filter(rain * dry, (day * log_uniform(generator, shape, 0.3, 8.0)).clamp(min=0.1))
        slow = exponential_filter(fast, (day * log_uniform(generator, shape, 10.0, 150.0)).clamp(min=0.1))
        power = 20 * torch.cos(2 * torch.pi * (years - uniform(generator, shape))) - 20
        melt = torch.exp(power * uniform(generator, shape, 0.1, 1.0)) * torch.exp(0.3 * climate)
        melt = melt * uniform(generator, shape, 0.0, 2.0) * chance(generator, shape, 0.35)
        flow = fast * uniform(generator, shape, 0.2, 1.0) + slow + melt + log_uniform(generator, shape, 0.01, 0.5)
        level = torch.log(flow + 0.02)
        gauge = torch.where(chance(generator, shape, 0.2), level, flow)
        return gauge * (1 + log_uniform(generator, shape, 1e-3, 0.05) * normal(generator, (batch_size, length)))
