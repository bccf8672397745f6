"""Causal depth-wise convolution over the last few inputs, fused with what mixers do next to it.

y_t = normalise(SiLU(bias + sum_k weight_k x_{t - kernel + 1 + k})), one filter per channel. Linear attention,
delta-rule and Mamba layers pass their queries, keys and values through it (arXiv 2312.00752, 2412.06464);
queries and keys of the delta rule are then scaled to unit length in every head. The state is the last
`kernel - 1` inputs, so that a sequence may be cut anywhere.
"""

from importlib.util import find_spec
from typing import Any

import torch
from torch import Generator

from tsseq.array_typing import Float, Tensor
from tsseq.kernels.short_convolution.chunked import chunked
from tsseq.kernels.short_convolution.reference import reference

__all__ = ["chunked", "example_inputs", "reference", "short_convolution"]

TRITON_INSTALLED = find_spec("triton") is not None


def short_convolution(
    x: Float[Tensor, "batch time width"],
    weight: Float[Tensor, "width kernel"],
    bias: Float[Tensor, "width"] | None = None,
    initial_state: Float[Tensor, "batch window width"] | None = None,
    *,
    silu: bool = True,
    head_dim: int | None = None,
    eps: float = 1e-6,
) -> tuple[Float[Tensor, "batch time width"], Float[Tensor, "batch window width"]]:
    """Convolve each channel with its own causal filter, then SiLU, then unit length per head.

    `weight[:, -1]` multiplies the present. `initial_state` holds the `kernel - 1` inputs before `x`, oldest
    first (None: zeros); the second result is the same for what follows, in float32. With `head_dim`, each
    group of `head_dim` channels is divided by sqrt(sum of squares + `eps`). Sums are in float32 and the
    output has the dtype of `x`.

    Raises ValueError if there is no position or the shapes disagree.
    """
    if x.ndim != 3 or x.shape[1] == 0:
        raise ValueError(f"expected x [batch, time >= 1, width], got {tuple(x.shape)}")
    batch, _, width = x.shape
    if weight.ndim != 2 or weight.shape[0] != width:
        raise ValueError(f"expected a weight of shape ({width}, kernel), got {tuple(weight.shape)}")
    if bias is not None and bias.shape != (width,):
        raise ValueError(f"expected a bias of shape ({width},), got {tuple(bias.shape)}")
    window = (batch, weight.shape[1] - 1, width)
    if initial_state is not None and initial_state.shape != window:
        raise ValueError(f"expected an initial_state of shape {window}, got {tuple(initial_state.shape)}")
    if head_dim is not None and width % head_dim:
        raise ValueError(f"expected a width divisible by head_dim={head_dim}, got {width}")
    if x.is_cuda and TRITON_INSTALLED and x.dtype != torch.float64:
        from tsseq.kernels.short_convolution.triton import fused

        return fused(x, weight, bias, initial_state, silu=silu, head_dim=head_dim, eps=eps)
    return chunked(x, weight, bias, initial_state, silu=silu, head_dim=head_dim, eps=eps)


def example_inputs(generator: Generator, batch: int, length: int) -> dict[str, dict[str, Any]]:
    """Filters of width 4 and 32, with and without a bias and an initial state."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=generator.device)

    width = 64
    return {
        "four taps": {"x": normal(batch, length, width), "weight": normal(width, 4)},
        "four taps with state": {
            "x": normal(batch, length, width),
            "weight": normal(width, 4),
            "bias": normal(width),
            "initial_state": normal(batch, 3, width),
            "head_dim": 32,
        },
        "32 taps with state": {
            "x": normal(batch, length, width),
            "weight": normal(width, 32) / 32**0.5,
            "initial_state": normal(batch, 31, width),
        },
        "constant input": {"x": torch.ones_like(normal(batch, length, width)), "weight": normal(width, 4)},
    }
