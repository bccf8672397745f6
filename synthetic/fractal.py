"""Multi-scale fractals: brown noise seen through resonant filters an octave apart."""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from tsseq.array_typing import Float
from tsseq.synthetic.base import Prior
from tsseq.synthetic.draws import chance, log_uniform, normal, uniform
from tsseq.synthetic.scan import angular_frequencies, fft_length, stationary


@dataclass(frozen=True)
class MultiscaleFractal(Prior):
    """Power-law noise of exponent 1 to 3 through three to six second-order low-passes, summed with falling gain.

    Cut-offs lie an octave apart, so the scales spread over the window.
    """

    scales: int = 6

    def sample(self, generator: Generator, batch_size: int, length: int) -> Float[Tensor, "batch time"]:
        shape = (batch_size, 1)
        omega = angular_frequencies(length, generator.device)
        omega = torch.cat([omega[1:2] / 2, omega[1:]])
        base = log_uniform(generator, shape, 0.05, 1.5)
        gain = uniform(generator, shape, 0.5, 0.9)
        response = torch.zeros((batch_size, len(omega)), dtype=torch.complex64, device=generator.device)
        for scale in range(self.scales):
            ratio = omega / (base * 2.0**-scale)
            quality = uniform(generator, shape, 0.5, 6.0)
            low_pass = 1 / torch.complex(1 - ratio.square(), ratio / quality)
            used = chance(generator, shape, 1.0 if scale < 3 else 0.6)
            response = response + used * gain**scale * low_pass
        response = response * omega.pow(-uniform(generator, shape, 0.5, 1.5))
        response = response / response.abs().square().mean(-1, keepdim=True).sqrt()
        return stationary(normal(generator, (batch_size, fft_length(length))), response, length)
