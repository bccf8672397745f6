"""Sensors of machines, transformers and buildings: a level that wanders and returns, a day that swells and fades."""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from tsseq.array_typing import Float
from tsseq.synthetic.base import Prior
from tsseq.synthetic.curves import held, lookup, segments, smooth_path, time_steps
from tsseq.synthetic.draws import chance, log_uniform, normal, pick, uniform
from tsseq.synthetic.noise import autoregressive, innovations
from tsseq.synthetic.profiles import random_profiles


@dataclass(frozen=True)
class Sensor(Prior):
    """Damped random walk + seasonal drift + daily cycle of changing size + rough noise, as an instrument shows it.

    Attributes:
        reversed_flow: share whose daily cycle changes sign for days or weeks, as a load that turns into a supply.
        stuck: share with stretches in which the reading stands still.
        coarse: share rounded to a grid.
    """

    reversed_flow: float = 0.12
    stuck: float = 0.2
    coarse: float = 0.35

    def sample(self, generator: Generator, batch_size: int, length: int) -> Float[Tensor, "batch time"]:
        shape = (batch_size, 1)
        day = pick(generator, shape, (96, 24, 144, 288, 48, 1440, 7), (4, 4, 1.5, 1.5, 1, 0.7, 1))
        level = autoregressive(generator, day * log_uniform(generator, shape, 0.3, 40.0), length)
        level = level + log_uniform(generator, shape, 0.1, 2.0) * self._drift(generator, day, length)
        rough = autoregressive(generator, log_uniform(generator, shape, 0.3, 20.0), length)
        shocks = innovations(generator, batch_size, length, heavy=0.5)
        noise = torch.where(chance(generator, shape, 0.5), rough, shocks) * log_uniform(generator, shape, 0.01, 0.6)
        cycle = self._cycle(generator, day, length) * log_uniform(generator, shape, 0.1, 4.0)
        reading = self._stick(generator, level + cycle + noise)
        step = log_uniform(generator, shape, 0.01, 0.5)
        return torch.where(chance(generator, shape, self.coarse), torch.round(reading / step) * step, reading)

    def _drift(self, generator: Generator, day: Tensor, length: int) -> Tensor:
        """A year, or a slow path without a clock."""
        shape = tuple(day.shape)
        year = time_steps(generator, length) / (365.25 * day) + uniform(generator, shape)
        slow = smooth_path(generator, day * log_uniform(generator, shape, 5.0, 100.0), length)
        return torch.where(chance(generator, shape, 0.4), torch.sin(2 * torch.pi * year), slow)

    def _cycle(self, generator: Generator, day: Tensor, length: int) -> Tensor:
        """One profile of the day; its size wanders over days, each day has its own, and the sign may turn."""
        shape = tuple(day.shape)
        phase = time_steps(generator, length) / day + uniform(generator, shape, 0.0, 7.0)
        wander = autoregressive(generator, day * log_uniform(generator, shape, 1.0, 30.0), length)
        single = normal(generator, (shape[0], 512)) * log_uniform(generator, shape, 0.02, 0.5)
        size = torch.exp(uniform(generator, shape, 0.0, 0.7) * wander + held(single, phase / 512))
        dwell = day * log_uniform(generator, shape, 1.0, 30.0)
        turned = segments(generator, dwell.expand(-1, 32), length) % 2 == 1
        sign = 1.0 - 2.0 * (turned & chance(generator, shape, self.reversed_flow))
        return sign * size * lookup(random_profiles(generator, shape[0], 96), phase)

    def _stick(self, generator: Generator, reading: Tensor) -> Tensor:
        """Hold the value with which a stretch begins in every second stretch of some series."""
        shape, length = (reading.shape[0], 1), reading.shape[-1]
        good, bad = log_uniform(generator, shape, 100.0, 2000.0), log_uniform(generator, shape, 3.0, 60.0)
        index = segments(generator, torch.cat([good, bad], dim=-1).repeat(1, 24), length)
        begins = torch.nn.functional.pad(index.diff(dim=-1) != 0, (1, 0), value=True)
        time = time_steps(generator, length).long()
        source = torch.where(begins, time, 0).cummax(-1).values
        stuck = (index % 2 == 1) & chance(generator, shape, self.stuck)
        return torch.where(stuck, reading.gather(-1, source), reading)
