"""Flat baselines with events: periodic or random peaks of various shapes, and sparse anomalies."""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from tsseq.array_typing import Float
from tsseq.synthetic.base import Prior
from tsseq.synthetic.curves import impulses, time_steps
from tsseq.synthetic.draws import chance, integers, log_uniform, normal, uniform
from tsseq.synthetic.noise import autoregressive
from tsseq.synthetic.scan import linear_scan


@dataclass(frozen=True)
class Spikes(Prior):
    """Triangular, flat-topped or decaying peaks at regular, jittered or alternating intervals, of varying height."""

    longest_interval: float = 800.0

    def sample(self, generator: Generator, batch_size: int, length: int) -> Float[Tensor, "batch time"]:
        shape = (batch_size, 1)
        interval = log_uniform(generator, shape, 8.0, self.longest_interval)
        clock = time_steps(generator, length) / interval + uniform(generator, shape)
        table = normal(generator, (batch_size, int(length / 8) + 3))
        cycle = clock.floor().long()
        jitter = uniform(generator, shape, 0.0, 0.2) * chance(generator, shape, 0.4)
        offset = (clock - cycle - 0.5 - jitter * table.gather(-1, cycle).clamp(-2, 2)) * interval
        width = (interval * log_uniform(generator, shape, 0.01, 0.35)).clamp(min=1.0)
        height = torch.exp(uniform(generator, shape, 0.0, 0.5) * table.roll(1, -1).gather(-1, cycle))
        height = height * (table.roll(2, -1).gather(-1, cycle) > normal(generator, shape) - 2.0)
        sign = torch.where(chance(generator, shape, 0.7), 1.0, -1.0)
        baseline = autoregressive(generator, log_uniform(generator, shape, 0.3, 300.0), length)
        baseline = baseline * log_uniform(generator, shape, 1e-3, 0.25)
        return sign * height * self._peak(generator, offset / width) + baseline

    def _peak(self, generator: Generator, u: Tensor) -> Tensor:
        """Shapes on -1 < u < 1: triangle, trapezium, jump with exponential decay."""
        shape = (u.shape[0], 1)
        triangle = (1 - u.abs()).clamp(min=0)
        trapezium = (triangle * uniform(generator, shape, 1.2, 6.0)).clamp(max=1.0)
        decay = (u > 0) * torch.exp(-3 * u.clamp(min=0))
        kind = integers(generator, shape, 0, 3)
        return torch.where(kind == 0, triangle, torch.where(kind == 1, trapezium, decay))


@dataclass(frozen=True)
class Anomaly(Prior):
    """A constant with rare single-step outliers of one sign, at regular or random times, some followed by others."""

    def sample(self, generator: Generator, batch_size: int, length: int) -> Float[Tensor, "batch time"]:
        shape = (batch_size, 1)
        time = time_steps(generator, length)
        period = integers(generator, shape, 20, 300)
        regular = torch.remainder(time + integers(generator, shape, 0, 300), period) == 0
        random = chance(generator, (batch_size, length), log_uniform(generator, shape, 2e-3, 0.02))
        hit = torch.where(chance(generator, shape, 0.6), regular, random)
        size = torch.exp(0.4 * normal(generator, (batch_size, length))) * hit
        follow = linear_scan((0.6 * chance(generator, (batch_size, length), 0.3)), size)
        rate = log_uniform(generator, shape, 1e-4, 3e-3)
        extra = impulses(generator, rate.expand(batch_size, length), torch.full_like(rate, 0.5))
        size = torch.where(chance(generator, shape, 0.3), follow + extra, size)
        sign = torch.where(chance(generator, shape, 0.6), 1.0, -1.0)
        noise = log_uniform(generator, shape, 1e-3, 0.1) * normal(generator, (batch_size, length))
        return sign * size + noise
