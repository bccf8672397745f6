"""Whether an op is right, and how long it takes: the two halves of `tsseq benchmark`, in this order."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from tsseq.kernels import Op

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 1e-2}
"""Of results (half of it) and gradients, by the narrowest input: norm of the error over norm of the exact tensor."""


def leaves(x: Any) -> list[Tensor]:
    """The floating-point and complex tensors in nested tuples."""
    if isinstance(x, Tensor):
        return [x] if x.is_floating_point() or x.is_complex() else []
    return [leaf for part in x for leaf in leaves(part)] if isinstance(x, tuple | list) else []


def differentiable(inputs: dict[str, Any]) -> tuple[dict[str, Any], list[Tensor]]:
    """The inputs with leaves that take gradients, and those leaves."""
    own = {name: _map(x, lambda leaf: leaf.detach().requires_grad_()) for name, x in inputs.items()}
    return own, [leaf for x in own.values() for leaf in leaves(x)]


def largest_error(op: Op, inputs: dict[str, Any]) -> tuple[str, float]:
    """The result or gradient of `op.function` furthest from the loop in float64, as a share of its tolerance.

    Raises ValueError where the op refuses the inputs.
    """
    exact_inputs, exact_leaves = differentiable({name: _map(x, _double) for name, x in inputs.items()})
    own_inputs, own_leaves = differentiable(inputs)
    found = leaves(op.function(**own_inputs))  # first, as loops do not check what they are given
    exact = leaves(op.reference(**exact_inputs))
    generator = torch.Generator(exact[0].device).manual_seed(1)
    weights = [torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device) for x in exact]
    rounded = [w.to(x.dtype) for w, x in zip(weights, found, strict=True)]
    gradients = torch.autograd.grad(found, own_leaves, rounded, allow_unused=True)
    # Inputs, too, the same for both: what they lose in rounding is no error of the op's.
    weights = [w.to(x.dtype) for w, x in zip(rounded, exact, strict=True)]
    exact += torch.autograd.grad(exact, exact_leaves, weights)
    narrowest = max((TOLERANCE[torch.empty(0, dtype=x.dtype).real.dtype] for x in own_leaves), default=1e-5)
    names = [f"result {i}" for i in range(len(weights))] + [
        f"gradient of {name}" for name, x in inputs.items() for _ in leaves(x)
    ]
    worst = ("nothing", 0.0)
    for i, (name, a, b) in enumerate(zip(names, [*found, *gradients], exact, strict=True)):
        tolerance = narrowest / 2 if i < len(weights) and narrowest > 1e-5 else narrowest
        share = float("inf") if a is None else _error(a, b) / tolerance
        worst = max(worst, (name, share), key=lambda pair: pair[1])
    return worst


def forward_and_both(function: Callable[..., Any], inputs: dict[str, Any]) -> tuple[float, float]:
    """Median milliseconds of the forward pass alone and with the gradient of the first result to every input."""
    own, tensors = differentiable(inputs)
    gradient = torch.ones_like(leaves(function(**own))[0])

    def forward() -> Any:
        with torch.no_grad():
            return function(**own)

    def both() -> Any:
        return torch.autograd.grad(leaves(function(**own))[0], tensors, gradient, allow_unused=True)

    return median_ms(forward, gradient.device), median_ms(both, gradient.device)


def median_ms(function: Callable[[], Any], device: torch.device) -> float:
    """On a GPU the median of a captured graph, so that launches from Python do not count; without, where it fails."""
    if device.type != "cuda":
        from torch.utils.benchmark import Timer

        timer = Timer("function()", globals={"function": function}, num_threads=torch.get_num_threads())
        return 1e3 * float(timer.blocked_autorange(min_run_time=0.2).median)
    from triton import testing

    try:
        with torch.cuda.stream(torch.cuda.Stream()):  # type: ignore[no-untyped-call]
            return float(testing.do_bench_cudagraph(function, rep=50, return_mode="median"))
    except RuntimeError:
        torch.cuda.synchronize()
        return float(testing.do_bench(function, warmup=25, rep=100, return_mode="median"))


def bandwidth(device: torch.device) -> float:
    """Bytes per second of adding one to a large tensor, read and written."""
    # A GPU reaches the speed of its memory only on gigabytes; a quarter of what is free holds on smaller ones. A copy
    # would not do: in a captured graph an H200 makes it at 2.7 TB/s, and kernels reach 4.2.
    size = min(2**32, torch.cuda.mem_get_info(device)[0] // 4) if device.type == "cuda" else 2**26
    source = torch.ones(size // 4, device=device)
    target = torch.empty_like(source)
    return 2 * size / (median_ms(lambda: torch.add(source, 1.0, out=target), device) / 1e3)


def bytes_moved(function: Callable[..., Any], inputs: dict[str, Any]) -> tuple[int, int]:
    """Least traffic of the forward pass alone, and with the backward: each tensor read or written once a pass."""
    with torch.no_grad():
        output = leaves(function(**inputs))[0]
    read = sum(x.numel() * x.element_size() for value in inputs.values() for x in leaves(value))
    written = output.numel() * output.element_size()
    return read + written, 2 * (read + written) + read


def _map(x: Any, function: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(x, Tensor):
        return function(x) if x.is_floating_point() or x.is_complex() else x
    return tuple(_map(part, function) for part in x) if isinstance(x, tuple) else x


def _double(x: Tensor) -> Tensor:
    return x.to(torch.complex128 if x.is_complex() else torch.float64)


def _error(found: Tensor, exact: Tensor) -> float:
    size = float(exact.detach().norm())
    error = float((found.detach().to(exact.dtype) - exact.detach()).norm())
    return (error / size if size else error) if error == error else float("inf")
