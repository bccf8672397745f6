"""Structural causal models over random series (CauKer, Xie et al. 2025; Chronos-2's temporal causal graphs).

Every graph is one multivariate series; its nodes also serve as univariate ones.
"""

from dataclasses import dataclass, field

import torch
from torch import Generator, Tensor

from tsseq.array_typing import Float
from tsseq.synthetic.base import Prior
from tsseq.synthetic.curves import standardise, time_steps
from tsseq.synthetic.draws import chance, integers, log_uniform, normal, uniform
from tsseq.synthetic.gaussian_process import GaussianProcess


@dataclass(frozen=True)
class Causal(Prior):
    """A random directed acyclic graph: half of the nodes are roots, the others a function of earlier nodes.

    An edge carries its cause with a weight and a delay; a node adds a little noise of its own and bends the sum by
    one of eight functions.
    """

    nodes: int = 8
    roots: Prior = field(default_factory=lambda: GaussianProcess(shortest=16.0))

    def sample(self, generator: Generator, batch_size: int, length: int) -> Float[Tensor, "batch time"]:
        graphs = -(-batch_size // self.nodes)
        return self.sample_channels(generator, graphs, length).flatten(0, 1)[:batch_size]

    def sample_channels(
        self, generator: Generator, batch_size: int, length: int
    ) -> Float[Tensor, "batch channel time"]:
        """Graphs with all their nodes as channels."""
        free = max(self.nodes // 2, 1)
        series = standardise(self.roots.sample(generator, batch_size * free, length).view(batch_size, free, length))
        while series.shape[1] < self.nodes:
            series = torch.cat([series, self._effect(generator, series)[:, None]], dim=1)
        return series

    def _effect(self, generator: Generator, causes: Tensor) -> Tensor:
        batch, count, length = causes.shape
        weights = normal(generator, (batch, count)) * chance(generator, (batch, count), min(1.0, 2.5 / count))
        weights.scatter_add_(1, integers(generator, (batch, 1), 0, count), torch.ones_like(weights[:, :1]))
        lag = log_uniform(generator, (batch, 1, 1), 0.5, 50.0).long()
        source = (time_steps(generator, length).long() - lag).clamp(min=0).expand(-1, count, -1)
        total = standardise((weights[:, :, None] * causes.gather(-1, source)).sum(1))
        noise = log_uniform(generator, (batch, 1), 1e-3, 0.3) * normal(generator, (batch, length))
        return standardise(self._bend(generator, total + noise))

    def _bend(self, generator: Generator, x: Tensor) -> Tensor:
        shape = (x.shape[0], 1)
        slope = uniform(generator, shape, 0.5, 2.0)
        threshold = uniform(generator, shape, -1.0, 1.0)
        over = x - threshold
        functions = (
            x,
            over.clamp(min=0),
            torch.sigmoid(4 * slope * over),
            torch.sin(2 * slope * x),
            torch.remainder(x, 1 + slope),
            torch.where(over > 0, over, 0.2 * over),
            x.abs(),
            torch.exp(0.7 * slope * x.clamp(-4, 4)),
        )
        return torch.stack(functions, dim=1).gather(
            1, integers(generator, (x.shape[0], 1, 1), 0, 8).expand(-1, -1, x.shape[-1])
        )[:, 0]
