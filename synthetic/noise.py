"""Residuals: independent, heavy-tailed, autocorrelated, long-memory and of changing variance."""

import torch
from torch import Generator, Tensor

from tsseq.array_typing import Float
from tsseq.synthetic.curves import smooth_path
from tsseq.synthetic.draws import chance, log_uniform, normal, student, uniform
from tsseq.synthetic.scan import angular_frequencies, backshift, fft_length, stationary


def innovations(generator: Generator, batch: int, length: int, heavy: float = 0.25) -> Float[Tensor, "batch time"]:
    """Independent shocks of unit variance: normal, or for a share `heavy` Student's t with 2.5 to 12 degrees."""
    is_heavy = chance(generator, (batch, 1), heavy)
    degrees = torch.where(is_heavy, log_uniform(generator, (batch, 1), 2.5, 12.0), 1e3)
    # At many degrees the polar method is Box–Muller, so one formula serves both.
    return student(generator, (batch, length), degrees).mul_((1 - 2 / degrees).sqrt()).clamp_(-30, 30)


def arma_response(
    first: Float[Tensor, "batch 1"], second: Float[Tensor, "batch 1"], average: Float[Tensor, "batch 1"], length: int
) -> Tensor:
    """Frequency response of x_t = first x_{t-1} + second x_{t-2} + e_t + average e_{t-1}."""
    back = backshift(length, first.device)
    return (1 + average * back) / (1 - first * back - second * back.square())


def fractional_response(memory: Float[Tensor, "batch 1"], length: int) -> Tensor:
    """Frequency response of (1 - B)^-memory, |memory| < 1/2 (Granger and Joyeux, 1980).

    The gain has a pole or a zero at frequency 0; there it is the root mean square over the grid's first half cell.
    """
    omega = angular_frequencies(length, memory.device)
    omega = torch.cat([omega[1:2] / 2, omega[1:]])
    gain = (2 * torch.sin(omega / 2)).pow(-memory)
    gain[:, :1] /= (1 - 2 * memory).sqrt()
    return torch.polar(gain, memory * (torch.pi - omega) / 2)


def coloured(generator: Generator, batch: int, length: int) -> Float[Tensor, "batch time"]:
    """Autocorrelated residuals of about unit scale: 45% white, else AR(1), AR(2), ARMA or long memory."""
    shocks = innovations(generator, batch, fft_length(length))
    root = 1 - log_uniform(generator, (batch, 1), 0.01, 0.9)
    other = uniform(generator, (batch, 1), -0.6, 0.6) * chance(generator, (batch, 1), 0.4)
    average = uniform(generator, (batch, 1), -0.7, 0.7) * chance(generator, (batch, 1), 0.3)
    memory = uniform(generator, (batch, 1), 0.1, 0.45)
    arma = arma_response(root + other, -root * other, average, length)
    response = torch.where(chance(generator, (batch, 1), 0.2), fractional_response(memory, length), arma)
    response = torch.where(chance(generator, (batch, 1), 0.45), torch.ones_like(response), response)
    power = response.abs().square().mean(-1, keepdim=True).sqrt()
    return stationary(shocks, response / power, length)


def modulated(generator: Generator, batch: int, length: int) -> Float[Tensor, "batch time"]:
    """Coloured residuals; for a third of the series the scale wanders by up to a factor of several."""
    strength = uniform(generator, (batch, 1), 0.2, 0.9) * chance(generator, (batch, 1), 0.33)
    spacing = log_uniform(generator, (batch, 1), 24.0, 2048.0)
    return coloured(generator, batch, length) * (strength * smooth_path(generator, spacing, length)).exp()


def autoregressive(generator: Generator, memory: Float[Tensor, "batch 1"], length: int) -> Float[Tensor, "batch time"]:
    """Gaussian AR(1) of unit variance and a relaxation time of `memory` steps."""
    root = torch.exp(-1 / memory)
    response = 1 / (1 - root * backshift(length, root.device))
    size = fft_length(length)
    # On a circle of `size` steps the variance is coth(size / (2 memory)) times that on the line.
    scale = ((1 - root.square()) * torch.tanh(size / (2 * memory))).sqrt()
    return stationary(normal(generator, (memory.shape[0], size)), response * scale, length)


def white(generator: Generator, batch: int, length: int) -> Float[Tensor, "batch time"]:
    """Standard normal."""
    return normal(generator, (batch, length))
