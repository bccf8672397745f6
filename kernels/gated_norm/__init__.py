"""What follows a matrix-memory mixer: normalise each head's read-out, scale it, and gate it.

y = x / sqrt(mean(x^2) + eps) * weight * SiLU(gate), the mean over one head. Gated DeltaNet and GLA gate with
SiLU (arXiv 2412.06464, 2312.06635), xLSTM-7B with the sigmoid alone (arXiv 2503.13427).
"""

from importlib.util import find_spec
from typing import Any

import torch
from torch import Generator

from tsseq.array_typing import Float, Tensor
from tsseq.kernels.gated_norm.chunked import chunked
from tsseq.kernels.gated_norm.reference import reference

__all__ = ["chunked", "example_inputs", "gated_norm", "reference"]

TRITON_INSTALLED = find_spec("triton") is not None


def gated_norm(
    x: Float[Tensor, "batch time head value"],
    gate: Float[Tensor, "batch time head value"],
    weight: Float[Tensor, "head value"],
    *,
    silu: bool = True,
    eps: float = 1e-5,
) -> Float[Tensor, "batch time head value"]:
    """RMS-normalise every head of `x`, times `weight`, times SiLU(gate) (or sigmoid(gate)).

    One `weight` shared by all heads is passed as `weight.expand(heads, -1)`. Statistics are in float32 and
    the output has the dtype of `x`.

    Raises ValueError if there is no position or the shapes disagree.
    """
    if x.ndim != 4 or x.shape[1] == 0 or gate.shape != x.shape:
        shapes = f"{tuple(x.shape)} and {tuple(gate.shape)}"
        raise ValueError(f"expected x and gate, both [batch, time >= 1, head, value], got {shapes}")
    if weight.shape != x.shape[2:]:
        raise ValueError(f"expected a weight of shape {tuple(x.shape[2:])}, got {tuple(weight.shape)}")
    if x.is_cuda and TRITON_INSTALLED and x.dtype != torch.float64:
        from tsseq.kernels.gated_norm.triton import fused

        return fused(x, gate, weight, silu=silu, eps=eps)
    return chunked(x, gate, weight, silu=silu, eps=eps)


def example_inputs(generator: Generator, batch: int, length: int) -> dict[str, dict[str, Any]]:
    """Two heads; small and nearly zero inputs too."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=generator.device)

    x, gate, weight = normal(batch, length, 2, 32), normal(batch, length, 2, 32), normal(2, 32)
    return {
        "random": {"x": x, "gate": gate, "weight": weight},
        "nearly zero": {"x": 1e-3 * x, "gate": gate, "weight": weight},
        "wide gates": {"x": x, "gate": 20 * gate, "weight": weight},
    }
