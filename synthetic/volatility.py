"""Financial volatility: a slow tide, a random walk whose steps swell and shrink, jumps that ring out."""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from tsseq.array_typing import Float
from tsseq.synthetic.base import Prior
from tsseq.synthetic.curves import impulses, smooth_path, time_steps
from tsseq.synthetic.draws import chance, log_uniform, normal, uniform
from tsseq.synthetic.scan import linear_scan


@dataclass(frozen=True)
class FinancialVolatility(Prior):
    """A sine of 0.2 to 1 cycles a window + a leaky walk of clustered volatility + jumps that decay and ring."""

    def sample(self, generator: Generator, batch_size: int, length: int) -> Float[Tensor, "batch time"]:
        shape = (batch_size, 1)
        time = time_steps(generator, length)
        cycles = uniform(generator, shape, 0.2, 1.0)
        tide = torch.sin(2 * torch.pi * (cycles * time / length + uniform(generator, shape)))
        spread = uniform(generator, shape, 0.3, 1.5)
        cluster = torch.exp(spread * smooth_path(generator, log_uniform(generator, shape, 16.0, 600.0), length))
        leak = torch.exp(-1 / log_uniform(generator, shape, 50.0, 3000.0)).expand(batch_size, length)
        walk = linear_scan(leak, cluster * normal(generator, (batch_size, length)))
        rate = log_uniform(generator, shape, 1e-3, 0.02).expand(batch_size, length)
        sign = torch.where(chance(generator, (batch_size, length), 0.5), 1.0, -1.0)
        shock = sign * impulses(generator, rate, torch.full_like(spread, 0.5))
        fade = torch.exp(-1 / log_uniform(generator, shape, 5.0, 80.0)).expand(batch_size, length)
        ring = torch.where(chance(generator, shape, 0.4), torch.cos(time / uniform(generator, shape, 1.0, 8.0)), 1.0)
        jumps = linear_scan(fade, shock) * ring * uniform(generator, shape, 3.0, 15.0)
        return tide * uniform(generator, shape, 2.0, 15.0) + walk + jumps
