"""Economic and demographic series of years, quarters and months: growth, cycles, breaks, changing seasons.

Every scale is per step, so that twenty points tell as much as they do in reality.
"""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from tsseq.array_typing import Float
from tsseq.synthetic.base import Prior
from tsseq.synthetic.curves import impulses, lookup, segments, smooth_path, time_steps
from tsseq.synthetic.draws import chance, log_uniform, normal, pick, uniform
from tsseq.synthetic.noise import arma_response
from tsseq.synthetic.profiles import random_profiles
from tsseq.synthetic.scan import fft_length, stationary


@dataclass(frozen=True)
class Economy(Prior):
    """log y = growth in spells + random walk + business cycle + season + breaks + error; a third stays additive."""

    seasonal: float = 0.6
    logarithmic: float = 0.67

    def sample(self, generator: Generator, batch_size: int, length: int) -> Float[Tensor, "batch time"]:
        shape = (batch_size, 1)
        unit = log_uniform(generator, shape, 3e-3, 0.1)  # how far the level moves in one step
        level = self._growth(generator, batch_size, length) + self._walk(generator, batch_size, length)
        level = level + log_uniform(generator, shape, 0.3, 6.0) * self._cycle(generator, batch_size, length)
        level = level + self._season(generator, batch_size, length) + self._breaks(generator, batch_size, length)
        error = log_uniform(generator, shape, 0.03, 3.0) * normal(generator, (batch_size, length))
        total = unit * (level + error)
        centred = total - total.mean(-1, keepdim=True)
        # Long windows span centuries of growth: bend what would leave e^±3, or the past would vanish before it.
        bounded = 3 * torch.tanh(centred / 3)
        return torch.where(chance(generator, shape, self.logarithmic), bounded.exp(), centred)

    def _growth(self, generator: Generator, batch: int, length: int) -> Tensor:
        """Constant in spells of 10 to 300 steps, around a mean rate of its own."""
        spell = segments(generator, log_uniform(generator, (batch, 1), 10.0, 300.0).expand(-1, 128), length)
        rate = normal(generator, (batch, 1)) + 0.7 * normal(generator, (batch, 128))
        scale = log_uniform(generator, (batch, 1), 0.03, 1.0) * chance(generator, (batch, 1), 0.8)
        path = (scale * rate.gather(-1, spell)).cumsum(-1)
        slow = smooth_path(generator, torch.full((batch, 1), 256.0, device=path.device), length)
        return path + slow * scale * 5

    def _walk(self, generator: Generator, batch: int, length: int) -> Tensor:
        share = uniform(generator, (batch, 1)) * chance(generator, (batch, 1), 0.8)
        return share * normal(generator, (batch, length)).cumsum(-1)

    def _cycle(self, generator: Generator, batch: int, length: int) -> Tensor:
        """AR(2) with complex roots: booms of 12 to 120 steps."""
        radius = 1 - log_uniform(generator, (batch, 1), 0.01, 0.2)
        angle = 2 * torch.pi / log_uniform(generator, (batch, 1), 12.0, 120.0)
        first, second = 2 * radius * torch.cos(angle), -radius.square()
        response = arma_response(first, second, torch.zeros_like(radius), length)
        response = response / response.abs().square().mean(-1, keepdim=True).sqrt()
        return stationary(normal(generator, (batch, fft_length(length))), response, length)

    def _season(self, generator: Generator, batch: int, length: int) -> Tensor:
        """Two profiles of the year, the first giving way to the second and back."""
        shape = (batch, 1)
        period = pick(generator, shape, (12, 4, 52.18, 2, 6), (6, 4, 1, 0.3, 0.3))
        phase = time_steps(generator, length) / period + uniform(generator, shape)
        change = smooth_path(generator, period * log_uniform(generator, shape, 4.0, 60.0), length)
        change = 0.3 * change * chance(generator, shape, 0.6)
        old, new = (lookup(table, phase) for table in random_profiles(generator, 2 * batch, 96).chunk(2))
        scale = log_uniform(generator, shape, 0.5, 20.0) * chance(generator, shape, self.seasonal)
        return scale * torch.lerp(old, new, change)

    def _breaks(self, generator: Generator, batch: int, length: int) -> Tensor:
        """Lasting level shifts and single outliers, a few per hundred steps at most."""
        shape, whole = (batch, 1), (batch, length)
        rates = log_uniform(generator, (2, *shape), 1e-3, 0.02)
        spread = torch.full_like(rates[0], 0.5)
        shift, outlier = (impulses(generator, rate.expand(whole), spread) for rate in rates)
        sign = normal(generator, whole)
        size = log_uniform(generator, shape, 2.0, 12.0)
        lasting = (shift * sign).cumsum(-1) * chance(generator, shape, 0.3)
        return size * (lasting + outlier * sign * chance(generator, shape, 0.4))
