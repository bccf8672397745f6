"""Trend, nested calendar seasons and noise, joined by sums, products or an exponential.

The cycles are real clocks: a day inside a week inside a year at sampling steps from ten seconds to a quarter,
with different weekdays, amplitudes that drift and random profiles rather than sines.
"""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from tsseq.array_typing import Float
from tsseq.synthetic.base import Prior
from tsseq.synthetic.curves import held, lookup, segments, smooth_path, time_steps
from tsseq.synthetic.draws import chance, choice, constant, integers, log_uniform, normal, uniform
from tsseq.synthetic.noise import modulated
from tsseq.synthetic.profiles import random_profiles

# (inner cycle in steps, inner cycles per outer cycle, outer cycles per slow cycle, weight)
CLOCKS = (
    (360.0, 24.0, 7.0, 0.3),  # 10 s: hour, day, week
    (8640.0, 7.0, 52.18, 0.2),  # 10 s: day
    (60.0, 24.0, 7.0, 0.5),  # minute: hour, day, week
    (1440.0, 7.0, 52.18, 0.5),  # minute: day, week
    (12.0, 24.0, 7.0, 0.4),  # 5 min: hour, day, week
    (288.0, 7.0, 52.18, 1.6),  # 5 min: day, week
    (144.0, 7.0, 52.18, 1.2),  # 10 min
    (96.0, 7.0, 52.18, 1.6),  # 15 min
    (48.0, 7.0, 52.18, 1.0),  # 30 min
    (24.0, 7.0, 52.18, 2.6),  # hour: day, week, year
    (24.0, 365.25, 1.0, 0.6),  # hour: day, year (no week: nature)
    (12.0, 7.0, 52.18, 0.2),  # 2 hours
    (8.0, 7.0, 52.18, 0.2),  # 3 hours
    (6.0, 7.0, 52.18, 0.2),  # 4 hours
    (4.0, 7.0, 52.18, 0.2),  # 6 hours
    (7.0, 52.18, 1.0, 1.8),  # day: week, year
    (7.0, 4.348, 12.0, 0.4),  # day: week, month, year
    (365.25, 10.0, 1.0, 0.5),  # day: year, decade (nature)
    (5.0, 52.0, 1.0, 0.3),  # business day
    (52.18, 8.0, 1.0, 0.8),  # week: year
    (13.05, 4.0, 1.0, 0.2),  # week: quarter, year
    (12.0, 10.0, 1.0, 1.2),  # month: year
    (4.0, 10.0, 1.0, 0.5),  # quarter: year
)


def draw_clock(generator: Generator, batch: int, calendar: float) -> tuple[Tensor, Tensor, Tensor]:
    """Inner, outer and slow period in steps (batch × 1): a calendar's, or a share of arbitrary nested ones."""
    shape = (batch, 1)
    row = choice(generator, shape, [clock[3] for clock in CLOCKS])
    inner, ratio, slow = (constant(tuple(c[i] for c in CLOCKS), generator.device)[row] for i in range(3))
    free = ~chance(generator, shape, calendar)
    inner = torch.where(free, log_uniform(generator, shape, 3.0, 800.0), inner)
    ratio = torch.where(free, integers(generator, shape, 2, 15).float(), ratio)
    return inner, inner * ratio, inner * ratio * slow


def trend(generator: Generator, batch: int, length: int) -> Float[Tensor, "batch time"]:
    """A path of unit total excursion over the window: straight, bent, logistic or wandering, and level shifts."""
    shape = (batch, 1)
    time = time_steps(generator, length) / length
    line = time * normal(generator, shape).sign()
    middle, width = uniform(generator, shape, -0.1, 1.1), log_uniform(generator, shape, 0.02, 0.4)
    logistic = torch.sigmoid((time - middle) / width)
    wander = smooth_path(generator, log_uniform(generator, shape, 48.0, 2048.0), length)
    levels = normal(generator, (batch, 24)).gather(
        -1, segments(generator, log_uniform(generator, shape, 80.0, 3000.0).expand(-1, 24), length)
    )
    kinds = torch.stack([line, logistic, wander, levels], dim=1)
    excursion = kinds.amax(-1, keepdim=True) - kinds.amin(-1, keepdim=True)
    weights = uniform(generator, (batch, 4, 1)) * chance(
        generator, (batch, 4, 1), constant((0.5, 0.15, 0.55, 0.2), generator.device)[:, None]
    )
    return (weights * kinds / excursion.clamp(min=1e-3)).sum(1)


