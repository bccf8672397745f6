"""The selective scan in plain torch: all states of all channels by one diagonal scan."""

import torch

from tsseq.array_typing import Float, Tensor
from tsseq.kernels.diagonal_scan.chunked import chunked as diagonal_scan


def chunked(
    x: Float[Tensor, "batch time width"],
    delta: Float[Tensor, "batch time width"],
    A: Float[Tensor, "width state"],
    B: Float[Tensor, "batch time state"],
    C: Float[Tensor, "batch time state"],
    D: Float[Tensor, "width"] | None = None,
    initial_state: Float[Tensor, "batch width state"] | None = None,
) -> tuple[Float[Tensor, "batch time width"], Float[Tensor, "batch width state"]]:
    """The same function as `reference`, in memory linear in time (times `state`)."""
    wide = torch.promote_types(x.dtype, torch.float32)
    u, step, write, read = (z.to(wide) for z in (x, delta, B, C))
    decay = torch.exp(step[..., None] * A).flatten(2)
    inputs = ((step * u)[..., None] * write[:, :, None]).flatten(2)
    state = None if initial_state is None else initial_state.flatten(1)
    states, last = diagonal_scan(decay, inputs, state)
    y = torch.einsum("btwn,btn->btw", states.unflatten(2, A.shape), read)
    y = y if D is None else y + D * u
    return y.to(x.dtype), last.unflatten(1, A.shape)
