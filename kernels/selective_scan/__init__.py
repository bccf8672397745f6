"""The selective scan of Mamba: every channel has a small diagonal state with its own step size.

h_t = exp(delta_t A) h_{t-1} + delta_t B_t x_t,  y_t = C_t . h_t + D x_t. Input and output maps are fused with the
recurrence, so that the states never reach memory. arXiv 2312.00752.
"""

from importlib.util import find_spec
from typing import Any

import torch
from torch import Generator
from torch.nn import functional as F

from tsseq.array_typing import Float, Tensor
from tsseq.kernels.selective_scan.chunked import chunked
from tsseq.kernels.selective_scan.reference import reference

__all__ = ["chunked", "example_inputs", "reference", "selective_scan"]

TRITON_INSTALLED = find_spec("triton") is not None


def selective_scan(
    x: Float[Tensor, "batch time width"],
    delta: Float[Tensor, "batch time width"],
    A: Float[Tensor, "width state"],
    B: Float[Tensor, "batch time state"],
    C: Float[Tensor, "batch time state"],
    D: Float[Tensor, "width"] | None = None,
    initial_state: Float[Tensor, "batch width state"] | None = None,
) -> tuple[Float[Tensor, "batch time width"], Float[Tensor, "batch width state"]]:
    """Scan each channel with its step sizes `delta` (positive) and rates `A` (negative).

    Returns the outputs in the dtype of `x` and the last state in float32 (None as `initial_state`: zeros).
    Exponentials and states are in float32.

    Raises ValueError if there is no position or the shapes disagree.
    """
    _check(x, delta, A, B, C, D, initial_state)
    if x.is_cuda and TRITON_INSTALLED and x.dtype != torch.float64:
        from tsseq.kernels.selective_scan.triton import fused

        return fused(x, delta, A, B, C, D, initial_state)
    return chunked(x, delta, A, B, C, D, initial_state)


def _check(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, initial_state: Tensor | None
) -> None:
    if x.ndim != 3 or x.shape[1] == 0:
        raise ValueError(f"expected x [batch, time >= 1, width], got {tuple(x.shape)}")
    batch, time, width = x.shape
    if delta.shape != x.shape or A.ndim != 2 or A.shape[0] != width:
        raise ValueError(
            f"expected delta of shape {tuple(x.shape)} and A of shape ({width}, state), "
            f"got {tuple(delta.shape)} and {tuple(A.shape)}"
        )
    maps = (batch, time, A.shape[1])
    if B.shape != maps or C.shape != maps:
        raise ValueError(f"expected B and C of shape {maps}, got {tuple(B.shape)} and {tuple(C.shape)}")
    if D is not None and D.shape != (width,):
        raise ValueError(f"expected a D of shape ({width},), got {tuple(D.shape)}")
    state = (batch, width, A.shape[1])
    if initial_state is not None and initial_state.shape != state:
        raise ValueError(f"expected an initial_state of shape {state}, got {tuple(initial_state.shape)}")


def example_inputs(generator: Generator, batch: int, length: int) -> dict[str, dict[str, Any]]:
    """Ordinary steps; steps so small or large that states stay or vanish; one state per channel."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=generator.device)

    width, state = 24, 8
    inputs = {
        "x": normal(batch, length, width),
        "delta": F.softplus(normal(batch, length, width) - 1),
        "A": -(normal(width, state) - 0.5).exp(),
        "B": normal(batch, length, state),
        "C": normal(batch, length, state),
        "D": normal(width),
    }
    one = {name: z[..., :1].contiguous() for name, z in inputs.items() if name in ("A", "B", "C")}
    return {
        "random": {**inputs, "initial_state": normal(batch, width, state)},
        "steps of all sizes": {**inputs, "delta": (3 * normal(batch, length, width)).exp()},
        "one number a channel": {"x": inputs["x"], "delta": inputs["delta"], **one},
    }
