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

Parameter = Float[Tensor, "batch 1"]


def level_and_trend(
    error: Float[Tensor, "batch time"], alpha: Parameter, beta: Parameter, damping: Parameter, slope: Parameter
) -> Float[Tensor, "batch time"]:
    """l_{t-1} + φ b_{t-1}, where l_t = l_{t-1} + φ b_{t-1} + α e_t and b_t = φ b_{t-1} + β e_t.

    The level starts from zero, the trend from `slope`.
    """
    drive = beta * error
    drive[:, :1] += damping * slope
    trend = linear_scan(damping.expand_as(error), drive)
    before = delay(trend)
    before[:, :1] = slope
    return (alpha * error + damping * before).cumsum(-1) - alpha * error


def seasonal_component(
    error: Float[Tensor, "batch time"],
    gamma: Parameter,
    period: Tensor,
    pattern: Float[Tensor, "batch time"],
) -> Float[Tensor, "batch time"]:
    """s_{t-m}, where s_t = s_{t-m} + γ e_t; the first m values are those of `pattern`, which has period m."""
    return pattern + gamma * (seasonal_cumsum(error, period) - error)


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
        season = self._season(generator, error) * chance(generator, shape, self.seasonal)
        total = self._level(generator, error) + season + error
        total = total - total.mean(-1, keepdim=True)
        # A multiplicative model moves by percents: keep the window within e^±3.
        spread = total.abs().amax(-1, keepdim=True).clamp(min=1e-6)
        rate = torch.minimum(log_uniform(generator, shape, 0.02, 0.5), 3.0 / spread)
        return torch.where(chance(generator, shape, self.multiplicative), torch.exp(rate * total), total)

    def _level(self, generator: Generator, error: Tensor) -> Tensor:
        shape = (error.shape[0], 1)
        alpha = log_uniform(generator, shape, 0.003, 1.0) * chance(generator, shape, 0.9)
        trended = chance(generator, shape, self.trended)
        beta = alpha * log_uniform(generator, shape, 0.001, 0.3) * (trended & chance(generator, shape, 0.6))
        damping = torch.where(chance(generator, shape, 0.6), uniform(generator, shape, 0.8, 0.99), 0.999)
        slope = normal(generator, shape) * log_uniform(generator, shape, 0.003, 0.3) * trended
        drift = normal(generator, shape) * log_uniform(generator, shape, 1e-4, 0.03) * trended
        line = drift * time_steps(generator, error.shape[-1])
        return level_and_trend(error, alpha, beta, damping, slope) + line

    def _season(self, generator: Generator, error: Tensor) -> Tensor:
        batch, length = error.shape
        period = pick(generator, (batch, 1), PERIODS, PERIOD_WEIGHTS)
        gamma = log_uniform(generator, (batch, 1), 0.003, 0.5) * chance(generator, (batch, 1), 0.6)
        time = time_steps(generator, length)
        rough = standardise(normal(generator, (batch, int(max(PERIODS)))))
        smooth = torch.sin(2 * torch.pi * (time / period + uniform(generator, (batch, 1))))
        rough = rough.gather(-1, torch.remainder(time, period).long())
        cycle = rough * uniform(generator, (batch, 1)) + smooth * uniform(generator, (batch, 1))
        scale = log_uniform(generator, (batch, 1), 0.3, 20.0)
        return seasonal_component(error, gamma, period.long(), scale * cycle)
