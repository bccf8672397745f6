"""Physical and chaotic systems: polynomial differential equations in four variables, observed on a grid.

Lorenz (1963), Rössler (1976), Duffing, van der Pol, FitzHugh–Nagumo, Lotka–Volterra, a damped pendulum and an
epidemic with waning immunity all have right-hand sides that are polynomials of degree three at most, so one
table of coefficients per series serves them all, and so does one GPU kernel.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor

from tsseq.array_typing import Float
from tsseq.synthetic.base import Prior
from tsseq.synthetic.curves import standardise
from tsseq.synthetic.draws import chance, choice, constant, integers, log_uniform, normal, uniform

# Order of the coefficients: 1, x, y, z, w, xx, xy, xz, xw, yy, yz, yw, zz, zw, ww, xxx
MONOMIALS = {name: i for i, name in enumerate("1 x y z w xx xy xz xw yy yz yw zz zw ww xxx".split())}
LEFT, RIGHT = np.triu_indices(4)
BOUND = 1e3
"""States are held within ±BOUND; no system gets there unless its step is far too long."""

Array = NDArray[Any]
Field = dict[tuple[str, str], Tensor | float]
"""(variable, monomial) -> coefficient; what is not named is zero."""


def lorenz(generator: Generator, shape: tuple[int, ...]) -> tuple[Field, tuple[float, ...], float]:
    """Convection; rho from 20 (still) to 45 (chaotic)."""
    rho = uniform(generator, shape, 20.0, 45.0)
    return (
        {
            ("x", "x"): -10.0,
            ("x", "y"): 10.0,
            ("y", "x"): rho,
            ("y", "y"): -1.0,
            ("y", "xz"): -1.0,
            ("z", "z"): -8 / 3,
            ("z", "xy"): 1.0,
        },
        (5.0, 5.0, 20.0, 0.0),
        0.02,
    )


def rossler(generator: Generator, shape: tuple[int, ...]) -> tuple[Field, tuple[float, ...], float]:
    """A spiral that folds; c from 3 (periodic) to 9 (chaotic)."""
    c = uniform(generator, shape, 3.0, 9.0)
    return (
        {
            ("x", "y"): -1.0,
            ("x", "z"): -1.0,
            ("y", "x"): 1.0,
            ("y", "y"): 0.2,
            ("z", "1"): 0.2,
            ("z", "xz"): 1.0,
            ("z", "z"): -c,
        },
        (2.0, 2.0, 0.5, 0.0),
        0.05,
    )


def duffing(generator: Generator, shape: tuple[int, ...]) -> tuple[Field, tuple[float, ...], float]:
    """A beam between two magnets, driven by the oscillator (z, w)."""
    drive, omega = uniform(generator, shape, 0.2, 0.6), uniform(generator, shape, 0.8, 1.4)
    return (
        {
            ("x", "y"): 1.0,
            ("y", "x"): 1.0,
            ("y", "xxx"): -1.0,
            ("y", "y"): -uniform(generator, shape, 0.05, 0.35),
            ("y", "z"): drive,
            ("z", "w"): -omega,
            ("w", "z"): omega,
        },
        (0.5, 0.0, 1.0, 0.0),
        0.08,
    )


def van_der_pol(generator: Generator, shape: tuple[int, ...]) -> tuple[Field, tuple[float, ...], float]:
    """A relaxation oscillator in Liénard's form; mu from 0.2 (sine) to 6 (jumps)."""
    mu = log_uniform(generator, shape, 0.2, 6.0)
    return (
        {("x", "x"): mu, ("x", "xxx"): -mu / 3, ("x", "y"): mu, ("y", "x"): -1 / mu},
        (1.0, 0.0, 0.0, 0.0),
        0.05,
    )


def fitzhugh_nagumo(generator: Generator, shape: tuple[int, ...]) -> tuple[Field, tuple[float, ...], float]:
    """A nerve that fires; its current varies slowly with the oscillator (z, w)."""
    slow = log_uniform(generator, shape, 0.01, 0.1)
    return (
        {
            ("x", "x"): 1.0,
            ("x", "xxx"): -1 / 3,
            ("x", "y"): -1.0,
            ("x", "1"): uniform(generator, shape, 0.35, 0.8),
            ("x", "z"): uniform(generator, shape, 0.0, 0.3),
            ("y", "x"): 0.08,
            ("y", "1"): 0.056,
            ("y", "y"): -0.064,
            ("z", "w"): -slow,
            ("w", "z"): slow,
        },
        (-1.0, 0.0, 1.0, 0.0),
        0.25,
    )


def lotka_volterra(generator: Generator, shape: tuple[int, ...]) -> tuple[Field, tuple[float, ...], float]:
    """Prey and predator."""
    return (
        {
            ("x", "x"): uniform(generator, shape, 0.6, 1.4),
            ("x", "xy"): -1.0,
            ("y", "y"): -uniform(generator, shape, 0.5, 1.5),
            ("y", "xy"): 1.0,
        },
        (1.5, 0.8, 0.0, 0.0),
        0.08,
    )


def pendulum(generator: Generator, shape: tuple[int, ...]) -> tuple[Field, tuple[float, ...], float]:
    """(x, y) is the direction of the rod, z its angular velocity; friction takes hours or a few swings."""
    return (
        {
            ("x", "yz"): 1.0,
            ("y", "xz"): -1.0,
            ("z", "x"): -uniform(generator, shape, 0.5, 2.0),
            ("z", "z"): -log_uniform(generator, shape, 2e-4, 0.05),
        },
        (0.8, 0.6, 0.5, 0.0),
        0.1,
    )


