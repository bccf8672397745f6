"""Road traffic and crowds: two rush hours, weekends, congestion that sets in beyond capacity, incidents."""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from tsseq.array_typing import Float
from tsseq.synthetic.base import Prior
from tsseq.synthetic.curves import held, impulses, lookup, time_steps
from tsseq.synthetic.draws import chance, choice, constant, log_uniform, normal, pick, uniform
from tsseq.synthetic.noise import autoregressive
from tsseq.synthetic.profiles import SLOTS, bumps, plateau
from tsseq.synthetic.scan import exponential_filter


@dataclass(frozen=True)
class Traffic(Prior):
    """Shares of the quantities: speed (flat at free flow, sharp dips), flow, counts of passengers, occupancy."""

    quantities: tuple[float, float, float, float] = (0.35, 0.25, 0.25, 0.15)

    def sample(self, generator: Generator, batch_size: int, length: int) -> Float[Tensor, "batch time"]:
        shape = (batch_size, 1)
        day = pick(generator, shape, (288, 96, 48, 24, 72), (3, 2, 1, 3, 0.5))
        demand = self._demand(generator, day, length)
        jam = self._jam(generator, demand, day)
        noise = log_uniform(generator, shape, 5e-3, 0.1) * normal(generator, (batch_size, length))
        quantity = choice(generator, shape, self.quantities)
        speed = 65 * (1 - uniform(generator, shape, 0.2, 0.8) * jam) * (1 + noise)
        flow = demand * (1 - 0.4 * jam) * (1 + 2 * noise)
        size = log_uniform(generator, shape, 2.0, 800.0)
        counts = torch.poisson((size * demand).clamp(0, 1e5), generator=generator)
        occupancy = (0.1 * demand + uniform(generator, shape, 0.1, 0.7) * jam) * (1 + 2 * noise)
        out = speed
        for number, other in enumerate((flow, counts, occupancy), start=1):
            out = torch.where(quantity == number, other, out)
        return out

    def _demand(self, generator: Generator, day: Tensor, length: int) -> Tensor:
        """Trips per step: a working-day and a weekend profile, days of their own size, slow noise."""
        batch, shape = day.shape[0], tuple(day.shape)
        slots = torch.arange(SLOTS, device=day.device) / SLOTS
        working = bumps(generator, batch, slots) + 0.6 * plateau(generator, batch, slots)
        weekend = bumps(generator, batch, slots, count=1) + 0.3 * plateau(generator, batch, slots)
        phase = time_steps(generator, length) / day + uniform(generator, shape, 0.0, 7.0)
        calendar = constant((0.0,) * 5 + (1.0,) * 2, day.device).expand(batch, 7)
        free_day = held(calendar, phase / 7) * chance(generator, shape, 0.8)
        size = held(torch.exp(0.1 * normal(generator, (batch, 7))), phase / 7)
        base = torch.lerp(lookup(working, phase), lookup(weekend, phase), free_day)
        wander = autoregressive(generator, day * log_uniform(generator, shape, 0.01, 2.0), length)
        wander = wander * log_uniform(generator, shape, 0.02, 0.3)
        return (base * size + log_uniform(generator, shape, 0.01, 0.2)) * torch.exp(wander)

    def _jam(self, generator: Generator, demand: Tensor, day: Tensor) -> Tensor:
        """0 to 1: rises where demand passes capacity, and after an incident; clears with a lag."""
        shape = tuple(day.shape)
        capacity = demand.amax(-1, keepdim=True) * uniform(generator, shape, 0.4, 1.1)
        sharpness = log_uniform(generator, shape, 5.0, 40.0)
        pressure = torch.sigmoid(sharpness * (demand / capacity - 1))
        rate = (log_uniform(generator, shape, 0.01, 0.3) / day).expand_as(demand)
        hit = impulses(generator, rate, torch.full_like(day, 0.4))
        clearing = day * uniform(generator, shape, 0.005, 0.04)
        return exponential_filter(pressure + 0.6 * hit * clearing.clamp(min=1.0), clearing).clamp(max=1.0)
