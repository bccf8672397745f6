"""ARIMA with GARCH shocks: stochastic cycles, random walks with drift, prices (Box and Jenkins; Bollerslev, 1986)."""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from tsseq.array_typing import Float
from tsseq.synthetic.base import Prior
from tsseq.synthetic.curves import standardise
from tsseq.synthetic.draws import chance, choice, log_uniform, normal, uniform
from tsseq.synthetic.noise import arma_response, innovations
from tsseq.synthetic.scan import delay, fft_length, linear_scan, stationary


def garch(
    shocks: Float[Tensor, "batch time"], arch: Float[Tensor, "batch 1"], persistence: Float[Tensor, "batch 1"]
) -> Float[Tensor, "batch time"]:
    """GARCH(1, 1) of unit variance: s²_t = (1 - arch - persistence) + arch e²_{t-1} + persistence s²_{t-1}.

    Given the standardised shocks the variance is a linear recursion, so a scan solves it.
    """
    decay = arch * delay(shocks).square() + persistence
    drive = (1 - arch - persistence).expand_as(shocks).clone()
    drive[:, 0] = 1.0
    return shocks * linear_scan(decay, drive).sqrt()


@dataclass(frozen=True)
class ARIMA(Prior):
    """An ARMA(2, 1) with real or complex roots, integrated up to twice, driven by plain or GARCH shocks.

    `orders` are the weights of integrating 0, 1 and 2 times (the second time with a leak); half of the once
    integrated series are exponentiated, as prices are.
    """

    orders: tuple[float, float, float] = (0.45, 0.43, 0.12)
    volatile: float = 0.3

    def sample(self, generator: Generator, batch_size: int, length: int) -> Float[Tensor, "batch time"]:
        shape = (batch_size, 1)
        order = choice(generator, shape, self.orders)
        shocks = self._shocks(generator, batch_size, fft_length(length))
        noise = stationary(shocks, self._response(generator, batch_size, length), length)
        noise = noise / noise.square().mean(-1, keepdim=True).sqrt().clamp(min=1e-6)
        drift = normal(generator, shape) * log_uniform(generator, shape, 1e-3, 0.1) * chance(generator, shape, 0.6)
        walk = (noise + drift).cumsum(-1)
        leak = torch.exp(-1 / log_uniform(generator, shape, 20.0, 1000.0)).expand(batch_size, length)
        smooth = standardise(linear_scan(leak, noise).cumsum(-1))
        rate = torch.minimum(log_uniform(generator, shape, 3e-3, 0.06), 4.0 / walk.abs().amax(-1, keepdim=True))
        walk = torch.where(chance(generator, shape, 0.5), torch.exp(rate * walk), walk)
        return torch.where(order == 0, noise, torch.where(order == 1, walk, smooth))

    def _shocks(self, generator: Generator, batch: int, length: int) -> Tensor:
        shape = (batch, 1)
        shocks = innovations(generator, batch, length, heavy=0.3)
        total = 1 - log_uniform(generator, shape, 0.004, 0.3)
        arch = total * uniform(generator, shape, 0.03, 0.35)
        return torch.where(
            chance(generator, shape, self.volatile), garch(shocks.clamp(-6, 6), arch, total - arch), shocks
        )

    def _response(self, generator: Generator, batch: int, length: int) -> Tensor:
        """Half complex roots (a stochastic cycle of 3 to 400 steps), half real ones; a moving average for a third."""
        shape = (batch, 1)
        radius = 1 - log_uniform(generator, shape, 0.003, 0.6)
        angle = 2 * torch.pi / log_uniform(generator, shape, 3.0, 400.0)
        other = uniform(generator, shape, -0.7, 0.9) * chance(generator, shape, 0.5)
        cyclic = chance(generator, shape, 0.5)
        first = torch.where(cyclic, 2 * radius * torch.cos(angle), radius + other)
        second = torch.where(cyclic, -radius.square(), -radius * other)
        average = uniform(generator, shape, -0.9, 0.9) * chance(generator, shape, 0.35)
        return arma_response(first, second, average, length)
