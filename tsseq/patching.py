"""Cuts series into patches, the network's positions, and says which values in them are observed."""

import torch
from torch.nn import functional as F

from tsseq.array_typing import Bool, Float, Int, Tensor

NEVER = -1
"""The age of what was not observed yet."""


def to_patches(values: Float[Tensor, "batch time"], patch_length: int) -> Float[Tensor, "batch patch patch_length"]:
    """Right-aligned patches: the last value ends the last patch, NaN fills up the first."""
    missing = -values.shape[1] % patch_length
    padded = F.pad(values, (missing, 0), value=torch.nan)
    return padded.reshape(len(values), -1, patch_length)


def age(observed: Bool[Tensor, "batch patch"], before: Int[Tensor, " batch"]) -> Int[Tensor, "batch patch"]:
    """How many patches ago something was last observed: 0 where it is, NEVER before anything was.

    `before` is the age at the position before the first.
    """
    position = torch.arange(1, observed.shape[1] + 1, device=observed.device)
    # Positions of what was observed earlier count down from 0; what never was lies further back than anything.
    long_ago = -(2**62)
    earlier = torch.where(before == NEVER, long_ago, -before)[:, None]
    last = torch.where(observed, position, earlier).cummax(1).values
    return torch.where(last == long_ago, NEVER, position - last)
