"""Gaussian processes with random compositions of kernels, drawn by circulant embedding.

KernelSynth's grammar (Chronos, Ansari et al. 2024) at the price of one FFT: a sum of stationary kernels adds
their autocovariances, a product multiplies them (Dietrich and Newsam, 1997).
"""

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from tsseq.array_typing import Float
from tsseq.synthetic.base import Prior
from tsseq.synthetic.curves import lookup, time_steps
from tsseq.synthetic.draws import chance, choice, log_uniform, pick, uniform
from tsseq.synthetic.scan import fft_length

PERIODS = (4, 6, 7, 12, 14, 24, 26, 30, 48, 52, 60, 96, 144, 168, 288, 336, 365.25, 672, 1008, 1440, 2016)


def squared_exponential(lag: Tensor, lengthscale: Tensor | float) -> Tensor:
    """Infinitely smooth."""
    return torch.exp(-0.5 * (lag / lengthscale).square())


def matern(lag: Tensor, lengthscale: Tensor | float, order: Tensor | int) -> Tensor:
    """Matérn with smoothness order + 1/2, order 0 (Ornstein–Uhlenbeck), 1 or 2."""
    smoothness = 2 * torch.as_tensor(order, device=lag.device) + 1
    r = lag / lengthscale * smoothness.sqrt()
    polynomial = 1 + (smoothness > 1) * r + (smoothness > 3) * r.square() / 3
    return polynomial * torch.exp(-r)


def rational_quadratic(lag: Tensor, lengthscale: Tensor | float, alpha: Tensor | float) -> Tensor:
    """A scale mixture of squared exponentials: variation at many scales."""
    return (1 + (lag / lengthscale).square() / (2 * alpha)).pow(-alpha)


def periodic(lag: Tensor, period: Tensor | float, lengthscale: Tensor | float) -> Tensor:
    """MacKay's kernel: exactly periodic functions, `lengthscale` relative to the cycle."""
    return torch.exp(-2 * (torch.sin(math.pi * lag / period) / lengthscale).square())


