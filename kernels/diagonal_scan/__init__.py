"""The diagonal linear recurrence h_t = a_t * h_{t-1} + b_t, real or complex, forwards or backwards in time.

The mixing of LRU, S4D, S5, minGRU, minLSTM, HGRN, GateLoop, D-SLiCE and Longhorn.
"""

from importlib.util import find_spec
from typing import Any

import torch
from torch import Generator

from tsseq.array_typing import Bool, Inexact, Tensor
from tsseq.kernels.diagonal_scan.chunked import chunked
from tsseq.kernels.diagonal_scan.reference import reference

__all__ = ["chunked", "diagonal_scan", "example_inputs", "reference"]

TRITON_INSTALLED = find_spec("triton") is not None


def diagonal_scan(
    decay: Inexact[Tensor, "batch time state"] | Inexact[Tensor, "state"],
    inputs: Inexact[Tensor, "batch time state"],
    initial_state: Inexact[Tensor, "batch state"] | None = None,
    *,
    reverse: bool = False,
    resets: Bool[Tensor, "batch time"] | None = None,
) -> tuple[Inexact[Tensor, "batch time state"], Inexact[Tensor, "batch state"]]:
    """All states of h_t = decay_t * h_{t-1} + inputs_t; with `reverse`, of h_t = decay_t * h_{t+1} + inputs_t.

    `decay` is constant in time if it has one axis. `resets` marks the first position of every series packed
    into a row: no state crosses from before a mark to the mark or back, whichever way the scan runs.

    Returns the states in the dtype of `inputs`, and the last one (of the first position if `reverse`) in
    float32 or complex64, or wider where `inputs` are. Gradients flow to `decay`, `inputs` and `initial_state`
    (None: zeros) from both. Parallel scans of such recurrences: Blelloch 1990; Martin & Cundy, arXiv 1709.04057.

    Raises ValueError if there is no position, the shapes disagree, or `decay` is complex and `inputs` are not.
    """
    _check(decay, inputs, initial_state, resets)
    if inputs.is_cuda and TRITON_INSTALLED and inputs.dtype not in (torch.float64, torch.complex128):
        from tsseq.kernels.diagonal_scan.triton import fused

        return fused(decay, inputs, initial_state, reverse=reverse, resets=resets)
    return chunked(decay, inputs, initial_state, reverse=reverse, resets=resets)


def _check(decay: Tensor, inputs: Tensor, initial_state: Tensor | None, resets: Tensor | None) -> None:
    if inputs.ndim != 3 or inputs.shape[1] == 0:
        raise ValueError(f"expected inputs [batch, time >= 1, state], got {tuple(inputs.shape)}")
    batch, time, width = inputs.shape
    if decay.shape not in {(width,), (batch, time, width)}:
        raise ValueError(f"expected a decay of shape ({width},) or {(batch, time, width)}, got {tuple(decay.shape)}")
    if initial_state is not None and initial_state.shape != (batch, width):
        raise ValueError(f"expected an initial_state of shape {(batch, width)}, got {tuple(initial_state.shape)}")
    if resets is not None and (resets.shape != (batch, time) or resets.dtype != torch.bool):
        raise ValueError(f"expected boolean resets of shape {(batch, time)}, got {resets.dtype} {tuple(resets.shape)}")
    for name, other in (("decay", decay), ("initial_state", initial_state)):
        if other is not None and other.is_complex() and not inputs.is_complex():
            raise ValueError(f"expected complex inputs with a complex {name}, got {inputs.dtype}")


def example_inputs(generator: Generator, batch: int, length: int) -> dict[str, dict[str, Any]]:
    """Real and complex; constant decay and one per position; near 0, near 1 and 1; both directions; resets."""
    device = generator.device

    def normal(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(shape, generator=generator, device=device, dtype=dtype)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, device=device)

    width, complex64 = 24, torch.complex64
    shape, state = (batch, length, width), (batch, width)
    phase = 6.3 * uniform(*shape)
    resets = uniform(batch, length) < 0.2
    return {
        "gates": {"decay": torch.sigmoid(2 * normal(*shape)), "inputs": normal(*shape)},
        "slow, with state": {
            "decay": 1 - 0.001 * uniform(*shape),
            "inputs": normal(*shape) / 8,
            "initial_state": normal(*state),
        },
        "near zero": {"decay": 1e-4 * normal(*shape), "inputs": normal(*shape), "initial_state": normal(*state)},
        "sums": {"decay": torch.ones(width, device=device), "inputs": normal(*shape) / 8},
        "negative, backwards": {
            "decay": -0.9 * uniform(*shape),
            "inputs": normal(*shape),
            "initial_state": normal(*state),
            "reverse": True,
        },
        "constant complex": {
            "decay": torch.polar(0.8 + 0.199 * uniform(width), 6.3 * uniform(width)),
            "inputs": normal(*shape, dtype=complex64),
            "initial_state": normal(*state, dtype=complex64),
        },
        "complex, backwards": {
            "decay": torch.polar(uniform(*shape), phase),
            "inputs": normal(*shape, dtype=complex64),
            "reverse": True,
        },
        "packed": {
            "decay": torch.sigmoid(2 + normal(*shape)),
            "inputs": normal(*shape),
            "initial_state": normal(*state),
            "resets": resets,
        },
        "packed constant complex, backwards": {
            "decay": torch.polar(0.8 + 0.199 * uniform(width), 6.3 * uniform(width)),
            "inputs": normal(*shape, dtype=complex64),
            "initial_state": normal(*state, dtype=complex64),
            "resets": resets,
            "reverse": True,
        },
    }
