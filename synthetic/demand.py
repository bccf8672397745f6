"""Counts and intermittent demand: few sales, many zeros, launches, promotions and slow movers."""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from tsseq.array_typing import Float
from tsseq.synthetic.base import Prior
from tsseq.synthetic.curves import impulses, lookup, smooth_path, time_steps
from tsseq.synthetic.draws import chance, log_uniform, pick, uniform
from tsseq.synthetic.noise import autoregressive
from tsseq.synthetic.profiles import random_profiles
from tsseq.synthetic.scan import linear_scan

PERIODS = (7, 12, 52.18, 24, 4, 168, 365.25)
PERIOD_WEIGHTS = (4, 2, 2, 1, 0.5, 0.5, 1)


@dataclass(frozen=True)
class Demand(Prior):
    """Poisson counts whose mean carries level, season, overdispersion and promotions.

    A share `intermittent` is thinned: on most steps nothing is ordered. Mean sizes run from 0.1 to 2000 a step.
    """

    intermittent: float = 0.45

    def sample(self, generator: Generator, batch_size: int, length: int) -> Float[Tensor, "batch time"]:
        shape = (batch_size, 1)
        log_mean = self._log_mean(generator, batch_size, length)
        thinned = chance(generator, shape, self.intermittent)
        size = torch.where(
            thinned, log_uniform(generator, shape, 0.3, 30.0), log_uniform(generator, shape, 0.5, 2000.0)
        )
        often = torch.where(thinned, log_uniform(generator, shape, 0.02, 0.7), torch.inf)
        # An order that happens has at least one unit, so thinned counts are shifted by one.
        counts = torch.poisson((size * log_mean.exp()).clamp(max=1e5), generator=generator) + 1.0 * thinned
        ordered = chance(generator, (batch_size, length), (often * (0.7 * log_mean).exp()).clamp(max=1.0))
        return counts * ordered * self._on_sale(generator, batch_size, length)

    def _log_mean(self, generator: Generator, batch: int, length: int) -> Tensor:
        shape = (batch, 1)
        period = pick(generator, shape, PERIODS, PERIOD_WEIGHTS)
        phase = time_steps(generator, length) / period + uniform(generator, shape)
        season = lookup(random_profiles(generator, batch, 84), phase)
        season = season * log_uniform(generator, shape, 0.1, 1.0) * chance(generator, shape, 0.65)
        slow = smooth_path(generator, log_uniform(generator, shape, 30.0, 1500.0), length)
        slow = slow * uniform(generator, shape, 0.0, 0.8)
        memory = autoregressive(generator, log_uniform(generator, shape, 0.3, 60.0), length)
        memory = memory * log_uniform(generator, shape, 0.05, 0.7)
        return (season + slow + memory + self._promotions(generator, batch, length)).clamp(-5.0, 4.0)

    def _promotions(self, generator: Generator, batch: int, length: int) -> Tensor:
        """Lifts that last a few steps."""
        shape = (batch, 1)
        rate = log_uniform(generator, shape, 2e-3, 0.04).expand(batch, length)
        lift = impulses(generator, rate, uniform(generator, shape, 0.1, 0.5))
        decay = torch.exp(-1 / log_uniform(generator, shape, 0.3, 8.0)).expand(batch, length)
        return linear_scan(decay, lift) * uniform(generator, shape, 0.3, 1.5) * chance(generator, shape, 0.3)

    def _on_sale(self, generator: Generator, batch: int, length: int) -> Tensor:
        """0 before the launch and after the end of sale (an eighth of the series each)."""
        shape = (batch, 1)
        time = time_steps(generator, length) / length
        launch = uniform(generator, shape, 0.0, 0.7) * chance(generator, shape, 0.12)
        end = torch.where(chance(generator, shape, 0.12), uniform(generator, shape, 0.75, 1.0), 1.1)
        return (time >= launch) & (time < end)