def lags(length: int, device: torch.device) -> Float[Tensor, " lag"]:
    """0, 1, … in steps, as far as `stationary_pair` needs them."""
    return torch.arange(fft_length(length) // 2 + 1, device=device, dtype=torch.float32)


def stationary_pair(
    generator: Generator, autocovariance: Float[Tensor, "batch lag"], length: int
) -> tuple[Float[Tensor, "batch time"], Float[Tensor, "batch time"]]:
    """Two independent draws with the given autocovariance, which must reach to lag fft_length(length) / 2.

    Exact for kernels that die away within these lags. For others the embedding has negative eigenvalues; they are
    set to zero and the variance is restored, which makes the draws a little rougher.
    """
    size = 2 * (autocovariance.shape[-1] - 1)
    spectrum = torch.fft.hfft(autocovariance, n=size).clamp_(min=0)
    spectrum *= (size * autocovariance[:, :1]) / spectrum.sum(-1, keepdim=True).clamp(min=1e-30)
    white = torch.randn((2, *spectrum.shape), generator=generator, device=generator.device)
    draws = torch.fft.fft(torch.complex(white[0], white[1]) * spectrum.sqrt(), norm="ortho")
    return draws.real[:, :length], draws.imag[:, :length]


CIRCLE = 512
"""Slots on which an exactly periodic process is drawn."""


def periodic_path(
    generator: Generator, period: Float[Tensor, "batch 1"], lengthscale: Float[Tensor, "batch 1"], length: int
) -> Float[Tensor, "batch time"]:
    """A draw with MacKay's kernel and any period: one cycle is drawn on a circle and repeated."""
    slots = torch.arange(CIRCLE // 2 + 1, device=generator.device, dtype=torch.float32)
    cycle, _ = stationary_pair(generator, periodic(slots, float(CIRCLE), lengthscale), CIRCLE)
    return lookup(cycle, time_steps(generator, length) / period)


@dataclass(frozen=True)
class GaussianProcess(Prior):
    """Up to `max_kernels` kernels joined from left to right by + or ×, then a linear kernel or a changed point.

    All of them die away within the window, the periodic ones as locally periodic; a share `repeating` of the
    series also has an exactly periodic term, most of all or alone. Periods are calendar ones for a share
    `calendar`, otherwise log-uniform; lengthscales are log-uniform from `shortest` steps to a quarter of the length.
    """

    max_kernels: int = 4
    shortest: float = 6.0
    calendar: float = 0.6
    repeating: float = 0.35
    linear: float = 0.25
    change_point: float = 0.1

    def sample(self, generator: Generator, batch_size: int, length: int) -> Float[Tensor, "batch time"]:
        shape = (batch_size, 1)
        lag = lags(length, generator.device)
        first, second = stationary_pair(generator, self.autocovariance(generator, batch_size, lag), length)
        time = time_steps(generator, length) / length
        slope = uniform(generator, shape, 0.3, 4.0) * chance(generator, shape, self.linear)
        linear = first + slope * (time - uniform(generator, shape)) * second
        centre, width = uniform(generator, shape), log_uniform(generator, shape, 1e-3, 0.1)
        blend = torch.sigmoid((time - centre) / width)
        changed = torch.lerp(first, second * log_uniform(generator, shape, 0.3, 3.0), blend)
        path = torch.where(chance(generator, shape, self.change_point), changed, linear)
        scale = log_uniform(generator, shape, 0.3, 20.0) * chance(generator, shape, self.repeating)
        cycle = periodic_path(
            generator, self._period(generator, shape, length), log_uniform(generator, shape, 0.15, 1.5), length
        )
        return torch.addcmul(path, scale, cycle)

    def autocovariance(
        self, generator: Generator, batch_size: int, lag: Float[Tensor, " lag"]
    ) -> Float[Tensor, "batch lag"]:
        """A random kernel for every series, at the given lags in steps, without the exactly periodic term."""
        count = choice(generator, (batch_size, 1), (0.25, 0.3, 0.25, 0.2)[: self.max_kernels]) + 1
        total, *others = self._kernels(generator, self.max_kernels * batch_size, lag).chunk(self.max_kernels)
        scales = log_uniform(generator, (self.max_kernels, batch_size, 1), 0.1, 1.5)
        added = chance(generator, (self.max_kernels, batch_size, 1), 0.5)
        for position, kernel in enumerate(others, start=1):
            joined = torch.where(added[position], total + scales[position] * kernel, total * kernel)
            total = torch.where(position < count, joined, total)
        nugget = log_uniform(generator, (batch_size, 1), 1e-6, 0.3) * total[:, :1]
        return torch.cat([total[:, :1] + nugget, total[:, 1:]], dim=-1)

    def _kernels(self, generator: Generator, batch_size: int, lag: Tensor) -> Tensor:
        """Matérn .3, squared exponential .15, rational quadratic .1, locally periodic .45."""
        shape, length = (batch_size, 1), len(lag)
        kind = choice(generator, shape, (0.3, 0.15, 0.1, 0.45))
        longest = max(length / 4.0, 2 * self.shortest)
        lengthscale = log_uniform(generator, shape, self.shortest, longest)
        smooth = matern(lag, lengthscale, choice(generator, shape, (0.4, 0.3, 0.3)))
        mixed = rational_quadratic(lag, lengthscale, log_uniform(generator, shape, 0.1, 10.0))
        smooth = torch.where(kind == 2, mixed, smooth)
        period = self._period(generator, shape, length)
        cyclic = periodic(lag, period, log_uniform(generator, shape, 0.15, 1.5))
        coherence = torch.maximum(lengthscale, period).clamp(max=longest)
        envelope = squared_exponential(lag, torch.where(kind == 3, coherence, lengthscale))
        return torch.where(kind == 1, envelope, torch.where(kind == 3, cyclic * envelope, smooth))

    def _period(self, generator: Generator, shape: tuple[int, int], length: int) -> Tensor:
        free = log_uniform(generator, shape, 3.0, max(length / 3.0, 6.0))
        return torch.where(chance(generator, shape, self.calendar), pick(generator, shape, PERIODS), free)
