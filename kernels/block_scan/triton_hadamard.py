"""The Walsh-Hadamard recurrence on a GPU: h_t = h_{t-1} + H (a_t * h_{t-1}) + b_t, H as the product of two small ones.

A state is a matrix X [left, right], and H x is H_left X H_right. Narrow states are stacked, several sequences along
the rows, with H_left repeated along a diagonal. A step is two dependent products, so time is what it costs.
"""

import torch
import triton
import triton.language as tl

from tsseq.array_typing import Float, Tensor

SIDE = 16
"""Rows and columns of the smallest product."""


@triton.jit
def _sylvester(SIZE: tl.constexpr, COPIES: tl.constexpr):
    """The normalised matrix of SIZE, copied along a diagonal: entry (i, j) is the parity sign of i & j."""
    row, column = tl.arange(0, SIZE * COPIES)[:, None], tl.arange(0, SIZE * COPIES)[None, :]
    bits = row & column & (SIZE - 1)
    bits = bits ^ (bits >> 4)
    bits = bits ^ (bits >> 2)
    bits = bits ^ (bits >> 1)
    sign = tl.where((bits & 1) == 0, 1.0, -1.0)
    return tl.where(row // SIZE == column // SIZE, sign, 0.0) / SIZE**0.5


@triton.jit
def _transform(x, left, right, LEFT: tl.constexpr):
    y = tl.dot(x, right, input_precision="tf32x3")
    if LEFT > 1:
        y = tl.dot(left, y, input_precision="tf32x3")
    return y


@triton.jit
def _place(time, batch, LEFT: tl.constexpr, RIGHT: tl.constexpr, COPIES: tl.constexpr):
    """Offsets of the first position, and of a state without time, as [row, right]; which exist."""
    row, column = tl.arange(0, LEFT * COPIES)[:, None], tl.arange(0, RIGHT)[None, :]
    sequence = tl.program_id(0).to(tl.int64) * COPIES + row // LEFT
    entry = row % LEFT * RIGHT + column
    return sequence * time * (LEFT * RIGHT) + entry, sequence * (LEFT * RIGHT) + entry, sequence + 0 * column < batch


@triton.jit(do_not_specialize=["time", "batch"])
def _forward(
    diagonal, inputs, start, states, end, time, batch,
    LEFT: tl.constexpr, RIGHT: tl.constexpr, COPIES: tl.constexpr, HAS_INPUTS: tl.constexpr, HAS_START: tl.constexpr,
):  # fmt: skip
    first, entry, live = _place(time, batch, LEFT, RIGHT, COPIES)
    left, right = _sylvester(LEFT, COPIES), _sylvester(RIGHT, 1)
    h = tl.zeros((LEFT * COPIES, RIGHT), tl.float32)
    if HAS_START:
        h = tl.load(start + entry, live, 0.0)
    for t in tl.range(0, time, num_stages=4):
        at = first + t * (LEFT * RIGHT)
        h += _transform(tl.load(diagonal + at, live, 0.0).to(tl.float32) * h, left, right, LEFT)
        if HAS_INPUTS:
            h += tl.load(inputs + at, live, 0.0).to(tl.float32)
        tl.store(states + at, h.to(states.dtype.element_ty), live)
    tl.store(end + entry, h, live)


@triton.jit(do_not_specialize=["time", "batch"])
def _backward(
    diagonal, states, start, d_states, d_end, d_diagonal, d_inputs, d_start, time, batch,
    LEFT: tl.constexpr, RIGHT: tl.constexpr, COPIES: tl.constexpr, HAS_START: tl.constexpr,
):  # fmt: skip
    """With u = H g: da = u * h_{t-1}, and g + a * u goes to the position before."""
    first, entry, live = _place(time, batch, LEFT, RIGHT, COPIES)
    left, right = _sylvester(LEFT, COPIES), _sylvester(RIGHT, 1)
    k = tl.load(d_end + entry, live, 0.0)
    for back in tl.range(1, time, num_stages=4):
        at = first + (time - back) * (LEFT * RIGHT)
        g = tl.load(d_states + at, live, 0.0).to(tl.float32) + k
        u = _transform(g, left, right, LEFT)
        h = tl.load(states + at - LEFT * RIGHT, live, 0.0).to(tl.float32)
        k = g + tl.load(diagonal + at, live, 0.0).to(tl.float32) * u
        tl.store(d_inputs + at, g.to(d_inputs.dtype.element_ty), live)
        tl.store(d_diagonal + at, (u * h).to(d_diagonal.dtype.element_ty), live)
    g = tl.load(d_states + first, live, 0.0).to(tl.float32) + k
    u = _transform(g, left, right, LEFT)
    h = tl.zeros((LEFT * COPIES, RIGHT), tl.float32)
    if HAS_START:
        h = tl.load(start + entry, live, 0.0)
    tl.store(d_inputs + first, g.to(d_inputs.dtype.element_ty), live)
    tl.store(d_diagonal + first, (u * h).to(d_diagonal.dtype.element_ty), live)
    tl.store(d_start + entry, g + tl.load(diagonal + first, live, 0.0).to(tl.float32) * u, live)


def _tiling(width: int) -> dict[str, int]:
    right = SIDE << max(0, (width.bit_length() - 1 - 8 + 1) // 2)
    left = width // right
    copies = max(1, SIDE // left)
    return {"LEFT": left, "RIGHT": right, "COPIES": copies, "num_warps": max(1, min(4, left * copies * right // 512))}


def _programs(batch: int, tiling: dict[str, int]) -> int:
    return triton.cdiv(batch, tiling["COPIES"])


@torch.library.custom_op("tsseq::hadamard_scan", mutates_args=())
def _forward_op(diagonal: Tensor, inputs: Tensor | None, start: Tensor | None) -> tuple[Tensor, Tensor]:
    batch, time, width = diagonal.shape
    states = torch.empty(diagonal.shape, dtype=diagonal.dtype, device=diagonal.device)
    end = torch.empty((batch, width), device=diagonal.device)
    tiling = _tiling(width)
    _forward[(_programs(batch, tiling),)](
        diagonal.contiguous(), states if inputs is None else inputs.contiguous(),
        end if start is None else start.contiguous(), states, end, time, batch,
        HAS_INPUTS=inputs is not None, HAS_START=start is not None, **tiling,
    )  # fmt: skip
    return states, end


@_forward_op.register_fake
def _(diagonal, inputs, start):  # type: ignore[no-untyped-def]
    states = torch.empty(diagonal.shape, dtype=diagonal.dtype, device=diagonal.device)
    return states, torch.empty(diagonal[:, 0].shape, device=diagonal.device)


@torch.library.custom_op("tsseq::hadamard_scan_backward", mutates_args=())
def _backward_op(
    diagonal: Tensor, states: Tensor, start: Tensor | None, d_states: Tensor, d_end: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    batch, time, width = diagonal.shape
    d_diagonal = torch.empty(diagonal.shape, dtype=diagonal.dtype, device=diagonal.device)
    d_inputs = torch.empty(states.shape, dtype=states.dtype, device=states.device)
    d_start = torch.empty(d_end.shape, device=d_end.device)
    tiling = _tiling(width)
    _backward[(_programs(batch, tiling),)](
        diagonal.contiguous(), states, d_end if start is None else start.contiguous(), d_states.contiguous(),
        d_end.contiguous(), d_diagonal, d_inputs, d_start, time, batch, HAS_START=start is not None, **tiling,
    )  # fmt: skip
    return d_diagonal, d_inputs, d_start


@_backward_op.register_fake
def _(diagonal, states, start, d_states, d_end):  # type: ignore[no-untyped-def]
    return tuple(torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (diagonal, states, d_end))


def _save(ctx, inputs, output):  # type: ignore[no-untyped-def]
    diagonal, b, start = inputs
    ctx.has_inputs = b is not None
    ctx.save_for_backward(diagonal, output[0], start)


def _differentiate(ctx, d_states, d_end):  # type: ignore[no-untyped-def]
    diagonal, states, start = ctx.saved_tensors
    gradients = torch.ops.tsseq.hadamard_scan_backward(diagonal, states, start, d_states, d_end)
    d_diagonal, d_inputs, d_start = gradients
    return d_diagonal, d_inputs if ctx.has_inputs else None, None if start is None else d_start


_forward_op.register_autograd(_differentiate, setup_context=_save)


def hadamard(
    diagonal: Float[Tensor, "batch time state"],
    inputs: Float[Tensor, "batch time state"] | None = None,
    initial_state: Float[Tensor, "batch state"] | None = None,
) -> tuple[Float[Tensor, "batch time state"], Float[Tensor, "batch state"]]:
    """See `tsseq.kernels.block_scan.hadamard_scan`; widths from 16 to 1024, at most 32 bits per number."""
    b = None if inputs is None else inputs.to(diagonal.dtype)
    start = None if initial_state is None else initial_state.float()
    states, end = torch.ops.tsseq.hadamard_scan(diagonal, b, start)
    return states, end
