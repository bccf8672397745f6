"""Longhorn: a state-space block whose recurrence is one implicit step of online regression."""

import math

import torch
from torch import nn
from torch.nn import functional as F

from tsseq.array_typing import Float, State, Tensor
from tsseq.kernels.diagonal_scan import diagonal_scan
from tsseq.kernels.short_convolution import short_convolution
from tsseq.mixers.base import SequenceMixer, at_least_float32


class Longhorn(SequenceMixer):
    """S_t = (1 − Δ_t k_t²ᵀ) ∘ S_{t−1} + (Δ_t ∘ u_t) k_tᵀ,  y_t = S_t q_t + D ∘ u_t,  Δ = β / (1 + β ‖k‖²).

    Each channel c of u keeps a row s of S that regresses u_c on the key: argmin ‖s − s_{t−1}‖² + β_c (kᵀs − u_c)² has
    the transition I − Δ_c k kᵀ, of which the diagonal is kept. β = σ(·) is the learning rate, so nothing needs a
    separate forget gate. Around it stands Mamba's block: u = SiLU(convolution(W_u x)), y gated by SiLU(W_z x).
    Decays lie in (0, 1): it recalls by key and forgets by overwriting, but does not track parity.

    State: the last convolution inputs (batch × kernel − 1 × inner) and S (batch × inner × state).

    Paper: Liu et al., "Longhorn: state space models are amortized online learners", arXiv 2407.14207.
    """

    def __init__(self, width: int, *, states: int = 16, expand: int = 2, kernel: int = 4) -> None:
        super().__init__(width)
        if states < 1 or expand < 1 or kernel < 1:
            raise ValueError(f"states, expand and kernel must be at least 1, got {states}, {expand} and {kernel}")
        self.inner, self.states, self.rank = expand * width, states, math.ceil(width / 16)
        self.project_in = nn.Linear(width, 2 * self.inner, bias=False)
        self.convolution = nn.Parameter(torch.empty(self.inner, kernel).uniform_(-1, 1) / math.sqrt(kernel))
        self.project_keys = nn.Linear(self.inner, self.rank + 2 * states, bias=False)
        self.project_rate = nn.Linear(self.rank, self.inner)
        self.d = nn.Parameter(torch.ones(self.inner))
        self.project_out = nn.Linear(self.inner, width, bias=False)

    def init_state(self, batch_size: int) -> State:
        window = self.zeros(batch_size, self.convolution.shape[1] - 1, self.inner)
        return window, self.zeros(batch_size, self.inner, self.states)

    def forward(
        self, x: Float[Tensor, "batch time width"], state: State | None = None
    ) -> tuple[Float[Tensor, "batch time width"], State]:
        window, memory = self.init_state(x.shape[0]) if state is None else state
        u, gate = self.project_in(x).chunk(2, dim=-1)
        u, window = short_convolution(u, self.convolution, initial_state=window)
        rate, key, query = self.project_keys(u).split([self.rank, self.states, self.states], dim=-1)
        key, wide = at_least_float32(key), at_least_float32(u)
        beta = torch.sigmoid(at_least_float32(self.project_rate(rate)))
        step = beta / (1 + beta * key.square().sum(-1, keepdim=True))
        decay = 1 - step[..., None] * key[..., None, :].square()
        driven = (step * wide)[..., None] * key[..., None, :]
        states, last = diagonal_scan(decay.flatten(2), driven.flatten(2), memory.flatten(1))
        y = torch.einsum("btcn,btn->btc", states.view_as(driven), at_least_float32(query)) + self.d * wide
        return self.project_out(y.to(x.dtype) * F.silu(gate)), (window, last.view_as(memory))

    def weave(self, state: State, below: State) -> State:
        return state[0], state[1] + below[1]