@dataclass(frozen=True)
class SeasonalTrend(Prior):
    """Trend, up to three nested seasons and residuals.

    `clean` is the share of nearly noiseless series, `multiplicative` of exponentials, `clipped` of series cut
    off at zero; the rest are sums. `drifting` is the share whose seasonal amplitude and phase change slowly.
    """

    calendar: float = 0.8
    clean: float = 0.35
    drifting: float = 0.4
    multiplicative: float = 0.35
    clipped: float = 0.06

    def sample(self, generator: Generator, batch_size: int, length: int) -> Float[Tensor, "batch time"]:
        shape = (batch_size, 1)
        season = self._seasons(generator, batch_size, length)
        slope = log_uniform(generator, shape, 0.1, 8.0) * chance(generator, shape, 0.75)
        smooth = season + slope * trend(generator, batch_size, length)
        level = torch.where(
            chance(generator, shape, self.clean),
            log_uniform(generator, shape, 1e-3, 0.05),
            log_uniform(generator, shape, 0.05, 1.5),
        )
        busy = (0.7 * season).exp().clamp(max=8.0)
        noise = modulated(generator, batch_size, length) * torch.where(chance(generator, shape, 0.25), busy, 1.0)
        return self._join(generator, smooth, level * noise)

    def _join(self, generator: Generator, smooth: Tensor, noise: Tensor) -> Tensor:
        shape = (smooth.shape[0], 1)
        centred = smooth - smooth.mean(-1, keepdim=True)
        total = centred + noise
        rate = torch.minimum(log_uniform(generator, shape, 0.05, 1.0), 4.0 / total.abs().amax(-1, keepdim=True))
        grown = torch.exp(rate * total)
        floor = uniform(generator, shape, -1.2, 0.8) * centred.abs().mean(-1, keepdim=True)
        cut = (centred - floor).clamp(min=0) * (1 + 0.3 * noise).clamp(min=0)
        out = torch.where(chance(generator, shape, self.multiplicative), grown, total)
        return torch.where(chance(generator, shape, self.clipped), cut, out)

    def _seasons(self, generator: Generator, batch: int, length: int) -> Tensor:
        """Day × week product, plus the outer cycle itself, plus the slow cycle."""
        shape = (batch, 1)
        inner, outer, slow = draw_clock(generator, batch, self.calendar)
        time = time_steps(generator, length) + uniform(generator, shape) * outer.clamp(max=1e5)
        drifting = chance(generator, shape, self.drifting)
        jitter = drifting * log_uniform(generator, shape, 3e-3, 0.1) * chance(generator, shape, 0.5)
        spacing = log_uniform(generator, shape, 64.0, 2048.0)
        phases, swells = smooth_path(generator, torch.cat([spacing, 1.5 * spacing]), length).chunk(2)
        phase = time / inner + jitter * phases
        ordinary, special, long, longest = random_profiles(generator, 4 * batch).chunk(4)
        product = self._day_by_week(generator, phase, outer / inner, ordinary, special)
        product = product * self._day_sizes(generator, phase)
        product = product * torch.exp(drifting * uniform(generator, shape, 0.1, 0.7) * swells)
        outer_path = lookup(long, time / outer)
        slow_path = lookup(longest, time / slow.clamp(min=2.0))
        weight_outer = log_uniform(generator, shape, 0.05, 2.0) * chance(generator, shape, 0.4)
        weight_slow = log_uniform(generator, shape, 0.1, 2.0) * chance(generator, shape, 0.35)
        seasons = product * chance(generator, shape, 0.9) + weight_outer * outer_path + weight_slow * slow_path
        return seasons + self._holidays(generator, time / torch.maximum(outer, slow))

    def _day_sizes(self, generator: Generator, phase: Tensor) -> Tensor:
        """A factor for every single inner cycle, as for the sunshine or the turnover of a day; half have none."""
        shape = (phase.shape[0], 1)
        table = normal(generator, (phase.shape[0], 1024))
        spread = log_uniform(generator, shape, 0.03, 0.6) * chance(generator, shape, 0.5)
        return torch.exp(spread * table.gather(-1, torch.remainder(phase.floor(), 1024).long()))

    def _holidays(self, generator: Generator, years: Tensor) -> Tensor:
        """Single days of the longest cycle that are unlike the others, every time; a tenth of the series have them."""
        shape = (years.shape[0], 1)
        chosen = chance(generator, (shape[0], 366), log_uniform(generator, shape, 0.003, 0.04))
        size = log_uniform(generator, shape, 0.5, 4.0) * torch.where(chance(generator, shape, 0.6), -1.0, 1.0)
        days = chosen * size * uniform(generator, (shape[0], 366), 0.3, 1.0) * chance(generator, shape, 0.1)
        return held(days, years)

    def _day_by_week(
        self, generator: Generator, phase: Tensor, ratio: Tensor, ordinary: Tensor, special: Tensor
    ) -> Tensor:
        """The inner profile of ordinary and of special days, each day with its own level and size.

        Days repeat with the outer cycle; the special ones are the last two of seven, or random ones. Cycles that
        are no weeks of days, or days of hours, have none.
        """
        batch = phase.shape[0]
        shape = (batch, 1)
        position = phase / ratio
        weekend = constant((0.0,) * 5 + (1.0,) * 2, generator.device).expand(batch, 7)
        mixed = torch.where(chance(generator, shape, 0.6), weekend, uniform(generator, (batch, 7)))
        weekly = (ratio < 7.5) | (ratio == 24)
        share = mixed * uniform(generator, shape) * (weekly & chance(generator, shape, 0.5))
        size = 1 + (0.3 * normal(generator, (batch, 7)) - weekend * uniform(generator, shape, 0.0, 0.7)).clamp(min=-1)
        level = normal(generator, (batch, 7)) * 0.3 - weekend * uniform(generator, shape, 0.0, 1.5)
        strength = uniform(generator, shape) * (weekly & chance(generator, shape, 0.6))
        size, level = torch.lerp(torch.ones_like(size), size, strength), level * strength
        return torch.lerp(lookup(ordinary, phase), lookup(special, phase), held(share, position)) * held(
            size, position
        ) + held(level, position)