def sirs(generator: Generator, shape: tuple[int, ...]) -> tuple[Field, tuple[float, ...], float]:
    """Shares of the population: susceptible x, infectious y; immunity wanes, and waves die out towards endemicity."""
    beta, recovery = uniform(generator, shape, 0.3, 0.8), uniform(generator, shape, 0.1, 0.2)
    waning = log_uniform(generator, shape, 1e-3, 0.01)
    return (
        {
            ("x", "xy"): -beta,
            ("x", "1"): waning,
            ("x", "x"): -waning,
            ("x", "y"): -waning,
            ("y", "xy"): beta,
            ("y", "y"): -recovery,
        },
        (0.95, 0.02, 0.0, 0.0),
        1.0,
    )


SYSTEMS: dict[str, Callable[[Generator, tuple[int, ...]], tuple[Field, tuple[float, ...], float]]] = {
    "lorenz": lorenz,
    "rossler": rossler,
    "duffing": duffing,
    "van_der_pol": van_der_pol,
    "fitzhugh_nagumo": fitzhugh_nagumo,
    "lotka_volterra": lotka_volterra,
    "pendulum": pendulum,
    "sirs": sirs,
}


def coefficient_table(field: Field, batch: int, device: torch.device) -> Float[Tensor, "batch 4 16"]:
    """The right-hand side as coefficients of MONOMIALS for each of the four variables."""
    table = torch.zeros((batch, 4, len(MONOMIALS)), device=device)
    for (variable, monomial), value in field.items():
        table[:, "xyzw".index(variable), MONOMIALS[monomial]] = value
    return table


def velocity(state: Array, table: Array) -> Array:
    """The right-hand side at `state` (batch × 4), for a table of batch × 4 × 16."""
    monomials = np.empty((len(state), len(MONOMIALS), 1), dtype=state.dtype)
    monomials[:, 0, 0] = 1.0
    monomials[:, 1:5, 0] = state
    np.multiply(state[:, LEFT], state[:, RIGHT], out=monomials[:, 5:15, 0])
    np.multiply(monomials[:, 5, 0], state[:, 0], out=monomials[:, 15, 0])
    change: Array = np.matmul(table, monomials)[:, :, 0]
    return change


def _runge_kutta(state: Array, table: Array, h: Array) -> Array:
    k1 = velocity(state, table)
    k2 = velocity(state + 0.5 * h * k1, table)
    k3 = velocity(state + 0.5 * h * k2, table)
    k4 = velocity(state + h * k3, table)
    after: Array = state + h / 6 * (k1 + 2 * (k2 + k3) + k4)
    return after


def trajectories(
    table: Float[Tensor, "batch 4 16"],
    start: Float[Tensor, "batch 4"],
    step: Float[Tensor, "batch 1"],
    output: Float[Tensor, "batch 4"],
    length: int,
    substeps: int = 1,
    iterate: bool = False,
) -> Float[Tensor, "batch time"]:
    """Integrate by the classical Runge–Kutta method, `substeps` per observation; observe <output, state>.

    If told to `iterate`, take the polynomials for a map: they give the next state, not its rate of change.

    One kernel on a GPU with Triton; elsewhere NumPy, whose calls cost less than torch's on arrays this small.
    """
    if start.is_cuda and find_spec("triton"):
        from tsseq.synthetic import triton_loops

        return triton_loops.trajectories(table, start, step / substeps, output, length, BOUND, substeps, iterate)
    field, state, h = table.cpu().numpy(), start.cpu().numpy(), (step / substeps).cpu().numpy()
    states = np.empty((length, *state.shape), dtype=state.dtype)
    for time in range(length):
        states[time] = state
        for _ in range(substeps):
            state = velocity(state, field) if iterate else _runge_kutta(state, field, h)
            state = np.minimum(np.maximum(state, -BOUND), BOUND)
    return (torch.from_numpy(states).to(output.device) * output).sum(-1).t().contiguous()


@dataclass(frozen=True)
class Dynamics(Prior):
    """One system per series from a random start; its first or second variable, a share `noisy` with noise."""

    noisy: float = 0.4
    sequential: ClassVar[bool] = True

    def sample(self, generator: Generator, batch_size: int, length: int) -> Float[Tensor, "batch time"]:
        shape = (batch_size, 1)
        which = choice(generator, (batch_size,), (1.0,) * len(SYSTEMS))
        drawn = [system(generator, (batch_size,)) for system in SYSTEMS.values()]
        tables = torch.stack([coefficient_table(field, batch_size, generator.device) for field, _, _ in drawn])
        rows = torch.arange(batch_size, device=generator.device)
        starts = torch.stack([constant(start, generator.device) for _, start, _ in drawn])[which]
        steps = constant(tuple(step for _, _, step in drawn), generator.device)[which][:, None]
        start = starts * torch.exp(0.2 * normal(generator, (batch_size, 4)))
        step = steps * log_uniform(generator, shape, 0.3, 2.0)
        output = torch.nn.functional.one_hot(integers(generator, (batch_size,), 0, 2), 4).float()
        series = standardise(trajectories(tables[which, rows], start, step, output, length))
        noise = log_uniform(generator, shape, 3e-3, 0.2) * chance(generator, shape, self.noisy)
        return torch.addcmul(series, noise, normal(generator, (batch_size, length)))
