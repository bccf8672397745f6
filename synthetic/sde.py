"""Ornstein–Uhlenbeck processes whose speed, mean and volatility switch with a hidden regime."""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from tsseq.array_typing import Float
from tsseq.synthetic import conditional
from tsseq.synthetic.base import Law, PriorWithLaw
from tsseq.synthetic.curves import lookup, segments, smooth_path, time_steps
from tsseq.synthetic.draws import chance, log_uniform, normal, pick, uniform
from tsseq.synthetic.gaussian_process import PERIODS
from tsseq.synthetic.noise import fractional_response, innovations
from tsseq.synthetic.profiles import random_profiles
from tsseq.synthetic.scan import fft_length, linear_scan, stationary


def ornstein_uhlenbeck(
    relaxation: Float[Tensor, "batch time"],
    mean: Float[Tensor, "batch time"],
    volatility: Float[Tensor, "batch time"],
    shocks: Float[Tensor, "batch time"],
) -> Float[Tensor, "batch time"]:
    """The exact one-step law: relaxation time in steps, stationary standard deviation `volatility`."""
    decay = torch.exp(-1 / relaxation)
    drive = (1 - decay) * mean + volatility * (1 - decay.square()).sqrt() * shocks
    drive[:, 0] = mean[:, 0] + volatility[:, 0] * shocks[:, 0]
    return linear_scan(decay, drive)


@dataclass(frozen=True)
class SDE(PriorWithLaw):
    """Regimes of exponential duration alternate between two parameter sets; for a third of the series each is new.

    Mean and volatility may also follow smooth trends; a season either pulls the mean, which a slow process hardly
    follows, or is added; shocks may be heavy-tailed or fractional; a few series jump.
    """

    max_segments: int = 96
    switching: float = 0.5
    recurring: float = 0.67
    seasonal: float = 0.5

    def sample(self, generator: Generator, batch_size: int, length: int) -> Float[Tensor, "batch time"]:
        relaxation, mean, volatility, added = self._coefficients(generator, batch_size, length)
        shocks = self._shocks(generator, batch_size, length)
        return ornstein_uhlenbeck(relaxation, mean, volatility, shocks) + added

    def sample_with_law(self, generator: Generator, batch_size: int, length: int, horizon: int) -> Law:
        """Given the regimes, trends and seasons to come; with normal shocks."""
        *coefficients, added = self._coefficients(generator, batch_size, length)
        relaxation, mean, volatility = coefficients
        path = ornstein_uhlenbeck(relaxation, mean, volatility, normal(generator, (batch_size, length)))
        relaxation, mean, volatility = (x[:, -horizon:] for x in coefficients)
        last = path[:, length - horizon - 1 : length - horizon]
        centre, scale = conditional.ornstein_uhlenbeck(relaxation, mean, volatility, last)
        return Law(path + added, centre + added[:, -horizon:], scale)

    def _coefficients(
        self, generator: Generator, batch_size: int, length: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Relaxation time, mean and volatility at every step, and what is added to the process."""
        shape = (batch_size, 1)
        regime = self._regimes(generator, batch_size, length)
        table = (batch_size, self.max_segments)
        relaxation = log_uniform(generator, table, 2.0, 1500.0).gather(-1, regime)
        volatility = log_uniform(generator, table, 0.2, 1.5).gather(-1, regime)
        mean = uniform(generator, table, -2.5, 2.5).gather(-1, regime)
        season = self._season(generator, batch_size, length)
        pulled = chance(generator, shape, 0.5)
        mean = mean + self._trend(generator, batch_size, length) + season * pulled
        varied = chance(generator, shape, 0.4) * uniform(generator, shape, 0.2, 1.0)
        spacing = log_uniform(generator, shape, 16.0, 2000.0)
        volatility = volatility * torch.exp(varied * smooth_path(generator, spacing, length))
        return relaxation, mean, volatility, season * ~pulled

    def _regimes(self, generator: Generator, batch_size: int, length: int) -> Tensor:
        """Index of the parameter set in force at each step."""
        dwell = log_uniform(generator, (batch_size, 2), 15.0, 2000.0).repeat(1, self.max_segments // 2)
        index = segments(generator, dwell, length)
        index = torch.where(chance(generator, (batch_size, 1), self.recurring), index % 2, index)
        return torch.where(chance(generator, (batch_size, 1), self.switching), index, 0)

    def _trend(self, generator: Generator, batch_size: int, length: int) -> Tensor:
        scale = log_uniform(generator, (batch_size, 1), 0.1, 4.0) * chance(generator, (batch_size, 1), 0.5)
        return scale * smooth_path(generator, log_uniform(generator, (batch_size, 1), 64.0, 4096.0), length)

    def _season(self, generator: Generator, batch_size: int, length: int) -> Tensor:
        shape = (batch_size, 1)
        period = pick(generator, shape, PERIODS)
        scale = log_uniform(generator, shape, 0.3, 4.0) * chance(generator, shape, self.seasonal)
        phase = time_steps(generator, length) / period + uniform(generator, shape)
        return scale * lookup(random_profiles(generator, batch_size, 96), phase)

    def _shocks(self, generator: Generator, batch_size: int, length: int) -> Tensor:
        shape = (batch_size, 1)
        shocks = innovations(generator, batch_size, fft_length(length), heavy=0.2)
        memory = uniform(generator, shape, -0.3, 0.45) * chance(generator, shape, 0.2)
        shocks = stationary(shocks, fractional_response(memory, length), length)
        jumping = chance(generator, (batch_size, length), log_uniform(generator, shape, 3e-4, 0.01))
        size = log_uniform(generator, shape, 3.0, 15.0) * chance(generator, shape, 0.15)
        return shocks + jumping * size * normal(generator, (batch_size, length))
