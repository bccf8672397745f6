"""The same history read at a coarser rate, and a coarse forecast brought back to the history's own steps."""

from collections.abc import Sequence

import torch

from tsseq.array_typing import Float, Tensor


def coarsen(values: Float[Tensor, "time"], factor: int) -> Float[Tensor, "coarse"]:
    """Means of the observed values in blocks of `factor` that end with the history; a rest in front is dropped.

    A block without an observation is missing (NaN).
    """
    whole = len(values) // factor * factor
    means: Tensor = values[len(values) - whole :].unflatten(0, (-1, factor)).nanmean(-1)
    return means


def refine(
    quantiles: Float[Tensor, "batch coarse quantile"],
    last: Float[Tensor, "batch"],
    factor: int,
    horizon: int,
) -> Float[Tensor, "batch horizon quantile"]:
    """Quantiles of block means, read as values at the middle of their blocks and joined by straight lines.

    `last` is the last block of the history, from which the first line starts. Needs one block more than the horizon
    covers. Straight lines between rising quantiles stay rising.
    """
    points = torch.cat([last[:, None, None].expand(-1, 1, quantiles.shape[-1]), quantiles], dim=1)
    place = (torch.arange(horizon, dtype=points.dtype) - (factor - 1) / 2) / factor + 1
    left = place.floor().long()
    return torch.lerp(points[:, left], points[:, left + 1], (place - left)[:, None])


def split_phases(values: Float[Tensor, "time"], period: int) -> list[Float[Tensor, "coarse"]]:
    """Every `period`-th value, a series for each phase, the one due next first; a rest in front is dropped."""
    whole = len(values) // period * period
    return list(values[len(values) - whole :].unflatten(0, (-1, period)).unbind(1))


def join_phases(
    quantiles: Float[Tensor, "batch_and_phase coarse quantile"], period: int, horizon: int
) -> Float[Tensor, "batch horizon quantile"]:
    """The forecasts of all phases of each series in the order of time."""
    phases = quantiles.unflatten(0, (-1, period))
    joined: Tensor = phases.transpose(1, 2).flatten(1, 2)[:, :horizon]
    return joined


def blocks_ahead(horizon: int, factor: int) -> int:
    """Coarse steps that `refine` needs for `horizon` steps."""
    return -(-horizon // factor) + 1


def pinball(
    quantiles: Float[Tensor, "batch time quantile"], truth: Float[Tensor, "batch time"], levels: Sequence[float]
) -> Float[Tensor, "batch"]:
    """Mean quantile loss of each forecast over the observed values of `truth`; NaN where there is none."""
    error = truth[..., None] - quantiles
    at = torch.tensor(levels, dtype=error.dtype)
    return torch.maximum(at * error, (at - 1) * error).mean(-1).nanmean(-1)
