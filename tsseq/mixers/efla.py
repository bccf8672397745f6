"""Error-free linear attention: the delta rule's differential equation, solved exactly over each step."""

import math

import torch
from torch import nn
from torch.nn import functional as F

from tsseq.array_typing import Float, State, Tensor
from tsseq.kernels.delta_rule import delta_rule
from tsseq.kernels.short_convolution import short_convolution
from tsseq.mixers.base import SequenceMixer, at_least_float32


class EFLA(SequenceMixer):
    """S_t = (I − α_t k_t k_tᵀ) S_{t−1} + α_t k_t v_tᵀ,  o_t = S_tᵀ q_t,  α = (1 − exp(−β ‖k‖²)) / ‖k‖².

    The delta rule is one Euler step of dS/dt = −β k (kᵀS − vᵀ); this is its exact flow, exp(−β k kᵀ), stable for
    keys of any length, whose norm thus says how firmly to write. Along k the eigenvalue exp(−β‖k‖²) lies in (0, 1): it
    recalls and overwrites like DeltaNet with positive eigenvalues, and cannot track parity.

    State: the last convolution inputs (batch × kernel − 1 × 3 width) and the memory (batch × head × key × value).

    Paper: Lei et al., "Error-free linear attention is a free lunch", arXiv 2512.12602.
    """

    def __init__(self, width: int, *, heads: int = 4, kernel: int = 4) -> None:
        super().__init__(width)
        if heads < 1 or width % heads:
            raise ValueError(f"width must be a multiple of heads, got width {width} and heads {heads}")
        if kernel < 1:
            raise ValueError(f"kernel must be at least 1, got {kernel}")
        self.heads, self.head_width = heads, width // heads
        self.project_in = nn.Linear(width, 3 * width + heads, bias=False)
        self.convolution = nn.Parameter(torch.empty(3 * width, kernel).uniform_(-1, 1) / math.sqrt(kernel))
        self.norm = nn.Parameter(torch.ones(self.head_width))
        self.project_out = nn.Linear(width, width, bias=False)

    def init_state(self, batch_size: int) -> State:
        window = self.zeros(batch_size, self.convolution.shape[1] - 1, 3 * self.width)
        return window, self.zeros(batch_size, self.heads, self.head_width, self.head_width)

    def forward(
        self, x: Float[Tensor, "batch time width"], state: State | None = None
    ) -> tuple[Float[Tensor, "batch time width"], State]:
        window, memory = self.init_state(x.shape[0]) if state is None else state
        mixed, rate = self.project_in(x).split([3 * self.width, self.heads], dim=-1)
        mixed, window = short_convolution(mixed, self.convolution, initial_state=window)
        query, key, value = mixed.unflatten(-1, (3, self.heads, self.head_width)).unbind(2)
        # With k = ‖k‖ k̂ the step is a delta rule of unit keys: its solve stays well conditioned for any ‖k‖.
        squared = at_least_float32(key).square().sum(-1) + 1e-12
        norm = squared.sqrt()[..., None]
        beta = -torch.expm1(-torch.sigmoid(at_least_float32(rate)) * squared)
        key, value = (at_least_float32(key) / norm).to(key.dtype), (at_least_float32(value) / norm).to(value.dtype)
        query = query * self.head_width**-0.5
        output, memory = delta_rule(query, key[:, :, None], value[:, :, None], beta[:, :, None], None, memory)
        output = F.rms_norm(output, (self.head_width,), self.norm.to(output.dtype), 1e-5).flatten(2)
        return self.project_out(output), (window, memory)

    def weave(self, state: State, below: State) -> State:
        return state[0], state[1] + below[1]
