"""The delta rule's GPU kernels, on a GPU or in Triton's interpreter, against the loop in float64."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

from tsseq.kernels import delta_rule  # noqa: E402
from tsseq.kernels.delta_rule import custom_op  # noqa: E402
from tsseq.testing import uninitialised_memory_is_nan  # noqa: E402

NARROW = torch.bfloat16
TOLERANCE = {torch.float32: (1e-5, 1e-5), torch.float16: (2e-3, 3e-3), torch.bfloat16: (5e-3, 1e-2)}
"""Of results and of gradients: norm of the error over norm of the exact tensor (or one, where that is smaller)."""


def _inputs(dtype: torch.dtype, length: int, initial: bool = True, draw: int = 0, **options) -> dict[str, Tensor]:
    generator = torch.Generator(DEVICE).manual_seed(draw)
    inputs = delta_rule._example(generator, 2, length, **options)
    if not initial:
        del inputs["initial_state"]
    wide = ("initial_state", "log_decay")
    return {name: x if name in wide else x.to(dtype) for name, x in inputs.items()}


def _differentiate(function, inputs: dict[str, Tensor], weights: list[Tensor]) -> dict[str, Tensor]:
    inputs = {name: x.detach().clone().requires_grad_() for name, x in inputs.items()}
    output, state = function(**inputs)
    weights = [w.to(x.dtype) for w, x in zip(weights, (output, state), strict=True)]
    gradients = torch.autograd.grad((output, state), list(inputs.values()), weights)
    return {"output": output, "state": state, **dict(zip(inputs, gradients, strict=True))}


def _triton(query, key, value, beta, log_decay=None, initial_state=None, save=True):
    return custom_op.delta_rule_triton(query, key, value, beta, log_decay, initial_state, save=save)


WIDE = {"key_width": 64, "value_width": 64}
CASES = {
    "two chunks and a row": dict(dtype=torch.float32, length=33, step=1),
    "one row": dict(dtype=torch.float32, length=1, step=1),
    "part of a chunk": dict(dtype=torch.float32, length=7, step=2, initial=False),
    "three steps": dict(dtype=torch.float32, length=9, step=3),
    "four steps, no decay": dict(dtype=torch.float32, length=10, step=4, decay=None),
    "strong decay": dict(dtype=torch.float32, length=33, step=1, decay=8.0, initial=False),
    "smooth keys": dict(dtype=torch.float32, length=33, step=2, keys="smooth"),
    "constant keys, reflections": dict(dtype=torch.float32, length=33, step=1, keys="constant", beta=2.0),
    "no update": dict(dtype=torch.float32, length=17, step=1, beta=0.0),
    "odd widths": dict(dtype=torch.float32, length=17, step=1, key_width=20, value_width=12),
    "narrow": dict(dtype=NARROW, length=65, step=1, key_width=64, value_width=64),
    "narrow, four steps": dict(dtype=NARROW, length=17, step=4, key_width=32, value_width=32, initial=False),
    "narrow, three steps": dict(dtype=NARROW, length=37, step=3, key_width=64, value_width=64, initial=False),
    "narrow, two slices of keys": dict(dtype=NARROW, length=65, step=1, key_width=96, value_width=32, head=1),
    "narrow, two slices of values": dict(dtype=NARROW, length=33, step=1, key_width=32, value_width=128, head=1),
    "narrow, constant keys": dict(dtype=NARROW, length=70, step=2, key_width=64, value_width=64, keys="constant"),
    "narrow, nearly reflections": dict(
        dtype=NARROW, length=130, step=1, key_width=64, value_width=64, keys="smooth", beta=1.9, head=1
    ),
    "narrow, reflections": dict(dtype=NARROW, length=130, step=1, keys="constant", beta=2.0, head=1, **WIDE),
    "narrow, two reflections": dict(dtype=NARROW, length=130, step=2, keys="constant", beta=2.0, head=1, **WIDE),
    "narrow, three reflections": dict(dtype=NARROW, length=65, step=3, keys="constant", beta=2.0, head=1, **WIDE),
    "narrow, four reflections": dict(dtype=NARROW, length=65, step=4, keys="constant", beta=2.0, head=1, **WIDE),
    "narrow, a lasting reflection": dict(
        dtype=NARROW, length=200, step=1, keys="constant", beta=2.0, head=1, decay=1e-3, **WIDE
    ),
    "narrow, three lasting reflections": dict(
        dtype=NARROW, length=65, step=3, keys="smooth", beta=2.0, head=1, decay=None, **WIDE
    ),
    "narrow, one row": dict(dtype=NARROW, length=1, step=1, decay=8.0, beta=1.2, draw=25, **WIDE),
    "narrow, a state along one key": dict(
        dtype=NARROW, length=63, step=2, keys="constant", decay=None, initial=False, head=1, draw=1, **WIDE
    ),
    "narrow, four steps along one key": dict(dtype=NARROW, length=70, step=4, keys="constant", decay=1e-3, **WIDE),
    "narrow, four soon forgotten steps": dict(dtype=NARROW, length=70, step=4, keys="constant", decay=2.0, **WIDE),
    "narrow, strong decay": dict(dtype=NARROW, length=33, step=4, decay=8.0, key_width=32, value_width=32),
    "two steps, strong decay": dict(dtype=torch.float32, length=65, step=2, decay=20.0),
    "four reflections": dict(dtype=torch.float32, length=90, step=4, keys="constant", beta=2.0, head=1),
    "narrow, no update": dict(dtype=NARROW, length=17, step=1, key_width=64, value_width=64, beta=0.0),
    "float16": dict(dtype=torch.float16, length=65, step=1, key_width=64, value_width=64),
}


def _check(inputs: dict[str, Tensor], dtype: torch.dtype, least: float = 1.0) -> None:
    """Results and gradients of every two series against the loop's in float64, whose norm counts as `least` or more."""
    exact = {name: x.double() for name, x in inputs.items()}
    generator = torch.Generator(DEVICE).manual_seed(1)
    weights = [torch.randn(x.shape, generator=generator, device=DEVICE) for x in delta_rule.reference(**exact)]
    weights[0] = weights[0].to(dtype)
    exact = _differentiate(delta_rule.reference, exact, weights)
    with uninitialised_memory_is_nan():
        found = _differentiate(_triton, inputs, weights)
    for name, x in exact.items():
        tolerance = TOLERANCE[dtype][name not in ("output", "state")]
        for part, (a, b) in enumerate(zip(found[name].detach().double().split(2), x.detach().split(2), strict=True)):
            error = float((a - b).norm() / b.norm().clamp(min=least))
            assert error <= tolerance, f"{name} of pair {part}: {error:.2g}"


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_kernels_equal_the_loop(case: dict) -> None:
    _check(_inputs(**case), case["dtype"])


