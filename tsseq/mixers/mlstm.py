"""mLSTM: the matrix-memory cell of xLSTM, in its block with a convolution and an outer gate."""

import math
from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional as F

from tsseq.array_typing import Float, State, Tensor
from tsseq.kernels.linear_attention import linear_attention
from tsseq.kernels.short_convolution import short_convolution
from tsseq.mixers.base import SequenceMixer, at_least_float32, common_maximum


class MLSTM(SequenceMixer):
    """C_t = f C_{t−1} + i k_t v_tᵀ,  n_t = f n_{t−1} + i k_t,  h_t = C_tᵀ q_t / max(|n_tᵀ q_t|, 1).

    i = exp(ĩ) and f = σ(f̃), numbers per head, linear in (q, k, v); keys are divided by √key; C and n are held divided
    by exp(m), m a running maximum of the log gates. Around the cell: x is projected up to twice `expand` × width. One
    half passes a convolution and SiLU and gives queries and keys (values come before it; all three in blocks of
    `block`). h is normalised per head, gains a skip from the convolution, is gated by SiLU of the other half and
    projected down. With f in (0, 1) it stores and recalls much, but tracks neither parity nor S3: mix in `slstm`.

    State: the last convolution inputs (batch × kernel − 1 × inner), C (batch × head × key × value), n (batch × head ×
    key) and m (batch × head).

    Paper: Beck et al., "xLSTM: extended long short-term memory", arXiv 2405.04517.
    """

    exponential: ClassVar[bool] = True

    def __init__(self, width: int, *, heads: int = 4, expand: int = 2, kernel: int = 4, block: int = 4) -> None:
        super().__init__(width)
        inner = expand * width
        if heads < 1 or block < 1 or inner < 1 or inner % heads or inner % block:
            raise ValueError(
                f"expand * width must be a multiple of heads and of block, got {inner}, {heads} and {block}"
            )
        if kernel < 1:
            raise ValueError(f"kernel must be at least 1, got {kernel}")
        self.inner, self.heads = inner, heads
        self.project_in = nn.Linear(width, 2 * inner, bias=False)
        self.convolution = nn.Parameter(torch.empty(inner, kernel).uniform_(-1, 1) / math.sqrt(kernel))
        self.maps = nn.Parameter(torch.empty(3, inner // block, block, block).uniform_(-1, 1) / math.sqrt(block))
        self.gates = nn.Linear(3 * inner, 2 * heads)
        nn.init.zeros_(self.gates.weight)
        self.gates.bias.data = torch.cat([0.1 * torch.randn(heads), torch.linspace(3, 6, heads)])
        self.norm = nn.Parameter(torch.ones(inner))
        self.skip = nn.Parameter(torch.ones(inner))
        self.project_out = nn.Linear(inner, width, bias=False)

    def init_state(self, batch_size: int) -> State:
        window = self.zeros(batch_size, self.convolution.shape[1] - 1, self.inner)
        size = self.inner // self.heads
        memory = self.zeros(batch_size, self.heads, size, size)
        if not self.exponential:
            return window, memory
        return window, memory, memory[..., 0].clone(), window.new_full((batch_size, self.heads), -torch.inf)

    def forward(
        self, x: Float[Tensor, "batch time width"], state: State | None = None
    ) -> tuple[Float[Tensor, "batch time width"], State]:
        window, *memory = self.init_state(x.shape[0]) if state is None else state
        u, gate = self.project_in(x).chunk(2, dim=-1)
        convolved, window = short_convolution(u, self.convolution, initial_state=window)
        sources = torch.stack([convolved, convolved, u]).unflatten(-1, self.maps.shape[1:3])
        mixed = torch.einsum("sbtni,snij->sbtnj", sources, self.maps.to(sources.dtype)).flatten(-2)
        gates = at_least_float32(self.gates(torch.cat(mixed.unbind(0), dim=-1)))
        query, key, value = mixed.unflatten(-1, (self.heads, -1)).unbind(0)
        input_gate, log_decay = gates[..., : self.heads], F.logsigmoid(gates[..., self.heads :])
        h, last = linear_attention(
            query,
            key,
            value,
            log_decay,
            input_gate if self.exponential else F.logsigmoid(input_gate),
            tuple(memory),
            normalize=self.exponential,
        )
        y = F.layer_norm(h, h.shape[-1:], eps=1e-5).flatten(2) * self.norm.to(h.dtype)
        y = (y + self.skip.to(y.dtype) * convolved) * F.silu(gate)
        return self.project_out(y), (window, *last)

    def weave(self, state: State, below: State) -> State:
        if not self.exponential:
            return state[0], state[1] + below[1]
        m, own, other = common_maximum(state[3], below[3])
        memory = own[..., None, None] * state[1] + other[..., None, None] * below[1]
        return state[0], memory, own[..., None] * state[2] + other[..., None] * below[2], m
