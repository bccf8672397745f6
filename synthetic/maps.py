"""Chaotic maps: recursions without noise that look random, from insects to the orbits of comets.

Logistic (May, 1976), delayed logistic (Maynard Smith, 1968), Hénon (1976), Holmes' cubic map (1979) and two coupled
logistic maps are polynomials of degree three at most, so they share the tables and the kernel of `dynamics`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor

from tsseq.array_typing import Float
from tsseq.synthetic.base import Prior
from tsseq.synthetic.curves import standardise
from tsseq.synthetic.draws import chance, constant, host_generator, log_uniform, normal, shuffled, systematic, uniform
from tsseq.synthetic.dynamics import Field, coefficient_table, trajectories

Map = tuple[Field, tuple[float, ...]]


def logistic(generator: Generator, shape: tuple[int, ...]) -> Map:
    """x' = r x (1 - x); r from 3.3 (two values in turn) through 3.57 to 4 (chaotic)."""
    r = uniform(generator, shape, 3.3, 3.99)
    return {("x", "x"): r, ("x", "xx"): -r}, (0.35, 0.0, 0.0, 0.0)


def delayed_logistic(generator: Generator, shape: tuple[int, ...]) -> Map:
    """x' = r x (1 - y), y' = x: spirals out to an invariant curve for r between 2 and 2.27."""
    r = uniform(generator, shape, 2.02, 2.25)
    return {("x", "x"): r, ("x", "xy"): -r, ("y", "x"): 1.0}, (0.5, 0.4, 0.0, 0.0)


def henon(generator: Generator, shape: tuple[int, ...]) -> Map:
    """x' = 1 - a x² + y, y' = b x."""
    a, b = uniform(generator, shape, 1.05, 1.39), uniform(generator, shape, 0.2, 0.3)
    return {("x", "1"): 1.0, ("x", "xx"): -a, ("x", "y"): 1.0, ("y", "x"): b}, (0.1, 0.1, 0.0, 0.0)


def holmes(generator: Generator, shape: tuple[int, ...]) -> Map:
    """x' = d x - x³ - b y, y' = x: two wells, left and right."""
    d, b = uniform(generator, shape, 2.3, 2.77), uniform(generator, shape, 0.1, 0.2)
    return {("x", "x"): d, ("x", "xxx"): -1.0, ("x", "y"): -b, ("y", "x"): 1.0}, (0.6, 0.3, 0.0, 0.0)


def coupled_logistic(generator: Generator, shape: tuple[int, ...]) -> Map:
    """Two populations with exchange e: each is a mean of the logistic images of both."""
    r, e = uniform(generator, shape, 3.5, 3.99), uniform(generator, shape, 0.02, 0.2)
    own, foreign = (1 - e) * r, e * r
    field: Field = {("x", "x"): own, ("x", "xx"): -own, ("x", "y"): foreign, ("x", "yy"): -foreign}
    field |= {("y", "y"): own, ("y", "yy"): -own, ("y", "x"): foreign, ("y", "xx"): -foreign}
    return field, (0.3, 0.62, 0.0, 0.0)


MAPS: dict[str, Callable[[Generator, tuple[int, ...]], Map]] = {
    "logistic": logistic,
    "delayed_logistic": delayed_logistic,
    "henon": henon,
    "holmes": holmes,
    "coupled_logistic": coupled_logistic,
}


@dataclass(frozen=True)
class ChaoticMaps(Prior):
    """One map per series; a share `noisy` with measurement noise, a share `summed` as the running total."""

    noisy: float = 0.4
    summed: float = 0.3
    sequential: ClassVar[bool] = True

    def sample(self, generator: Generator, batch_size: int, length: int) -> Float[Tensor, "batch time"]:
        shape = (batch_size, 1)
        counts = systematic(host_generator(generator), batch_size, (1.0,) * len(MAPS))
        tables, starts = [], []
        for count, draw in zip(counts, MAPS.values(), strict=True):
            field, middle = draw(generator, (count,))
            tables.append(coefficient_table(field, count, generator.device))
            starts.append(constant(middle, generator.device).expand(count, 4))
        start = torch.cat(starts) * uniform(generator, (batch_size, 4), 0.8, 1.2)
        output = constant((1.0, 0.0, 0.0, 0.0), generator.device).expand(batch_size, 4)
        orbit = trajectories(torch.cat(tables), start, torch.ones_like(start[:, :1]), output, length, iterate=True)
        orbit = standardise(shuffled(generator, orbit))
        series = torch.where(chance(generator, shape, self.summed), standardise(orbit.cumsum(-1)), orbit)
        noise = log_uniform(generator, shape, 3e-3, 0.2) * chance(generator, shape, self.noisy)
        return torch.addcmul(series, noise, normal(generator, (batch_size, length)))
