"""Trend × calendar seasons × Weibull noise (ForecastPFN, Dooley et al. 2023), on a correct calendar."""

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from tsseq.array_typing import Float
from tsseq.synthetic.base import Prior
from tsseq.synthetic.calendar import DAY, civil_from_days, weekday
from tsseq.synthetic.curves import held, time_steps
from tsseq.synthetic.draws import chance, choice, constant, integers, normal, uniform

# step in seconds, largest weights of the minute, hour, weekday, day-of-month and month terms, share of series
STEPS = (
    (60.0, 1.0, 0.2, 0.0, 0.0, 0.0, 1.0),
    (300.0, 1.0, 0.2, 0.0, 0.0, 0.0, 1.5),
    (600.0, 1.0, 0.2, 0.0, 0.0, 0.0, 1.0),
    (900.0, 1.0, 0.2, 0.0, 0.0, 0.0, 1.5),
    (1800.0, 0.5, 0.5, 0.0, 0.0, 0.0, 0.5),
    (3600.0, 0.2, 1.0, 0.0, 0.0, 0.0, 4.0),
    (DAY, 0.0, 0.0, 1.0, 0.2, 0.0, 4.0),
    (7 * DAY, 0.0, 0.0, 0.0, 0.3, 0.3, 1.0),
    (30.436875 * DAY, 0.0, 0.0, 0.1, 0.0, 0.5, 1.0),
    (91.310625 * DAY, 0.0, 0.0, 0.0, 0.0, 1.0, 0.5),
)
SLOTS = 1440
"""Resolution of a cycle; hours, minutes and days of the week fall on whole slots, dates on the nearest before."""
CYCLES = ((60.0, 10), (24.0, 10), (7.0, 4), (30.5, 10), (12.0, 6))


def fourier(generator: Generator, phase: Float[Tensor, "batch time"], count: int) -> Float[Tensor, "batch time"]:
    """A random Fourier series of unit norm: coefficients N(0, 1), or for half of the series N(0, 1/h²)."""
    batch = phase.shape[0]
    order = torch.arange(1, count + 1, device=phase.device)
    fall = torch.where(chance(generator, (batch, 1), 0.5), order.reciprocal(), 1.0).repeat(1, 2)
    coefficients = normal(generator, (batch, 2 * count)) * fall
    coefficients = coefficients / coefficients.square().sum(-1, keepdim=True).sqrt()
    angle = 2 * math.pi * order[:, None] * torch.arange(SLOTS, device=phase.device) / SLOTS
    return held(coefficients @ torch.cat([angle.sin(), angle.cos()]), phase)


@dataclass(frozen=True)
class ForecastPFN(Prior):
    """Linear × exponential trend times a product of seasons, times Weibull noise around one.

    The start lies between 1970 and 2100; minute, hour, weekday, day of the month and month are those of the date.
    Every series blends two independent draws, the second taking over in the middle.
    """

    def sample(self, generator: Generator, batch_size: int, length: int) -> Float[Tensor, "batch time"]:
        shape = (batch_size, 1)
        table = choice(generator, shape, [row[6] for row in STEPS])
        step = constant(tuple(row[0] for row in STEPS), generator.device)[table]
        start = integers(generator, shape, 0, 47481)
        phases = self._phases(start, step, length)
        weights = [constant(tuple(row[i + 1] for row in STEPS), generator.device)[table] for i in range(5)]
        scales = [weight * uniform(generator, shape) for weight in weights]
        first, second = (self._curve(generator, phases, scales, length) for _ in range(2))
        slope = math.log(81) / 0.6
        blend = torch.sigmoid(slope * (time_steps(generator, length) / length - 0.5))
        return torch.lerp(first, second, blend) * self._noise(generator, batch_size, length)

    def _phases(self, start: Tensor, step: Tensor, length: int) -> list[Tensor]:
        """Position in the hour, day, week, month and year, in cycles."""
        # Whole seconds and whole days are kept apart: float32 has not the digits for both.
        seconds = torch.arange(length, device=start.device) * step.long()
        days = start + seconds.div(int(DAY), rounding_mode="floor")
        second = torch.remainder(seconds, int(DAY)).float()
        month, day = civil_from_days(days)
        hour = second / 3600
        minute = torch.remainder(second, 3600) / 60
        return [minute / 60, hour / 24, weekday(days) / 7, (day - 1) / 30.5, (month - 1) / 12]

    def _curve(self, generator: Generator, phases: list[Tensor], scales: list[Tensor], length: int) -> Tensor:
        shape = (scales[0].shape[0], 1)
        time = time_steps(generator, length) / length
        linear = 1 + normal(generator, shape) * (time - uniform(generator, shape, -0.1, 0.5))
        growth = (0.8 * normal(generator, shape)).clamp(-2.3, 2.3)
        trend = linear * torch.exp(growth * (time - uniform(generator, shape, -0.1, 0.5)))
        season = torch.ones_like(phases[0])
        for phase, scale, (_, count) in zip(phases, scales, CYCLES, strict=True):
            season = season * (1 + scale * fourier(generator, phase, count))
        return trend * season

    def _noise(self, generator: Generator, batch: int, length: int) -> Tensor:
        """1 + s (W - 1) with W Weibull of median 1."""
        power = 1 / uniform(generator, (batch, 1), 1.0, 5.0)
        weibull = torch.empty((batch, length), device=power.device).exponential_(generator=generator).pow(power)
        median = math.log(2.0) ** power
        level = choice(generator, (batch, 1), (0.6, 0.3, 0.1))
        low, high = (constant(values, power.device)[level] for values in ((0.0, 0.2, 0.7), (0.1, 0.5, 0.9)))
        return 1 + torch.lerp(low, high, uniform(generator, (batch, 1))) * (weibull / median - 1)
