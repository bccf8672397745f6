"""S4D: an independent diagonal state-space model for every channel, run as a long convolution."""

import math

import torch
from torch import nn
from torch.nn import functional as F

from tsseq.array_typing import Float, State, Tensor
from tsseq.mixers.base import SequenceMixer, at_least_float32

CHUNK = 512
"""Longest stretch convolved at once; the state carries what came before, so memory for the kernel stays bounded."""


class S4D(SequenceMixer):
    """dh/dt = A h + u per channel, u constant over each step Δ;  s_t = 2 Re(C h_t) + D u_t;  y_t = GLU(W GELU(s_t)).

    Zero-order hold gives h_t = exp(ΔA) h_{t−1} + (exp(ΔA) − 1) / A u_t, so s is the convolution of u with
    K_l = 2 Re Σ_n C_n (exp(ΔA_n) − 1) / A_n exp(ΔA_n l), by FFT. `spectrum` sets A at the start:
    "linear" −½ + iπn, "inverse" −½ + i(N/π)(N/(2n+1) − 1), "real" −(n+1), with n of N / 2 conjugate pairs (N `states`).
    The transition is the same for every input: it filters and remembers, but selects nothing and tracks no automaton.

    State: h (batch × width × states / 2 × 2, real and imaginary part).

    Paper: Gu, Gupta, Goel and Ré, "On the parameterization and initialization of diagonal state space models",
    arXiv 2206.11893.
    """

    def __init__(
        self,
        width: int,
        *,
        states: int = 64,
        spectrum: str = "linear",
        step_min: float = 1e-3,
        step_max: float = 0.1,
    ) -> None:
        super().__init__(width)
        if states < 2 or states % 2:
            raise ValueError(f"states must be even and positive, got {states}")
        if not 0 < step_min <= step_max:
            raise ValueError(f"expected 0 < step_min <= step_max, got {step_min} and {step_max}")
        a = _spectrum(spectrum, states)
        self.log_rate = nn.Parameter((-a.real).log().repeat(width, 1))
        self.frequency = nn.Parameter(a.imag.repeat(width, 1))
        self.log_step = nn.Parameter(torch.empty(width).uniform_(math.log(step_min), math.log(step_max)))
        self.c = nn.Parameter(torch.randn(width, states // 2, 2) * math.sqrt(0.5))
        self.d = nn.Parameter(torch.randn(width))
        self.project_out = nn.Linear(width, 2 * width)

    def init_state(self, batch_size: int) -> State:
        return (self.zeros(batch_size, *self.c.shape),)

    def forward(
        self, x: Float[Tensor, "batch time width"], state: State | None = None
    ) -> tuple[Float[Tensor, "batch time width"], State]:
        (pairs,) = self.init_state(x.shape[0]) if state is None else state
        # Complex products and FFTs in bf16 do not exist, and slow modes need float32 anyway.
        with torch.autocast(x.device.type, enabled=False):
            rates = self.log_rate, self.frequency, self.log_step
            log_rate, frequency, log_step, d, u = map(at_least_float32, (*rates, self.d, x))
            rate, h = torch.complex(-log_rate.exp(), frequency), torch.view_as_complex(pairs)
            log_decay = rate * log_step.exp()[:, None]
            gain = (log_decay.exp() - 1) / rate
            time = torch.arange(min(CHUNK, u.shape[1]), device=u.device, dtype=u.dtype)
            powers = torch.exp(log_decay[..., None] * time)
            outputs = []
            for piece in u.split(CHUNK, dim=1):
                s, h = self._convolve(piece.mT, h, powers[..., : piece.shape[1]], log_decay.exp(), gain)
                outputs.append(s.mT + d * piece)
        y = F.gelu(torch.cat(outputs, dim=1)).to(x.dtype)
        return F.glu(self.project_out(y), dim=-1), (torch.view_as_real(h),)

    def _convolve(self, u: Tensor, h: Tensor, powers: Tensor, decay: Tensor, gain: Tensor) -> tuple[Tensor, Tensor]:
        """Outputs (batch × width × time) and the last state, of inputs of that layout and the state before them."""
        length, c = u.shape[-1], torch.view_as_complex(at_least_float32(self.c))
        kernel = 2 * torch.einsum("cn,cnl->cl", c * gain, powers).real
        spectrum = torch.fft.rfft(kernel, 2 * length) * torch.fft.rfft(u, 2 * length)
        s = torch.fft.irfft(spectrum, 2 * length)[..., :length]
        s = s + 2 * torch.einsum("bcn,cnl->bcl", h * c * decay, powers).real
        driven = torch.einsum("bcl,cnl->bcn", u.to(powers.dtype), powers.flip(-1))
        return s, decay * powers[..., -1] * h + gain * driven


def _spectrum(name: str, states: int) -> Tensor:
    n = torch.arange(states // 2)
    spectra = {
        "linear": torch.complex(torch.full(n.shape, -0.5), math.pi * n),
        "inverse": torch.complex(torch.full(n.shape, -0.5), states / math.pi * (states / (2 * n + 1) - 1)),
        "real": torch.complex(-(n + 1.0), torch.zeros(n.shape)),
    }
    if name not in spectra:
        raise ValueError(f"spectrum must be one of {', '.join(spectra)}; got {name!r}")
    return spectra[name]
