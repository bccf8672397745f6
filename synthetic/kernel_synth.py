"""KernelSynth as Chronos defines it (Ansari et al., 2024): one to five kernels of a fixed bank, joined by + or ×."""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from tsseq.array_typing import Float
from tsseq.synthetic.base import Prior
from tsseq.synthetic.curves import time_steps
from tsseq.synthetic.draws import chance, integers, normal, pick
from tsseq.synthetic.gaussian_process import lags, periodic, rational_quadratic, squared_exponential, stationary_pair

PERIODS = (24, 48, 96, 168, 336, 672, 7, 14, 30, 60, 365, 730, 4, 26, 52, 4, 6, 12, 4, 40, 10)
BANK = 33


@dataclass(frozen=True)
class KernelSynth(Prior):
    """The bank: 21 periodic, 3 linear, 3 squared exponential, 3 rational quadratic, 2 white, 1 constant.

    Lengthscales are relative to the window. A linear kernel is not stationary: a product with one scales the draw
    by time, a sum adds a straight line.
    """

    max_kernels: int = 5

    def sample(self, generator: Generator, batch_size: int, length: int) -> Float[Tensor, "batch time"]:
        shape = (batch_size, 1)
        lag = lags(length, generator.device)
        time = time_steps(generator, length) / length
        count = integers(generator, shape, 1, self.max_kernels + 1)
        total = torch.zeros((batch_size, len(lag)), device=generator.device)
        envelope = torch.ones((batch_size, length), device=generator.device)
        line = torch.zeros((batch_size, length), device=generator.device)
        for position in range(self.max_kernels):
            kind = integers(generator, shape, 0, BANK)
            used = position < count
            linear = used & (kind >= 21) & (kind < 24)
            times = chance(generator, shape, 0.5)
            origin = pick(generator, shape, (0.0, 1.0, 10.0)) * normal(generator, shape)
            straight = time * normal(generator, shape) + origin
            envelope = torch.where(linear & times, envelope * straight, envelope)
            line = torch.where(linear & ~times, line + straight, line)
            kernel = self._kernel(generator, kind, lag, length)
            joined = torch.where(times & (position > 0), total * kernel, total + kernel)
            total = torch.where(used & ~linear, joined, total)
        total[:, 0] += 1e-6
        return envelope * stationary_pair(generator, total, length)[0] + line

    def _kernel(self, generator: Generator, kind: Tensor, lag: Tensor, length: int) -> Tensor:
        shape = tuple(kind.shape)
        size = 2 * (len(lag) - 1)
        # A period that divides the embedding has no kink where it wraps; the change is below P / size.
        cycles = torch.round(size / pick(generator, shape, PERIODS)).clamp(min=1.0)
        cyclic = periodic(lag, size / cycles, 1.0)
        smooth = squared_exponential(lag, length * pick(generator, shape, (0.1, 1.0, 10.0)))
        rough = rational_quadratic(lag, float(length), pick(generator, shape, (0.1, 1.0, 10.0)))
        white = pick(generator, shape, (0.1, 1.0)) * (lag == 0)
        out = torch.where(kind < 30, rough, torch.where(kind < 32, white, 1.0))
        return torch.where(kind < 21, cyclic, torch.where(kind < 27, smooth, out))
