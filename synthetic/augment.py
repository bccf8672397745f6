"""Random edits of finished series: pure functions of a batch, with the generator passed in.

All keep the shape and work row by row; `probability` is the share of rows changed. Only `missing` returns NaN.
"""

from collections.abc import Callable

import torch
from torch import Generator, Tensor

from tsseq.array_typing import Float
from tsseq.synthetic.calendar import civil_from_days, days_in_month, weekday
from tsseq.synthetic.curves import segments, smooth_path, standardise, time_steps
from tsseq.synthetic.draws import chance, integers, log_uniform, normal, pick, uniform
from tsseq.synthetic.scan import linear_scan

Series = Float[Tensor, "batch time"]


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    mean = x.mean(-1, keepdim=True)
    return mean, (x - mean).square().mean(-1, keepdim=True).sqrt().clamp(min=1e-6)


def flip(generator: Generator, x: Series, probability: float = 0.3) -> Series:
    """Turn upside down around the mean."""
    sign = 1.0 - 2.0 * chance(generator, (x.shape[0], 1), probability)
    mean = x.mean(-1, keepdim=True)
    return mean + sign * (x - mean)


def mix(generator: Generator, x: Series, probability: float = 0.25) -> Series:
    """TSMixup (Chronos): a weighted sum of a series with one or two others of the batch, all standardised."""
    batch = x.shape[0]
    mean, scale = _moments(x)
    z = (x - mean) / scale
    weights = uniform(generator, (batch, 3)).clamp_(min=1e-4).log_().neg_()
    third = chance(generator, (batch, 1), 0.3)
    weights = torch.cat([weights[:, :2], weights[:, 2:] * third], dim=-1)
    weights = weights / weights.sum(-1, keepdim=True)
    partner = torch.randperm(batch, generator=generator, device=x.device)
    mixed = weights[:, :1] * z + weights[:, 1:2] * z[partner] + weights[:, 2:] * z[partner.roll(1)]
    return torch.where(chance(generator, (batch, 1), probability), mean + scale * mixed, x)


def modulate(generator: Generator, x: Series, probability: float = 0.1) -> Series:
    """Let the size of the deviations from the mean change along a smooth path."""
    shape = (x.shape[0], 1)
    mean = x.mean(-1, keepdim=True)
    path = smooth_path(generator, log_uniform(generator, shape, 64.0, 4096.0), x.shape[-1])
    strength = uniform(generator, shape, 0.1, 0.8) * chance(generator, shape, probability)
    return mean + (x - mean) * torch.exp(strength * path)


def bend(generator: Generator, x: Series, probability: float = 0.1) -> Series:
    """Pass standardised values through an exponential, a soft or hard floor, or a square: skewed or positive."""
    batch, shape = x.shape[0], (x.shape[0], 1)
    z = standardise(x).clamp(-8, 8)
    rate = uniform(generator, shape, 0.2, 1.0)
    floor = uniform(generator, shape, -1.0, 0.8)
    kinds = (torch.exp(rate * z), torch.nn.functional.softplus(2 * (z - floor)), (z - floor).clamp(min=0), z * z.abs())
    index = integers(generator, shape, 0, 4)
    bent = kinds[3]
    for i in range(3):
        bent = torch.where(index == i, kinds[i], bent)
    return torch.where(chance(generator, (batch, 1), probability), bent, x)


def calendar(generator: Generator, x: Series, probability: float = 0.03) -> Series:
    """Holidays, weekends and month ends scale the height above the lowest value; months count their days.

    The step is a day or a part of one; for a sixth of the series it is a month.
    """
    batch, length = x.shape
    shape, base = (batch, 1), x.amin(-1, keepdim=True)
    per_day = pick(generator, shape, (1, 24, 48, 96, 144, 288), (5, 3, 1, 1.5, 1, 1))
    elapsed = (time_steps(generator, length) / per_day + uniform(generator, shape)).floor().long()
    days = elapsed + integers(generator, shape, 0, 47_000)
    month, day = civil_from_days(days)
    free = (weekday(days) > 4) & chance(generator, shape, 0.7)
    last = (civil_from_days(days + 1)[1] == 1) & chance(generator, shape, 0.3)
    feasts = chance(generator, (batch, 372), log_uniform(generator, shape, 0.003, 0.04))
    feast = feasts.gather(-1, 31 * (month - 1) + day - 1)
    log_factor = free * uniform(generator, shape, -1.2, 0.4) + last * uniform(generator, shape, -0.3, 0.6)
    log_factor = log_factor + feast * uniform(generator, shape, -1.5, 1.0)
    months = time_steps(generator, length).long() + integers(generator, shape, 0, 4800)
    monthly = torch.log(days_in_month(months) / 30.436875)
    log_factor = torch.where(chance(generator, shape, 1 / 6), monthly, log_factor)
    return torch.where(chance(generator, shape, probability), base + (x - base) * log_factor.exp(), x)


