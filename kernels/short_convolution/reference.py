"""The short convolution as a loop over time: the specification."""

import torch
from torch.nn.functional import silu as silu_function

from tsseq.array_typing import Float, Tensor


def reference(
    x: Float[Tensor, "batch time width"],
    weight: Float[Tensor, "width kernel"],
    bias: Float[Tensor, "width"] | None = None,
    initial_state: Float[Tensor, "batch window width"] | None = None,
    *,
    silu: bool = True,
    head_dim: int | None = None,
    eps: float = 1e-6,
) -> tuple[Float[Tensor, "batch time width"], Float[Tensor, "batch window width"]]:
    """Weigh the last `kernel` inputs of every channel, one position at a time."""
    wide = torch.promote_types(x.dtype, torch.float32)
    batch, time, width = x.shape
    kernel = weight.shape[1]
    taps = weight.to(wide).T
    window = x.new_zeros(batch, kernel - 1, width, dtype=wide) if initial_state is None else initial_state
    outputs = []
    for t in range(time):
        seen = torch.cat([window, x[:, t : t + 1].to(wide)], dim=1)
        y = (seen * taps).sum(1)
        if bias is not None:
            y = y + bias
        if silu:
            y = silu_function(y)
        if head_dim is not None:
            heads = y.unflatten(-1, (-1, head_dim))
            y = (heads * torch.rsqrt(heads.square().sum(-1, keepdim=True) + eps)).flatten(-2)
        outputs.append(y)
        window = seen[:, 1:]
    return torch.stack(outputs, dim=1).to(x.dtype), window
