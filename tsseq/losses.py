"""The training objective."""

import torch

from tsseq.array_typing import Bool, Float, Tensor


def quantile_loss(
    prediction: Float[Tensor, "*batch quantile"],
    target: Float[Tensor, "*batch"],
    observed: Bool[Tensor, "*batch"],
    levels: Float[Tensor, "quantile"],
) -> Float[Tensor, ""]:
    """Pinball loss, averaged over levels and observed targets (Koenker and Bassett, 1978).

    Its minimiser is the quantile at each level; twice its mean over levels approximates the CRPS.
    """
    error = torch.where(observed, target, 0.0)[..., None] - prediction
    pinball = torch.maximum(levels * error, (levels - 1) * error).mean(-1)
    return torch.where(observed, pinball, 0.0).sum() / observed.sum().clamp(min=1)
