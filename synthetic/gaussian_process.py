"""Gaussian processes with random compositions of kernels, drawn by circulant embedding.

KernelSynth's grammar (Chronos, Ansari et al. 2024) at the price of one FFT: a sum of stationary kernels adds
their autocovariances, a product multiplies them (Dietrich and Newsam, 1997).
"""

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from tsseq.array_typing import Float
from tsseq.synthetic import conditional
from tsseq.synthetic.base import Law, PriorWithLaw
from tsseq.synthetic.curves import lookup, time_steps
from tsseq.synthetic.draws import (
    chance,
    choice,
    host_generator,
    log_uniform,
    pick,
    shuffled,
    systematic,
    uniform,
)
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
    return torch.exp(-alpha * torch.log1p((lag / lengthscale).square() / (2 * alpha)))


def periodic(lag: Tensor, period: Tensor | float, lengthscale: Tensor | float) -> Tensor:
    """MacKay's kernel: exactly periodic functions, `lengthscale` relative to the cycle."""
    return torch.exp(-2 * (torch.sin(math.pi * lag / period) / lengthscale).square())


def lags(length: int, device: torch.device) -> Float[Tensor, " lag"]:
    """0, 1, … in steps, as far as `stationary_pair` needs them."""
    return torch.arange(fft_length(length) // 2 + 1, device=device, dtype=torch.float32)


def _embedding(autocovariance: Float[Tensor, "batch lag"]) -> Float[Tensor, "batch circle"]:
    """Eigenvalues of the circulant matrix, none negative, with the variance as their mean."""
    size = 2 * (autocovariance.shape[-1] - 1)
    spectrum: Tensor = torch.fft.hfft(autocovariance, n=size).clamp_(min=0)
    spectrum *= (size * autocovariance[:, :1]) / spectrum.sum(-1, keepdim=True).clamp(min=1e-30)
    return spectrum


def embedded(autocovariance: Float[Tensor, "batch lag"]) -> Float[Tensor, "batch lag"]:
    """The autocovariance that the draws of `stationary_pair` really have, in float64."""
    covariance: Tensor = torch.fft.ihfft(_embedding(autocovariance).double()).real
    return covariance


def stationary_pair(
    generator: Generator, autocovariance: Float[Tensor, "batch lag"], length: int
) -> tuple[Float[Tensor, "batch time"], Float[Tensor, "batch time"]]:
    """Two independent draws with the given autocovariance, which must reach to lag fft_length(length) / 2.

    Exact for kernels that die away within these lags. For others the embedding has negative eigenvalues; they are
    set to zero and the variance is restored, which makes the draws a little rougher.
    """
    spectrum = _embedding(autocovariance)
    white = torch.randn((2, *spectrum.shape), generator=generator, device=generator.device)
    draws = torch.fft.fft(torch.complex(white[0], white[1]) * spectrum.sqrt(), norm="ortho")
    return draws.real[:, :length], draws.imag[:, :length]


COUNTS = (0.25, 0.3, 0.25, 0.2)
"""Share of series with one, two, three and four kernels."""
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
class GaussianProcess(PriorWithLaw):
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

    def sample_with_law(self, generator: Generator, batch_size: int, length: int, horizon: int) -> Law:
        """The stationary series, given their kernel; cubic in the number of values before the horizon."""
        covariance = self.autocovariance(generator, batch_size, lags(length, generator.device))
        values, _ = stationary_pair(generator, covariance, length)
        return Law(values, *conditional.gaussian_process(embedded(covariance), values[:, :-horizon], horizon))

    def autocovariance(
        self, generator: Generator, batch_size: int, lag: Float[Tensor, " lag"]
    ) -> Float[Tensor, "batch lag"]:
        """A random kernel for every series, at the given lags in steps, without the exactly periodic term."""
        host = host_generator(generator)
        weights = COUNTS[: self.max_kernels]
        at_least = [sum(weights[k:]) for k in range(len(weights))]
        total = self._kernels(generator, host, batch_size, lag)
        rest = batch_size
        for before, share in zip(at_least, at_least[1:], strict=False):
            # The first rows have the most kernels; they are shuffled in the end.
            rest = systematic(host, rest, (share, before - share))[0]
            kernel = self._kernels(generator, host, rest, lag)
            scale = log_uniform(generator, (rest, 1), 0.1, 1.5)
            added = chance(generator, (rest, 1), 0.5)
            total[:rest] = torch.where(added, total[:rest] + scale * kernel, total[:rest] * kernel)
        total[:, :1] *= 1 + log_uniform(generator, (batch_size, 1), 1e-6, 0.3)
        return shuffled(generator, total)

    def _kernels(self, generator: Generator, host: Generator, batch_size: int, lag: Tensor) -> Tensor:
        """Matérn .3, squared exponential .15, rational quadratic .1, locally periodic .45."""
        longest = max(len(lag) / 4.0, 2 * self.shortest)
        lengthscale = log_uniform(generator, (batch_size, 1), self.shortest, longest)
        scales = lengthscale.split(systematic(host, batch_size, (0.3, 0.15, 0.1, 0.45)))
        rough, _, mixed, cyclic = (tuple(scale.shape) for scale in scales)
        period = self._period(generator, cyclic, len(lag))
        kernels = (
            matern(lag, scales[0], choice(generator, rough, (0.4, 0.3, 0.3))),
            squared_exponential(lag, scales[1]),
            rational_quadratic(lag, scales[2], log_uniform(generator, mixed, 0.1, 10.0)),
            periodic(lag, period, log_uniform(generator, cyclic, 0.15, 1.5))
            * squared_exponential(lag, torch.maximum(scales[3], period).clamp(max=longest)),
        )
        return shuffled(generator, torch.cat(kernels))

    def _period(self, generator: Generator, shape: tuple[int, int], length: int) -> Tensor:
        free = log_uniform(generator, shape, 3.0, max(length / 3.0, 6.0))
        return torch.where(chance(generator, shape, self.calendar), pick(generator, shape, PERIODS), free)
