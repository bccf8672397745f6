"""Predictive distributions known at a few quantile levels, read at others."""

from collections.abc import Sequence

import torch

from tsseq.array_typing import Float, Tensor


def check_levels(levels: Sequence[float]) -> None:
    """Raise ValueError unless `levels` is a non-empty rising sequence inside (0, 1)."""
    inside = all(0 < level < 1 for level in levels)
    rising = all(a < b for a, b in zip(levels[:-1], levels[1:], strict=True))
    if not len(levels) or not inside or not rising:
        raise ValueError(f"quantile levels must rise strictly inside (0, 1), got {list(levels)}")


def resample_levels(
    quantiles: Float[Tensor, "*batch quantile"], known: Sequence[float], wanted: Sequence[float]
) -> Float[Tensor, "*batch wanted"]:
    """Quantiles at the `wanted` levels: linear in the normal score between known ones and beyond the last.

    Rising quantiles stay rising, and a normal distribution is reproduced exactly.
    """
    if tuple(known) == tuple(wanted):
        return quantiles
    if len(known) == 1:
        return quantiles.expand(*quantiles.shape[:-1], len(wanted))
    x = torch.special.ndtri(torch.tensor(known, dtype=torch.float64))
    at = torch.special.ndtri(torch.tensor(wanted, dtype=torch.float64))
    right = torch.searchsorted(x, at).clamp(1, len(x) - 1)
    weight = ((at - x[right - 1]) / (x[right] - x[right - 1])).to(quantiles)
    right = right.to(quantiles.device)
    low, high = quantiles[..., right - 1], quantiles[..., right]
    return torch.lerp(low, high, weight)


def mean_of_quantiles(quantiles: Float[Tensor, "*batch quantile"], levels: Sequence[float]) -> Float[Tensor, "*batch"]:
    """The mean of the distribution: the integral of its quantile function over 99 equal steps."""
    grid = [k / 100 for k in range(1, 100)]
    # It is linear in the quantiles: resampling them all would take eleven times their memory.
    weights = resample_levels(torch.eye(len(levels), dtype=torch.float64), levels, grid).mean(-1)
    return (quantiles * weights.to(quantiles)).sum(-1)
