"""Waves of an epidemic or of a fashion: sharp rise, slower fall, weekly reporting, or the running total."""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from tsseq.array_typing import Float
from tsseq.synthetic.base import Prior
from tsseq.synthetic.curves import held, smooth_path, time_steps
from tsseq.synthetic.draws import chance, log_uniform, normal, pick, uniform


@dataclass(frozen=True)
class Epidemic(Prior):
    """Up to `waves` waves with exponential growth and decay, counted with overdispersion.

    A share `cumulative` is summed up; a share `seasonal` returns every year at about the same time.
    """

    waves: int = 5
    cumulative: float = 0.3
    seasonal: float = 0.35

    def sample(self, generator: Generator, batch_size: int, length: int) -> Float[Tensor, "batch time"]:
        shape = (batch_size, 1)
        time = time_steps(generator, length)
        once = self._waves(generator, batch_size, length)
        yearly = self._yearly(generator, batch_size, length)
        rate = torch.where(chance(generator, shape, self.seasonal), yearly, once)
        week = held(torch.exp(0.5 * normal(generator, (batch_size, 7))), time.expand(batch_size, -1) / 7)
        rate = rate * torch.where(chance(generator, shape, 0.4), week, 1.0)
        size = log_uniform(generator, shape, 3.0, 3e4)
        spread = log_uniform(generator, shape, 0.01, 0.3)
        mean = size * rate * torch.exp(spread * normal(generator, (batch_size, length)))
        counts = torch.poisson(mean.clamp(max=1e5), generator=generator)
        total = counts.cumsum(-1) / length
        return torch.where(chance(generator, shape, self.cumulative), total, counts)

    def _waves(self, generator: Generator, batch: int, length: int) -> Tensor:
        shape = (batch, self.waves, 1)
        rise = log_uniform(generator, (batch, 1, 1), 3.0, 100.0) * torch.exp(0.4 * normal(generator, shape))
        fall = rise * log_uniform(generator, shape, 0.7, 5.0)
        centre = uniform(generator, shape, -0.1, 1.1) * length
        height = log_uniform(generator, shape, 0.05, 1.0) * chance(generator, shape, 0.8)
        u = time_steps(generator, length) - centre
        # The harmonic sum of growth and decay is smooth at the peak.
        wave = 2 * height / (torch.exp(-(u / rise).clamp(-30, 30)) + torch.exp((u / fall).clamp(-30, 30)))
        return wave.sum(1) + 1e-3

    def _yearly(self, generator: Generator, batch: int, length: int) -> Tensor:
        shape = (batch, 1)
        year = pick(generator, shape, (52.18, 12, 365.25), (3, 1, 1))
        clock = time_steps(generator, length) / year + uniform(generator, shape)
        path = smooth_path(generator, (2 * year).clamp(min=16), length)
        late = 0.08 * path
        severity = torch.exp(uniform(generator, shape, 0.1, 0.8) * smooth_path(generator, year.clamp(min=16), length))
        sharp = log_uniform(generator, shape, 1.0, 15.0)
        return severity * torch.exp(sharp * (torch.cos(2 * torch.pi * (clock + late)) - 1)) + 0.01
