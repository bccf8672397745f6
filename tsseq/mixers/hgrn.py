"""HGRN: a gated linear recurrence whose forget gates have a floor."""

import torch
from torch import nn
from torch.nn import functional as F

from tsseq.array_typing import Float, State, Tensor
from tsseq.kernels.diagonal_scan import diagonal_scan
from tsseq.kernels.gated_norm import gated_norm
from tsseq.mixers.base import SequenceMixer, at_least_float32


class HGRN(SequenceMixer):
    """f_t = λ + (1 − λ) σ(W_f x_t),  h_t = f_t ∘ h_{t−1} + (1 − f_t) ∘ SiLU(W_i x_t),  y = W_o (norm(h) ∘ SiLU(W_g x)).

    The floor λ in [0, 1) forces a layer to remember for at least about 1 / (1 − λ) positions; the paper lets it rise
    from 0 in the first layer to nearly 1 in the last, which here is one `lower_bound` per mixer. Decays lie in
    (λ, 1): it averages and holds over chosen ranges, but neither tracks parity nor counts modulo a number.

    State: h (batch × state).

    Paper: Qin et al., "Hierarchically gated recurrent neural network for sequence modeling", arXiv 2311.04823.
    """

    def __init__(self, width: int, *, state_width: int | None = None, lower_bound: float = 0.0) -> None:
        super().__init__(width)
        if not 0 <= lower_bound < 1:
            raise ValueError(f"lower_bound must lie in [0, 1), got {lower_bound}")
        states = width if state_width is None else state_width
        self.lower_bound = lower_bound
        self.project_in = nn.Linear(width, 3 * states, bias=False)
        self.norm = nn.Parameter(torch.ones(states))
        self.project_out = nn.Linear(states, width, bias=False)

    def init_state(self, batch_size: int) -> State:
        return (self.zeros(batch_size, self.norm.shape[0]),)

    def forward(
        self, x: Float[Tensor, "batch time width"], state: State | None = None
    ) -> tuple[Float[Tensor, "batch time width"], State]:
        (h,) = self.init_state(x.shape[0]) if state is None else state
        forget, value, gate = self.project_in(x).chunk(3, dim=-1)
        # 1 − f from σ(−u), not from f: near one it keeps its digits.
        renew = (1 - self.lower_bound) * torch.sigmoid(-at_least_float32(forget))
        states, h = diagonal_scan(1 - renew, renew * F.silu(at_least_float32(value)), h)
        y = gated_norm(states.to(x.dtype)[:, :, None], gate[:, :, None], self.norm[None])
        return self.project_out(y[:, :, 0]), (h,)
