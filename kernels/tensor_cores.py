"""Products on a GPU's tensor cores, of float32 matrices to float32's precision too."""

import triton
import triton.language as tl


@triton.jit
def rounded_to_tf32(x):
    """Float32 `x` to the nearest number with the ten bits that tensor cores read; by themselves they cut off."""
    return ((x.to(tl.int32, bitcast=True) + 4096) & -8192).to(tl.float32, bitcast=True)


@triton.jit
def product(a, b, PRECISION: tl.constexpr):
    """`a` times `b`; with PRECISION "tf32x3" of float32 ones, as three products of their halves.

    Halves are split by rounding: those that Triton splits by cutting leave out remainders of one sign, which add up
    over a long memory.
    """
    if PRECISION == "tf32x3":
        a_high = rounded_to_tf32(a)
        b_high = rounded_to_tf32(b)
        rest = tl.dot(a - a_high, b_high, input_precision="tf32") + tl.dot(a_high, b - b_high, input_precision="tf32")
        return rest + tl.dot(a_high, b_high, input_precision="tf32")
    else:
        return tl.dot(a, b, input_precision=PRECISION)


@triton.jit
def add_product(total, a, b, PRECISION: tl.constexpr):
    """`total` plus `a` times `b`, likewise."""
    if PRECISION == "tf32x3":
        return total + product(a, b, PRECISION)
    else:
        return tl.dot(a, b, total, input_precision=PRECISION)
