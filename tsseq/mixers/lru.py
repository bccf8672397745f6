"""Linear Recurrent Unit: a stable complex diagonal recurrence between two dense maps."""

import math

import torch
from torch import nn

from tsseq.array_typing import Float, State, Tensor
from tsseq.kernels.diagonal_scan import diagonal_scan
from tsseq.mixers.base import SequenceMixer, at_least_float32


class LRU(SequenceMixer):
    """h_t = λ ∘ h_{t−1} + γ ∘ (B x_t),  y_t = Re(C h_t) + D ∘ x_t,  with |λ| < 1 by construction.

    λ = exp(−exp(ν) + i exp(θ)) starts uniform on the ring between `r_min` and `r_max` with phases below
    `max_phase`, and γ starts at √(1 − |λ|²), so that the state keeps the input's variance however slow the
    mode. The transition does not depend on the input: it remembers and filters, but selects nothing, and
    neither counts modulo a number nor tracks parity.

    State: h (batch × state × 2, real and imaginary part).

    Paper: Orvieto et al., "Resurrecting recurrent neural networks for long sequences", arXiv 2303.06349.
    """

    def __init__(
        self,
        width: int,
        *,
        state_width: int | None = None,
        r_min: float = 0.0,
        r_max: float = 0.99,
        max_phase: float = 2 * math.pi,
    ) -> None:
        super().__init__(width)
        states = width if state_width is None else state_width
        if not 0 <= r_min < r_max < 1:
            raise ValueError(f"expected 0 <= r_min < r_max < 1, got {r_min} and {r_max}")
        squared = r_min**2 + (r_max**2 - r_min**2) * torch.rand(states)
        self.log_rate = nn.Parameter(torch.log(-0.5 * torch.log(squared.clamp(1e-8))))
        self.log_phase = nn.Parameter(torch.log(max_phase * torch.rand(states).clamp(1e-6)))
        self.log_gamma = nn.Parameter(0.5 * torch.log1p(-squared))
        self.b = nn.Parameter(torch.randn(states, width, 2) / math.sqrt(2 * width))
        self.c = nn.Parameter(torch.randn(width, states, 2) / math.sqrt(states))
        self.d = nn.Parameter(torch.randn(width))

    def init_state(self, batch_size: int) -> State:
        return (self.zeros(batch_size, self.log_rate.shape[0], 2),)

    def forward(
        self, x: Float[Tensor, "batch time width"], state: State | None = None
    ) -> tuple[Float[Tensor, "batch time width"], State]:
        (h,) = self.init_state(x.shape[0]) if state is None else state
        # Complex products in bf16 do not exist, and slow modes need float32 anyway.
        with torch.autocast(x.device.type, enabled=False):
            logs = self.log_rate, self.log_phase, self.log_gamma
            log_rate, log_phase, log_gamma, b, c, d, u = map(at_least_float32, (*logs, self.b, self.c, self.d, x))
            decay = torch.polar(torch.exp(-torch.exp(log_rate)), torch.exp(log_phase))
            # Real and imaginary parts side by side in one product, and γ in the small factor: half the time on a CPU.
            b = (b * torch.exp(log_gamma)[:, None, None]).transpose(0, 1).flatten(1)
            driven = torch.view_as_complex((u @ b).unflatten(-1, (-1, 2)))
            states, last = diagonal_scan(decay, driven, torch.view_as_complex(h))
            c = torch.stack([c[..., 0], -c[..., 1]], dim=-1).flatten(1)
            y = torch.view_as_real(states).flatten(-2) @ c.T + d * u
        return y.to(x.dtype), (torch.view_as_real(last),)
