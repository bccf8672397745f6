"""Contracts of the package's interfaces, shipped so that outside implementations can be held to them.

Each check raises AssertionError naming the case that failed. Tolerances are hard: a form that needs a softer one
is wrong.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any

import torch
from torch import Generator, Tensor

from tsseq.array_typing import State
from tsseq.forecaster import Forecaster
from tsseq.mixers.base import SequenceMixer
from tsseq.scaler import Scale, fit_scale
from tsseq.synthetic.base import Prior

if TYPE_CHECKING:
    from tsseq.kernels import Op

OP_LENGTHS = (1, 7, 63, 64, 65)
OP_TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}
"""Largest error of a fast form, relative to the largest entry of the exact result."""


def check_op(op: "Op", lengths: tuple[int, ...] = OP_LENGTHS, device: str = "cpu") -> None:
    """Hold an op's dispatched function and its chunked form to its reference in float64.

    Compared are outputs, final states and the gradient of every floating-point input (the initial state's too), for
    every example case with and without its initial state, in float64 and float32, on non-contiguous inputs and with
    uninitialised memory filled with NaN. The reference itself is held to finite differences.

    Raises:
        AssertionError: with the form, case, length and tensor that differ.
    """
    generator = Generator(device).manual_seed(0)
    for case, inputs in op.example_inputs(generator, 1, 3).items():
        _check_gradients_of_reference(op, case, inputs)
    for length in lengths:
        for case, inputs in op.example_inputs(generator, 2, length).items():
            _check_case(op, f"{case}, length {length}", inputs)
            if "initial_state" in inputs:
                stateless = {name: x for name, x in inputs.items() if name != "initial_state"}
                _check_case(op, f"{case}, length {length}, no initial state", stateless)


def _check_case(op: "Op", case: str, inputs: dict[str, Any]) -> None:
    cotangents = Generator(next(iter(inputs.values())).device).manual_seed(1)
    exact, weights = _run(op.reference, _cast(inputs, torch.float64), cotangents)
    for dtype, tolerance in OP_TOLERANCE.items():
        cast = _cast(inputs, dtype)
        for form, function in {"function": op.function, "chunked": op.chunked}.items():
            with uninitialised_memory_is_nan():
                found, _ = _run(function, {name: _each(x, _strided) for name, x in cast.items()}, weights)
                with torch.no_grad():
                    plain = _leaves(function(**cast))
            for i, x in enumerate(plain):
                kind = dtype.to_complex() if x.is_complex() else dtype
                assert x.dtype == kind, f"{form}, {case}: {kind} expected as result {i}, {x.dtype} got"
                found[f"result {i} without gradients"] = x
                exact[f"result {i} without gradients"] = exact[f"result {i}"]
            assert found.keys() == exact.keys(), f"{form}, {case}: {sorted(exact)} expected, {sorted(found)} got"
            for name, x in exact.items():
                error = relative_error(found[name], x)
                assert error <= tolerance, f"{form}, {case}, {dtype}: {name} differs by {error:.2g} of its maximum"


def _run(
    function: Callable[..., Any], inputs: dict[str, Any], cotangents: Generator | list[Tensor]
) -> tuple[dict[str, Tensor], list[Tensor]]:
    """Named results and gradients, and the random weights of the results in the differentiated sum."""
    differentiable = {name: x.requires_grad_() for name, x in _named_leaves(inputs).items()}
    results = _leaves(function(**inputs))
    if isinstance(cotangents, list):
        assert len(results) == len(cotangents), f"{len(cotangents)} results expected, {len(results)} got"
    for i, x in enumerate(results):
        assert x.requires_grad, f"result {i} has no gradient"
    if isinstance(cotangents, Generator):
        cotangents = [torch.randn(x.shape, dtype=x.dtype, device=x.device, generator=cotangents) for x in results]
    weights = [w.to(x.dtype) for w, x in zip(cotangents, results, strict=True)]
    gradients = torch.autograd.grad(results, list(differentiable.values()), weights, allow_unused=True)
    named = {f"result {i}": x.detach() for i, x in enumerate(results)}
    for name, gradient in zip(differentiable, gradients, strict=True):
        assert gradient is not None, f"no gradient reaches {name}"
        named[f"gradient of {name}"] = gradient
    return named, cotangents


def _check_gradients_of_reference(op: "Op", case: str, inputs: dict[str, Any]) -> None:
    inputs = _cast(inputs, torch.float64)

    def positional(*tensors: Tensor) -> tuple[Tensor, ...]:
        given = iter(tensors)
        replaced = {
            name: _each(x, lambda leaf: next(given) if _is_inexact(leaf) else leaf) for name, x in inputs.items()
        }
        return tuple(_leaves(op.reference(**replaced)))

    tensors = [x.requires_grad_() for x in _named_leaves(inputs).values()]
    assert torch.autograd.gradcheck(positional, tensors, fast_mode=True), f"reference, {case}"


@contextmanager
def uninitialised_memory_is_nan() -> Iterator[None]:
    """Fill every allocation that is left uninitialised with NaN, so that an element nobody wrote shows."""
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    fill = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.utils.deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]


def relative_error(found: Tensor, exact: Tensor) -> float:
    """Largest difference over the largest entry of `exact`; infinite where `found` is not finite or misshapen."""
    if found.shape != exact.shape or not bool(torch.isfinite(found).all()):
        return float("inf")
    if exact.numel() == 0:
        return 0.0
    difference = (found.to(exact.dtype) - exact).abs().max()
    return float(difference / exact.abs().max().clamp(min=torch.finfo(torch.float32).tiny))


def _strided(x: Any) -> Any:
    """The same values with gaps between them that hold NaN, and its last two axes exchanged in memory."""
    if not _is_inexact(x) or x.ndim < 1:
        return x
    vector = x.ndim == 1
    room = torch.full((*(x if vector else x.mT).shape, 2), float("nan"), dtype=x.dtype, device=x.device)
    view = room[..., 1] if vector else room[..., 1].mT
    view.copy_(x)
    return view.detach()


def _cast(inputs: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """Detached copies in `dtype` (complex ones in the complex type of that precision)."""

    def cast(x: Any) -> Any:
        if not _is_inexact(x):
            return x
        return x.detach().to(dtype.to_complex() if x.is_complex() else dtype, copy=True)

    return {name: _each(x, cast) for name, x in inputs.items()}


def _each(x: Any, function: Callable[[Any], Any]) -> Any:
    """`function` of a value, or of every member of a state."""
    return tuple(function(leaf) for leaf in x) if isinstance(x, tuple) else function(x)


def _named_leaves(inputs: dict[str, Any]) -> dict[str, Tensor]:
    """The inputs that take gradients, the members of a state one by one."""
    members = {
        f"{name}[{i}]" if isinstance(x, tuple) else name: leaf
        for name, x in inputs.items()
        for i, leaf in enumerate(x if isinstance(x, tuple) else (x,))
    }
    return {name: x for name, x in members.items() if _is_inexact(x)}


def _is_inexact(x: Any) -> bool:
    return isinstance(x, Tensor) and (x.is_floating_point() or x.is_complex())


def _leaves(result: Any) -> list[Tensor]:
    if isinstance(result, Tensor):
        return [result]
    return [leaf for part in result if part is not None for leaf in _leaves(part)]


def check_mixer(build: Callable[[], SequenceMixer], *, batch: int = 3, length: int = 37) -> None:
    """Raise AssertionError unless the mixer keeps the contract of `SequenceMixer`, in float64.

    Stepping equals running in parallel, a split at any point equals the whole, the past never sees the future, nor
    one series another, states are values (batch first, never changed in place), gradients reach the input, and every
    parameter receives a finite one.
    """
    mixer = build().double()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, length, mixer.width, generator=generator, dtype=torch.float64)
    whole, last = mixer(x)
    assert whole.shape == x.shape, f"expected output {tuple(x.shape)}, got {tuple(whole.shape)}"
    assert whole.dtype == x.dtype, f"expected output of {x.dtype}, got {whole.dtype}"
    start = mixer.init_state(batch)
    assert all(leaf.shape[0] == batch for leaf in start), "a leaf of the state lacks the batch axis in front"
    before = [leaf.clone() for leaf in start]
    _close(mixer(x, start), (whole, last), "with init_state passed explicitly")
    assert all(torch.equal(a, b) for a, b in zip(before, start, strict=True)), "forward changed its state"

    state, outputs = start, []
    for t in range(length):
        before, given = [leaf.clone() for leaf in state], state
        y, state = mixer.step(x[:, t], given)
        assert all(torch.equal(a, b) for a, b in zip(before, given, strict=True)), "step changed its state"
        outputs.append(y)
    _close((torch.stack(outputs, 1), state), (whole, last), "step by step")
    for split in (1, length // 2, length - 1):
        first, state = mixer(x[:, :split])
        second, state = mixer(x[:, split:], state)
        _close((torch.cat([first, second], 1), state), (whole, last), f"split at {split}")

    changed = x.clone()
    changed[:, length // 2 :] += 1.0
    past = mixer(changed)[0][:, : length // 2]
    _close((past, ()), (whole[:, : length // 2], ()), "with another future")

    alone, state = mixer(x[:1])
    _close((alone, state), (whole[:1], tuple(leaf[:1] for leaf in last)), "alone in the batch")
    _check_gradient_of_input(mixer, x, generator)

    whole.square().sum().backward()
    for name, parameter in mixer.named_parameters():
        assert parameter.grad is not None, f"{name} receives no gradient"
        assert parameter.grad.isfinite().all(), f"{name} receives a gradient that is not finite"


def _check_gradient_of_input(mixer: SequenceMixer, x: Tensor, generator: Generator) -> None:
    """Against a central difference along one direction, for the output and the last state together."""

    def loss(x: Tensor) -> Tensor:
        y, state = mixer(x)
        return torch.stack([leaf.abs().square().sum() for leaf in (y, *state)]).sum()

    direction, step = torch.randn(x.shape, generator=generator, dtype=x.dtype), 1e-6
    leaf = x.clone().requires_grad_()
    value = loss(leaf)
    assert value.requires_grad, "no gradient reaches the input"
    (gradient,) = torch.autograd.grad(value, leaf, allow_unused=True)
    assert gradient is not None, "no gradient reaches the input"
    with torch.no_grad():
        slope = (loss(x + step * direction) - loss(x - step * direction)) / (2 * step)
        error = float(((gradient * direction).sum() - slope).abs() / slope.abs())
    assert error < 1e-4, f"the gradient of the input differs from a finite difference by {error:.1g} of it"


def check_scaler(fit: Callable[[Tensor, Tensor], Scale]) -> None:
    """Raise AssertionError unless the scale inverts exactly and follows affine maps, on well-behaved and on
    hostile series: constant, all zero, mostly zero, huge, tiny, with outliers, with holes, all missing."""
    for name, series in hostile_series().items():
        values = series[None]
        observed = ~values.isnan()
        scale = fit(values, observed)
        assert bool((scale.scale > 0).all()), f"{name}: scale must be positive, got {scale.scale.item()}"
        scaled = scale.apply(values)
        assert bool(scaled[observed].isfinite().all()), f"{name}: scaled values must be finite"
        error = (scale.invert(scaled) - values).abs()[observed]
        tolerance = 1e-9 * values.abs()[observed].amax() if observed.any() else 0.0
        assert bool((error <= tolerance).all()), f"{name}: does not invert, error {error.max().item()}"
        if values[observed].unique().numel() > 1:
            moved = fit(3.0 * values - 7.0 * scale.scale, observed)
            again = moved.apply(3.0 * values - 7.0 * scale.scale)
            gap = (again - scaled)[observed].abs().max().item()
            assert gap < 1e-6, f"{name}: scaled values change by {gap} under an affine map"


def hostile_series(length: int = 300) -> dict[str, Tensor]:
    """One float64 series of each kind that breaks scalers and forecasters."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(length, generator=generator, dtype=torch.float64)
    rare = torch.where(torch.arange(length) % 20 == 7, noise.abs() + 1, 0.0)
    holes = torch.where(torch.arange(length) % 10 < 9, torch.nan, noise)
    spike = noise.clone()
    spike[length // 2] = 1e7
    return {
        "normal": noise,
        "constant": torch.full((length,), 5.25, dtype=torch.float64),
        "zero": torch.zeros(length, dtype=torch.float64),
        "5% non-zero": rare,
        "1e9-sized": 1e9 + 1e3 * noise,
        "1e-9-sized": 1e-9 * noise,
        "1e30-sized": 1e30 * noise,
        "one spike": spike,
        "90% missing": holes,
        "step": (torch.arange(length) > length - 5).double(),
        "all missing": torch.full((length,), torch.nan, dtype=torch.float64),
        "single point": noise[:1],
    }


def check_forecaster(model: Forecaster, *, tolerance: float = 1e-4) -> None:
    """Raise AssertionError unless the forecaster keeps its promises on hostile series.

    Finite rising quantiles of the right shape for any horizon; the same forecast alone, in a batch, and padded
    with missing values in front; forecasts that follow affine maps of the history. `tolerance` is relative to
    the series' scale plus how far its forecast goes from its level.
    """
    series = {name: x for name, x in hostile_series().items() if name != "all missing"}
    together = model.forecast(list(series.values()), 40)
    for row, (name, values) in enumerate(series.items()):
        scale = fit_scale(values[None], ~values[None].isnan())
        magnitude = float(values.nan_to_num().abs().max())
        size = float(scale.scale) + 1e-12 * magnitude if magnitude else 1.0
        for horizon in (1, 33, 100):
            forecast = model.forecast(values, horizon)
            shape = (1, horizon, len(forecast.levels))
            assert forecast.quantiles.shape == shape, f"{name}: got shape {tuple(forecast.quantiles.shape)}"
            assert bool(forecast.quantiles.isfinite().all()), f"{name}: quantiles are not finite"
            assert bool((forecast.quantiles.diff(dim=-1) >= 0).all()), f"{name}: quantiles do not rise"
        alone = model.forecast(values, 40).quantiles[0]
        padded = model.forecast(torch.cat([torch.full((77,), torch.nan), values]), 40).quantiles[0]
        moved = model.forecast(2.0 * values + 3.0 * size, 40).quantiles[0]
        for label, other in (
            ("in a batch", together.quantiles[row]),
            ("padded", padded),
            ("after an affine map", (moved - 3.0 * size) / 2.0),
        ):
            reach = size + float((alone - scale.loc).abs().max())
            gap = float((other - alone).abs().max()) / reach
            assert gap < tolerance, f"{name}: the forecast {label} differs by {gap:.2e} of its reach"


PRIOR_LENGTHS = (1, 2, 3, 17, 64, 129)


def check_prior(prior: Prior, *, elsewhere: Executor | None = None, device: str = "cpu") -> None:
    """Hold a prior to its contract: shape, float32, finite, repeatable, independent of and harmless to global state.

    Lengths 1 to 129 and batches of one are drawn; the same seed must give the same bytes here and in another
    process, another seed other series; rows must differ; the global generators must stay untouched.

    Args:
        elsewhere: runs functions in another process; default, a fresh interpreter of its own.

    Raises:
        AssertionError: naming what differed.
    """
    for length in PRIOR_LENGTHS:
        for batch_size in (1, 5):
            series = draw(prior, 0, batch_size, length, device)
            assert series.shape == (batch_size, length), f"length {length}: got shape {tuple(series.shape)}"
            assert series.dtype == torch.float32, f"expected float32, got {series.dtype}"
            assert bool(series.isfinite().all()), f"batch {batch_size}, length {length}: not finite"
    before = torch.random.get_rng_state()
    first = draw(prior, 1, 32, 256, device)
    assert torch.equal(before, torch.random.get_rng_state()), "the global generator was used"
    torch.manual_seed(123)
    assert torch.equal(first, draw(prior, 1, 32, 256, device)), "the same seed gave other series"
    torch.random.set_rng_state(before)
    assert not torch.equal(first, draw(prior, 2, 32, 256, device)), "another seed gave the same series"
    distinct = len(torch.unique(first, dim=0))
    assert distinct >= 31, f"only {distinct} of 32 rows are distinct"
    context = None if elsewhere else ProcessPoolExecutor(1, mp_context=get_context("spawn"))
    again = (elsewhere or context).submit(draw, prior, 1, 32, 256, device).result()  # type: ignore[union-attr]
    if context is not None:
        context.shutdown()
    assert torch.equal(first, again), "the same seed gave other series in another process"


def draw(prior: Prior, seed: int, batch_size: int, length: int, device: str = "cpu") -> Tensor:
    """Series from a fresh generator, on the CPU."""
    return prior.sample(Generator(device).manual_seed(seed), batch_size, length).cpu()


def _close(got: tuple[Tensor, State], expected: tuple[Tensor, State], what: str) -> None:
    pairs = [(got[0], expected[0]), *zip(got[1], expected[1], strict=True)]
    for a, b in pairs:
        assert a.shape == b.shape, f"{what}: shape {tuple(a.shape)} where {tuple(b.shape)} was expected"
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9, msg=lambda text: f"{what}: {text}")
