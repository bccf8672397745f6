"""Linear attention: softmax attention with a kernel that factors, so that the past is one matrix."""

from torch import nn
from torch.nn import functional as F

from tsseq.array_typing import Float, State, Tensor
from tsseq.kernels.linear_attention import linear_attention
from tsseq.mixers.base import SequenceMixer, at_least_float32


class LinearAttention(SequenceMixer):
    """S_t = S_{t−1} + φ(k_t) v_tᵀ,  z_t = z_{t−1} + φ(k_t),  o_t = S_tᵀ φ(q_t) / (z_tᵀ φ(q_t)),  φ = elu + 1.

    A weighted mean of all past values, the weights positive and never forgotten. It recalls softly and counts
    relative frequencies; without decay or sign it knows no order, and tracks no automaton.

    State: S with z as its last column (batch × head × key × value + 1).

    Paper: Katharopoulos et al., "Transformers are RNNs", arXiv 2006.16236.
    """

    def __init__(self, width: int, *, heads: int = 4) -> None:
        super().__init__(width)
        if heads < 1 or width % heads:
            raise ValueError(f"width must be a multiple of heads, got width {width} and heads {heads}")
        self.heads = heads
        self.project_in = nn.Linear(width, 3 * width, bias=False)
        self.project_out = nn.Linear(width, width, bias=False)

    def init_state(self, batch_size: int) -> State:
        size = self.width // self.heads
        return (self.zeros(batch_size, self.heads, size, size + 1),)

    def forward(
        self, x: Float[Tensor, "batch time width"], state: State | None = None
    ) -> tuple[Float[Tensor, "batch time width"], State]:
        state = self.init_state(x.shape[0]) if state is None else state
        query, key, value = self.project_in(x).unflatten(-1, (3, self.heads, -1)).unbind(2)
        # The sum of keys is the memory of a value that is always one; it never decays and needs the digits.
        query, key, value = (
            at_least_float32(part) for part in (F.elu(query) + 1, F.elu(key) + 1, F.pad(value, (0, 1), value=1.0))
        )
        output, state = linear_attention(query, key, value, initial_state=state, scale=1.0)
        y = output[..., :-1] / (output[..., -1:] + 1e-6)
        return self.project_out(y.flatten(2).to(x.dtype)), state
