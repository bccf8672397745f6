"""Brings a series of any level and unit to the range in which the network works, and back."""

from dataclasses import dataclass
from typing import NamedTuple

import torch

from tsseq.array_typing import Bool, Float, Int, Tensor

WINSOR_LIMIT = 10.0
FLOOR_ROUNDINGS = 32
HEADROOM = 2.0**-24


@dataclass(frozen=True)
class Scale:
    """`loc` and `scale`, in the series' own unit; `scale` is positive.

    One pair for each series (batch × 1), or one for each of its patches (batch × patch), which then are the second
    axis of what is scaled.
    """

    loc: Float[Tensor, "batch patch"]
    scale: Float[Tensor, "batch patch"]

    def apply(self, values: Float[Tensor, "batch *rest"]) -> Float[Tensor, "batch *rest"]:
        """arcsinh((x - loc) / scale): linear near the level, logarithmic far from it."""
        loc, scale = self._like(values)
        return torch.asinh((values - loc) / scale)

    def invert(self, scaled: Float[Tensor, "batch *rest"]) -> Float[Tensor, "batch *rest"]:
        """The exact inverse of `apply`."""
        loc, scale = self._like(scaled)
        return loc + scale * torch.sinh(scaled)

    def _like(self, values: Tensor) -> tuple[Tensor, Tensor]:
        shape = self.loc.shape + (1,) * (values.ndim - 2)
        return self.loc.reshape(shape), self.scale.reshape(shape)

    def last(self) -> "Scale":
        """That of the last patch, for what comes after it."""
        return Scale(self.loc[:, -1:], self.scale[:, -1:])


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


class RunningSums(NamedTuple):
    """What a causal scale remembers of the observed values of each series, times HEADROOM.

    `first` is the first of them, `number` how many there were, and `sums` are those of their distances from the first,
    of their deviations, and of both once outliers are drawn in.
    """

    first: Float[Tensor, "batch 1"]
    number: Int[Tensor, "batch 1"]
    sums: Float[Tensor, "batch 4"]

    @classmethod
    def empty(cls, batch: int, like: Tensor) -> "RunningSums":
        return cls(like.new_zeros(batch, 1), like.new_zeros(batch, 1, dtype=torch.int64), like.new_zeros(batch, 4))

    def scale(self) -> Scale:
        """That of what comes next."""
        number = self.number.clamp(min=1)
        return _scale_of(self.first, self.number, self.sums[:, 2:3] / number, self.sums[:, 3:] / number)


def causal_scale(values: Float[Tensor, "batch time"], observed: Bool[Tensor, "batch time"], patch_length: int) -> Scale:
    """Mean and mean absolute deviation of all observed values up to the end of each patch.

    A deviation is that from the mean of its own time, and values further off than ten mean deviations of their own
    time count as so far, so an outlier weighs less the longer the history before it. As long as all values are the
    same the scale is the smallest normal number: any other value is then out of range, and a forecast this constant.

    Paper: Cohen et al., "This time is different: an observability perspective on time series foundation models"
    (Toto), arXiv 2505.14766; here with absolute deviations and without a look at the whole series.
    """
    return continued_scale(values, observed, patch_length, RunningSums.empty(len(values), values))[0]


def continued_scale(
    values: Float[Tensor, "batch time"], observed: Bool[Tensor, "batch time"], patch_length: int, past: RunningSums
) -> tuple[Scale, RunningSums]:
    """`causal_scale` of the patches that follow what `past` has seen, and what has been seen after them."""
    # As a power of two this rounds nothing, and keeps sums of huge values finite.
    values = torch.where(observed, values, 0.0) * HEADROOM
    # Distances from the first value are short where the level is high, and keep their digits when summed.
    first = torch.where(past.number > 0, past.first, values.gather(1, observed.byte().argmax(1, keepdim=True)))
    observed, values = (x.unflatten(1, (-1, patch_length)) for x in (observed, values - first))
    count = past.number + observed.sum(-1).cumsum(1)
    sums: list[Tensor] = []

    def running_mean(x: Tensor) -> Tensor:
        total = past.sums[:, len(sums), None] + torch.where(observed, x, 0.0).sum(-1).cumsum(1)
        sums.append(total[:, -1])
        return total / count.clamp(min=1)

    loc = running_mean(values)
    deviation = running_mean((values - loc[..., None]).abs())
    low, high = loc - WINSOR_LIMIT * deviation, loc + WINSOR_LIMIT * deviation
    values = torch.minimum(torch.maximum(values, low[..., None]), high[..., None])
    loc = running_mean(values)
    deviation = running_mean((values - loc[..., None]).abs())
    return _scale_of(first, count, loc, deviation), RunningSums(first, count[:, -1:], torch.stack(sums, 1))


def _scale_of(first: Tensor, count: Tensor, loc: Tensor, deviation: Tensor) -> Scale:
    loc = torch.where(count > 0, first + loc, 0.0) / HEADROOM
    return Scale(loc, (deviation / HEADROOM).clamp(min=torch.finfo(loc.dtype).tiny))
