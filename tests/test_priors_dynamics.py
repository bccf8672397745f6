"""Recursions in time against their definitions: differential equations, maps, threshold autoregression, GPU loops."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from scipy import integrate

from tsseq.synthetic import dynamics, maps
from tsseq.synthetic.threshold import threshold_autoregression

SEEDS = (0, 1, 2)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_gpu_loops_equal_the_torch_forms():
    """Triton's interpreter runs the kernels on the CPU; it must be chosen before Triton is imported."""
    pytest.importorskip("triton")
    code = """
import torch
from tsseq.synthetic import curves, dynamics, maps, scan, threshold, triton_loops
g = torch.Generator().manual_seed(0)
for length in (1, 65, 1025):
    a, b = torch.rand((2, 1), generator=g).expand(2, length), torch.randn((length, 2), generator=g).t()
    assert torch.allclose(triton_loops.linear_scan(a, b), scan.odd_even_scan(a, b), atol=1e-5), length
    table = torch.randn((2, 3, 9), generator=g)[:, 1]
    for x in (5 * b, 5 * b[:1].expand(2, length)):
        assert torch.allclose(triton_loops.lookup(table, x, linear=True), curves.lookup(table, x), atol=1e-5), length
        assert torch.equal(triton_loops.lookup(table, x, linear=False), curves.held(table, x)), length
        x = x.abs().clamp(max=5.9)
        assert torch.allclose(triton_loops.spline(table, x), curves.spline(table, x), atol=1e-5), length
batch = 35
fields = [system(g, (batch,))[0] for system in dynamics.SYSTEMS.values()]
tables = torch.stack([dynamics.coefficient_table(field, batch, g.device) for field in fields])
table = tables[torch.arange(batch) % len(tables), torch.arange(batch)]
start, weights = torch.rand((batch, 4), generator=g), torch.rand((batch, 4), generator=g)
step = torch.full((batch, 1), 0.05)
found = triton_loops.trajectories(table, start, step / 2, weights, 3, dynamics.BOUND, 2, False)
exact = dynamics.trajectories(table, start, step, weights, 3, substeps=2)
assert torch.allclose(found, exact, atol=1e-5), (found - exact).abs().max()
table = torch.cat([dynamics.coefficient_table(m(g, (7,))[0], 7, g.device) for m in maps.MAPS.values()])
found = triton_loops.trajectories(table, start, step, weights, 3, dynamics.BOUND, 1, True)
exact = dynamics.trajectories(table, start, step, weights, 3, iterate=True)
assert torch.allclose(found, exact, atol=1e-4), (found - exact).abs().max()
shocks, above, below = (torch.randn((batch, n), generator=g) / 2 for n in (9, 4, 4))
exact = threshold.threshold_autoregression(shocks, above, below, start[:, :1])
found = triton_loops.threshold_autoregression(shocks, above, below, start[:, :1], threshold.BOUND)
assert torch.allclose(found, exact, atol=1e-4), (found - exact).abs().max()
"""
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "TRITON_INTERPRET": "1"})


def test_the_threshold_loop_carries_both_last_values_on_a_gpu():
    """Compiled for Hopper without a GPU: Triton's interpreter hides what its compiler makes of two equal names."""
    pytest.importorskip("triton")
    code = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from tsseq.synthetic import triton_loops
