"""The short convolution in plain torch: one depth-wise `conv1d` over the state and the sequence."""

import torch
from torch.nn import functional as F

from tsseq.array_typing import Float, Tensor


def chunked(
    x: Float[Tensor, "batch time width"],
    weight: Float[Tensor, "width kernel"],
    bias: Float[Tensor, "width"] | None = None,
    initial_state: Float[Tensor, "batch window width"] | None = None,
    *,
    silu: bool = True,
    head_dim: int | None = None,
    eps: float = 1e-6,
) -> tuple[Float[Tensor, "batch time width"], Float[Tensor, "batch window width"]]:
    """The same function as `reference`, parallel over time."""
    wide = torch.promote_types(x.dtype, torch.float32)
    window = weight.shape[1] - 1
    if initial_state is None:
        seen = F.pad(x.to(wide), (0, 0, window, 0))
    else:
        seen = torch.cat([initial_state, x.to(wide)], dim=1)
    kernel = weight.to(wide)[:, None]
    bias = None if bias is None else bias.to(wide)
    with torch.autocast(x.device.type, enabled=False):
        y = F.conv1d(seen.transpose(1, 2), kernel, bias, groups=weight.shape[0]).transpose(1, 2)
    if silu:
        y = F.silu(y)
    if head_dim is not None:
        heads = y.unflatten(-1, (-1, head_dim))
        y = (heads * torch.rsqrt(heads.square().sum(-1, keepdim=True) + eps)).flatten(-2)
    return y.to(x.dtype), seen[:, x.shape[1] :]
