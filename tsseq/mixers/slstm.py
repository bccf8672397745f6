"""sLSTM: the scalar-memory cell of xLSTM, with exponential gates that see the previous output."""

import math

import torch
from torch import nn
from torch.nn import functional as F

from tsseq.array_typing import Float, State, Tensor
from tsseq.kernels.short_convolution import short_convolution
from tsseq.kernels.slstm import slstm
from tsseq.mixers.base import SequenceMixer, at_least_float32, common_maximum


class SLSTM(SequenceMixer):
    """c_t = f c_{t−1} + i tanh(z_t),  n_t = f n_{t−1} + i,  h_t = σ(o_t) c_t / n_t,  with i = exp(ĩ) and f = σ(f̃).

    Every gate is W x_t + R h_{t−1} + b, with W and R within each head; ĩ and f̃ see x through a short causal
    convolution and SiLU. A running maximum of the log gates keeps the exponentials in range and cancels in h. The
    output is h, normalised per head. Memory mixing through R makes the cell non-linear and sequential: it tracks
    parity and other regular languages of few states, and generalises in length. R starts at zero and the forget
    biases fall from 5 to −7 across each head, with the power `forget_exponent` (0.3 in the paper's first block, 1.6
    in its last).

    State: the last convolution inputs (batch × kernel − 1 × width) and (c, n, m, h) (batch × 4 × head × key).

    Paper: Beck et al., "xLSTM: extended long short-term memory", arXiv 2405.04517.
    """

    def __init__(self, width: int, *, heads: int = 4, kernel: int = 4, forget_exponent: float = 0.3) -> None:
        super().__init__(width)
        if heads < 1 or width % heads:
            raise ValueError(f"width must be a multiple of heads, got width {width} and heads {heads}")
        if kernel < 1:
            raise ValueError(f"kernel must be at least 1, got {kernel}")
        size = width // heads
        self.heads = heads
        self.convolution = nn.Parameter(torch.empty(width, kernel).uniform_(-1, 1) / math.sqrt(kernel))
        self.gates = nn.Parameter(torch.randn(4, heads, size, size) * math.sqrt(2 / (5 * width)))
        self.recurrent = nn.Parameter(torch.zeros(4, heads, size, size))
        self.bias = nn.Parameter(torch.zeros(4, heads, size))
        self.bias.data[1] = 5 - 12 * torch.linspace(0, 1, size) ** forget_exponent
        self.norm = nn.Parameter(torch.ones(heads, size))

    def init_state(self, batch_size: int) -> State:
        window = self.zeros(batch_size, self.convolution.shape[1] - 1, self.width)
        cell = self.zeros(batch_size, *self.bias.shape)
        cell[:, 2] = -torch.inf
        return window, cell

    def forward(
        self, x: Float[Tensor, "batch time width"], state: State | None = None
    ) -> tuple[Float[Tensor, "batch time width"], State]:
        window, cell = self.init_state(x.shape[0]) if state is None else state
        convolved, window = short_convolution(x, self.convolution, initial_state=window)
        sources = torch.stack([convolved, convolved, x, x]).unflatten(-1, (self.heads, -1))
        gates = torch.einsum("gbthi,ghij->gbthj", sources, self.gates.to(x.dtype))
        gates = at_least_float32(gates) + self.bias[:, None, None]
        h, cell = slstm(gates[0], gates[1], gates[2], gates[3], self.recurrent, cell)
        y = F.layer_norm(h, h.shape[-1:], eps=1e-5) * self.norm
        return y.flatten(2).to(x.dtype), (window, cell)

    def weave(self, state: State, below: State) -> State:
        (c1, n1, m1, h1), (c2, n2, m2, h2) = state[1].unbind(1), below[1].unbind(1)
        m, first, second = common_maximum(m1, m2)
        return state[0], torch.stack([c1 * first + c2 * second, n1 * first + n2 * second, m, h1 + h2], dim=1)
