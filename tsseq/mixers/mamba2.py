"""Mamba-2: a selective state-space model whose heads decay by one number each."""

import math

import torch
from torch import nn
from torch.nn import functional as F

from tsseq.array_typing import Float, State, Tensor
from tsseq.kernels.linear_attention import linear_attention
from tsseq.kernels.short_convolution import short_convolution
from tsseq.mixers.base import SequenceMixer, at_least_float32


class Mamba2(SequenceMixer):
    """S_t = exp(Δ_t A) S_{t−1} + B_t (Δ_t u_t)ᵀ,  y_t = S_tᵀ C_t + D u_t,  out = W_o norm(y ∘ SiLU(z)).

    One projection of x gives z, u, B, C and Δ; u, B and C pass a convolution and SiLU. A < 0 and D are one number
    per head of `head_width` channels of u, Δ = softplus(·) one per head and position, and all heads share B and C:
    linear attention with query C, key B and value Δu. With exp(ΔA) in (0, 1) it selects and recalls, but neither
    tracks parity nor counts modulo a number.

    State: the last convolution inputs (batch × kernel − 1 × channels) and S (batch × head × states × head_width).

    Paper: Dao and Gu, "Transformers are SSMs", arXiv 2405.21060.
    """

    def __init__(
        self, width: int, *, states: int = 128, head_width: int = 64, expand: int = 2, kernel: int = 4
    ) -> None:
        super().__init__(width)
        inner = expand * width
        head_width = min(head_width, inner)
        if states < 1 or kernel < 1 or head_width < 1 or inner % head_width:
            raise ValueError(
                f"expected states and kernel of at least 1 and expand * width a multiple of head_width, "
                f"got {states}, {kernel}, {inner} and {head_width}"
            )
        self.inner, self.states, self.heads = inner, states, inner // head_width
        channels = inner + 2 * states
        self.project_in = nn.Linear(width, inner + channels + self.heads, bias=False)
        self.convolution = nn.Parameter(torch.empty(channels, kernel).uniform_(-1, 1) / math.sqrt(kernel))
        self.convolution_bias = nn.Parameter(torch.zeros(channels))
        self.log_rate = nn.Parameter(torch.empty(self.heads).uniform_(1, 16).log())
        self.step_bias = nn.Parameter(inverse_softplus(log_uniform(self.heads, 1e-3, 0.1)))
        self.d = nn.Parameter(torch.ones(self.heads))
        self.norm = nn.Parameter(torch.ones(inner))
        self.project_out = nn.Linear(inner, width, bias=False)

    def init_state(self, batch_size: int) -> State:
        window = self.zeros(batch_size, self.convolution.shape[1] - 1, self.convolution.shape[0])
        return window, self.zeros(batch_size, self.heads, self.states, self.inner // self.heads)

    def forward(
        self, x: Float[Tensor, "batch time width"], state: State | None = None
    ) -> tuple[Float[Tensor, "batch time width"], State]:
        window, memory = self.init_state(x.shape[0]) if state is None else state
        gate, mixed, step = self.project_in(x).split([self.inner, self.convolution.shape[0], self.heads], dim=-1)
        mixed, window = short_convolution(mixed, self.convolution, self.convolution_bias, window)
        u, key, query = mixed.split([self.inner, self.states, self.states], dim=-1)
        u = u.unflatten(-1, (self.heads, -1))
        step = F.softplus(at_least_float32(step) + self.step_bias)
        key, query = (part[:, :, None].expand(-1, -1, self.heads, -1) for part in (key, query))
        value = (at_least_float32(u) * step[..., None]).to(u.dtype)
        y, (memory,) = linear_attention(query, key, value, -step * self.log_rate.exp(), None, (memory,), scale=1.0)
        y = (y + self.d[:, None].to(y.dtype) * u).flatten(2) * F.silu(gate)
        return self.project_out(F.rms_norm(y, self.norm.shape, self.norm.to(y.dtype), 1e-5)), (window, memory)

    def weave(self, state: State, below: State) -> State:
        return state[0], state[1] + below[1]


def log_uniform(size: int, low: float, high: float) -> Tensor:
    return torch.exp(torch.empty(size).uniform_(math.log(low), math.log(high)))


def inverse_softplus(y: Tensor) -> Tensor:
    return y + torch.log(-torch.expm1(-y))