kernel = triton_loops._threshold
pointers = dict.fromkeys(kernel.arg_names[:5], "*fp32")
signature = pointers | {"batch": "i32", "length": "i32", "bound": "fp32", "BLOCK": "constexpr"}
source = ASTSource(kernel, signature, {(8,): 32})
print(triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 1}).asm["ttir"])
"""
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    found = subprocess.run([sys.executable, "-c", code], check=True, env=environment, capture_output=True, text=True)
    (loop,) = (line for line in found.stdout.splitlines() if "scf.for" in line)
    assert "-> (tensor<32xf32>, tensor<32xf32>)" in loop


def textbook(name, c, state):
    """Right-hand sides as they stand in the books; `c` maps (variable, monomial) to the drawn coefficient."""
    x, y, z, w = state
    if name == "lorenz":
        return [10 * (y - x), x * (c["y", "x"] - z) - y, x * y - 8 / 3 * z, 0 * w]
    if name == "rossler":
        return [-y - z, x + 0.2 * y, 0.2 + z * (x + c["z", "z"]), 0 * w]
    if name == "duffing":
        omega = c["w", "z"]
        return [y, x - x**3 + c["y", "y"] * y + c["y", "z"] * z, -omega * w, omega * z]
    if name == "van_der_pol":
        mu = c["x", "x"]
        return [mu * (x - x**3 / 3 + y), -x / mu, 0 * z, 0 * w]
    if name == "fitzhugh_nagumo":
        slow = c["w", "z"]
        current = c["x", "1"] + c["x", "z"] * z
        return [x - x**3 / 3 - y + current, 0.08 * (x + 0.7 - 0.8 * y), -slow * w, slow * z]
    if name == "lotka_volterra":
        return [x * (c["x", "x"] - y), y * (x + c["y", "y"]), 0 * z, 0 * w]
    if name == "pendulum":
        return [y * z, -x * z, c["z", "x"] * x + c["z", "z"] * z, 0 * w]
    beta, waning, recovery = c["y", "xy"], c["x", "1"], -c["y", "y"]
    return [waning * (1 - x - y) - beta * x * y, beta * x * y - recovery * y, 0 * z, 0 * w]


@pytest.mark.parametrize("name", dynamics.SYSTEMS)
def test_dynamics_equal_scipys_integrator(name):
    """The field is the book's, and forty steps agree with an adaptive integrator to 1e-3 of the largest value."""
    batch, length = 4, 40
    field, start, step = dynamics.SYSTEMS[name](seeded(1), (batch,))
    table = dynamics.coefficient_table(field, batch, torch.device("cpu"))
    states = torch.tensor([start]).expand(batch, 4) * torch.linspace(0.8, 1.2, batch)[:, None]
    output = torch.tensor([[1.0, 0.5, 0.25, 0.0]]).expand(batch, 4)
    found = dynamics.trajectories(table, states, torch.full((batch, 1), step), output, length, substeps=2)
    for row in range(batch):
        c = {key: float(value[row]) if torch.is_tensor(value) else value for key, value in field.items()}
        exact = integrate.solve_ivp(
            lambda _, s, c=c: textbook(name, c, s),
            (0, step * length),
            states[row].double().numpy(),
            t_eval=step * np.arange(length),
            rtol=1e-9,
            atol=1e-10,
        ).y
        expected = output[row].double().numpy() @ exact
        assert np.abs(found[row].numpy() - expected).max() < 1e-3 * np.abs(expected).max()


def iterate(name, c, x, y):
    """One step as in the books."""
    if name == "logistic":
        return c["x", "x"] * x * (1 - x), y
    if name == "delayed_logistic":
        return c["x", "x"] * x * (1 - y), x
    if name == "henon":
        return 1 + c["x", "xx"] * x * x + y, c["y", "x"] * x
    if name == "holmes":
        return c["x", "x"] * x - x**3 + c["x", "y"] * y, x
    own, foreign = c["x", "x"] * x * (1 - x), c["x", "x"] * y * (1 - y)
    e = c["x", "y"] / c["x", "x"]
    return own + e * foreign, c["y", "y"] * y * (1 - y) + c["y", "x"] * x * (1 - x)


