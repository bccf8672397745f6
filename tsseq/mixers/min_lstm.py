"""minLSTM: an LSTM whose gates do not look at the state, and which therefore runs in parallel."""

import torch
from torch import nn
from torch.nn import functional as F

from tsseq.array_typing import Float, State, Tensor
from tsseq.kernels.diagonal_scan import diagonal_scan
from tsseq.mixers.base import SequenceMixer, at_least_float32
from tsseq.mixers.min_gru import positive_part


class MinLSTM(SequenceMixer):
    """h_t = f'_t ∘ h_{t−1} + i'_t ∘ g(W_h x_t),  y_t = W_o h_t,  with f' = f / (f + i) and i' = i / (f + i).

    f = σ(W_f x + b_f) and i = σ(W_i x + b_i); normalised to sum to one, they make h an average of candidates
    whatever the length. Candidates and abilities are those of minGRU: it holds and replaces, but with decays in
    (0, 1) neither tracks parity nor counts modulo a number.

    State: h (batch × state).

    Paper: Feng et al., "Were RNNs all we needed?", arXiv 2410.01201.
    """

    def __init__(self, width: int, *, state_width: int | None = None, positive: bool = True) -> None:
        super().__init__(width)
        states = width if state_width is None else state_width
        self.positive = positive
        self.project_in = nn.Linear(width, 3 * states)
        self.project_out = nn.Linear(states, width, bias=False)

    def init_state(self, batch_size: int) -> State:
        return (self.zeros(batch_size, self.project_out.in_features),)

    def forward(
        self, x: Float[Tensor, "batch time width"], state: State | None = None
    ) -> tuple[Float[Tensor, "batch time width"], State]:
        (h,) = self.init_state(x.shape[0]) if state is None else state
        forget, take, candidate = at_least_float32(self.project_in(x)).chunk(3, dim=-1)
        # f / (f + i) = σ(log f − log i) does not divide zero by zero where both gates close.
        keep = F.logsigmoid(forget) - F.logsigmoid(take)
        candidate = positive_part(candidate) if self.positive else candidate
        states, h = diagonal_scan(torch.sigmoid(keep), torch.sigmoid(-keep) * candidate, h)
        return self.project_out(states.to(x.dtype)), (h,)
