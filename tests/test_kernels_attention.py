"""Short convolution, gated norm, linear attention and selective scan: GPU kernels against loops in float64.

Without a GPU the kernels run in Triton's interpreter.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch._dynamo.testing
from torch import Tensor
from torch.nn import functional as F

pytest.importorskip("triton")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

from tsseq.kernels import gated_norm, linear_attention, selective_scan, short_convolution  # noqa: E402
from tsseq.kernels.gated_norm.triton import fused as fused_norm  # noqa: E402
from tsseq.kernels.linear_attention.custom_op import _tiling  # noqa: E402
from tsseq.kernels.linear_attention.custom_op import fused as fused_attention  # noqa: E402
from tsseq.kernels.selective_scan.triton import fused as fused_selective  # noqa: E402
from tsseq.kernels.short_convolution.triton import fused as fused_convolution  # noqa: E402
from tsseq.testing import uninitialised_memory_is_nan  # noqa: E402

NARROW = (torch.bfloat16, torch.float16)
TOLERANCE = {torch.float32: (1e-5, 1e-5), torch.float16: (2e-3, 3e-3), torch.bfloat16: (5e-3, 1e-2)}
"""Of results and of gradients: norm of the error over norm of the exact tensor."""
NARROWED = {"x", "gate", "query", "key", "value", "delta", "B", "C"}


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape))).to(DEVICE)


def strided(x: Tensor) -> Tensor:
    """The same values as a slice of a wider tensor, whose tokens still follow one another at one stride."""
    return torch.cat([x, torch.full_like(x, torch.nan)], dim=2)[:, :, : x.shape[2]]


def leaves(x: Any) -> list[Tensor]:
    return [x] if isinstance(x, Tensor) else [leaf for part in x for leaf in leaves(part)]


def differentiate(
    function: Callable[..., Any], inputs: dict[str, Any], weights: list[Tensor] | torch.dtype, **options: Any
):
    """Results, and gradients of a weighted sum of them; given a type, weights are drawn, those of the output in it."""
    results = leaves(function(**inputs, **options))
    if isinstance(weights, torch.dtype):
        types = [weights, *(torch.float32 for _ in results[1:])]
        weights = [normal(*x.shape, seed=i).to(dtype) for i, (x, dtype) in enumerate(zip(results, types, strict=True))]
    tensors = [x for value in inputs.values() for x in leaves(value)]
    gradients = torch.autograd.grad(results, tensors, [w.to(x.dtype) for w, x in zip(weights, results, strict=True)])
    return results, list(gradients), weights


def cast(inputs: dict[str, Any], dtype: torch.dtype, narrow: torch.dtype | None = None) -> dict[str, Any]:
    def one(x: Tensor, to: torch.dtype) -> Tensor:
        return x.detach().to(to).requires_grad_()

    return {
        name: tuple(one(y, dtype) for y in x)
        if isinstance(x, tuple)
        else one(x, narrow if narrow is not None and name in NARROWED else dtype)
        for name, x in inputs.items()
    }


def check(fused: Callable[..., Any], op: Any, inputs: dict[str, Any], dtype: torch.dtype, **options: Any) -> None:
    rounded = cast(inputs, torch.float32, dtype)
    exact = differentiate(op.reference, cast(rounded, torch.float64), dtype, **options)
    with uninitialised_memory_is_nan():
        found = differentiate(fused, cast(rounded, torch.float32, dtype), exact[2], **options)
    for kind, tolerance, mine, theirs in zip(
        ("result", "gradient"), TOLERANCE[dtype], found[:2], exact[:2], strict=True
    ):
        for i, (a, b) in enumerate(zip(mine, theirs, strict=True)):
            error = float((a - b).detach().norm() / (b.detach().norm() or 1.0))
            assert error <= tolerance, f"{kind} {i} differs by {error:.2g}"


CONVOLUTIONS = {
    "one position": dict(length=1, width=64, kernel=4),
    "shorter than the filter": dict(length=2, width=24, kernel=4, head_dim=24),
    "odd length": dict(length=7, width=64, kernel=4, head_dim=32),
    "below a strip": dict(length=63, width=64, kernel=4, head_dim=64, state=False),
    "strips": dict(length=65, width=48, kernel=4, head_dim=24),
    "long": dict(length=100, width=32, kernel=3, state=False),
    "no activation": dict(length=9, width=40, kernel=2, silu=False),
    "32 taps": dict(length=40, width=32, kernel=32, head_dim=32),
    "shorter than 32 taps": dict(length=5, width=32, kernel=32),
    "bfloat16": dict(length=33, width=64, kernel=4, head_dim=32, dtype=torch.bfloat16),
    "float16": dict(length=33, width=64, kernel=4, head_dim=32, dtype=torch.float16),
}


@pytest.mark.parametrize("case", CONVOLUTIONS.values(), ids=CONVOLUTIONS.keys())
def test_short_convolution(case: dict[str, Any]) -> None:
    length, width, kernel, *_ = case.values()
    batch = 1 if kernel > 8 else 2
    inputs = {"x": strided(normal(batch, length, width)), "weight": normal(width, kernel)}
    if case.get("state", True):
        inputs |= {"bias": normal(width, 2)[:, 0], "initial_state": normal(batch, kernel - 1, width)}
    options = {name: case[name] for name in ("head_dim", "silu") if name in case}
    check(fused_convolution, short_convolution, inputs, case.get("dtype", torch.float32), **options)


@pytest.mark.parametrize("silu", [True, False])
@pytest.mark.parametrize(("length", "heads", "width"), [(1, 2, 32), (65, 3, 24), (300, 1, 64)])
def test_gated_norm(length: int, heads: int, width: int, silu: bool) -> None:
    x, gate = (strided(normal(2, length, heads, width, seed=s)) for s in (0, 1))
    inputs = {"x": x, "gate": gate, "weight": normal(heads, width)}
    check(fused_norm, gated_norm, inputs, torch.float32, silu=silu)
    for dtype in NARROW:
        check(fused_norm, gated_norm, inputs, dtype, silu=silu)


def attention_inputs(length: int, width: int = 16, wide: int = 16, heads: int = 2) -> dict[str, Any]:
    query, key = (normal(1, length, heads, width, seed=s) for s in (0, 1))
    return {
        "query": strided(query),
        "key": key,
        "value": normal(1, length, heads, wide, seed=2),
        "log_decay": F.logsigmoid(2 + normal(1, length, heads, seed=3)),
        "input_gate": normal(1, length, heads, seed=4) - 1,
        "initial_state": (normal(1, heads, width, wide), normal(1, heads, width), normal(1, heads)),
    }


def without(inputs: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: x for name, x in inputs.items() if name not in names}


@pytest.mark.parametrize("length", [1, 7, 15, 16, 17, 63, 64, 65])
def test_mlstm(length: int) -> None:
    inputs = attention_inputs(length)
    check(fused_attention, linear_attention, inputs, torch.float32, normalize=True)
    check(fused_attention, linear_attention, without(inputs, "initial_state"), torch.float32, normalize=True)


def test_mlstm_long() -> None:
    check(fused_attention, linear_attention, attention_inputs(1000, heads=1), torch.float32, normalize=True)


def test_mlstm_hard_gates() -> None:
    """Resets, open gates, and input gates of both signs and every size; positive denominators do not cancel."""
    inputs = without(attention_inputs(65), "initial_state")
    inputs |= {"query": inputs["query"].abs(), "key": inputs["key"].abs(), "input_gate": 10 * normal(1, 65, 2)}
    inputs["log_decay"] = -(10 * normal(1, 65, 2, seed=5)).exp()
    check(fused_attention, linear_attention, inputs, torch.float32, normalize=True)


@pytest.mark.parametrize("widths", [(16, 16), (24, 40), (64, 64), (16, 96), (72, 80)])
def test_mlstm_narrow(widths: tuple[int, int]) -> None:
    """The last two have more values than a program takes at a time, the last a kernel of its own for the read-outs.

    The gradient of the first maximum is one number a head in which large terms cancel; it is held in float32 alone.
    """
    inputs = attention_inputs(70, *widths, heads=1)
    memory, normalizer, maximum = inputs["initial_state"]
    inputs |= {"query": inputs["query"].abs(), "key": inputs["key"].abs()}
    for dtype in NARROW:
        check_from(maximum, inputs | {"initial_state": (memory, normalizer.abs())}, dtype)


def check_from(maximum: Tensor, inputs: dict[str, Any], dtype: torch.dtype) -> None:
    """The mLSTM from a first maximum that takes no gradient."""

    def starting(function: Callable[..., Any]) -> Callable[..., Any]:
        def run(initial_state: tuple[Tensor, Tensor], **rest: Any) -> Any:
            state = (*initial_state, maximum.to(initial_state[0].dtype))
            return function(**rest, initial_state=state, normalize=True)

        return run

    op = SimpleNamespace(reference=starting(linear_attention.reference))
    check(starting(fused_attention), op, inputs, dtype)


@pytest.mark.parametrize("decay", [0.0, 0.001, 0.1])
@pytest.mark.parametrize("noise", [0.01, 0.3])
def test_mlstm_narrow_along_one_key(noise: float, decay: float) -> None:
    """Queries all but at right angles to it read next to nothing, divided by next to nothing."""
    inputs = without(attention_inputs(230, 64, 64), "initial_state")
    inputs["key"] = normal(1, 1, 2, 64, seed=5) + noise * inputs["key"]
    inputs["log_decay"] = decay * F.logsigmoid(normal(1, 230, 2, seed=3))
    inputs["input_gate"] = normal(1, 230, 2, seed=4)
    early, late = ({name: x[:, part] for name, x in inputs.items()} for part in (slice(130), slice(130, None)))
    check(fused_attention, linear_attention, early, torch.bfloat16, normalize=True)
    *state, maximum = linear_attention.reference(**early, normalize=True)[1]
    check_from(maximum, late | {"initial_state": tuple(state)}, torch.bfloat16)


ALONG = {"random": (0.0, 1.0), "smooth": (1.0, 0.05), "constant": (1.0, 0.01)}
"""How much all keys have in common, and how much each has, or each step of the path they are on, of its own."""


@pytest.mark.parametrize("decay", [None, 1e-3, 0.1, 1.0, 8.0] if DEVICE == "cuda" else [None, 8.0])
@pytest.mark.parametrize("keys", ALONG)
def test_mlstm_narrow_over_a_grid(keys: str, decay: float | None) -> None:
    """Lengths about a chunk's and a long one (not in the interpreter, which is slow), from a state and from none.

    Left out is where one query of thousands, divided by next to nothing, makes up most of a norm.
    """
    for length in (1, 7, 63, 64, 65, 1000) if DEVICE == "cuda" else (1, 7, 65):
        if (keys, decay, length) == ("smooth", None, 1000):
            continue
        inputs = attention_inputs(length, 64, 64, heads=4)
        common, own = ALONG[keys]
        path = inputs["key"].cumsum(1) if keys == "smooth" else inputs["key"]
        inputs["key"] = common * normal(1, 1, 4, 64, seed=5) + own * path
        inputs["input_gate"] = normal(1, length, 4, seed=4)
        if decay is None:
            del inputs["log_decay"]
        else:
            inputs["log_decay"] = decay * F.logsigmoid(normal(1, length, 4, seed=3))
        for some in (inputs, without(inputs, "initial_state")):
            check(fused_attention, linear_attention, some, torch.bfloat16, normalize=True)


@pytest.mark.parametrize("length", [1, 17, 64])
def test_sums_without_a_normaliser(length: int) -> None:
    inputs = attention_inputs(length)
    state = {"initial_state": inputs["initial_state"][:1]}
    check(fused_attention, linear_attention, inputs | state, torch.float32)
    check(fused_attention, linear_attention, without(inputs, "input_gate") | state, torch.float32)
    bare = without(inputs, "input_gate", "log_decay", "initial_state")
    check(fused_attention, linear_attention, bare, torch.float32, scale=1.0)


@pytest.mark.parametrize(("length", "strength"), [(1, 1.0), (17, 1.0), (33, 8.0), (65, 1.0)])
def test_decay_per_channel(length: int, strength: float) -> None:
    inputs = without(attention_inputs(length, wide=24), "input_gate")
    inputs["log_decay"] = -(strength * normal(1, length, 2, 16)).exp()
    inputs["initial_state"] = inputs["initial_state"][:1]
    check(fused_attention, linear_attention, inputs, torch.float32)
    for dtype in NARROW:
        check(fused_attention, linear_attention, without(inputs, "initial_state"), dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("widths", [(64, 64), (128, 128), (64, 256), (256, 256)])
def test_the_key_kernel_has_no_loads_in_flight_from_slice_to_slice(dtype: torch.dtype, widths: tuple[int, int]) -> None:
    """Compiled for Hopper with such a loop it gives wrong gradients; the interpreter cannot tell."""
    query, value = (torch.empty(1, 1, 1, width, dtype=dtype) for width in widths)
    key = _tiling(query, value).key
    assert key.values >= widths[1] or key.stages == 1


def test_decay_per_channel_with_values_in_slices() -> None:
    inputs = without(attention_inputs(17, wide=80, heads=1), "input_gate", "initial_state")
    inputs["log_decay"] = F.logsigmoid(normal(1, 17, 1, 16))
    check(fused_attention, linear_attention, inputs, torch.float32)


@pytest.mark.parametrize(("length", "width", "state"), [(1, 24, 8), (7, 40, 20), (33, 32, 16)])
def test_selective_scan(length: int, width: int, state: int) -> None:
    """20 states are more than a program takes."""
    inputs = {
        "x": strided(normal(2, length, width)),
        "delta": F.softplus(normal(2, length, width, seed=1)),
        "A": -normal(width, state).exp(),
        "B": normal(2, length, state, seed=2),
        "C": strided(normal(2, length, state, seed=3)),
        "D": normal(width, 2)[:, 0],
        "initial_state": normal(2, width, state),
    }
    check(fused_selective, selective_scan, inputs, torch.float32)
    for dtype in NARROW:
        check(fused_selective, selective_scan, without(inputs, "D", "initial_state"), dtype)


@pytest.mark.parametrize("function", [linear_attention.chunked, fused_attention])
def test_read_out_does_not_depend_on_the_first_maximum(function: Callable[..., Any]) -> None:
    inputs = attention_inputs(20)
    memory, normalizer, _ = inputs["initial_state"]
    outputs = []
    for maximum in (-torch.inf, -3.0, 0.0, 5.0):
        state = (0 * memory, 0 * normalizer, torch.full(memory.shape[:2], maximum, device=DEVICE))
        outputs.append(function(**{**inputs, "initial_state": state}, normalize=True)[0])
    for other in outputs[1:]:
        torch.testing.assert_close(other, outputs[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("function", [linear_attention.chunked, fused_attention])
def test_a_sequence_may_be_cut_anywhere(function: Callable[..., Any]) -> None:
    inputs = attention_inputs(40)
    state = inputs.pop("initial_state")
    whole, last = function(**inputs, initial_state=state, normalize=True)
    for cut in (1, 16, 39):
        first, middle = function(**{n: x[:, :cut] for n, x in inputs.items()}, initial_state=state, normalize=True)
        second, end = function(**{n: x[:, cut:] for n, x in inputs.items()}, initial_state=middle, normalize=True)
        torch.testing.assert_close(torch.cat([first, second], 1), whole, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(end, last, rtol=1e-5, atol=1e-5)


def test_saturated_gates_give_zeros_and_finite_gradients() -> None:
    """Input gates of minus 200 underflow in float32: the read-out is zero, not a quotient of zeros."""
    inputs = without(attention_inputs(20), "initial_state")
    inputs["input_gate"] = inputs["input_gate"] - 200
    results, gradients, _ = differentiate(fused_attention, cast(inputs, torch.float32), torch.float32, normalize=True)
    assert float(results[0].detach().abs().max()) < 1e-30
    assert all(bool(x.isfinite().all()) for x in (*results, *gradients))


@pytest.mark.parametrize("decay", ["head", "key"])
def test_memory_of_the_chunked_form_is_linear_in_time(decay: str) -> None:
    def saved_bytes(length: int) -> int:
        inputs = without(attention_inputs(length), "input_gate", "initial_state")
        if decay == "key":
            inputs["log_decay"] = inputs["log_decay"][..., None].expand(-1, -1, -1, 16)
        storages: dict[int, int] = {}

        def pack(x: Tensor) -> Tensor:
            storages[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            linear_attention.chunked(**cast(inputs, torch.float32))
        return sum(storages.values())

    assert saved_bytes(2048) < 2.2 * saved_bytes(1024)


def test_wrong_shapes_are_named() -> None:
    inputs = attention_inputs(5)
    with pytest.raises(ValueError, match=r"expected input_gate of shape \(1, 5, 2\), got \(1, 4, 2\)"):
        linear_attention.linear_attention(**inputs | {"input_gate": inputs["input_gate"][:, 1:]}, normalize=True)
    with pytest.raises(ValueError, match=r"expected an initial_state of shapes \[\(1, 2, 16, 16\)\]"):
        linear_attention.linear_attention(**inputs)
    vector = {"log_decay": normal(1, 5, 2, 16), "initial_state": None}
    with pytest.raises(ValueError, match="per key channel"):
        linear_attention.linear_attention(**inputs | vector, normalize=True)
    with pytest.raises(ValueError, match=r"expected a weight of shape \(8, kernel\), got \(9, 4\)"):
        short_convolution.short_convolution(normal(1, 5, 8), normal(9, 4))
    with pytest.raises(ValueError, match="divisible by head_dim=3"):
        short_convolution.short_convolution(normal(1, 5, 8), normal(8, 4), head_dim=3)
    with pytest.raises(ValueError, match=r"expected a weight of shape \(2, 4\)"):
        gated_norm.gated_norm(normal(1, 5, 2, 4), normal(1, 5, 2, 4), normal(4))
    with pytest.raises(ValueError, match=r"expected B and C of shape \(1, 5, 3\)"):
        x = normal(1, 5, 8)
        selective_scan.selective_scan(x, x, normal(8, 3), normal(1, 5, 4), normal(1, 5, 3))


def layer(x: Tensor) -> Tensor:
    """All of them in a row."""
    y, window = fused_convolution(x, x.new_ones(32, 4), head_dim=16)
    heads = y.unflatten(-1, (2, 16))
    o, state = fused_attention(heads, heads, heads, -x[..., :2].abs(), x[..., 2:4], normalize=True)
    p, memory = fused_attention(heads, heads, heads, -heads.abs())
    s, last = fused_selective(y, y.abs(), -x.new_ones(32, 4), y[..., :4], y[..., 4:8])
    z = fused_norm(o + p, heads, x.new_ones(2, 16)).flatten(-2) + s
    return z.square().sum() + sum(part.sum() for part in (window, *state, *memory, last))


def test_one_graph_whatever_batch_and_length() -> None:
    torch._dynamo.reset()
    counts = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend=counts)
    compilations = set()
    for batch, length in ((2, 9), (3, 20)):
        x = normal(batch, length, 32).requires_grad_()
        (eager,), (whole,) = (torch.autograd.grad(f(x), x) for f in (layer, compiled))
        torch.testing.assert_close(whole, eager)
        compilations.add(counts.frame_count)
    assert len(compilations) == 1


def test_operators_have_schemas_and_fakes() -> None:
    tests = ("test_schema", "test_faketensor", "test_autograd_registration")
    x = normal(2, 5, 32).requires_grad_()
    heads = normal(2, 5, 2, 16).requires_grad_()
    gate, memory = normal(2, 5, 2).requires_grad_(), normal(2, 2, 16, 16)
    ops = torch.ops.tsseq
    for op, arguments in (
        (ops.short_convolution_forward, (x, normal(32, 4), None, None, True, 16, 1e-6)),
        (ops.gated_norm_forward, (heads, heads, normal(2, 16), True, 1e-5)),
        (ops.linear_attention_forward, (heads, heads, heads, gate, gate, None, None, None, True, 1.0, True)),
        (ops.channelwise_attention_forward, (heads, heads, heads, heads, memory, 1.0, True)),
        (ops.selective_scan_forward, (x, x, normal(32, 3), normal(2, 5, 3), normal(2, 5, 3), None, None, True)),
    ):
        torch.library.opcheck(op, arguments, test_utils=tests)


@pytest.mark.slow
def test_kernels_compile_without_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    """Every kernel as it is launched, for Ampere and Hopper; registers and spills are in the output."""
    script = Path(__file__).with_name("compile_attention.py")
    environment = {name: x for name, x in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    with capsys.disabled():
        print(f"\n{done.stdout}")
