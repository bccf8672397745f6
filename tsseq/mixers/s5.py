"""S5: one multi-input state-space model with HiPPO eigenvalues, run as a diagonal scan."""

import math

import torch
from torch import nn

from tsseq.array_typing import Float, State, Tensor
from tsseq.kernels.diagonal_scan import diagonal_scan
from tsseq.mixers.base import SequenceMixer, at_least_float32


class S5(SequenceMixer):
    """dh/dt = Λ h + B x held constant over each step Δ,  y_t = 2 Re(C h_t) + D ∘ x_t.

    Zero-order hold: h_t = exp(ΛΔ) ∘ h_{t−1} + (exp(ΛΔ) − 1) / Λ ∘ (B x_t). Λ starts at the eigenvalues of the normal
    part of HiPPO-LegS, in `blocks` equal blocks, one of each conjugate pair; every state has its own Δ. The
    transition is the same for every input: it filters and remembers smoothly, but selects nothing and tracks no
    automaton.

    State: h (batch × states / 2 × 2, real and imaginary part).

    Paper: Smith, Warrington and Linderman, "Simplified state space layers for sequence modeling", arXiv 2208.04933.
    """

    def __init__(
        self,
        width: int,
        *,
        states: int | None = None,
        blocks: int = 1,
        step_min: float = 1e-3,
        step_max: float = 0.1,
    ) -> None:
        super().__init__(width)
        states = width if states is None else states
        if blocks < 1 or states % (2 * blocks):
            raise ValueError(f"states must be an even multiple of blocks, got {states} and {blocks}")
        if not 0 < step_min <= step_max:
            raise ValueError(f"expected 0 < step_min <= step_max, got {step_min} and {step_max}")
        frequency, vectors = hippo_normal(states // blocks)
        b0 = torch.randn(blocks, states // blocks, width) / math.sqrt(width)
        c0 = torch.randn(blocks, width, states // blocks, 2) / math.sqrt(states)
        b = (vectors.mH @ b0.to(vectors.dtype)).flatten(0, 1)
        c = (torch.view_as_complex(c0) @ vectors).transpose(0, 1).flatten(1)
        self.log_rate = nn.Parameter(torch.full((states // 2,), math.log(0.5)))
        self.frequency = nn.Parameter(frequency.repeat(blocks))
        self.log_step = nn.Parameter(torch.empty(states // 2).uniform_(math.log(step_min), math.log(step_max)))
        self.b = nn.Parameter(torch.view_as_real(b).clone())
        self.c = nn.Parameter(torch.view_as_real(c).clone())
        self.d = nn.Parameter(torch.randn(width))

    def init_state(self, batch_size: int) -> State:
        return (self.zeros(batch_size, self.b.shape[0], 2),)

    def forward(
        self, x: Float[Tensor, "batch time width"], state: State | None = None
    ) -> tuple[Float[Tensor, "batch time width"], State]:
        (h,) = self.init_state(x.shape[0]) if state is None else state
        # Complex products in bf16 do not exist, and slow modes need float32 anyway.
        with torch.autocast(x.device.type, enabled=False):
            rates = self.log_rate, self.frequency, self.log_step
            log_rate, frequency, log_step, b, c, d, u = map(at_least_float32, (*rates, self.b, self.c, self.d, x))
            rate = torch.complex(-log_rate.exp(), frequency)
            decay = torch.exp(rate * log_step.exp())
            driven = torch.stack([u @ part.T for part in b.unbind(-1)], dim=-1)
            driven = torch.view_as_complex(driven) * ((decay - 1) / rate)
            states, last = diagonal_scan(decay, driven, torch.view_as_complex(h))
            y = 2 * (states.real @ c[..., 0].T - states.imag @ c[..., 1].T) + d * u
        return y.to(x.dtype), (torch.view_as_real(last),)


def hippo_normal(size: int) -> tuple[Tensor, Tensor]:
    """Positive frequencies (size / 2) and eigenvectors (size × size / 2) of the normal part of HiPPO-LegS.

    The normal part is A + PPᵀ with A_nk = −√(2n+1)√(2k+1) below, −(n+1) on and 0 above the diagonal and P_n = √(n+½);
    it is −½ plus a skew-symmetric matrix, so its eigenvalues are −½ ± i times the frequencies.
    """
    n = torch.arange(size, dtype=torch.float64)
    root = torch.sqrt(2 * n + 1)
    skew = 0.5 * (root[:, None] * root).tril(-1)
    values, vectors = torch.linalg.eigh(1j * (skew - skew.mT))
    return values[size // 2 :].float(), vectors[:, size // 2 :].to(torch.complex64)
