"""Waves of the signal generator: sine, square, triangle, sawtooth, pulse, with modulation and little noise."""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from tsseq.array_typing import Float
from tsseq.synthetic import conditional
from tsseq.synthetic.base import Law, PriorWithLaw
from tsseq.synthetic.curves import smooth_path, time_steps
from tsseq.synthetic.draws import chance, choice, log_uniform, normal, pick, uniform
from tsseq.synthetic.gaussian_process import PERIODS

SHAPES = ("sine", "square", "triangle", "sawtooth", "pulse")


def wave(
    phase: Float[Tensor, "batch time"], shape: Tensor, asymmetry: Tensor, narrow: Tensor
) -> Float[Tensor, "batch time"]:
    """A wave between -1 and 1 at a phase in cycles; `shape` indexes SHAPES.

    `asymmetry` in (0, 1) is the share of the cycle that a square is up or a ramp rises, `narrow` that of a pulse.
    """
    p = phase - phase.floor()
    rise = torch.where(shape == 2, 0.5, torch.where(shape == 3, 0.998, asymmetry))
    ramp = 2 * torch.minimum(p / rise, (1 - p) / (1 - rise)) - 1
    duty = torch.where(shape == 1, asymmetry, narrow)
    square = torch.where(p < duty, 1.0, -1.0)
    out = torch.where((shape == 1) | (shape == 4), square, ramp)
    return torch.where(shape == 0, torch.sin(2 * torch.pi * p), out)


@dataclass(frozen=True)
class Waveforms(PriorWithLaw):
    """The sum of one to `components` waves; amplitude and frequency of a share `modulated` wander slowly.

    Attributes:
        shapes: weights of SHAPES.
        shortest: shortest period in steps.
        cycles: fewest cycles in the window.
        noisy: share of series with white noise.
    """

    shapes: tuple[float, float, float, float, float] = (0.3, 0.2, 0.15, 0.2, 0.15)
    components: int = 3
    shortest: float = 4.0
    cycles: float = 2.0
    modulated: float = 0.35
    noisy: float = 0.5

    def sample(self, generator: Generator, batch_size: int, length: int) -> Float[Tensor, "batch time"]:
        curve, noise = self._curve_and_noise(generator, batch_size, length)
        return torch.addcmul(curve, noise, normal(generator, (batch_size, length)))

    def sample_with_law(self, generator: Generator, batch_size: int, length: int, horizon: int) -> Law:
        """Given the waves, only the white noise is unknown; series without noise have a scale of zero."""
        curve, noise = self._curve_and_noise(generator, batch_size, length)
        white = normal(generator, (batch_size, length))
        none = torch.zeros_like(noise)
        ahead = curve[:, -horizon:]
        mean, scale = conditional.curve_plus_noise(ahead, noise.expand_as(ahead), none, none)
        return Law(torch.addcmul(curve, noise, white), mean, scale)

    def _curve_and_noise(self, generator: Generator, batch_size: int, length: int) -> tuple[Tensor, Tensor]:
        shape = (batch_size, 1)
        amplitude = log_uniform(generator, (self.components, *shape), 0.2, 3.0)
        amplitude[1:] *= chance(generator, (self.components - 1, *shape), 0.45)
        waves = self._waves(generator, self.components * batch_size, length).view(self.components, batch_size, length)
        total, scale = (amplitude * waves).sum(0), amplitude.sum(0)
        time = time_steps(generator, length) / length
        slope = normal(generator, shape) * chance(generator, shape, 0.3) * scale
        noise = log_uniform(generator, shape, 3e-3, 0.3) * chance(generator, shape, self.noisy) * scale
        return total + slope * time, noise

    def _waves(self, generator: Generator, batch: int, length: int) -> Tensor:
        shape = (batch, 1)
        kind = choice(generator, shape, self.shapes)
        longest = max(length / self.cycles, 2 * self.shortest)
        period = log_uniform(generator, shape, self.shortest, longest)
        period = torch.where(
            chance(generator, shape, 0.4), pick(generator, shape, PERIODS).clamp(self.shortest, longest), period
        )
        moving = 1.0 * chance(generator, shape, self.modulated)
        spacing = (period * uniform(generator, shape, 3.0, 12.0)).clamp(max=4.0 * length)
        phase = time_steps(generator, length) / period + uniform(generator, shape)
        shifts, swells = smooth_path(generator, spacing.repeat(2, 1), length).chunk(2)
        phase = phase + moving * uniform(generator, shape, 0.0, 0.4) * shifts
        swell = torch.exp(moving * uniform(generator, shape, 0.0, 0.5) * swells)
        visible = 1.2 / period  # at least one step of every cycle must be up
        asymmetry = torch.maximum(torch.minimum(uniform(generator, shape, 0.1, 0.9), 1 - visible), visible)
        return swell * wave(phase, kind, asymmetry, torch.maximum(0.15 * asymmetry, visible))
