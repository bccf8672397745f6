"""Gated DeltaProduct: a matrix memory that each token edits by a few Householder steps."""

import math

import torch
from torch import nn
from torch.nn import functional as F

from tsseq.array_typing import Float, State, Tensor
from tsseq.kernels.delta_rule import delta_rule
from tsseq.kernels.gated_norm import gated_norm
from tsseq.kernels.short_convolution import short_convolution
from tsseq.mixers.base import SequenceMixer, at_least_float32


class GatedDeltaProduct(SequenceMixer):
    """S_t = α_t Π_j (I − β_tj k_tj k_tjᵀ) S_{t−1} + …, read as o_t = S_tᵀ q_t.

    Each head keeps a key × value matrix S. A token first lets it decay by α_t ∈ (0, 1), then corrects, for
    each of its `steps` keys, what S recalls under that key towards a value. With `negative_eigenvalues`
    (β ∈ (0, 2)) a step can reflect, so that one step tracks parity and `steps` of them reach any rotation in a
    `steps`-dimensional plane: S3 takes two, S5 four. Queries, keys and values pass a short causal convolution
    and SiLU; queries and keys have unit length; the output is normalised per head and gated.

    Special cases: DeltaNet (`steps=1, gated=False`), Gated DeltaNet (`steps=1`), DeltaProduct (`gated=False`).
    `rotary` turns queries and keys by their position (Su et al., 2021), so that a lookup can ask for "so many
    positions ago" even where the input itself says nothing, as over a masked future.

    All maps are free of biases: zero inputs to a zero state leave it zero.

    State: the last convolution inputs (batch × kernel − 1 × channels), the memory (batch × head × key ×
    value), and the position reached (batch × 1).

    Papers: Yang et al., "Gated Delta Networks", arXiv 2412.06464; Siems et al., "DeltaProduct", arXiv
    2502.10297; Grazzi et al., "Unlocking state-tracking in linear RNNs", arXiv 2411.12537.
    """

    def __init__(
        self,
        width: int,
        *,
        heads: int = 4,
        steps: int = 1,
        kernel: int = 4,
        gated: bool = True,
        negative_eigenvalues: bool = True,
        rotary: bool = False,
        learn_initial_state: bool = False,
    ) -> None:
        super().__init__(width)
        if heads < 1 or width % heads or (width // heads) % 2:
            raise ValueError(f"width must be an even multiple of heads, got width {width} and heads {heads}")
        if steps < 1 or kernel < 1:
            raise ValueError(f"steps and kernel must be at least 1, got {steps} and {kernel}")
        self.heads, self.steps, self.kernel, self.gated, self.rotary = heads, steps, kernel, gated, rotary
        self.beta_scale = 2.0 if negative_eigenvalues else 1.0
        self.head_width = width // heads
        channels = width * (1 + 2 * steps)
        self.project_in = nn.Linear(width, channels + width + heads * (steps + gated), bias=False)
        self.convolution = nn.Parameter(torch.empty(channels, kernel).uniform_(-1, 1) / math.sqrt(kernel))
        self.norm = nn.Parameter(torch.ones(self.head_width))
        self.project_out = nn.Linear(width, width, bias=False)
        if gated:
            self.log_rate = nn.Parameter(torch.empty(heads).uniform_(1, 16).log())
            step_size = torch.exp(torch.empty(heads).uniform_(math.log(1e-3), math.log(0.1)))
            self.rate_bias = nn.Parameter(step_size + torch.log(-torch.expm1(-step_size)))
        shape = (heads, self.head_width, self.head_width)
        if learn_initial_state:
            self.initial_state = nn.Parameter(torch.randn(shape) / self.head_width)
        else:
            self.register_buffer("initial_state", torch.zeros(shape), persistent=False)

    def init_state(self, batch_size: int) -> State:
        window = self.zeros(batch_size, self.kernel - 1, self.convolution.shape[0])
        memory = at_least_float32(self.initial_state).expand(batch_size, -1, -1, -1)
        return window, memory, self.zeros(batch_size, 1)

    def forward(
        self, x: Float[Tensor, "batch time width"], state: State | None = None
    ) -> tuple[Float[Tensor, "batch time width"], State]:
        window, memory, position = self._start(x) if state is None else state
        queries_keys, values = self.width * (1 + self.steps), self.width * self.steps
        mixed, value, gate, rates = self.project_in(x).split(
            [queries_keys, values, self.width, self.heads * (self.steps + self.gated)], dim=-1
        )
        weight = self.convolution.split([queries_keys, values])
        past = (None, None) if window is None else window.split([queries_keys, values], -1)
        mixed, past_mixed = short_convolution(mixed, weight[0], initial_state=past[0], head_dim=self.head_width)
        value, past_value = short_convolution(value, weight[1], initial_state=past[1])
        query, key = mixed.split([self.width, self.width * self.steps], dim=-1)
        shape = (self.steps, self.heads, self.head_width)
        query, key, value = (
            query.unflatten(-1, shape[1:]),
            key.unflatten(-1, shape),
            value.unflatten(-1, shape),
        )
        beta, log_decay = self._rates(rates)
        if self.rotary:
            query, key = self._rotate(query, key, position)
        query = query * self.head_width**-0.5
        output, memory = delta_rule(query, key, value, beta, log_decay, memory)
        output = gated_norm(output, gate.unflatten(-1, shape[1:]), self.norm.expand(self.heads, -1))
        window = torch.cat([past_mixed, past_value], dim=-1)
        return self.project_out(output.flatten(2)), (window, memory, position + x.shape[1])

    def _start(self, x: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor]:
        """As `init_state`, with None for what is zero: the ops then have nothing to read or differentiate."""
        learned = isinstance(self.initial_state, nn.Parameter)
        memory = self.initial_state.expand(x.shape[0], -1, -1, -1) if learned else None
        return None, memory, self.zeros(x.shape[0], 1)

    def _rates(self, rates: Tensor) -> tuple[Tensor, Tensor | None]:
        rates = at_least_float32(rates)
        beta = self.beta_scale * torch.sigmoid(rates[..., : self.heads * self.steps])
        beta = beta.unflatten(-1, (self.steps, self.heads))
        if not self.gated:
            return beta, None
        rate = F.softplus(rates[..., self.heads * self.steps :] + self.rate_bias)
        return beta, -self.log_rate.exp() * rate

    def _rotate(self, query: Tensor, key: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
        half = self.head_width // 2
        frequency = 1000.0 ** (-torch.arange(half, device=query.device) / half)
        angle = (position + torch.arange(query.shape[1], device=query.device))[..., None] * frequency
        cos, sin = angle.cos()[:, :, None].to(query.dtype), angle.sin()[:, :, None].to(query.dtype)
        return _turn(query, cos, sin), _turn(key, cos[:, :, None], sin[:, :, None])

    def weave(self, state: State, below: State) -> State:
        return state[0], state[1] + below[1], state[2]


def _turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)
