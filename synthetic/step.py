"""Level shifts: constant stretches, staircases, two-state signals, drifting plateaus."""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from tsseq.array_typing import Float
from tsseq.synthetic.base import Prior
from tsseq.synthetic.curves import lookup, renewals, time_steps
from tsseq.synthetic.draws import chance, choice, log_uniform, normal, pick, uniform
from tsseq.synthetic.noise import coloured
from tsseq.synthetic.profiles import random_profiles


@dataclass(frozen=True)
class Step(Prior):
    """Segments of exponential duration with a level each: independent, cumulated, alternating or cyclic.

    A change may be sharp or settle exponentially; half of the series carry noise, some a small daily season.
    """

    max_segments: int = 96
    noisy: float = 0.6

    def sample(self, generator: Generator, batch_size: int, length: int) -> Float[Tensor, "batch time"]:
        shape, table = (batch_size, 1), (batch_size, self.max_segments)
        dwell = log_uniform(generator, shape, 12.0, 1500.0) * torch.exp(0.7 * normal(generator, table))
        dwell = dwell.clamp(max=length / 8)  # else many a window has no step at all
        index, age = renewals(generator, dwell, length)
        levels = self._levels(generator, batch_size)
        level, before = levels.gather(-1, index), levels.gather(-1, (index - 1).clamp(min=0))
        settling = log_uniform(generator, shape, 0.05, 30.0) * chance(generator, shape, 0.4)
        level = level + (before - level) * torch.exp(-age / settling.clamp(min=1e-3))
        slopes = normal(generator, table) * uniform(generator, shape, 0.0, 1.0) * chance(generator, shape, 0.25)
        level = level + slopes.gather(-1, index) * age / dwell.gather(-1, index)
        return level + self._ripple(generator, batch_size, length)

    def _levels(self, generator: Generator, batch: int) -> Tensor:
        shape, table = (batch, 1), (batch, self.max_segments)
        free = normal(generator, table) * torch.exp(0.5 * normal(generator, table))
        stairs = (normal(generator, table) + normal(generator, shape)).cumsum(-1)
        alternating = free[:, :2].repeat(1, self.max_segments // 2) + 0.1 * free
        cyclic = free[:, :6].repeat(1, self.max_segments // 6)
        kinds = torch.stack([free, stairs, alternating, cyclic], dim=1)
        chosen = choice(generator, shape, (0.35, 0.3, 0.2, 0.15))
        return kinds.gather(1, chosen[:, :, None].expand(-1, -1, self.max_segments)).squeeze(1)

    def _ripple(self, generator: Generator, batch: int, length: int) -> Tensor:
        shape = (batch, 1)
        noise = coloured(generator, batch, length) * log_uniform(generator, shape, 3e-3, 0.4)
        day = pick(generator, shape, (24, 96, 144, 288, 7))
        phase = time_steps(generator, length) / day + uniform(generator, shape)
        season = lookup(random_profiles(generator, batch, 96), phase) * log_uniform(generator, shape, 0.03, 0.6)
        return noise * chance(generator, shape, self.noisy) + season * chance(generator, shape, 0.3)
