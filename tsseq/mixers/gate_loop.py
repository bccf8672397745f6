"""GateLoop: linear attention of one key per channel, with complex decays chosen by the input."""

import torch
from torch import nn
from torch.nn import functional as F

from tsseq.array_typing import Float, State, Tensor
from tsseq.kernels.diagonal_scan import diagonal_scan
from tsseq.mixers.base import SequenceMixer, at_least_float32


class GateLoop(SequenceMixer):
    """h_t = a_t ∘ h_{t−1} + k_t ∘ v_t,  y_t = W_o (Re(q_t ∘ h_t) ∘ SiLU(W_g x_t)),  a_t = σ(m_t) e^{i p_t}.

    All of q, k, v, m and p are linear maps of x. Modulus and phase of each channel's decay follow the input, so a
    channel can turn by an angle that the token chooses: parity (half a turn per one) and counting modulo any number
    take one channel each, for as long as the modulus stays near one. Turns in a plane commute, so it tracks no
    non-commutative group. This is the form with as many heads as channels: a memory is a single complex number.

    State: h (batch × width × 2, real and imaginary part).

    Paper: Katsch, "GateLoop: fully data-controlled linear recurrence for sequence modeling", arXiv 2311.01927.
    """

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.project_in = nn.Linear(width, 4 * width, bias=False)
        self.project_decay = nn.Linear(width, 2 * width)
        # Moduli start between 0.73 and 0.998: memories from a few to some hundred positions.
        self.project_decay.bias.data[:width] = torch.linspace(1, 6, width)
        self.project_out = nn.Linear(width, width, bias=False)

    def init_state(self, batch_size: int) -> State:
        return (self.zeros(batch_size, self.width, 2),)

    def forward(
        self, x: Float[Tensor, "batch time width"], state: State | None = None
    ) -> tuple[Float[Tensor, "batch time width"], State]:
        (h,) = self.init_state(x.shape[0]) if state is None else state
        query, key, value, gate = self.project_in(x).chunk(4, dim=-1)
        modulus, phase = at_least_float32(self.project_decay(x)).chunk(2, dim=-1)
        decay = torch.polar(torch.sigmoid(modulus), phase)
        driven = at_least_float32(key * value).to(decay.dtype)
        states, last = diagonal_scan(decay, driven, torch.view_as_complex(h))
        y = query * states.real.to(query.dtype)
        return self.project_out(y * F.silu(gate)), (torch.view_as_real(last),)