def convolve(generator: Generator, x: Series, probability: float = 0.03) -> Series:
    """Filter with 3 to 31 random weights, smooth, one-sided or rough; level and size stay."""
    batch, length = x.shape
    shape, reach = (batch, 1), 31
    lag = torch.arange(reach, device=x.device) - (reach - 1) / 2
    width = log_uniform(generator, shape, 0.5, 8.0)
    bell, tail = torch.exp(-0.5 * (lag / width).square()), torch.exp(-lag / width) * (lag >= 0)
    rough = normal(generator, (batch, reach)) * (lag.abs() <= 2 * width)
    kind = integers(generator, shape, 0, 4)
    weights = torch.where(kind == 0, bell, torch.where(kind == 1, tail, torch.where(kind == 2, rough, bell * rough)))
    mean, scale = _moments(x)
    held = torch.nn.functional.pad(((x - mean) / scale)[:, None], (reach // 2, reach // 2), mode="replicate")
    filtered = torch.nn.functional.conv1d(held.transpose(0, 1), weights.flip(-1)[:, None], groups=batch)[0]
    return torch.where(chance(generator, shape, probability), mean + scale * standardise(filtered), x)


def integrate(generator: Generator, x: Series, probability: float = 0.03) -> Series:
    """Replace the series by its changes or by its leaky running sum; level and size stay."""
    shape = (x.shape[0], 1)
    mean, scale = _moments(x)
    z = (x - mean) / scale
    change = torch.nn.functional.pad(z.diff(dim=-1), (1, 0))
    leak = torch.exp(-1 / log_uniform(generator, shape, 10.0, 1000.0))
    moved = torch.where(chance(generator, shape, 0.4), change, linear_scan(leak.expand_as(z), z))
    return torch.where(chance(generator, shape, probability), mean + scale * standardise(moved), x)


def censor(generator: Generator, x: Series, probability: float = 0.06) -> Series:
    """Clip from above, below or both sides, between 0.5 and 2.5 standard deviations from the mean."""
    shape = (x.shape[0], 1)
    mean, scale = _moments(x)
    side = integers(generator, shape, 0, 3)
    infinite = torch.full_like(mean, torch.inf)
    high = torch.where(side != 1, mean + scale * uniform(generator, shape, 0.5, 2.5), infinite)
    low = torch.where(side != 0, mean - scale * uniform(generator, shape, 0.5, 2.5), -infinite)
    chosen = chance(generator, shape, probability)
    return torch.where(chosen, torch.minimum(torch.maximum(x, low), high), x)


def quantise(generator: Generator, x: Series, probability: float = 0.08) -> Series:
    """Round to a grid of 1/2 to 1/100 of the standard deviation's step: counters, meters, percentages."""
    shape = (x.shape[0], 1)
    mean, scale = _moments(x)
    step = scale * log_uniform(generator, shape, 0.01, 0.8)
    chosen = chance(generator, shape, probability)
    return torch.where(chosen, torch.round((x - mean) / step) * step + mean, x)


def spike(generator: Generator, x: Series, probability: float = 0.06) -> Series:
    """Add isolated outliers, or outliers that decay, of 2 to 10 standard deviations and mostly one sign."""
    shape = (x.shape[0], 1)
    _, scale = _moments(x)
    rate = log_uniform(generator, shape, 3e-4, 0.02) * chance(generator, shape, probability)
    hit = chance(generator, tuple(x.shape), rate)
    size = uniform(generator, shape, 2.0, 10.0) * torch.where(chance(generator, shape, 0.7), 1.0, -1.0)
    return x + hit * scale * size * uniform(generator, tuple(x.shape), 0.3, 1.0)


def observe(generator: Generator, x: Series, probability: float = 0.1) -> Series:
    """Add white measurement noise of 1% to 30% of the standard deviation."""
    shape = (x.shape[0], 1)
    _, scale = _moments(x)
    level = log_uniform(generator, shape, 0.01, 0.3) * chance(generator, shape, probability)
    return torch.addcmul(x, scale * level, normal(generator, tuple(x.shape)))


def hold(generator: Generator, x: Series, probability: float = 0.03) -> Series:
    """Sample and hold: the value changes only every second to twelfth step."""
    shape = (x.shape[0], 1)
    stride = pick(generator, shape, (2, 3, 4, 6, 12))
    time = time_steps(generator, x.shape[-1])
    source = (torch.floor(time / stride) * stride).long()
    return torch.where(chance(generator, shape, probability), x.gather(-1, source.expand_as(x)), x)


def outage(generator: Generator, x: Series, probability: float = 0.03) -> Series:
    """Runs in which the series drops to its lowest value or freezes at its mean."""
    shape = (x.shape[0], 1)
    up, down = log_uniform(generator, shape, 100.0, 3000.0), log_uniform(generator, shape, 2.0, 100.0)
    run = segments(generator, torch.cat([up, down], dim=-1).repeat(1, 8), x.shape[-1]) % 2 == 1
    level = torch.where(chance(generator, shape, 0.8), x.amin(-1, keepdim=True), x.mean(-1, keepdim=True))
    return torch.where(run & chance(generator, shape, probability), level, x)


def splice(generator: Generator, x: Series, probability: float = 0.03) -> Series:
    """Regime splice: continue as another series of the batch, joined without a jump."""
    batch, length = x.shape
    mean, scale = _moments(x)
    partner = torch.randperm(batch, generator=generator, device=x.device)
    other = mean + scale * standardise(x)[partner]
    cut = integers(generator, (batch, 1), 0, length)
    other = other + x.gather(-1, cut) - other.gather(-1, cut)
    late = time_steps(generator, length) > cut
    return torch.where(late & chance(generator, (batch, 1), probability), other, x)


def warp(generator: Generator, x: Series, probability: float = 0.03) -> Series:
    """Speed up and slow down smoothly; time never runs backwards."""
    batch, length = x.shape
    shape = (batch, 1)
    speed = torch.exp(0.5 * smooth_path(generator, log_uniform(generator, shape, 128.0, 2048.0), length))
    position = speed.cumsum(-1)
    position = position * ((length - 1) / position[:, -1:])
    left = position.floor().long().clamp_(0, max(length - 2, 0))
    right = (left + 1).clamp(max=length - 1)
    warped = torch.lerp(x.gather(-1, left), x.gather(-1, right), (position - left).clamp(0, 1))
    return torch.where(chance(generator, shape, probability), warped, x)


def decimate(x: Series, factor: int, how: str = "mean") -> Float[Tensor, "batch shorter"]:
    """The series at a coarser sampling rate: mean, sum, max or last point of blocks of `factor` steps.

    Blocks end with the series; an incomplete first block is dropped. Raises ValueError for an unknown `how`.
    """
    whole = x.shape[-1] // factor
    blocks = x[:, x.shape[-1] - whole * factor :].unflatten(-1, (whole, factor))
    if how not in RATES:
        raise ValueError(f"expected how to be one of {', '.join(RATES)}, got {how!r}")
    return RATES[how](blocks)


RATES: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda blocks: blocks.mean(-1),
    "sum": lambda blocks: blocks.sum(-1),
    "max": lambda blocks: blocks.amax(-1),
    "last": lambda blocks: blocks[..., -1],
}


def missing(generator: Generator, x: Series, probability: float = 0.15) -> Series:
    """Set scattered single values and one block to NaN, few in most series and many in some."""
    shape, length = (x.shape[0], 1), x.shape[-1]
    chosen = uniform(generator, shape) < probability
    scattered = uniform(generator, tuple(x.shape)) < 0.5 * uniform(generator, shape) ** 4
    start, span = uniform(generator, shape) * length, uniform(generator, shape) ** 3 * length / 3
    time = time_steps(generator, length)
    block = (time >= start) & (time < start + span) & (uniform(generator, shape) < 0.3)
    return x.masked_fill(chosen & (scattered | block), torch.nan)
