"""The contract every sequence mixer keeps: one set of weights, two equal ways to run them."""

from abc import ABC, abstractmethod

import torch
from torch import nn
from torch.nn import functional as F

from tsseq.array_typing import Float, State, Tensor


class SequenceMixer(nn.Module, ABC):
    """Mixes information along time: `forward` in parallel, `step` one position at a time.

    `width` is the first constructor argument; all others are keyword-only and have defaults, so that any
    mixer can be built from its registry name alone. A state is a value: `init_state` makes it, `forward` and
    `step` take one and return the next, and nothing is ever changed in place. Feeding a sequence in two
    pieces, with the state of the first handed to the second, gives the result of feeding it whole.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        if width < 1:
            raise ValueError(f"width must be at least 1, got {width}")
        self.width = width

    def __call__(
        self, x: Float[Tensor, "batch time width"], state: State | None = None
    ) -> tuple[Float[Tensor, "batch time width"], State]:
        """`forward`. Raises ValueError if there is no position, or not this mixer's width."""
        if x.ndim != 3 or x.shape[1] == 0 or x.shape[2] != self.width:
            raise ValueError(f"expected x [batch, time >= 1, {self.width}], got {tuple(x.shape)}")
        y, state = super().__call__(x, state)
        return y, state

    @abstractmethod
    def init_state(self, batch_size: int) -> State:
        """The state before the first position: float32 tensors, batch axis first."""

    @abstractmethod
    def forward(
        self, x: Float[Tensor, "batch time width"], state: State | None = None
    ) -> tuple[Float[Tensor, "batch time width"], State]:
        """Mix a whole sequence; `state=None` means `init_state`. Returns the output and the last state."""

    def step(self, x_t: Float[Tensor, "batch width"], state: State) -> tuple[Float[Tensor, "batch width"], State]:
        """Mix one position. Equal to `forward` at length one; overridden only for speed."""
        y, state = self(x_t[:, None], state)
        return y[:, 0], state

    def zeros(self, *shape: int) -> Tensor:
        """Zeros for a state: where the parameters are, in float32 or wider even if they are narrow."""
        return at_least_float32(next(self.parameters()).new_zeros(shape))

    def weave(self, state: State, below: State) -> State:
        """The initial state of this layer, given its own and the final state of the layer below."""
        return tuple(own + other for own, other in zip(state, below, strict=True))

    def penalty(self) -> Tensor:
        """What the mixer's paper adds to the training loss, to be weighted by a small factor; zero for most."""
        return next(self.parameters()).new_zeros(())


def at_least_float32(x: Tensor) -> Tensor:
    """`x` itself in float32 or float64, otherwise in float32: rates and recurrences need the digits."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def wide_linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """`layer` of an `x` that is at least float32, and its parameters as well, though they may be kept narrower."""
    bias = None if layer.bias is None else at_least_float32(layer.bias)
    return F.linear(x, at_least_float32(layer.weight), bias)


def common_maximum(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """m = max(first, second), exp(first − m) and exp(second − m).

    The weights that bring two memories, each held divided by the exponential of its own maximum, to one scale.
    An empty memory has maximum −∞; where both have, the weights are zero and not exp(−∞ + ∞).
    """
    m = torch.maximum(first, second)
    return m, (first - m).exp().nan_to_num(), (second - m).exp().nan_to_num()
