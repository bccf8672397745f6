"""The LSTM: the non-linear recurrence that the linear ones are measured against."""

import torch
from torch import nn

from tsseq.array_typing import Float, State, Tensor
from tsseq.mixers.base import SequenceMixer, at_least_float32


class LSTM(SequenceMixer):
    """c_t = σ(f_t) ∘ c_{t−1} + σ(i_t) ∘ tanh(z_t),  y_t = σ(o_t) ∘ tanh(c_t), each gate of W x_t + R y_{t−1} + b.

    Gates that see the state make it non-linear: it tracks the state of any finite automaton of moderate size, and
    generalises in length, at the price of one sequential step per position.

    State: y and c (batch × width each). On a GPU, cuDNN rounds float32 to TF32 before it multiplies, unless
    `torch.backends.cudnn.allow_tf32` is off.

    Paper: Hochreiter and Schmidhuber, "Long short-term memory", Neural Computation 9(8), 1997.
    """

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.cell = nn.LSTM(width, width, batch_first=True)

    def init_state(self, batch_size: int) -> State:
        zeros = self.zeros(batch_size, self.width)
        return zeros, zeros

    def forward(
        self, x: Float[Tensor, "batch time width"], state: State | None = None
    ) -> tuple[Float[Tensor, "batch time width"], State]:
        h, c = self.init_state(x.shape[0]) if state is None else state
        # Few CPUs have an LSTM in float16, which autocast would ask for.
        with torch.autocast("cpu", enabled=False):
            dtype = torch.promote_types(x.dtype, next(self.cell.parameters()).dtype)
            y, (h, c) = self.cell(x.to(dtype), (h[None].to(dtype), c[None].to(dtype)))
        return y.to(x.dtype), (at_least_float32(h[0]), at_least_float32(c[0]))