GRID = [
    (step, beta, decay)
    for step in (1, 2, 3, 4)
    for beta in (None, 1.2, 1.75, 2.0)
    for decay in (None, 1e-3, 0.1, 1.0, 8.0)
    if DEVICE == "cuda" or (step, beta, decay) in [(1, 2.0, None), (2, 1.75, 1.0), (3, 1.2, 0.1), (4, None, 8.0)]
]
"""Steps, betas (None draws them) and mean decays; in the interpreter, which is slow, a few."""


@pytest.mark.parametrize(("step", "beta", "decay"), GRID)
def test_narrow_results_over_a_grid(step: int, beta: float | None, decay: float | None) -> None:
    """Lengths about a chunk's and a long one (in the interpreter, which is slow, one), from a state and from none."""
    lengths, draws = ((1, 7, 63, 64, 65, 1000), (0, 1)) if DEVICE == "cuda" else ((17,), (0,))
    options = dict(step=step, decay=decay, beta=beta, **WIDE)
    every = [(keys, draw) for keys in ("constant", "smooth", "random") for draw in draws]
    for length in lengths:
        parts = [_inputs(NARROW, length, draw=draw, keys=keys, **options) for keys, draw in every]
        inputs = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        for some in (inputs, {name: x for name, x in inputs.items() if name != "initial_state"}):
            _check(some, NARROW, least=0.1)  # with one position and no state a decay's gradient is zero


@pytest.mark.parametrize("keys", ["constant", "random"])
def test_the_first_decay_meets_no_state(keys: str) -> None:
    """Its gradient is nothing, and not what rounding leaves of terms that cancel."""
    inputs = _inputs(NARROW, 7, step=3, head=1, keys=keys, decay=1.0, initial=False, **WIDE)
    weights = [torch.ones_like(x) for x in delta_rule.reference(**inputs)]
    gradient = _differentiate(_triton, inputs, weights)["log_decay"]
    assert (gradient[:, 0] == 0).all() and (gradient[:, 1:] != 0).all()


@pytest.mark.parametrize("keys", ["constant", "random"])
def test_narrow_decays(keys: str) -> None:
    """Their gradient's terms, which all but cancel, are added up in float32."""
    inputs = _inputs(NARROW, 70, step=1, head=1, keys=keys, decay=1.0, initial=False, **WIDE)
    _check(inputs | {"log_decay": inputs["log_decay"].to(NARROW)}, NARROW)


def test_fast_decay_along_one_key_leaves_no_rounding() -> None:
    """Terms of the decays' gradient that cancel are of the same numbers, else these are left of it."""
    inputs = _inputs(NARROW, 63, step=2, beta=1.2, keys="constant", decay=8.0, initial=False, draw=1, **WIDE)
    _check(inputs, NARROW, least=0.05)


def test_some_chunks_reflect_and_others_do_not() -> None:
    inputs = _inputs(NARROW, 200, step=2, head=1, keys="constant", decay=1e-3, **WIDE)
    inputs["beta"][0, :70], inputs["beta"][1] = 2.0, 0.5
    exact = delta_rule.reference(**{name: x.double() for name, x in inputs.items()})
    with uninitialised_memory_is_nan():
        found = _triton(**inputs)
    for a, b in zip(found, exact, strict=True):
        assert float((a - b).norm() / b.norm()) < TOLERANCE[NARROW][0]


