"""Shapes of one cycle: what a day, a week or a year looks like."""

import math

import torch
from torch import Generator, Tensor

from tsseq.array_typing import Float
from tsseq.synthetic.curves import standardise
from tsseq.synthetic.draws import chance, choice, constant, integers, log_uniform, normal, uniform

SLOTS = 288
"""Resolution of a cycle: five minutes of a day."""


def harmonics(generator: Generator, batch: int, phase: Tensor, count: int = 10) -> Tensor:
    """Smooth: random Fourier series, amplitudes falling as a random power of the harmonic."""
    order = torch.arange(1, count + 1, device=phase.device)
    angle = 2 * math.pi * order[:, None] * phase
    basis = torch.cat([angle.cos(), angle.sin()])
    fall = order.pow(-uniform(generator, (batch, 1), 0.3, 2.5)) * (
        order <= integers(generator, (batch, 1), 1, count + 1)
    )
    return (normal(generator, (batch, 2 * count)) * torch.cat([fall, fall], dim=-1)) @ basis


def bumps(generator: Generator, batch: int, phase: Tensor, count: int = 3) -> Tensor:
    """Rush hours: up to three von Mises peaks, from broad to a few minutes wide."""
    centre = uniform(generator, (batch, count, 1))
    width = log_uniform(generator, (batch, count, 1), 1.0, 400.0)
    height = uniform(generator, (batch, count, 1), 0.2, 1.0) * chance(generator, (batch, count, 1), 0.7)
    height[:, 0] += 0.3
    return (height * (width * (torch.cos(2 * math.pi * (phase - centre)) - 1)).exp()).sum(1)


def plateau(generator: Generator, batch: int, phase: Tensor) -> Tensor:
    """Opening hours: on for a share of the cycle, with edges from soft to sharp."""
    on = torch.cos(math.pi * uniform(generator, (batch, 1), 0.05, 0.9))
    edge = log_uniform(generator, (batch, 1), 5.0, 300.0)
    return torch.sigmoid(edge * (torch.cos(2 * math.pi * (phase - uniform(generator, (batch, 1)))) - on))


def daylight(generator: Generator, batch: int, phase: Tensor) -> Tensor:
    """Solar: a rounded dome between sunrise and sunset, exactly zero at night."""
    night = torch.cos(math.pi * uniform(generator, (batch, 1), 0.35, 0.65))
    dome = (torch.cos(2 * math.pi * (phase - uniform(generator, (batch, 1)))) - night).clamp_(min=0)
    return dome.pow(uniform(generator, (batch, 1), 0.5, 1.6))


def ramp(generator: Generator, batch: int, phase: Tensor) -> Tensor:
    """Triangle to sawtooth: rises for a share of the cycle, falls for the rest."""
    rise = uniform(generator, (batch, 1), 0.02, 0.98)
    moved = (phase + uniform(generator, (batch, 1))).frac()
    return torch.minimum(moved / rise, (1 - moved) / (1 - rise))


def rough(generator: Generator, batch: int, phase: Tensor) -> Tensor:
    """An arbitrary level for each of 2 to 48 parts of the cycle (a timetable)."""
    parts = constant((2.0, 3.0, 4.0, 6.0, 7.0, 8.0, 12.0, 24.0, 48.0), phase.device)[
        integers(generator, (batch, 1), 0, 9)
    ]
    return normal(generator, (batch, 48)).gather(-1, (phase * parts).long().clamp_(max=47))


SHAPES = {
    harmonics: 0.36,
    bumps: 0.22,
    plateau: 0.12,
    daylight: 0.08,
    ramp: 0.08,
    rough: 0.14,
}


def random_profiles(generator: Generator, batch: int, slots: int = SLOTS) -> Float[Tensor, "batch slot"]:
    """Tables of one cycle, zero mean and unit variance: one shape, or two shapes added."""
    phase = torch.arange(slots, device=generator.device) / slots
    shapes = standardise(torch.stack([shape(generator, batch, phase) for shape in SHAPES], dim=1))
    weights = list(SHAPES.values())
    first = torch.nn.functional.one_hot(choice(generator, (batch,), weights), len(weights))
    second = torch.nn.functional.one_hot(choice(generator, (batch,), weights), len(weights))
    share = uniform(generator, (batch, 1), 0.0, 0.8) * chance(generator, (batch, 1), 0.4)
    sign = 1.0 - 2.0 * chance(generator, (batch, 1), 0.15)
    mixed = torch.einsum("bk,bks->bs", sign * first + share * second, shapes)
    return standardise(mixed)
