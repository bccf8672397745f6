"""Traffic of a network: flow that breathes, bursts of packets, periods of congestion, attacks."""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from tsseq.array_typing import Float
from tsseq.synthetic.base import Prior
from tsseq.synthetic.curves import impulses, segments, time_steps
from tsseq.synthetic.draws import chance, log_uniform, normal, uniform
from tsseq.synthetic.noise import autoregressive
from tsseq.synthetic.scan import linear_scan


@dataclass(frozen=True)
class NetworkTopology(Prior):
    """Base flow with 0.4 to 4 cycles a window, noise bursts, congestion dips that recover, a fast hum, rare attacks."""

    def sample(self, generator: Generator, batch_size: int, length: int) -> Float[Tensor, "batch time"]:
        shape, whole = (batch_size, 1), (batch_size, length)
        time = time_steps(generator, length)
        flow = torch.sin(
            2 * torch.pi * (uniform(generator, shape, 0.4, 4.0) * time / length + uniform(generator, shape))
        )
        noise = normal(generator, whole).abs() * self._active(generator, shape, length, 5.0, 400.0)
        dips = self._decaying(generator, shape, length, 60.0, 300.0) * uniform(generator, shape, 0.2, 0.8)
        hum = torch.sin(2 * torch.pi * time / log_uniform(generator, shape, 4.0, 30.0))
        rough = autoregressive(generator, log_uniform(generator, shape, 3.0, 30.0), length)
        attack = rough.abs() * self._active(generator, shape, length, 20.0, 2000.0) * chance(generator, shape, 0.5)
        return (
            flow * uniform(generator, shape, 0.2, 0.5)
            + noise * uniform(generator, shape, 0.1, 0.5)
            - dips
            + hum * uniform(generator, shape, 0.0, 0.15)
            + attack * uniform(generator, shape, 0.2, 1.0)
        )

    def _active(self, generator: Generator, shape: tuple[int, int], length: int, on: float, off: float) -> Tensor:
        quiet = log_uniform(generator, shape, off / 4, off)
        dwell = torch.cat([quiet, log_uniform(generator, shape, on / 4, on)], dim=-1).repeat(1, 128)
        return 1.0 * (segments(generator, dwell, length) % 2)

    def _decaying(self, generator: Generator, shape: tuple[int, int], length: int, slow: float, gap: float) -> Tensor:
        rate = (1 / log_uniform(generator, shape, gap / 2, 4 * gap)).expand(shape[0], length)
        hits = impulses(generator, rate, torch.full(shape, 0.3, device=generator.device))
        fade = torch.exp(-1 / log_uniform(generator, shape, slow / 6, slow))
        return linear_scan(fade.expand(shape[0], length), hits)
