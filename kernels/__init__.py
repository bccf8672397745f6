"""Every op by name: what runs, the loop that specifies it, and inputs that exercise it.

An op is a pure function `(inputs..., initial_state) -> (output, final_state)`, named for the structure of its
state transition. Gradients flow to every input and to the initial state; those of the forms in plain torch have
gradients in turn, those of the GPU kernels raise RuntimeError when asked for them. To add one: a folder beside this
file with `reference.py` (a loop, the specification) and `chunked.py` (parallel, plain torch), and a line here.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Generator

from tsseq.kernels import (
    benchmark_inputs,
    block_scan,
    delta_rule,
    diagonal_scan,
    gated_norm,
    linear_attention,
    selective_scan,
    short_convolution,
    slstm,
)
from tsseq.kernels.benchmark_inputs import BenchmarkInputs


@dataclass(frozen=True)
class Op:
    """`function` dispatches by device; `reference` and `chunked` take the same arguments.

    `example_inputs(generator, batch, length)` yields named keyword-argument sets (random, hard and edge
    cases); every floating-point tensor among them, also as a member of a state, must receive a gradient.
    `benchmark_inputs` yields what `tsseq benchmark` times; an op without it is not timed.
    """

    function: Callable[..., Any]
    reference: Callable[..., Any]
    chunked: Callable[..., Any]
    example_inputs: Callable[[Generator, int, int], dict[str, dict[str, Any]]]
    benchmark_inputs: BenchmarkInputs | None = None


OPS: dict[str, Op] = {
    "block_scan": Op(
        block_scan.block_scan,
        block_scan.reference.block_scan,
        block_scan.chunked.block_scan,
        block_scan.block_examples,
        benchmark_inputs.block_scan,
    ),
    "controlled_block_scan": Op(
        block_scan.controlled_block_scan,
        block_scan.reference.controlled_block_scan,
        block_scan.chunked.controlled_block_scan,
        block_scan.controlled_examples,
        benchmark_inputs.controlled_block_scan,
    ),
    "delta_rule": Op(
        delta_rule.delta_rule,
        delta_rule.reference,
        delta_rule.chunked,
        delta_rule.example_inputs,
        benchmark_inputs.delta_rule,
    ),
    "diagonal_scan": Op(
        diagonal_scan.diagonal_scan,
        diagonal_scan.reference,
        diagonal_scan.chunked,
        diagonal_scan.example_inputs,
        benchmark_inputs.diagonal_scan,
    ),
    "gated_norm": Op(
        gated_norm.gated_norm,
        gated_norm.reference,
        gated_norm.chunked,
        gated_norm.example_inputs,
        benchmark_inputs.gated_norm,
    ),
    "hadamard_scan": Op(
        block_scan.hadamard_scan,
        block_scan.reference.hadamard_scan,
        block_scan.chunked.hadamard_scan,
        block_scan.hadamard_examples,
        benchmark_inputs.hadamard_scan,
    ),
    "linear_attention": Op(
        linear_attention.linear_attention,
        linear_attention.reference,
        linear_attention.chunked,
        linear_attention.example_inputs,
        benchmark_inputs.linear_attention,
    ),
    "selective_scan": Op(
        selective_scan.selective_scan,
        selective_scan.reference,
        selective_scan.chunked,
        selective_scan.example_inputs,
        benchmark_inputs.selective_scan,
    ),
    "short_convolution": Op(
        short_convolution.short_convolution,
        short_convolution.reference,
        short_convolution.chunked,
        short_convolution.example_inputs,
        benchmark_inputs.short_convolution,
    ),
    "slstm": Op(slstm.slstm, slstm.reference, slstm.chunked, slstm.example_inputs, benchmark_inputs.slstm),
}
