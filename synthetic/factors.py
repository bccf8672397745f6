"""Multivariate series that share a few common factors, as shops of a chain or sensors of a plant do."""

from dataclasses import dataclass, field

import torch
from torch import Generator

from tsseq.array_typing import Float, Tensor
from tsseq.synthetic.base import Prior
from tsseq.synthetic.curves import standardise, time_steps
from tsseq.synthetic.draws import chance, integers, log_uniform, normal
from tsseq.synthetic.sde import SDE
from tsseq.synthetic.seasonal_trend import SeasonalTrend


@dataclass(frozen=True)
class CommonFactors(Prior):
    """Every channel is a weighted sum of factors, each a little delayed, plus a part of its own.

    Half of the factors are seasonal, half diffuse; the own part is diffuse and from a tenth to twice as large.
    """

    channels: int = 6
    factors: int = 4
    seasonal: Prior = field(default_factory=SeasonalTrend)
    diffuse: Prior = field(default_factory=SDE)

    def sample(self, generator: Generator, batch_size: int, length: int) -> Float[Tensor, "batch time"]:
        groups = -(-batch_size // self.channels)
        return self.sample_channels(generator, groups, length).flatten(0, 1)[:batch_size]

    def sample_channels(
        self, generator: Generator, batch_size: int, length: int
    ) -> Float[Tensor, "batch channel time"]:
        """Groups with all their channels."""
        half = self.factors // 2
        seasonal = self.seasonal.sample(generator, batch_size * half, length).view(batch_size, half, length)
        others = self.factors - half + self.channels
        diffuse = self.diffuse.sample(generator, batch_size * others, length).view(batch_size, others, length)
        series = standardise(torch.cat([seasonal, diffuse], dim=1))
        common, own = series[:, : self.factors], series[:, self.factors :]
        weights = normal(generator, (batch_size, self.channels, self.factors))
        weights = weights * chance(generator, (batch_size, self.channels, self.factors), 0.6)
        lag = integers(generator, (batch_size, self.factors, 1), 0, 8)
        source = (time_steps(generator, length).long() - lag).clamp(min=0)
        mixed = torch.bmm(weights, common.gather(-1, source))
        return mixed + log_uniform(generator, (batch_size, self.channels, 1), 0.1, 2.0) * own
