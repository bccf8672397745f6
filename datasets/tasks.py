"""Turns whole series into training tasks: what is visible, where scaling looks, what is to be forecast.

One series is many examples at once. Every position forecasts the patch after it, and several spans of
patches are hidden from the input, one of them right behind the stretch to which the scale is fitted, so that
horizons from one patch to `MAX_SPAN` are all trained in one pass.
"""

from typing import NamedTuple

import torch
from torch import Generator

from tsseq.array_typing import Bool, Float, Tensor

MAX_SPAN = 32


class TrainingBatch(NamedTuple):
    """`values` are whole series, of which the network reads all but the last patch; `visible` marks the input values,
    `fitted` those that determine the scale, `targets` those that may be scored (values of later patches)."""

    values: Float[Tensor, "batch time"]
    visible: Bool[Tensor, "batch time"]
    fitted: Bool[Tensor, "batch time"]
    targets: Bool[Tensor, "batch time"]


def masked_spans(generator: Generator, values: Float[Tensor, "batch time"], patch_length: int) -> TrainingBatch:
    """Draw a task for each series; `values` may hold NaN, and its length is a multiple of `patch_length`."""
    batch, length = values.shape
    if length % patch_length or length < 2 * patch_length:
        raise ValueError(
            f"expected a length that is a multiple of patch_length {patch_length} and at least two of them, "
            f"got {length}"
        )
    device, patches = values.device, length // patch_length

    def uniform() -> Tensor:
        return torch.rand(batch, 1, generator=generator, device=device)

    # Half of the series start late, at a log-uniform distance from the end: short histories are common.
    kept = torch.where(uniform() < 0.5, length, patch_length / 4 * (4.0 * patches) ** uniform())
    start = (length - patch_length - kept).clamp(min=0).floor()
    first = (start / patch_length).floor()
    # The scale is fitted from the start to a cut that prefers long stretches, as forecasts do.
    cut = first + 1 + ((patches - 1 - first) * uniform().sqrt()).floor()
    cut = cut.clamp(max=patches - 1)

    position = torch.arange(patches, device=device)
    # The first span, the horizon proper, leans to long; the others are gaps anywhere behind the first patch.
    hidden = _span(position, cut, _span_length(uniform().sqrt(), MAX_SPAN), uniform() < 0.85)
    for _ in range(1 + patches // MAX_SPAN):
        where = first + 1 + (patches - 1 - first) * uniform()
        hidden |= _span(position, where.floor(), _span_length(uniform(), MAX_SPAN), uniform() < 0.5)

    time = torch.arange(length, device=device)
    known = ~values.isnan()
    started = time >= start
    visible = known & started & ~hidden.repeat_interleave(patch_length, dim=1)
    fitted = visible & (time < cut * patch_length)
    targets = known & (time >= (first + 1) * patch_length)
    return TrainingBatch(values, visible, fitted, targets)


def _span_length(uniform: Tensor, longest: int) -> Tensor:
    """Log-uniform from 1 to `longest`."""
    return ((longest + 1.0) ** uniform).floor()


def _span(position: Tensor, start: Tensor, length: Tensor, chosen: Tensor) -> Tensor:
    return (position >= start) & (position < start + length) & chosen
