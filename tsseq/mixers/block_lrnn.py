"""Block-diagonal linear RNN: dense blocks of transitions, all of their entries chosen by the input."""

import torch
from torch import nn

from tsseq.array_typing import Float, State, Tensor
from tsseq.kernels.block_scan import block_scan
from tsseq.mixers.base import SequenceMixer, at_least_float32


class BlockLRNN(SequenceMixer):
    """h_t = A_t h_{t−1} + B x_t with A_t = blockdiag(A_t^1, …, A_t^k), every entry linear in x_t;  y_t = W_o h_t.

    Each column of a block is divided by max(1, its p-norm) with p = `norm` = 1.2. A permutation matrix, of column norm
    one, is left whole: blocks of b track any automaton of b states, S_b included, and extrapolate in length. With
    p = 1 no transition enlarges the sum of a state's magnitudes; with a greater p each may, by a factor of up to
    size^(1 − 1/p), 1.26 for blocks of 4. That bounds a step, but not the product of many: long inputs can overflow.

    State: h (batch × block × size).

    Paper: Fan, Chi and Rudnicky, "Advancing regular language reasoning in linear recurrent neural networks",
    arXiv 2309.07412.
    """

    def __init__(self, width: int, *, states: int | None = None, size: int = 4, norm: float = 1.2) -> None:
        super().__init__(width)
        states = width if states is None else states
        if size < 1 or states % size:
            raise ValueError(f"states must be a multiple of the block size, got {states} and {size}")
        if norm < 1:
            raise ValueError(f"norm must be at least 1, got {norm}")
        self.blocks, self.size, self.norm = states // size, size, norm
        self.project_transition = nn.Linear(width, states * size)
        self.project_in = nn.Linear(width, states, bias=False)
        self.project_out = nn.Linear(states, width, bias=False)

    def init_state(self, batch_size: int) -> State:
        return (self.zeros(batch_size, self.blocks, self.size),)

    def forward(
        self, x: Float[Tensor, "batch time width"], state: State | None = None
    ) -> tuple[Float[Tensor, "batch time width"], State]:
        (h,) = self.init_state(x.shape[0]) if state is None else state
        blocks = at_least_float32(self.project_transition(x)).unflatten(-1, (self.blocks, self.size, self.size))
        norms: Tensor = torch.linalg.vector_norm(blocks, ord=self.norm, dim=-2, keepdim=True)
        inputs = at_least_float32(self.project_in(x)).unflatten(-1, (self.blocks, self.size))
        states, h = block_scan(blocks / norms.clamp(min=1), inputs, h)
        return self.project_out(states.flatten(2).to(x.dtype)), (h,)
