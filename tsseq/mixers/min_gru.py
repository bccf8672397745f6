"""minGRU: a GRU whose gates do not look at the state, and which therefore runs in parallel."""

import torch
from torch import nn

from tsseq.array_typing import Float, State, Tensor
from tsseq.kernels.diagonal_scan import diagonal_scan
from tsseq.mixers.base import SequenceMixer, at_least_float32


class MinGRU(SequenceMixer):
    """z_t = σ(W_z x_t),  h_t = (1 − z_t) ∘ h_{t−1} + z_t ∘ g(W_h x_t),  y_t = W_o h_t.

    g(u) = u + ½ for u ≥ 0 and σ(u) below keeps candidates positive, as in the paper's log-space form; the scan
    used here needs no logarithms, so `positive=False` (g the identity, the paper's plain version) is as good.
    The gate decides from the input alone when to keep and when to replace, so it can hold a value or a flag
    for any time; its decays lie in (0, 1), so it neither tracks parity nor counts modulo a number.

    State: h (batch × state).

    Paper: Feng et al., "Were RNNs all we needed?", arXiv 2410.01201.
    """

    def __init__(self, width: int, *, state_width: int | None = None, positive: bool = True) -> None:
        super().__init__(width)
        states = width if state_width is None else state_width
        self.positive = positive
        self.project_in = nn.Linear(width, 2 * states)
        self.project_out = nn.Linear(states, width, bias=False)

    def init_state(self, batch_size: int) -> State:
        return (self.zeros(batch_size, self.project_out.in_features),)

    def forward(
        self, x: Float[Tensor, "batch time width"], state: State | None = None
    ) -> tuple[Float[Tensor, "batch time width"], State]:
        (h,) = self.init_state(x.shape[0]) if state is None else state
        gate, candidate = at_least_float32(self.project_in(x)).chunk(2, dim=-1)
        candidate = positive_part(candidate) if self.positive else candidate
        states, h = diagonal_scan(torch.sigmoid(-gate), torch.sigmoid(gate) * candidate, h)
        return self.project_out(states.to(x.dtype)), (h,)


def positive_part(u: Tensor) -> Tensor:
    """g(u) = u + ½ where u ≥ 0 and σ(u) elsewhere: positive, continuous and increasing."""
    return torch.where(u >= 0, u + 0.5, torch.sigmoid(u))
