"""Recurrences with small dense blocks, or a Walsh-Hadamard matrix, as loops over time: the specification."""

import torch

from tsseq.array_typing import Float, Tensor


def block_scan(
    transitions: Float[Tensor, "batch time block size size"],
    inputs: Float[Tensor, "batch time block size"] | None = None,
    initial_state: Float[Tensor, "batch block size"] | None = None,
) -> tuple[Float[Tensor, "batch time block size"], Float[Tensor, "batch block size"]]:
    """See `tsseq.kernels.block_scan.block_scan`."""
    dtype = torch.promote_types(transitions.dtype, torch.float32)
    state = transitions.new_zeros(transitions[:, 0, ..., 0].shape, dtype=dtype)
    if initial_state is not None:
        state = initial_state.to(dtype)
    states = []
    for t in range(transitions.shape[1]):
        state = torch.einsum("bkij,bkj->bki", transitions[:, t].to(dtype), state)
        if inputs is not None:
            state = state + inputs[:, t].to(dtype)
        states.append(state)
    return torch.stack(states, dim=1).to(transitions.dtype), state


def controlled_block_scan(
    increments: Float[Tensor, "batch time omega"],
    weights: Float[Tensor, "omega block size size"],
    inputs: Float[Tensor, "batch time block size"] | None = None,
    initial_state: Float[Tensor, "batch block size"] | None = None,
) -> tuple[Float[Tensor, "batch time block size"], Float[Tensor, "batch block size"]]:
    """See `tsseq.kernels.block_scan.controlled_block_scan`."""
    dtype = torch.promote_types(increments.dtype, torch.float32)
    identity = torch.eye(weights.shape[-1], dtype=dtype, device=weights.device)
    transitions = identity + torch.einsum("btw,wkij->btkij", increments.to(dtype), weights.to(dtype))
    states, state = block_scan(transitions, inputs, initial_state)
    return states.to(increments.dtype), state


def hadamard_scan(
    diagonal: Float[Tensor, "batch time state"],
    inputs: Float[Tensor, "batch time state"] | None = None,
    initial_state: Float[Tensor, "batch state"] | None = None,
) -> tuple[Float[Tensor, "batch time state"], Float[Tensor, "batch state"]]:
    """See `tsseq.kernels.block_scan.hadamard_scan`."""
    dtype = torch.promote_types(diagonal.dtype, torch.float32)
    hadamard = torch.ones(1, 1, dtype=dtype, device=diagonal.device)
    while hadamard.shape[0] < diagonal.shape[-1]:
        hadamard = torch.cat([torch.cat([hadamard, hadamard], 1), torch.cat([hadamard, -hadamard], 1)])
    hadamard = hadamard / diagonal.shape[-1] ** 0.5
    state = torch.zeros_like(diagonal[:, 0], dtype=dtype) if initial_state is None else initial_state.to(dtype)
    states = []
    for t in range(diagonal.shape[1]):
        state = state + (diagonal[:, t].to(dtype) * state) @ hadamard
        if inputs is not None:
            state = state + inputs[:, t].to(dtype)
        states.append(state)
    return torch.stack(states, dim=1).to(diagonal.dtype), state
