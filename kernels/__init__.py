"""Every op by name: what runs, the loop that specifies it, and inputs that exercise it.

An op is a pure function `(inputs..., initial_state) -> (output, final_state)`, named for the structure of its
state transition. Gradients flow to every input and to the initial state. To add one: a folder beside this
file with `reference.py` (a loop, the specification) and `chunked.py` (parallel, plain torch), and a line here.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Generator

from tsseq.kernels import (
    block_scan,
    delta_rule,
    diagonal_scan,
    gated_norm,
    linear_attention,
    selective_scan,
    short_convolution,
    slstm,
)


@dataclass(frozen=True)
class Op:
    """`function` dispatches by device; `reference` and `chunked` take the same arguments.

    `example_inputs(generator, batch, length)` yields named keyword-argument sets (random, hard and edge
    cases); every floating-point tensor among them, also as a member of a state, must receive a gradient.
    """

    function: Callable[..., Any]
    reference: Callable[..., Any]
    chunked: Callable[..., Any]
    example_inputs: Callable[[Generator, int, int], dict[str, dict[str, Any]]]


OPS: dict[str, Op] = {
    "block_scan": Op(
        block_scan.block_scan,
        block_scan.reference.block_scan,
        block_scan.chunked.block_scan,
        block_scan.block_examples,
    ),
    "controlled_block_scan": Op(
        block_scan.controlled_block_scan,
        block_scan.reference.controlled_block_scan,
        block_scan.chunked.controlled_block_scan,
        block_scan.controlled_examples,
    ),
    "delta_rule": Op(delta_rule.delta_rule, delta_rule.reference, delta_rule.chunked, delta_rule.example_inputs),
    "diagonal_scan": Op(
        diagonal_scan.diagonal_scan, diagonal_scan.reference, diagonal_scan.chunked, diagonal_scan.example_inputs
    ),
    "gated_norm": Op(gated_norm.gated_norm, gated_norm.reference, gated_norm.chunked, gated_norm.example_inputs),
    "hadamard_scan": Op(
        block_scan.hadamard_scan,
        block_scan.reference.hadamard_scan,
        block_scan.chunked.hadamard_scan,
        block_scan.hadamard_examples,
    ),
    "linear_attention": Op(
        linear_attention.linear_attention,
        linear_attention.reference,
        linear_attention.chunked,
        linear_attention.example_inputs,
    ),
    "selective_scan": Op(
        selective_scan.selective_scan,
        selective_scan.reference,
        selective_scan.chunked,
        selective_scan.example_inputs,
    ),
    "short_convolution": Op(
        short_convolution.short_convolution,
        short_convolution.reference,
        short_convolution.chunked,
        short_convolution.example_inputs,
    ),
    "slstm": Op(slstm.slstm, slstm.reference, slstm.chunked, slstm.example_inputs),
}
