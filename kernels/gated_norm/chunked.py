"""The gated normalisation in plain torch, all heads at once."""

import torch
from torch.nn import functional as F

from tsseq.array_typing import Float, Tensor


def chunked(
    x: Float[Tensor, "batch time head value"],
    gate: Float[Tensor, "batch time head value"],
    weight: Float[Tensor, "head value"],
    *,
    silu: bool = True,
    eps: float = 1e-5,
) -> Float[Tensor, "batch time head value"]:
    """The same function as `reference`."""
    wide = torch.promote_types(x.dtype, torch.float32)
    normed = F.rms_norm(x.to(wide), x.shape[-1:], eps=eps) * weight.to(wide)
    opening = F.silu(gate.to(wide)) if silu else torch.sigmoid(gate.to(wide))
    return (normed * opening).to(x.dtype)
