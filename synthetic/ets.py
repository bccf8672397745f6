"""Exponential smoothing in innovations form: local level, damped trend, changing season (Hyndman et al., 2008)."""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from tsseq.array_typing import Float
from tsseq.synthetic.base import Prior
from tsseq.synthetic.curves import standardise, time_steps
from tsseq.synthetic.draws import chance, log_uniform, normal, pick, uniform
from tsseq.synthetic.noise import innovations
from tsseq.synthetic.scan import delay, linear_scan, seasonal_cumsum

PERIODS = (4, 12, 7, 24, 52, 48, 96, 5, 13, 168, 288)
PERIOD_WEIGHTS = (3, 6, 4, 3, 2, 1, 1, 1, 1, 0.5, 0.5)


@dataclass(frozen=True)
class ETS(Prior):
    """y_t = l_{t-1} + φ b_{t-1} + s_{t-m} + e_t, with l, b and s corrected by α e, β e and γ e.

    A share `trended` has a trend (damped or not), a share `seasonal` a season, and a share `multiplicative` is
    the exponential of the additive model. All scales are per step, so any window of the series is typical.
    """

    trended: float = 0.6
    seasonal: float = 0.65
    multiplicative: float = 0.4

    def sample(self, generator: Generator, batch_size: int, length: int) -> Float[Tensor, "batch time"]:
        shape = (batch_size, 1)
        error = innovations(generator, batch_size, length, heavy=0.15)
        level = self._level(generator, error)
        season = self._season(generator, error) * chance(generator, shape, self.seasonal)
        total = level + season + error
        # A multiplicative model moves by percents: bring the window's range to e^±3 at most before exponentiating.
        spread = (total - total.mean(-1, keepdim=True)).abs().amax(-1, keepdim=True).clamp(min=1e-6)
        rate = torch.minimum(log_uniform(generator, shape, 0.02, 0.5), 3.0 / spread)
        grown = torch.exp(rate * (total - total.mean(-1, keepdim=True)))
        return torch.where(chance(generator, shape, self.multiplicative), grown, total)

    def _level(self, generator: Generator, error: Tensor) -> Tensor:
        shape = (error.shape[0], 1)
        alpha = log_uniform(generator, shape, 0.003, 1.0) * chance(generator, shape, 0.9)
        beta = alpha * log_uniform(generator, shape, 0.001, 0.3) * chance(generator, shape, 0.6)
        damping = torch.where(chance(generator, shape, 0.6), uniform(generator, shape, 0.8, 0.99), 0.999)
        trended = chance(generator, shape, self.trended)
        drive = beta * error
        drive[:, :1] += normal(generator, shape) * log_uniform(generator, shape, 0.003, 0.3)
        slope = linear_scan(damping.expand_as(error), drive) * trended
        drift = normal(generator, shape) * log_uniform(generator, shape, 1e-4, 0.03) * trended
        return (alpha * error + damping * delay(slope) + drift).cumsum(-1) - alpha * error

    def _season(self, generator: Generator, error: Tensor) -> Tensor:
        batch, length = error.shape
        period = pick(generator, (batch, 1), PERIODS, PERIOD_WEIGHTS)
        gamma = log_uniform(generator, (batch, 1), 0.003, 0.5) * chance(generator, (batch, 1), 0.6)
        pattern = standardise(normal(generator, (batch, int(max(PERIODS)))))
        smooth = torch.sin(2 * torch.pi * (time_steps(generator, length) / period + uniform(generator, (batch, 1))))
        phase = torch.remainder(time_steps(generator, length), period).long()
        cycle = pattern.gather(-1, phase) * uniform(generator, (batch, 1)) + smooth * uniform(generator, (batch, 1))
        scale = log_uniform(generator, (batch, 1), 0.3, 20.0)
        return scale * cycle + gamma * (seasonal_cumsum(error, period.long()) - error)
