"""Smooth paths, periodic tables and piecewise-constant segments: the shapes that priors are composed of."""

from importlib.util import find_spec

import torch
from torch import Generator, Tensor

from tsseq.array_typing import Float, Int
from tsseq.synthetic.draws import chance, normal, uniform


def time_steps(generator: Generator, length: int) -> Float[Tensor, " time"]:
    """0, 1, …, length - 1 in float32."""
    return torch.arange(length, device=generator.device, dtype=torch.float32)


def _fused(x: Tensor) -> bool:
    """Whether Triton's kernels, which read and write every point once, serve instead of the torch forms."""
    return x.is_cuda and x.dtype == torch.float32 and find_spec("triton") is not None


def spline(knots: Float[Tensor, "batch knot"], position: Float[Tensor, "batch time"]) -> Float[Tensor, "batch time"]:
    """Uniform cubic B-spline; `position` counts knots from 0 to at most knot - 4."""
    if _fused(position):
        from tsseq.synthetic import triton_loops

        return triton_loops.spline(knots, position)
    index = position.long().clamp_(0, knots.shape[-1] - 4)
    u = position - index
    v = 1 - u
    out = knots.gather(-1, index) * (v * v * v)
    out.addcmul_(knots.gather(-1, index + 1), 4 + u * u * (3 * u - 6))
    out.addcmul_(knots.gather(-1, index + 2), 4 + v * v * (3 * v - 6))
    return out.addcmul_(knots.gather(-1, index + 3), u * u * u).div_(6)


def smooth_path(
    generator: Generator, spacing: Float[Tensor, "batch one"], length: int, finest: float = 16.0
) -> Float[Tensor, "batch time"]:
    """A zero-mean Gaussian path of about unit variance with one free knot every `spacing` steps.

    `spacing` is raised to `finest` steps, which bounds the number of knots.
    """
    knots = normal(generator, (spacing.shape[0], int(length / finest) + 6)).mul_(1.44)  # B-spline shrinks variance
    position = time_steps(generator, length) / spacing.clamp(min=finest)
    return spline(knots, position + uniform(generator, (spacing.shape[0], 1)))


def lookup(table: Float[Tensor, "batch slot"], phase: Float[Tensor, "batch time"]) -> Float[Tensor, "batch time"]:
    """Evaluate periodic tables at a phase in cycles, linear between slots."""
    if _fused(phase):
        from tsseq.synthetic import triton_loops

        return triton_loops.lookup(table, phase, linear=True)
    slots = table.shape[-1]
    position = (phase - phase.floor()).mul_(slots)
    index = position.long().clamp_(max=slots - 1)
    wrapped = torch.nn.functional.pad(table, (0, 1))
    wrapped[:, -1] = table[:, 0]
    left = wrapped.gather(-1, index)
    return torch.lerp(left, wrapped.gather(-1, index + 1), position - index)


def held(table: Float[Tensor, "batch slot"], phase: Float[Tensor, "batch time"]) -> Float[Tensor, "batch time"]:
    """Evaluate periodic tables at a phase in cycles, constant within a slot."""
    if _fused(phase):
        from tsseq.synthetic import triton_loops

        return triton_loops.lookup(table, phase, linear=False)
    slots = table.shape[-1]
    index = (phase - phase.floor()).mul_(slots).long().clamp_(max=slots - 1)
    return table.gather(-1, index)


def segments(generator: Generator, dwell: Float[Tensor, "batch segment"], length: int) -> Int[Tensor, "batch time"]:
    """Number of the segment each step falls in, for segments of exponential duration with means `dwell` steps.

    All means of a series are raised by one factor where they would not fill the window one and a half times, else
    its end would be one long segment.
    """
    return renewals(generator, dwell, length)[0]


def renewals(
    generator: Generator, dwell: Float[Tensor, "batch segment"], length: int
) -> tuple[Int[Tensor, "batch time"], Float[Tensor, "batch time"]]:
    """Like `segments`, and the time since the segment began (the first one began at step 0)."""
    fill = (1.5 * length / dwell.sum(-1, keepdim=True)).clamp(min=1.0)
    durations = torch.empty(dwell.shape, device=dwell.device).exponential_(generator=generator)
    durations *= dwell * fill
    edges = torch.nn.functional.pad(durations[:, :-1].cumsum(-1), (1, 0)).contiguous()
    time = time_steps(generator, length).expand(dwell.shape[0], length).contiguous()
    index = torch.searchsorted(edges, time, right=True) - 1
    return index, time - edges.gather(-1, index)


def impulses(
    generator: Generator, rate: Float[Tensor, "batch time"], spread: Float[Tensor, "batch 1"]
) -> Float[Tensor, "batch time"]:
    """Events at `rate` per step (at most one each), of log-normal size with median 1."""
    size = torch.exp(spread * normal(generator, tuple(rate.shape)))
    return size * chance(generator, tuple(rate.shape), rate)


def standardise(x: Float[Tensor, "*batch time"]) -> Float[Tensor, "*batch time"]:
    """Zero mean and unit standard deviation over time; constant series become zero."""
    centred = x - x.mean(-1, keepdim=True)
    return centred / centred.square().mean(-1, keepdim=True).sqrt().clamp(min=1e-6)
