"""Brings a series of any level and unit to the range in which the network works, and back."""

from dataclasses import dataclass

import torch

from tsseq.array_typing import Bool, Float, Tensor

WINSOR_LIMIT = 10.0
FLOOR_ROUNDINGS = 32


@dataclass(frozen=True)
class Scale:
    """`loc` and `scale` of each series, batch × 1, in the series' own unit; `scale` is positive."""

    loc: Float[Tensor, "batch 1"]
    scale: Float[Tensor, "batch 1"]

    def apply(self, values: Float[Tensor, "batch *rest"]) -> Float[Tensor, "batch *rest"]:
        """arcsinh((x - loc) / scale): linear near the level, logarithmic far from it."""
        loc, scale = self._like(values)
        return torch.asinh((values - loc) / scale)

    def invert(self, scaled: Float[Tensor, "batch *rest"]) -> Float[Tensor, "batch *rest"]:
        """The exact inverse of `apply`."""
        loc, scale = self._like(scaled)
        return loc + scale * torch.sinh(scaled)

    def _like(self, values: Tensor) -> tuple[Tensor, Tensor]:
        shape = (-1,) + (1,) * (values.ndim - 1)
        return self.loc.reshape(shape), self.scale.reshape(shape)


def fit_scale(values: Float[Tensor, "batch time"], observed: Bool[Tensor, "batch time"]) -> Scale:
    """Mean and mean absolute deviation of the observed values, after two rounds of winsorising.

    The mean absolute deviation cannot collapse on a mostly constant series, as an interquartile range does,
    and far outliers, clipped at ten deviations before each refit, hardly move it. Both commute with affine
    maps, so a forecast does too. A constant series gets a scale at the rounding level of its values, and so
    a forecast that is this constant.
    """
    limits = torch.finfo(values.dtype)
    count = observed.sum(1, keepdim=True).clamp(min=1)

    def mean(x: Tensor) -> Tensor:
        return torch.where(observed, x, 0.0).sum(1, keepdim=True) / count

    values = torch.where(observed, values, 0.0)
    # Dividing by the largest magnitude first keeps sums of huge or denormal values finite.
    magnitude = values.abs().amax(1, keepdim=True)
    unit = torch.where(magnitude > 0, magnitude, 1.0)
    values = values / unit
    loc = mean(values)
    deviation = mean((values - loc).abs())
    for _ in range(2):
        limit = WINSOR_LIMIT * deviation
        clipped = torch.minimum(torch.maximum(values, loc - limit), loc + limit)
        loc = mean(clipped)
        deviation = mean((clipped - loc).abs())
    floor = FLOOR_ROUNDINGS * torch.full_like(unit, limits.eps).masked_fill(magnitude == 0, limits.tiny)
    return Scale(loc * unit, torch.maximum(deviation, floor) * unit)