@pytest.mark.parametrize(
    ("step", "largest", "period", "width"),
    [(2, 1.9, 2, 64), (2, 1.9, 2, 128), (4, 1.2, 4, 64), (4, 1.2, 4, 128), (1, 2.0, 8, 64), (2, 2.0, 4, 64)],
)
def test_small_betas_beside_large_ones_lose_no_digits(step: int, largest: float, period: int, width: int) -> None:
    """Also where chunks reflect, in the last two cases."""
    inputs = _inputs(NARROW, 128 // step, step=step, key_width=width, value_width=width)
    inputs["beta"].fill_(largest)
    small = inputs["beta"].flatten(1, 2)[:, ::period]
    small.fill_(0.05)
    exact = {name: x.double() for name, x in inputs.items()}
    weights = [torch.ones_like(x) for x in delta_rule.reference(**exact)]
    exact = _differentiate(delta_rule.reference, exact, weights)["beta"].flatten(1, 2)[:, ::period]
    found = _differentiate(_triton, inputs, weights)["beta"].flatten(1, 2)[:, ::period]
    assert float((found - exact).norm() / exact.norm()) < TOLERANCE[NARROW][1]


@pytest.mark.parametrize("dtype", [NARROW, torch.float16])
def test_small_and_large_values_lose_no_digits(dtype: torch.dtype) -> None:
    inputs = _inputs(dtype, 40, step=1, key_width=32, value_width=32, head=1)
    output, state = _triton(**inputs)
    powers = (-60, 60) if dtype == NARROW else (-4, 4)
    for factor in (2.0**power for power in powers):
        scaled = {**inputs, "value": inputs["value"] * factor, "initial_state": inputs["initial_state"] * factor}
        found = _triton(**scaled)
        torch.testing.assert_close(found[0], output * factor, rtol=0, atol=0 if dtype == NARROW else 1e-6)
        torch.testing.assert_close(found[1], state * factor, rtol=1e-6 if dtype == NARROW else 1e-3, atol=0)


def test_slices_of_a_projection_are_read_in_place() -> None:
    inputs = _inputs(torch.float32, 20, step=2, key_width=16, value_width=16)
    names = ("key", "value", "beta", "query")
    parts = [inputs[name].flatten(2) for name in names]
    split = torch.cat(parts, -1).split([x.shape[-1] for x in parts], -1)
    slices = {name: x.view(inputs[name].shape) for name, x in zip(names, split, strict=True)}
    assert not any(x.is_contiguous() for x in slices.values())
    for a, b in zip(_triton(**inputs), _triton(**{**inputs, **slices}), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_a_reset_forgets() -> None:
    inputs = _inputs(torch.float32, 40, step=1)
    inputs["log_decay"][:, [5, 20, 21]] = -torch.inf
    for a, b in zip(_triton(**inputs), delta_rule.reference(**inputs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_either_result_alone_gives_gradients() -> None:
    inputs = _inputs(torch.float32, 20, step=1, key_width=16, value_width=16)
    for chosen in (0, 1):
        mine, exact = (
            torch.autograd.grad(f(**leaves)[chosen].square().sum(), list(leaves.values()), allow_unused=True)
            for f, leaves in (
                (f, {name: x.detach().clone().requires_grad_() for name, x in inputs.items()})
                for f in (_triton, delta_rule.chunked)
            )
        )
        for name, a, b in zip(inputs, mine, exact, strict=True):
            b = torch.zeros_like(inputs[name]) if b is None else b
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


def test_without_gradients_nothing_is_kept() -> None:
    inputs = _inputs(torch.float32, 20, step=2)
    _, _, _, _, _, u, states, *_ = custom_op._forward(*inputs_in_order(inputs), False)
    assert u.numel() == states.numel() == 0
    kept, plain = _triton(**inputs), _triton(**inputs, save=False)
    assert all(torch.equal(a, b) for a, b in zip(kept, plain, strict=True))


def inputs_in_order(inputs: dict[str, Tensor]) -> list[Tensor]:
    return [inputs[name] for name in ("query", "key", "value", "beta", "log_decay", "initial_state")]


def test_operator_has_a_schema_a_fake_and_gradients() -> None:
    inputs = {name: x.requires_grad_() for name, x in _inputs(torch.float32, 5, step=1, head=1).items()}
    torch.library.opcheck(
        custom_op._forward,
        (*inputs_in_order(inputs), True),
        test_utils=("test_schema", "test_faketensor", "test_autograd_registration"),
    )


def test_compiles_whole() -> None:
    inputs = {name: x.requires_grad_() for name, x in _inputs(torch.float32, 9, step=1, head=1).items()}

    def loss(**inputs: Tensor) -> Tensor:
        output, state = _triton(**inputs)
        return output.square().sum() + state.sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for a, b in zip(*(torch.autograd.grad(f(**inputs), list(inputs.values())) for f in (loss, compiled)), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.slow
def test_kernels_compile_without_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    """Every kernel as it is launched, for Ampere and Hopper; registers and spills are in the output."""
    script = Path(__file__).with_name("compile_delta_rule.py")
    environment = {name: x for name, x in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    with capsys.disabled():
        print(f"\n{done.stdout}")