@pytest.mark.parametrize("name", maps.MAPS)
def test_maps_equal_the_books(name):
    """Ten steps agree to 1e-3 in float32; after 3000 the orbit is still on the attractor."""
    batch = 6
    field, start = maps.MAPS[name](seeded(2), (batch,))
    table = dynamics.coefficient_table(field, batch, torch.device("cpu"))
    states = torch.tensor([start]).expand(batch, 4) * torch.linspace(0.8, 1.2, batch)[:, None]
    output = torch.tensor([[1.0, 0.0, 0.0, 0.0]]).expand(batch, 4)
    found = dynamics.trajectories(table, states, torch.ones(batch, 1), output, 3000, iterate=True)
    assert found.abs().max() < 3 and (found[:, -100:].std(-1) > 1e-3).float().mean() > 0.5
    for row in range(batch):
        c = {key: float(value[row]) if torch.is_tensor(value) else value for key, value in field.items()}
        x, y = states[row, :2].tolist()
        for t in range(10):
            assert abs(float(found[row, t]) - x) < 1e-3
            x, y = iterate(name, c, x, y)


def test_logistic_map_reaches_its_cycle_of_two():
    """For r in (3, 3.449) the orbit alternates between (r + 1 ± sqrt((r - 3)(r + 1))) / 2r."""
    r = torch.tensor([3.2, 3.4])
    table = dynamics.coefficient_table({("x", "x"): r, ("x", "xx"): -r}, 2, torch.device("cpu"))
    output = torch.tensor([[1.0, 0.0, 0.0, 0.0]]).expand(2, 4)
    orbit = dynamics.trajectories(table, 0.3 * output, torch.ones(2, 1), output, 400, iterate=True)
    half = ((r - 3) * (r + 1)).sqrt()
    exact = torch.stack([r + 1 - half, r + 1 + half], -1) / (2 * r[:, None])
    assert torch.allclose(orbit[:, -2:].sort(-1).values, exact, atol=1e-4)


def test_threshold_autoregression_follows_its_definition():
    generator = seeded(0)
    shocks = torch.randn((3, 40), generator=generator)
    above, below = (torch.randn((3, 4), generator=generator) / 2 for _ in range(2))
    threshold = torch.randn((3, 1), generator=generator)
    found = threshold_autoregression(shocks, above, below, threshold)
    for row in range(3):
        last = before = float(threshold[row])
        for t in range(40):
            c, a, b, s = (above if last > threshold[row] else below)[row].tolist()
            last, before = c + a * last + b * before + s * float(shocks[row, t]), last
            assert abs(float(found[row, t]) - last) < 1e-4 * max(1, abs(last))


@pytest.mark.parametrize("seed", SEEDS)
def test_equal_regimes_make_a_plain_autoregression(seed):
    """AR(2), a = 0.5, b = 0.3: variance (1 - b) / ((1 + b) ((1 - b)² - a²)) = 2.244, first correlation a / (1 - b)."""
    shocks = torch.randn((1500, 600), generator=seeded(seed))
    law = torch.tensor([[0.0, 0.5, 0.3, 1.0]]).expand(1500, 4)
    series = threshold_autoregression(shocks, law, law, torch.zeros(1500, 1))[:, 100:]
    variance = series.square().mean()
    assert abs(variance - 2.2436) < 0.06
    assert abs((series[:, 1:] * series[:, :-1]).mean() / variance - 0.5 / 0.7) < 0.01


def test_two_wells_keep_a_threshold_series_on_either_side():
    """Fixed points 1 above and 1 below, each 1.7 standard deviations from the threshold: both sides, few crossings."""
    shocks = torch.randn((400, 1100), generator=seeded(0))
    above, below = (torch.tensor([[0.5 * c, 0.5, 0.0, 0.5]]).expand(400, 4) for c in (1.0, -1.0))
    series = threshold_autoregression(shocks, above, below, torch.zeros(400, 1))[:, 100:]
    assert abs((series > 0).float().mean() - 0.5) < 0.03
    crossings = ((series[:, 1:] > 0) != (series[:, :-1] > 0)).float().mean()
    assert crossings < 0.06 and abs(series.abs().median() - 1) < 0.1
