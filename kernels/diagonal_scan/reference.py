"""The diagonal recurrence as a loop over time: the specification every faster form is tested against."""

import torch

from tsseq.array_typing import Bool, Inexact, Tensor


def reference(
    decay: Inexact[Tensor, "batch time state"] | Inexact[Tensor, "state"],
    inputs: Inexact[Tensor, "batch time state"],
    initial_state: Inexact[Tensor, "batch state"] | None = None,
    *,
    reverse: bool = False,
    resets: Bool[Tensor, "batch time"] | None = None,
) -> tuple[Inexact[Tensor, "batch time state"], Inexact[Tensor, "batch state"]]:
    """See `tsseq.kernels.diagonal_scan.diagonal_scan`."""
    dtype = torch.promote_types(inputs.dtype, torch.float32)
    batch, time, _ = inputs.shape
    a, b = decay.to(dtype).expand(inputs.shape), inputs.to(dtype)
    state = torch.zeros_like(b[:, 0]) if initial_state is None else initial_state.to(dtype)
    states: list[Tensor] = []
    for t in reversed(range(time)) if reverse else range(time):
        boundary = t + 1 if reverse else t
        if resets is not None and boundary < time:
            state = state.masked_fill(resets[:, boundary, None], 0)
        state = a[:, t] * state + b[:, t]
        states.append(state)
    if reverse:
        states.reverse()
    return torch.stack(states, dim=1).to(inputs.dtype), state
