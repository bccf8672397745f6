"""The gated normalisation head by head: the specification."""

import torch

from tsseq.array_typing import Float, Tensor


def reference(
    x: Float[Tensor, "batch time head value"],
    gate: Float[Tensor, "batch time head value"],
    weight: Float[Tensor, "head value"],
    *,
    silu: bool = True,
    eps: float = 1e-5,
) -> Float[Tensor, "batch time head value"]:
    """Divide every head by its root mean square, then scale and gate it."""
    wide = torch.promote_types(x.dtype, torch.float32)
    heads = []
    for h in range(x.shape[2]):
        o, g = x[:, :, h].to(wide), gate[:, :, h].to(wide)
        length = torch.sqrt(o.square().mean(-1, keepdim=True) + eps)
        heads.append(o / length * weight[h].to(wide) * torch.sigmoid(g) * (g if silu else 1.0))
    return torch.stack(heads, dim=2).to(x.dtype)
