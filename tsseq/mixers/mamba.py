"""Mamba: a diagonal state-space model per channel, whose step and maps are chosen by the input."""

import math

import torch
from torch import nn
from torch.nn import functional as F

from tsseq.array_typing import Float, State, Tensor
from tsseq.kernels.selective_scan import selective_scan
from tsseq.kernels.short_convolution import short_convolution
from tsseq.mixers.base import SequenceMixer, at_least_float32
from tsseq.mixers.mamba2 import inverse_softplus, log_uniform


class Mamba(SequenceMixer):
    """h_t = exp(Δ_t A) ∘ h_{t−1} + Δ_t B_t u_t,  s_t = C_tᵀ h_t + D u_t,  y_t = W_o (s_t ∘ SiLU(z_t)).

    Every channel of u = SiLU(convolution(W_u x)) has a state of `states` numbers; its step Δ = softplus(W_Δ δ + b), of
    rank width / 16, and B and C, shared by all channels, are linear in u. A < 0 starts at −1, …, −states. A large step
    forgets and writes, a small one keeps: it selects. With exp(ΔA) in (0, 1) it neither tracks parity nor counts
    modulo a number.

    State: the last convolution inputs (batch × kernel − 1 × inner) and h (batch × inner × states).

    Paper: Gu and Dao, "Mamba: linear-time sequence modeling with selective state spaces", arXiv 2312.00752.
    """

    def __init__(self, width: int, *, states: int = 16, expand: int = 2, kernel: int = 4) -> None:
        super().__init__(width)
        if states < 1 or expand < 1 or kernel < 1:
            raise ValueError(f"states, expand and kernel must be at least 1, got {states}, {expand} and {kernel}")
        self.inner, self.states, self.rank = expand * width, states, math.ceil(width / 16)
        self.project_in = nn.Linear(width, 2 * self.inner, bias=False)
        self.convolution = nn.Parameter(torch.empty(self.inner, kernel).uniform_(-1, 1) / math.sqrt(kernel))
        self.convolution_bias = nn.Parameter(torch.zeros(self.inner))
        self.project_maps = nn.Linear(self.inner, self.rank + 2 * states, bias=False)
        self.project_step = nn.Linear(self.rank, self.inner)
        self.project_step.bias.data = inverse_softplus(log_uniform(self.inner, 1e-3, 0.1))
        self.log_rate = nn.Parameter(torch.arange(1.0, states + 1).log().repeat(self.inner, 1))
        self.d = nn.Parameter(torch.ones(self.inner))
        self.project_out = nn.Linear(self.inner, width, bias=False)

    def init_state(self, batch_size: int) -> State:
        window = self.zeros(batch_size, self.convolution.shape[1] - 1, self.inner)
        return window, self.zeros(batch_size, self.inner, self.states)

    def forward(
        self, x: Float[Tensor, "batch time width"], state: State | None = None
    ) -> tuple[Float[Tensor, "batch time width"], State]:
        window, h = self.init_state(x.shape[0]) if state is None else state
        u, gate = self.project_in(x).chunk(2, dim=-1)
        u, window = short_convolution(u, self.convolution, self.convolution_bias, window)
        step, b, c = self.project_maps(u).split([self.rank, self.states, self.states], dim=-1)
        step = F.softplus(at_least_float32(self.project_step(step)))
        y, h = selective_scan(u, step, -self.log_rate.exp(), b, c, self.d, h)
        return self.project_out(y * F.silu(gate)), (window, h)

    def weave(self, state: State, below: State) -> State:
        return state[0], state[1] + below[1]
