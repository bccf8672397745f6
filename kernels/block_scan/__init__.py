"""Linear recurrences h_t = A_t h_{t-1} + b_t with structured A_t: SLiCEs, linear NCDEs, block-diagonal linear RNNs.

Four structures (arXiv 2505.17761): `block_scan` takes block-diagonal matrices as they are (one block: dense);
`controlled_block_scan` forms them from the increments of a control path, so that they never exist all at once;
`diagonal_dense_scan` joins a diagonal part with one dense block; `hadamard_scan` has A_t = I + H diag(a_t).
"""

from importlib.util import find_spec
from typing import Any

import torch
from torch import Generator

from tsseq.array_typing import Float, Tensor
from tsseq.kernels.block_scan import chunked, reference
from tsseq.kernels.diagonal_scan import diagonal_scan

__all__ = [
    "block_examples",
    "block_scan",
    "chunked",
    "controlled_block_scan",
    "controlled_examples",
    "diagonal_dense_scan",
    "hadamard_examples",
    "hadamard_scan",
    "reference",
]

TRITON_INSTALLED = find_spec("triton") is not None
LARGEST_FUSED_BLOCK = 128
FUSED_HADAMARD_WIDTHS = range(16, 1025)


def block_scan(
    transitions: Float[Tensor, "batch time block size size"],
    inputs: Float[Tensor, "batch time block size"] | None = None,
    initial_state: Float[Tensor, "batch block size"] | None = None,
) -> tuple[Float[Tensor, "batch time block size"], Float[Tensor, "batch block size"]]:
    """All states of h_t = A_t h_{t-1} + b_t, with A_t block-diagonal and b_t the `inputs` (None: zero).

    Returns the states in the dtype of `transitions` and the last one in float32 (float64 for float64
    matrices). Gradients flow to every argument from both; `initial_state` None means zeros.

    Raises ValueError if there is no position or the shapes disagree.
    """
    if transitions.ndim != 5 or transitions.shape[1] == 0 or transitions.shape[-1] != transitions.shape[-2]:
        raise ValueError(f"expected transitions [batch, time >= 1, block, size, size], got {tuple(transitions.shape)}")
    _check_states(transitions.shape[:-1], inputs, initial_state)
    if _on_gpu(transitions) and transitions.shape[-1] <= LARGEST_FUSED_BLOCK:
        from tsseq.kernels.block_scan.triton import fused

        return fused(transitions, inputs, initial_state)
    return chunked.block_scan(transitions, inputs, initial_state)


def controlled_block_scan(
    increments: Float[Tensor, "batch time omega"],
    weights: Float[Tensor, "omega block size size"],
    inputs: Float[Tensor, "batch time block size"] | None = None,
    initial_state: Float[Tensor, "batch block size"] | None = None,
) -> tuple[Float[Tensor, "batch time block size"], Float[Tensor, "batch block size"]]:
    """`block_scan` with A_t = I + sum_i increments_{t,i} weights_i, in memory for a few positions at most.

    One Euler step per position of a linear controlled differential equation (arXiv 2505.17761, section 3).
    Returns the states in the dtype of `increments` and the last one in float32 (float64 for float64
    increments). Gradients flow to every argument from both; `initial_state` None means zeros.

    Raises ValueError if there is no position or the shapes disagree.
    """
    if increments.ndim != 3 or increments.shape[1] == 0:
        raise ValueError(f"expected increments [batch, time >= 1, omega], got {tuple(increments.shape)}")
    batch, time, omega = increments.shape
    if weights.ndim != 4 or weights.shape[0] != omega or weights.shape[-1] != weights.shape[-2]:
        raise ValueError(f"expected weights [{omega}, block, size, size], got {tuple(weights.shape)}")
    _check_states((batch, time, *weights.shape[1:3]), inputs, initial_state)
    if _on_gpu(increments) and weights.shape[-1] <= LARGEST_FUSED_BLOCK:
        from tsseq.kernels.block_scan.triton_controlled import controlled

        return controlled(increments, weights, inputs, initial_state)
    return chunked.controlled_block_scan(increments, weights, inputs, initial_state)


def diagonal_dense_scan(
    diagonal: Float[Tensor, "batch time diagonal"],
    dense: Float[Tensor, "batch time size size"],
    inputs: Float[Tensor, "batch time state"] | None = None,
    initial_state: Float[Tensor, "batch state"] | None = None,
) -> tuple[Float[Tensor, "batch time state"], Float[Tensor, "batch state"]]:
    """Two independent recurrences side by side: diagonal entries of A_t first, then one dense block.

    `state` = diagonal + size. Otherwise as `block_scan`.
    """
    entries, size = diagonal.shape[-1], dense.shape[-1]
    _check_states((*diagonal.shape[:2], entries + size), inputs, initial_state)
    if inputs is None:
        inputs = diagonal.new_zeros(*diagonal.shape[:2], entries + size)
    split = (None, None) if initial_state is None else initial_state.split([entries, size], dim=-1)
    left, left_state = diagonal_scan(diagonal, inputs[..., :entries], split[0])
    block_state = None if split[1] is None else split[1].unsqueeze(1)
    right, right_state = block_scan(dense.unsqueeze(2), inputs[..., None, entries:], block_state)
    return torch.cat([left, right.squeeze(2)], dim=-1), torch.cat([left_state, right_state.squeeze(1)], dim=-1)


