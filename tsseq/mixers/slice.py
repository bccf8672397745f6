"""SLiCE: structured linear controlled differential equations, driven by the input."""

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

from tsseq.array_typing import Float, State, Tensor
from tsseq.mixers.base import SequenceMixer, at_least_float32, wide_linear
from tsseq.mixers.linear_vector_fields import (
    BlockDiagonal,
    DiagonalDense,
    DiagonalLowRank,
    LinearVectorField,
    Sparse,
    WalshHadamard,
)
from tsseq.mixers.log_signature import log_signature_width, over_windows


class SLiCE(SequenceMixer):
    """dh = Σ_i A^i h dω^i, stepped as h_t = (I + Σ_i δ_ti A^i) h_{t−1} from h_0 = W x_0 + b;  y_t = W_o norm(h_t).

    The increment δ_t of the control ω is scale · [1, x_t] ("values": ω is the running sum of x) or
    scale · [1, x_t − x_{t−1}] ("paths": ω is x itself, with time). The transition follows the input, and its structure
    decides what it tracks. `dense`, `block_diagonal` (blocks of `block`), `dplr` (diagonal plus `rank`), `sparse`
    (states^(1 + `exponent`) entries) and `walsh_hadamard` are as expressive as a non-linear RNN given enough states:
    any finite automaton. `diagonal` ones scale and flip signs: parity, but neither counting modulo three nor S3.
    `diagonal_dense` has one dense block of `block` beside a diagonal. Nothing bounds the products: keep
    scale × `init_std` small for long sequences.

    `flow` is "euler" (above, the paper's) or "exponential", the exact flow of a straight piece, which turns without
    growing. With `window` > 1 the log-ODE method takes one step per window, along its log-signature of `depth` 1 (the
    sum of its increments) or 2 (with areas, and brackets of the A^i); the output holds between ends of windows.
    `drive` adds B δ_t to the state.

    State: h (batch × states), whether the sequence has begun (batch × 1), with "paths" the last point (batch × width),
    with windows the log-signature of the open one and its length (batch × signature, batch × 1).

    Paper: Walker et al., "Structured linear CDEs: maximally expressive and parallel-in-time sequence models",
    arXiv 2505.17761.
    """

    def __init__(
        self,
        width: int,
        *,
        states: int | None = None,
        structure: str = "block_diagonal",
        block: int = 4,
        rank: int = 4,
        exponent: float = 3 / 7,
        increments: str = "values",
        flow: str = "euler",
        window: int = 1,
        depth: int = 1,
        scale: float = 1 / 40,
        init_std: float = 0.5,
        drive: bool = False,
    ) -> None:
        super().__init__(width)
        _check(increments, flow, window, depth)
        self.states = width if states is None else states
        self.paths, self.window, self.depth, self.scale = increments == "paths", window, depth, scale
        if structure not in STRUCTURES:
            raise ValueError(f"structure must be one of {', '.join(STRUCTURES)}; got {structure!r}")
        shape = (width + 1, self.states, flow == "exponential", depth)
        self.field = STRUCTURES[structure](*shape, block=block, rank=rank, exponent=exponent, std=init_std)
        self.project_initial = nn.Linear(width, self.states)
        nn.init.normal_(self.project_initial.weight, std=init_std)
        nn.init.normal_(self.project_initial.bias, std=init_std)
        self.drive = nn.Parameter(init_std * torch.randn(width + 1, self.states)) if drive else None
        self.norm = nn.Parameter(torch.ones(self.states))
        self.project_out = nn.Linear(self.states, width, bias=False)

    def init_state(self, batch_size: int) -> State:
        widths = [self.states, 1]
        if self.paths:
            widths += [self.width]
        if self.window > 1:
            widths += [log_signature_width(self.width + 1, self.depth), 1]
        return tuple(self.zeros(batch_size, width) for width in widths)

    def forward(
        self, x: Float[Tensor, "batch time width"], state: State | None = None
    ) -> tuple[Float[Tensor, "batch time width"], State]:
        h, begun, *rest = self.init_state(x.shape[0]) if state is None else state
        # Products of many transitions need float32.
        with torch.autocast(x.device.type, enabled=False):
            u = at_least_float32(x)
            h = h + (1 - begun) * wide_linear(self.project_initial, u[:, 0])
            increments = self._increments(u, begun, rest[0] if self.paths else None)
            after: list[Tensor] = [torch.ones_like(begun)] + ([u[:, -1]] if self.paths else [])
            if self.window == 1:
                states, h = self._advance(increments, h)
            else:
                states, h, *carry = over_windows(
                    self._advance, increments, h, rest[-2], rest[-1], self.window, self.depth
                )
                after += carry
            y = self.field.normalize(states) * self.norm
        return self.project_out(y.to(x.dtype)), (h, *after)

    def _increments(self, u: Tensor, begun: Tensor, point: Tensor | None) -> Tensor:
        if point is not None:
            u = u - torch.cat([point[:, None], u[:, :-1]], dim=1)
        increments = self.scale * F.pad(u, (1, 0), value=1.0)
        # The path begins at the first position: nothing has moved yet.
        return torch.cat([begun[:, None] * increments[:, :1], increments[:, 1:]], dim=1)

    def _advance(self, signatures: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        inputs = None if self.drive is None else signatures[..., : self.width + 1] @ at_least_float32(self.drive)
        return self.field.scan(signatures, inputs, h)

    def weave(self, state: State, below: State) -> State:
        return state[0] + below[0], *state[1:]

    def penalty(self) -> Tensor:
        """Mean norm of the rows of all A^i, which training adds to its loss with a small factor."""
        norms: Tensor = torch.linalg.vector_norm(self.field.generators(), dim=-1)
        return norms.mean()


def _check(increments: str, flow: str, window: int, depth: int) -> None:
    if increments not in ("values", "paths"):
        raise ValueError(f"increments must be values or paths, got {increments!r}")
    if flow not in ("euler", "exponential"):
        raise ValueError(f"flow must be euler or exponential, got {flow!r}")
    if depth not in (1, 2) or window < depth:
        raise ValueError(f"expected depth 1 or 2 and a window of at least depth, got {depth} and {window}")


STRUCTURES: dict[str, Callable[..., LinearVectorField]] = {
    "block_diagonal": lambda *shape, block, std, **_: BlockDiagonal(*shape, size=block, init_std=std),
    "dense": lambda *shape, std, **_: BlockDiagonal(*shape, size=shape[1], init_std=std),
    "diagonal": lambda *shape, std, **_: DiagonalDense(*shape, size=0, init_std=std),
    "diagonal_dense": lambda *shape, block, std, **_: DiagonalDense(*shape, size=block, init_std=std),
    "dplr": lambda *shape, rank, std, **_: DiagonalLowRank(*shape, rank=rank, init_std=std),
    "sparse": lambda *shape, exponent, std, **_: Sparse(*shape, exponent=exponent, init_std=std),
    "walsh_hadamard": lambda *shape, std, **_: WalshHadamard(*shape, init_std=std),
}
