"""The selective scan as a loop over time: the specification."""

import torch

from tsseq.array_typing import Float, Tensor


def reference(
    x: Float[Tensor, "batch time width"],
    delta: Float[Tensor, "batch time width"],
    A: Float[Tensor, "width state"],
    B: Float[Tensor, "batch time state"],
    C: Float[Tensor, "batch time state"],
    D: Float[Tensor, "width"] | None = None,
    initial_state: Float[Tensor, "batch width state"] | None = None,
) -> tuple[Float[Tensor, "batch time width"], Float[Tensor, "batch width state"]]:
    """Advance the `state` numbers of every channel, one position at a time, and read them out."""
    wide = torch.promote_types(x.dtype, torch.float32)
    u, step, write, read = (z.to(wide) for z in (x, delta, B, C))
    h = u.new_zeros(u.shape[0], *A.shape) if initial_state is None else initial_state
    outputs = []
    for t in range(u.shape[1]):
        dt = step[:, t, :, None]
        h = torch.exp(dt * A) * h + dt * u[:, t, :, None] * write[:, t, None]
        y = (h * read[:, t, None]).sum(-1)
        outputs.append(y if D is None else y + D * u[:, t])
    return torch.stack(outputs, dim=1).to(x.dtype), h
