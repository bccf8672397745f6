"""Diagonal scan, block scans and sLSTM: GPU kernels against loops in float64, and what the loops themselves must obey.

Without a GPU the kernels run in Triton's interpreter.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.linalg import hadamard as sylvester
from torch import Tensor

pytest.importorskip("triton")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

from tsseq.kernels import block_scan, diagonal_scan, slstm  # noqa: E402
from tsseq.kernels.block_scan import triton as blocks  # noqa: E402
from tsseq.kernels.block_scan import triton_controlled as controlled_blocks  # noqa: E402
from tsseq.kernels.block_scan import triton_hadamard  # noqa: E402
from tsseq.kernels.diagonal_scan import triton as diagonal  # noqa: E402
from tsseq.kernels.slstm import triton as cell  # noqa: E402
from tsseq.testing import uninitialised_memory_is_nan  # noqa: E402

NARROW = (torch.bfloat16, torch.float16)
TOLERANCE = {torch.float32: (1e-5, 1e-5), torch.float16: (2e-3, 3e-3), torch.bfloat16: (5e-3, 1e-2)}
"""Of results and of gradients: norm of the error over norm of the exact tensor."""


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(shape, generator=generator, dtype=dtype).to(DEVICE)


def uniform(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed + sum(shape))).to(DEVICE)


def strided(x: Tensor) -> Tensor:
    """The same values, with time first in memory and gaps between the entries."""
    room = torch.full((x.shape[1], x.shape[0], *x.shape[2:], 2), torch.nan, dtype=x.dtype, device=x.device)
    view = room[..., 1].transpose(0, 1)
    return view.copy_(x)


def differentiate(function: Callable[..., Any], inputs: dict[str, Any], weights: list[Tensor]) -> dict[str, Tensor]:
    leaves = {name: x for name, x in inputs.items() if isinstance(x, Tensor) and x.dtype != torch.bool}
    for x in leaves.values():
        x.requires_grad_()
    results = function(**inputs)
    weights = [w.to(x.dtype) for w, x in zip(weights, results, strict=True)]
    gradients = torch.autograd.grad(results, list(leaves.values()), weights)
    named = {f"result {i}": x.detach() for i, x in enumerate(results)}
    return named | dict(zip((f"gradient of {name}" for name in leaves), gradients, strict=True))


def widened(x: Any) -> Any:
    if not isinstance(x, Tensor) or x.dtype == torch.bool:
        return x
    return x.detach().to(torch.complex128 if x.is_complex() else torch.float64)


def check(
    fused: Callable[..., Any], reference: Callable[..., Any], inputs: dict[str, Any], narrow: bool = False
) -> None:
    exact_inputs = {name: widened(x) for name, x in inputs.items()}
    results = reference(**exact_inputs)
    weights = [normal(*x.shape, seed=i, dtype=x.dtype) for i, x in enumerate(results)]
    exact = differentiate(reference, exact_inputs, weights)
    with uninitialised_memory_is_nan():
        found = differentiate(fused, inputs, weights)
    tolerances = TOLERANCE[next(x.dtype for x in inputs.values() if isinstance(x, Tensor)) if narrow else torch.float32]
    for name, x in exact.items():
        error = float((widened(found[name]) - x).norm() / x.norm().clamp(min=1e-12))
        assert error <= tolerances[name.startswith("gradient")], f"{name} differs by {error:.2g}"


DECAYS: dict[str, Callable[..., Tensor]] = {
    "anything": lambda *shape: torch.sigmoid(2 * normal(*shape)),
    "near one": lambda *shape: 1 - 1e-3 * uniform(*shape),
    "near zero": lambda *shape: 1e-3 * normal(*shape),
}


def diagonal_inputs(length: int, decay: Tensor | None = None, width: int = 6, state: bool = True) -> dict[str, Any]:
    inputs = {"decay": DECAYS["anything"](2, length, width) if decay is None else decay}
    dtype = inputs["decay"].dtype
    inputs["inputs"] = normal(2, length, width, dtype=dtype)
    return inputs | ({"initial_state": normal(2, width, dtype=dtype)} if state else {})


@pytest.mark.parametrize("length", [1, 7, 63, 64, 65, 130])
def test_diagonal_scan(length: int) -> None:
    check(diagonal.fused, diagonal_scan.reference, diagonal_inputs(length))
    check(diagonal.fused, diagonal_scan.reference, diagonal_inputs(length, state=False) | {"reverse": True})


@pytest.mark.parametrize("decay", DECAYS.values(), ids=DECAYS.keys())
def test_diagonal_scan_of_hard_decays_and_packed_series(decay: Callable[..., Tensor]) -> None:
    resets = {"resets": uniform(2, 70) < 0.1}
    inputs = {name: strided(x) if x.ndim == 3 else x for name, x in diagonal_inputs(70, decay(2, 70, 6)).items()}
    for reverse in (False, True):
        check(diagonal.fused, diagonal_scan.reference, inputs | resets | {"reverse": reverse})
    check(diagonal.fused, diagonal_scan.reference, diagonal_inputs(20, decay(6)) | {"reverse": True})


@pytest.mark.parametrize("length", [7, 65])
def test_complex_diagonal_scan(length: int) -> None:
    constant = torch.polar(0.9 + 0.099 * uniform(3), 6.3 * uniform(3, seed=1))
    check(diagonal.fused, diagonal_scan.reference, diagonal_inputs(length, constant, width=3))
    varying = torch.polar(uniform(2, length, 3), 6.3 * uniform(2, length, 3, seed=1))
    reset = {"reverse": True, "resets": uniform(2, length) < 0.2}
    check(diagonal.fused, diagonal_scan.reference, diagonal_inputs(length, varying, width=3, state=False) | reset)


def test_diagonal_scan_in_half_precision_and_of_mixed_types() -> None:
    inputs = diagonal_inputs(65, width=70)
    narrow = {name: x.bfloat16() if x.ndim == 3 else x for name, x in inputs.items()}
    check(diagonal.fused, diagonal_scan.reference, narrow, narrow=True)
    inputs = diagonal_inputs(9) | {"inputs": normal(2, 9, 6, dtype=torch.complex64)}
    check(diagonal.fused, diagonal_scan.reference, inputs)


def block_inputs(length: int, block: int, size: int, state: bool = True, inputs: bool = True) -> dict[str, Any]:
    given = {"transitions": 0.6 / size**0.5 * normal(2, length, block, size, size)}
    given |= {"inputs": normal(2, length, block, size)} if inputs else {}
    return given | ({"initial_state": normal(2, block, size)} if state else {})


@pytest.mark.parametrize(("block", "size"), [(5, 1), (18, 2), (9, 4), (5, 8), (3, 16), (1, 23), (1, 64)])
def test_block_scan(block: int, size: int) -> None:
    check(blocks.fused, block_scan.reference.block_scan, block_inputs(9, block, size))
    bare = block_inputs(5, block, size, state=False)
    check(blocks.fused, block_scan.reference.block_scan, bare | {"transitions": strided(bare["transitions"])})


@pytest.mark.parametrize("length", [1, 7, 63, 64, 65])
def test_block_scan_of_every_length(length: int) -> None:
    check(blocks.fused, block_scan.reference.block_scan, block_inputs(length, 3, 4, inputs=length % 2 == 0))


@pytest.mark.parametrize("dtype", NARROW)
def test_block_scan_in_half_precision(dtype: torch.dtype) -> None:
    inputs = {name: x.to(dtype) if x.ndim > 3 else x for name, x in block_inputs(17, 9, 4).items()}
    check(blocks.fused, block_scan.reference.block_scan, inputs, narrow=True)


def control_inputs(length: int, omega: int, block: int, size: int) -> dict[str, Any]:
    weights = normal(omega, block, size, size) / size**0.5
    increments = normal(2, length, omega) / (length * omega) ** 0.5
    return {"increments": increments, "weights": weights, "initial_state": normal(2, block, size)}


@pytest.mark.parametrize(
    ("length", "omega", "block", "size"), [(1, 3, 5, 2), (9, 5, 9, 4), (65, 2, 3, 4), (7, 17, 2, 8), (5, 3, 1, 23)]
)
def test_block_scan_of_increments(length: int, omega: int, block: int, size: int) -> None:
    inputs = control_inputs(length, omega, block, size)
    reference = block_scan.reference.controlled_block_scan
    check(controlled_blocks.controlled, reference, inputs)
    del inputs["initial_state"]
    check(controlled_blocks.controlled, reference, inputs | {"inputs": normal(2, length, block, size)})


def test_a_wide_control_forms_its_matrices_in_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block_scan.chunked, "NUMBERS_PER_SLICE", 1)
    inputs = control_inputs(40, 40, 2, 4) | {"inputs": normal(2, 40, 2, 4)}
    check(controlled_blocks.controlled, block_scan.reference.controlled_block_scan, inputs)


@pytest.mark.parametrize(("batch", "width"), [(17, 16), (5, 32), (3, 128), (1, 256), (1, 1024)])
def test_hadamard_scan(batch: int, width: int) -> None:
    inputs = {"diagonal": 0.3 * normal(batch, 4, width), "inputs": normal(batch, 4, width)}
    state = {"initial_state": normal(batch, width)}
    check(triton_hadamard.hadamard, block_scan.reference.hadamard_scan, inputs | state)
    check(
        triton_hadamard.hadamard, block_scan.reference.hadamard_scan, {"diagonal": strided(inputs["diagonal"])} | state
    )


def cell_inputs(length: int, key: int, batch: int = 2, head: int = 2, scale: float = 1.0) -> dict[str, Any]:
    names = ("input_gate", "forget_gate", "cell_input", "output_gate")
    inputs = {name: scale * normal(batch, length, head, key, seed=i) for i, name in enumerate(names)}
    inputs["recurrent"] = 0.5 / key**0.5 * normal(4, head, key, key)
    c, n, m, h = (normal(batch, head, key, seed=i) for i in range(4))
    return inputs | {"initial_state": torch.stack([c, 1 + n.abs(), m, h], dim=1)}


@pytest.mark.parametrize(("length", "key", "batch"), [(1, 16, 1), (7, 16, 9), (20, 24, 2), (70, 8, 1)])
def test_slstm(length: int, key: int, batch: int) -> None:
    inputs = cell_inputs(length, key, batch, head=1)
    check(cell.fused, slstm.reference, inputs)
    del inputs["initial_state"]
    inputs["forget_gate"] = strided(inputs["forget_gate"])
    check(cell.fused, slstm.reference, inputs)


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("length", [1, 21])
def test_slstm_in_half_precision(length: int, dtype: torch.dtype) -> None:
    inputs = {name: x.to(dtype) if name != "initial_state" else x for name, x in cell_inputs(length, 32).items()}
    check(cell.fused, slstm.reference, inputs, narrow=True)


def test_slstm_without_gradients_keeps_nothing() -> None:
    inputs = cell_inputs(5, 16)
    with torch.no_grad():
        h, state = cell.fused(**inputs)
    exact = slstm.reference(**inputs)
    torch.testing.assert_close(h, exact[0])
    torch.testing.assert_close(state, exact[1])


@pytest.mark.parametrize("scale", [100.0, 1e4])
@pytest.mark.parametrize("form", [slstm.reference, slstm.chunked, cell.fused])
def test_extreme_gates_stay_finite(form: Callable[..., Any], scale: float) -> None:
    inputs = {name: x.requires_grad_() for name, x in cell_inputs(12, 16, scale=scale).items()}
    h, state = form(**inputs)
    gradients = torch.autograd.grad(h.sum() + state.sum(), list(inputs.values()))
    assert all(x.isfinite().all() for x in (h, state, *gradients))


def test_a_shift_between_stabiliser_and_cell_is_invisible() -> None:
    inputs = {name: x.double() for name, x in cell_inputs(20, 8).items()}
    c, n, m, h = inputs["initial_state"].unbind(1)
    shift = normal(*m.shape, dtype=torch.float64)
    shifted = torch.stack([c * shift.exp(), n * shift.exp(), m - shift, h], dim=1)
    for form in (slstm.reference, slstm.chunked):
        for a, b in zip(form(**inputs), form(**inputs | {"initial_state": shifted}), strict=True):
            torch.testing.assert_close(a, b)


def test_packed_series_are_scanned_as_if_alone() -> None:
    inputs = {name: x.double() for name, x in diagonal_inputs(20, state=False).items()}
    resets = torch.zeros(2, 20, dtype=torch.bool, device=DEVICE)
    resets[:, [0, 6, 7]] = True
    for reverse in (False, True):
        packed, _ = diagonal_scan.diagonal_scan(**inputs, resets=resets, reverse=reverse)
        for part in (slice(0, 6), slice(6, 7), slice(7, 20)):
            alone, _ = diagonal_scan.diagonal_scan(inputs["decay"][:, part], inputs["inputs"][:, part], reverse=reverse)
            torch.testing.assert_close(packed[:, part], alone)


def test_backwards_is_forwards_on_a_flipped_series() -> None:
    inputs = {name: x.double() for name, x in diagonal_inputs(20).items()}
    flipped = {name: x.flip(1) if x.ndim == 3 else x for name, x in inputs.items()}
    states, last = diagonal_scan.diagonal_scan(**inputs, reverse=True)
    expected, expected_last = diagonal_scan.diagonal_scan(**flipped)
    torch.testing.assert_close(states.flip(1), expected)
    torch.testing.assert_close(last, expected_last)


def test_hadamard_transitions_are_sylvester_matrices() -> None:
    diagonal = normal(1, 1, 16, dtype=torch.float64)
    state = torch.eye(16, dtype=torch.float64, device=DEVICE)
    states, _ = block_scan.hadamard_scan(diagonal.expand(16, -1, -1), None, state)
    h = torch.from_numpy(sylvester(16)).to(state) / 4
    torch.testing.assert_close(states[:, 0].T, state + h * diagonal[0, 0])


def test_diagonal_dense_is_one_block_diagonal_matrix() -> None:
    rates, dense = normal(2, 9, 3, dtype=torch.float64), normal(2, 9, 4, 4, dtype=torch.float64) / 4
    inputs, state = normal(2, 9, 7, dtype=torch.float64), normal(2, 7, dtype=torch.float64)
    whole = torch.zeros(2, 9, 1, 7, 7, dtype=torch.float64, device=DEVICE)
    whole[:, :, 0, :3, :3], whole[:, :, 0, 3:, 3:] = torch.diag_embed(rates), dense
    expected = block_scan.reference.block_scan(whole, inputs[:, :, None], state[:, None])
    found = block_scan.diagonal_dense_scan(rates, dense, inputs, state)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b.squeeze(-2))


def test_long_series_in_plain_torch() -> None:
    """Several chunks and a remainder, against the loop."""
    length = 1000
    constant = torch.polar(0.9 + 0.099 * uniform(5), 6.3 * uniform(5))
    cases = [
        (diagonal_scan, diagonal_inputs(length)),
        (diagonal_scan, diagonal_inputs(length, constant, width=5) | {"reverse": True}),
    ]
    for module, inputs in cases:
        check(module.chunked, module.reference, inputs)
    check(block_scan.chunked.block_scan, block_scan.reference.block_scan, block_inputs(length, 2, 4))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: diagonal_scan.diagonal_scan(normal(3), normal(2, 0, 3)), "time >= 1"),
        (lambda: diagonal_scan.diagonal_scan(normal(4), normal(2, 5, 3)), "decay"),
        (lambda: diagonal_scan.diagonal_scan(normal(3) + 1j, normal(2, 5, 3)), "complex"),
        (lambda: diagonal_scan.diagonal_scan(normal(3), normal(2, 5, 3), resets=normal(2, 5)), "boolean"),
        (lambda: block_scan.block_scan(normal(2, 5, 3, 4, 3)), "transitions"),
        (lambda: block_scan.block_scan(normal(2, 5, 3, 4, 4), normal(2, 5, 3, 3)), "inputs"),
        (lambda: block_scan.controlled_block_scan(normal(2, 5, 3), normal(4, 2, 2, 2)), "weights"),
        (lambda: block_scan.hadamard_scan(normal(2, 5, 12)), "power of two"),
        (lambda: slstm.slstm(*[normal(2, 5, 2, 4)] * 4, normal(4, 2, 4, 5)), "recurrent"),
    ],
)
def test_shapes_that_do_not_fit_are_named(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_operators_are_whole_under_compilation() -> None:
    cases: list[tuple[Callable[..., Any], dict[str, Any]]] = [
        (diagonal.fused, diagonal_inputs(9)),
        (blocks.fused, block_inputs(3, 2, 2)),
        (controlled_blocks.controlled, control_inputs(3, 2, 2, 2)),
        (triton_hadamard.hadamard, {"diagonal": normal(2, 2, 16)}),
        (cell.fused, cell_inputs(2, 8)),
    ]
    for function, inputs in cases:
        compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
        weights = [torch.ones_like(x) for x in function(**inputs)]
        for a, b in zip(
            differentiate(compiled, inputs, weights).values(),
            differentiate(function, inputs, weights).values(),
            strict=True,
        ):
            torch.testing.assert_close(a, b)


@pytest.mark.slow
def test_kernels_compile_without_a_gpu() -> None:
    script = Path(__file__).with_name("compile_scans.py")
    environment = {name: x for name, x in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True)
    print(done.stdout)
    assert done.returncode == 0, done.stderr
