"""Every op by name: what runs, the loop that specifies it, and inputs that exercise it.

An op is a pure function `(inputs..., initial_state) -> (output, final_state)`, named for the structure of its
state transition. Gradients flow to every input and to the initial state. To add one: a folder beside this
file with `reference.py` (a loop, the specification) and `chunked.py` (parallel, plain torch), and a line here.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Generator, Tensor

from tsseq.kernels import delta_rule, diagonal_scan, gated_norm, short_convolution


@dataclass(frozen=True)
class Op:
    """`function` dispatches by device; `reference` and `chunked` take the same arguments.

    `example_inputs(generator, batch, length)` yields named keyword-argument sets (random, hard and edge
    cases); every floating-point tensor among them, the initial state included, must receive a gradient.
    """

    function: Callable[..., Any]
    reference: Callable[..., Any]
    chunked: Callable[..., Any]
    example_inputs: Callable[[Generator, int, int], dict[str, dict[str, Tensor]]]


OPS: dict[str, Op] = {
    "delta_rule": Op(
        delta_rule.delta_rule, delta_rule.reference, delta_rule.chunked, delta_rule.example_inputs
    ),
    "diagonal_scan": Op(
        diagonal_scan.diagonal_scan, diagonal_scan.reference, diagonal_scan.chunked, diagonal_scan.example_inputs
    ),
    "gated_norm": Op(gated_norm.gated_norm, gated_norm.reference, gated_norm.chunked, gated_norm.example_inputs),
    "short_convolution": Op(
        short_convolution.short_convolution,
        short_convolution.reference,
        short_convolution.chunked,
        short_convolution.example_inputs,
    ),
}
