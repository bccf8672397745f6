"""Electricity: a household of switched appliances, aggregated load, plants and meters."""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from tsseq.array_typing import Float
from tsseq.synthetic.base import Prior
from tsseq.synthetic.curves import lookup, renewals, smooth_path, time_steps
from tsseq.synthetic.draws import chance, log_uniform, normal, pick, uniform
from tsseq.synthetic.noise import modulated
from tsseq.synthetic.profiles import random_profiles


@dataclass(frozen=True)
class Power(Prior):
    """A base load with daily and weekly profile, weather-driven swell, and up to `appliances` on-off consumers.

    The more of the load the consumers are, the rougher the series; `outages` is the share with stretches at zero.
    """

    appliances: int = 3
    outages: float = 0.12

    def sample(self, generator: Generator, batch_size: int, length: int) -> Float[Tensor, "batch time"]:
        shape = (batch_size, 1)
        day = pick(generator, shape, (1440, 288, 144, 96, 48, 24), (0.4, 1, 1, 3, 1, 3))
        phase = time_steps(generator, length) / day + uniform(generator, shape, 0.0, 7.0)
        season = smooth_path(generator, day * log_uniform(generator, shape, 2.0, 60.0), length)
        load = self._base(generator, phase) * torch.exp(uniform(generator, shape, 0.0, 0.4) * season)
        noise = log_uniform(generator, shape, 3e-3, 0.2) * modulated(generator, batch_size, length)
        load = load * (1 + noise).clamp(min=0.02)
        rough = log_uniform(generator, shape, 0.1, 3.0) * chance(generator, shape, 0.6)
        consumers = self._appliance(generator, phase.repeat(self.appliances, 1), day.repeat(self.appliances, 1))
        load = load + rough * consumers.view(self.appliances, batch_size, length).sum(0)
        off = self._off(generator, batch_size, length)
        return load * torch.where(off, 0.0, 1.0)

    def _base(self, generator: Generator, phase: Tensor) -> Tensor:
        shape = (phase.shape[0], 1)
        tables = random_profiles(generator, 2 * shape[0]).chunk(2)
        daily, weekly = lookup(tables[0], phase), lookup(tables[1], phase / 7)
        swing = log_uniform(generator, shape, 0.05, 0.7) * daily + log_uniform(generator, shape, 0.02, 0.4) * weekly
        return torch.exp(swing)

    def _appliance(self, generator: Generator, phase: Tensor, day: Tensor) -> Tensor:
        """On for minutes to hours, more often at its hours of the day; some modulate while on."""
        shape, length = tuple(day.shape), phase.shape[-1]
        cycle = day * log_uniform(generator, shape, 0.01, 1.5)
        duty = uniform(generator, shape, 0.05, 0.6)
        dwell = torch.cat([cycle * (1 - duty), cycle * duty], dim=-1).clamp(min=1.0).repeat(1, 128)
        index, _ = renewals(generator, dwell, length)
        height = torch.exp(0.3 * normal(generator, (shape[0], 256))).gather(-1, index)
        hours = lookup(random_profiles(generator, shape[0], 96), phase) > uniform(generator, shape, -2.0, 0.5)
        return (index % 2 == 1) * hours * height * uniform(generator, shape)

    def _off(self, generator: Generator, batch: int, length: int) -> Tensor:
        dwell = log_uniform(generator, (batch, 2), 30.0, 1000.0)
        dwell[:, 1] *= 0.2
        index, _ = renewals(generator, dwell.repeat(1, 16), length)
        return (index % 2 == 1) & chance(generator, (batch, 1), self.outages)
