"""Softmax attention over a window of the past: what the recurrences of this folder are compared with."""

import torch
from torch import nn
from torch.nn import functional as F

from tsseq.array_typing import Float, State, Tensor
from tsseq.kernels.gated_norm import gated_norm
from tsseq.mixers.base import SequenceMixer, at_least_float32

ABSENT = 3e4
RESERVED = 2


class LocalAttention(SequenceMixer):
    """o_t = Σ_s softmax_s(q_tᵀ R^(s−t) k_s / √head_width) v_s over the last `window` positions s ≤ t that are there.

    R turns pairs of features by an angle per position (Su et al., 2021), so that only distances count. Queries and
    keys are RMS-normalised, the output is normalised per head and gated as in `gated_delta_product`, of which this
    has the size. A position whose input is exactly zero is not there: zero inputs to a zero state leave it zero.

    Within its window it recalls exactly what a matrix memory blurs. A stack of such layers sees layers × (window − 1)
    positions back and no further, so it tracks no automaton whose state hangs on more, parity included.

    State: the keys, not yet turned (batch × window × head × head_width − 2), and the values (batch × window × head ×
    head_width) of the last `window` positions, zero where there is none.

    Papers: Beltagy et al., "Longformer", arXiv 2004.05150; De et al., "Griffin", arXiv 2402.19427 (local attention).
    """

    def __init__(self, width: int, *, head_width: int = 64, window: int = 256) -> None:
        super().__init__(width)
        head_width = min(head_width, width)
        if head_width < RESERVED + 2 or head_width % 2 or width % head_width:
            raise ValueError(
                f"width must be a multiple of an even head_width of at least 4, got width {width} and {head_width}"
            )
        if window < 1:
            raise ValueError(f"window must be at least 1, got {window}")
        self.heads, self.head_width, self.window = width // head_width, head_width, window
        # A mask would rule out the fastest kernels. One feature of every key marks an absent position instead.
        self.key_width = head_width - RESERVED
        self.sizes = [self.heads * self.key_width] * 2 + [width] * 2
        self.project_in = nn.Linear(width, sum(self.sizes), bias=False)
        self.norm_query = nn.Parameter(torch.ones(self.key_width))
        self.norm_key = nn.Parameter(torch.ones(self.key_width))
        self.norm = nn.Parameter(torch.ones(head_width))
        self.project_out = nn.Linear(width, width, bias=False)

    def init_state(self, batch_size: int) -> State:
        keys = self.zeros(batch_size, self.window, self.heads, self.key_width)
        return keys, self.zeros(batch_size, self.window, self.heads, self.head_width)

    def forward(
        self, x: Float[Tensor, "batch time width"], state: State | None = None
    ) -> tuple[Float[Tensor, "batch time width"], State]:
        query, key, value, gate = (
            part.unflatten(-1, (self.heads, -1)) for part in self.project_in(x).split(self.sizes, dim=-1)
        )
        query, key, value = (at_least_float32(part) for part in (query, key, value))
        query = F.rms_norm(query, (self.key_width,), self.norm_query.to(query.dtype), eps=1e-6)
        key = F.rms_norm(key, (self.key_width,), self.norm_key.to(key.dtype), eps=1e-6)
        outputs = []
        for start in range(0, x.shape[1], self.window):
            piece = slice(start, start + self.window)
            output, state = self._attend(query[:, piece], key[:, piece], value[:, piece], state)
            outputs.append(output.to(gate.dtype))
        y = gated_norm(torch.cat(outputs, 1), gate, self.norm.expand(self.heads, -1))
        assert state is not None, "a sequence has at least one position"
        return self.project_out(y.flatten(2)), state

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, past: State | None) -> tuple[Tensor, State]:
        """Attention of at most `window` positions to themselves and to the `window` before them."""
        time, mask = query.shape[1], None
        if past is None:
            empty = (0, 0, 0, 0, self.window - time, 0)
            state = F.pad(key, empty), F.pad(value, empty)
        else:
            key, value = torch.cat([past[0], key], 1), torch.cat([past[1], value], 1)
            state = key[:, -self.window :].contiguous(), value[:, -self.window :].contiguous()
            mask = torch.ones(key.shape[1], key.shape[1], dtype=torch.bool, device=key.device)
            mask = mask.tril().triu(1 - self.window)[-time:]
        position = torch.arange(key.shape[1], device=key.device, dtype=key.dtype)
        absent = ~key.any(-1, keepdim=True)
        query = F.pad(_turn(query, position[-time:]), (0, RESERVED), value=1.0)
        mark = (absent * (-ABSENT / RESERVED)).to(key.dtype).expand(*key.shape[:-1], RESERVED)
        key = torch.cat([_turn(key, position), mark], dim=-1)
        output = F.scaled_dot_product_attention(
            query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), mask, is_causal=mask is None
        )
        return output.transpose(1, 2), state


def _turn(x: Float[Tensor, "batch time head key"], position: Float[Tensor, " time"]) -> Tensor:
    half = x.shape[-1] // 2
    frequency = 1000.0 ** (-torch.arange(half, device=x.device, dtype=x.dtype) / half)
    angle = (position[:, None] * frequency)[:, None]
    cos, sin = angle.cos(), angle.sin()
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)
