"""Contracts of the package's interfaces, shipped so that outside implementations can be held to them.

Each check raises AssertionError naming the case that failed. Tolerances are hard: a form that needs a softer one
is wrong.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Generator, Tensor

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


def _check_case(op: "Op", case: str, inputs: dict[str, Tensor]) -> None:
    cotangents = Generator(next(iter(inputs.values())).device).manual_seed(1)
    exact, weights = _run(op.reference, _cast(inputs, torch.float64), cotangents)
    for dtype, tolerance in OP_TOLERANCE.items():
        cast = _cast(inputs, dtype)
        for form, function in {"function": op.function, "chunked": op.chunked}.items():
            with uninitialised_memory_is_nan():
                found, _ = _run(function, {name: _strided(x) for name, x in cast.items()}, weights)
                with torch.no_grad():
                    plain = _leaves(function(**cast))
            for i, x in enumerate(plain):
                found[f"result {i} without gradients"] = x
                exact[f"result {i} without gradients"] = exact[f"result {i}"]
            assert found.keys() == exact.keys(), f"{form}, {case}: {sorted(exact)} expected, {sorted(found)} got"
            for name, x in exact.items():
                error = relative_error(found[name], x)
                assert error <= tolerance, f"{form}, {case}, {dtype}: {name} differs by {error:.2g} of its maximum"


def _run(
    function: Callable[..., Any], inputs: dict[str, Tensor], cotangents: Generator | list[Tensor]
) -> tuple[dict[str, Tensor], list[Tensor]]:
    """Named results and gradients, and the random weights of the results in the differentiated sum."""
    differentiable = {name: x.requires_grad_() for name, x in inputs.items() if _is_inexact(x)}
    results = _leaves(function(**{**inputs, **differentiable}))
    if isinstance(cotangents, Generator):
        cotangents = [
            torch.randn(x.shape, dtype=x.dtype, device=x.device, generator=cotangents) for x in results
        ]
    weights = [w.to(x.dtype) for w, x in zip(cotangents, results, strict=True)]
    gradients = torch.autograd.grad(results, list(differentiable.values()), weights, allow_unused=True)
    named = {f"result {i}": x.detach() for i, x in enumerate(results)}
    for name, gradient in zip(differentiable, gradients, strict=True):
        assert gradient is not None, f"no gradient reaches {name}"
        named[f"gradient of {name}"] = gradient
    return named, cotangents


def _check_gradients_of_reference(op: "Op", case: str, inputs: dict[str, Tensor]) -> None:
    inputs = _cast(inputs, torch.float64)
    names = [name for name, x in inputs.items() if _is_inexact(x)]

    def positional(*tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(_leaves(op.reference(**{**inputs, **dict(zip(names, tensors, strict=True))})))

    tensors = [inputs[name].requires_grad_() for name in names]
    assert torch.autograd.gradcheck(positional, tensors, fast_mode=True), f"reference, {case}"


@contextmanager
def uninitialised_memory_is_nan() -> Iterator[None]:
    """Fill every allocation that is left uninitialised with NaN, so that an element nobody wrote shows."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.utils.deterministic.fill_uninitialized_memory = fill


def relative_error(found: Tensor, exact: Tensor) -> float:
    """Largest difference over the largest entry of `exact`; infinite where `found` is not finite or misshapen."""
    if found.shape != exact.shape or not bool(torch.isfinite(found).all()):
        return float("inf")
    if exact.numel() == 0:
        return 0.0
    difference = (found.to(exact.dtype) - exact).abs().max()
    return float(difference / exact.abs().max().clamp(min=torch.finfo(torch.float32).tiny))


def _strided(x: Tensor) -> Tensor:
    """The same values with gaps between them that hold NaN, and its last two axes exchanged in memory."""
    if x.ndim < 2 or not _is_inexact(x):
        return x
    room = torch.full((*x.mT.shape, 2), float("nan"), dtype=x.dtype, device=x.device)
    view = room[..., 1].mT
    view.copy_(x)
    return view.detach()


def _cast(inputs: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Detached copies in `dtype` (complex ones in the complex type of that precision)."""
    return {
        name: x.detach().to(dtype.to_complex() if x.is_complex() else dtype, copy=True) if _is_inexact(x) else x
        for name, x in inputs.items()
    }


def _is_inexact(x: Tensor) -> bool:
    return x.is_floating_point() or x.is_complex()


def _leaves(result: Any) -> list[Tensor]:
    if isinstance(result, Tensor):
        return [result]
    return [leaf for part in result if part is not None for leaf in _leaves(part)]