def hadamard_scan(
    diagonal: Float[Tensor, "batch time state"],
    inputs: Float[Tensor, "batch time state"] | None = None,
    initial_state: Float[Tensor, "batch state"] | None = None,
) -> tuple[Float[Tensor, "batch time state"], Float[Tensor, "batch state"]]:
    """All states of h_t = h_{t-1} + H (diagonal_t * h_{t-1}) + inputs_t.

    H is the Sylvester Hadamard matrix over the square root of its width, a power of two. Returns the states in
    the dtype of `diagonal` and the last one in float32 (float64 for float64 input). Gradients flow to every
    argument from both; `inputs` and `initial_state` None mean zeros.

    Raises ValueError if there is no position, the width is no power of two, or the shapes disagree.
    """
    if diagonal.ndim != 3 or diagonal.shape[1] == 0 or diagonal.shape[-1].bit_count() != 1:
        raise ValueError(f"expected a diagonal [batch, time >= 1, power of two], got {tuple(diagonal.shape)}")
    _check_states(diagonal.shape, inputs, initial_state)
    if _on_gpu(diagonal) and diagonal.shape[-1] in FUSED_HADAMARD_WIDTHS:
        from tsseq.kernels.block_scan.triton_hadamard import hadamard

        return hadamard(diagonal, inputs, initial_state)
    return chunked.hadamard_scan(diagonal, inputs, initial_state)


def _on_gpu(x: Tensor) -> bool:
    return x.is_cuda and TRITON_INSTALLED and x.dtype != torch.float64


def _check_states(shape: tuple[int, ...], inputs: Tensor | None, initial_state: Tensor | None) -> None:
    for name, tensor, expected in (
        ("inputs", inputs, tuple(shape)),
        ("initial_state", initial_state, (shape[0], *shape[2:])),
    ):
        if tensor is not None and tensor.shape != expected:
            raise ValueError(f"expected {name} of shape {expected}, got {tuple(tensor.shape)}")


def block_examples(generator: Generator, batch: int, length: int) -> dict[str, dict[str, Any]]:
    """Blocks of 1, 4 and 16, one dense block of an odd size; contractions, rotations, matrices near the identity."""
    cases: dict[str, dict[str, Any]] = {}
    for block, size in ((5, 1), (4, 4), (2, 16), (1, 23)):
        matrices = _normal(generator, batch, length, block, size, size) * (0.6 / size**0.5)
        cases[f"contractions of {size}"] = {
            "transitions": matrices,
            "inputs": _normal(generator, batch, length, block, size),
            "initial_state": _normal(generator, batch, block, size),
        }
    angle = _normal(generator, batch, length, 3)
    cos, sin = torch.cos(angle), torch.sin(angle)
    rotation = torch.stack([cos, -sin, sin, cos], dim=-1).unflatten(-1, (2, 2))
    cases["rotations"] = {"transitions": rotation, "initial_state": _normal(generator, batch, 3, 2)}
    eye = torch.eye(4, device=generator.device)
    cases["near identity, no state"] = {
        "transitions": eye + 0.01 * _normal(generator, batch, length, 2, 4, 4),
        "inputs": _normal(generator, batch, length, 2, 4) / 8,
    }
    return cases


def controlled_examples(generator: Generator, batch: int, length: int) -> dict[str, dict[str, Any]]:
    """A short and a wide control; blocks of 2 to 8 and one dense block; with and without inputs."""
    cases: dict[str, dict[str, Any]] = {}
    for omega, block, size, has_inputs in ((3, 4, 2, False), (5, 4, 4, True), (17, 2, 8, True), (4, 1, 23, False)):
        case: dict[str, Any] = {
            "increments": _normal(generator, batch, length, omega) / 40,
            "weights": _normal(generator, omega, block, size, size) / size**0.5,
            "initial_state": _normal(generator, batch, block, size),
        }
        if has_inputs:
            case["inputs"] = _normal(generator, batch, length, block, size) / 8
        cases[f"{omega} increments, blocks of {size}"] = case
    return cases


def hadamard_examples(generator: Generator, batch: int, length: int) -> dict[str, dict[str, Any]]:
    """Widths from 1 to 64; small steps, and steps large enough to turn the state around."""
    cases: dict[str, dict[str, Any]] = {}
    for width, scale in ((1, 0.1), (8, 0.05), (64, 0.02)):
        cases[f"width {width}"] = {
            "diagonal": scale * torch.tanh(_normal(generator, batch, length, width)),
            "inputs": _normal(generator, batch, length, width) / 8,
            "initial_state": _normal(generator, batch, width),
        }
    cases["no inputs"] = {
        "diagonal": 0.1 * torch.tanh(_normal(generator, batch, length, 16)),
        "initial_state": _normal(generator, batch, 16),
    }
    return cases


def _normal(generator: Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator, device=generator.device)
