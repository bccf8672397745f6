"""Cuts series into patches, the network's positions, and says which values in them are observed."""

import torch
from torch.nn import functional as F

from tsseq.array_typing import Bool, Float, Tensor


def to_patches(values: Float[Tensor, "batch time"], patch_length: int) -> Float[Tensor, "batch patch patch_length"]:
    """Right-aligned patches: the last value ends the last patch, NaN fills up the first."""
    missing = -values.shape[1] % patch_length
    padded = F.pad(values, (missing, 0), value=torch.nan)
    return padded.reshape(len(values), -1, patch_length)


def age(observed: Bool[Tensor, "batch patch"]) -> Float[Tensor, "batch patch"]:
    """How many patches ago something was last observed: 0 where it is, counted from the start before any."""
    position = torch.arange(observed.shape[1], device=observed.device)
    last = torch.where(observed, position, -1).cummax(1).values
    return (position - last).float()
