"""Gated linear attention: a matrix memory each of whose key channels forgets at its own, chosen rate."""

import torch
from torch import nn
from torch.nn import functional as F

from tsseq.array_typing import Float, State, Tensor
from tsseq.kernels.gated_norm import gated_norm
from tsseq.kernels.linear_attention import linear_attention
from tsseq.mixers.base import SequenceMixer, at_least_float32


class GLA(SequenceMixer):
    """S_t = diag(α_t) S_{t−1} + k_t v_tᵀ,  o_t = S_tᵀ q_t / √key,  y_t = W_o (norm(o_t) ∘ SiLU(W_g x_t)).

    α_t = σ(W₂ W₁ x_t + b)^(1/16), one per key channel: the root keeps decays near one, so that memories are long at
    the start. Keys are half as wide as values. With α in (0, 1) it selects what to keep, but neither tracks parity nor
    counts modulo a number.

    State: S (batch × head × key × value).

    Paper: Yang et al., "Gated linear attention transformers with hardware-efficient training", arXiv 2312.06635.
    """

    def __init__(self, width: int, *, heads: int = 4, rank: int = 16, temperature: float = 16.0) -> None:
        super().__init__(width)
        if heads < 1 or width % (2 * heads):
            raise ValueError(f"width must be a multiple of 2 * heads, got width {width} and heads {heads}")
        self.heads, self.temperature, self.keys = heads, temperature, width // 2
        self.project_in = nn.Linear(width, 2 * self.keys + 2 * width, bias=False)
        self.project_decay = nn.Sequential(nn.Linear(width, rank, bias=False), nn.Linear(rank, self.keys))
        self.norm = nn.Parameter(torch.ones(width // heads))
        self.project_out = nn.Linear(width, width, bias=False)

    def init_state(self, batch_size: int) -> State:
        return (self.zeros(batch_size, self.heads, self.keys // self.heads, self.width // self.heads),)

    def forward(
        self, x: Float[Tensor, "batch time width"], state: State | None = None
    ) -> tuple[Float[Tensor, "batch time width"], State]:
        state = self.init_state(x.shape[0]) if state is None else state
        parts = self.project_in(x).split([self.keys, self.keys, self.width, self.width], dim=-1)
        query, key, value, gate = (part.unflatten(-1, (self.heads, -1)) for part in parts)
        log_decay = F.logsigmoid(at_least_float32(self.project_decay(x))) / self.temperature
        output, state = linear_attention(
            query, key, value, log_decay.unflatten(-1, (self.heads, -1)), initial_state=state
        )
        y = gated_norm(output, gate, self.norm.expand(self.heads, -1))
        return self.project_out(y.flatten(2)), state
