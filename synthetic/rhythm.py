"""Stochastic rhythm: layers of decaying tones, each struck at its own multiple of a common tempo."""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from tsseq.array_typing import Float
from tsseq.synthetic.base import Prior
from tsseq.synthetic.curves import time_steps
from tsseq.synthetic.draws import chance, log_uniform, pick, uniform


@dataclass(frozen=True)
class StochasticRhythm(Prior):
    """Three to five layers; a strike sets off a sine that rises at once and dies within a beat or so.

    The slowest beat lasts 40 to 400 steps, so a window holds the whole pattern many times.
    """

    layers: int = 5

    def sample(self, generator: Generator, batch_size: int, length: int) -> Float[Tensor, "batch time"]:
        shape = (batch_size, 1)
        time = time_steps(generator, length)
        beat = log_uniform(generator, shape, 40.0, 400.0)
        total = torch.zeros((batch_size, length), device=generator.device)
        for layer in range(self.layers):
            total = total + self._layer(generator, time, beat) * chance(generator, shape, 1.0 if layer < 3 else 0.5)
        return total

    def _layer(self, generator: Generator, time: Tensor, beat: Tensor) -> Tensor:
        shape = tuple(beat.shape)
        interval = beat / pick(generator, shape, (1, 2, 3, 4, 6, 8))
        clock = time / interval + uniform(generator, shape)
        strikes = (torch.rand((shape[0], time.shape[0] // 4 + 3), generator=generator, device=beat.device) < 0.8) * 1.0
        struck = strikes.gather(-1, clock.long().clamp(max=strikes.shape[-1] - 1))
        age = clock - clock.floor()
        envelope = torch.exp(-age * uniform(generator, shape, 1.0, 6.0)) * (1 - torch.exp(-60 * age))
        tone = torch.sin(2 * torch.pi * time / log_uniform(generator, shape, 6.0, 60.0))
        return (
            struck
            * envelope
            * torch.where(chance(generator, shape, 0.5), tone, 1.0)
            * uniform(generator, shape, 0.2, 0.5)
        )
