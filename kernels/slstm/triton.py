"""The sLSTM cell on a GPU: one kernel walks forward through time, one backward, a third sums the weights' gradient.

A program owns a few sequences of one head: their state in registers, the head's recurrent matrices beside it,
the coming positions on their way. Time is what it costs, one small product and one barrier after the other, so
whatever does not depend on the previous position is kept out of that chain. Tiles are [key, sequence], and
half-precision tiles enter by a product with the identity, which spares a shuffle through shared memory.
"""

import torch
import triton
import triton.language as tl

from tsseq.array_typing import Float, Tensor
from tsseq.kernels.slstm.state import expanded, reduced

SEQUENCES = 8
"""Sequences of a program, the narrowest product there is."""

TOKENS = tl.constexpr(64)


@triton.jit
def _load_four(a, b, c, d, place, live):
    return (
        tl.load(a + place, live, 0.0),
        tl.load(b + place, live, 0.0),
        tl.load(c + place, live, 0.0),
        tl.load(d + place, live, 0.0),
    )


@triton.jit
def _store_four(a, b, c, d, place, live, x_a, x_b, x_c, x_d):
    tl.store(a + place, x_a, live)
    tl.store(b + place, x_b, live)
    tl.store(c + place, x_c, live)
    tl.store(d + place, x_d, live)


@triton.jit
def _load_weights(recurrent, place, live, STRIDE: tl.constexpr):
    """The four matrices of a head."""
    return (
        tl.load(recurrent + place, live, 0.0),
        tl.load(recurrent + STRIDE + place, live, 0.0),
        tl.load(recurrent + 2 * STRIDE + place, live, 0.0),
        tl.load(recurrent + 3 * STRIDE + place, live, 0.0),
    )


@triton.jit
def _enter(x, eye, HALF: tl.constexpr):
    if HALF:
        return tl.dot(eye, x)
    else:
        return x.to(tl.float32)


@triton.jit
def _gate(x, weights, h, eye, HALF: tl.constexpr, PRECISION: tl.constexpr):
    """x + R h"""
    if HALF:
        return tl.dot(weights, h, tl.dot(eye, x))
    else:
        return tl.dot(weights, h, input_precision=PRECISION) + x


@triton.jit
def _mix(i, f, log_n):
    """How much of the average stays and how much is new; exp(-|.|) of both exponents; log n."""
    fall = tl.exp(-tl.abs(f))
    kept = tl.minimum(f, 0.0) - tl.log(1.0 + fall) + log_n
    above = kept - i
    e = tl.exp(-tl.abs(above))
    small = e / (1.0 + e)
    keep, renew = tl.where(above > 0.0, 1.0 - small, small), tl.where(above > 0.0, small, 1.0 - small)
    return keep, renew, fall, tl.maximum(kept, i) + tl.log(1.0 + e)


@triton.jit
def _sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def _step(
    x_i, x_f, x_z, x_o, w_i, w_f, w_z, w_o, eye, average, log_n, h,
    HALF: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    operand = h.to(w_i.dtype)
    i = _gate(x_i, w_i, operand, eye, HALF, PRECISION)
    f = _gate(x_f, w_f, operand, eye, HALF, PRECISION)
    z = _gate(x_z, w_z, operand, eye, HALF, PRECISION)
    o = _gate(x_o, w_o, operand, eye, HALF, PRECISION)
    keep, renew, _, log_n = _mix(i, f, log_n)
    average = keep * average + renew * (2.0 * _sigmoid(2.0 * z) - 1.0)
    return average, log_n, _sigmoid(o) * average


@triton.jit(do_not_specialize=["time", "batch"])
def _forward(
    input_gate, forget_gate, cell_input, output_gate, recurrent, start, outputs, averages, logs, end, time, batch,
    HEADS: tl.constexpr, KEY: tl.constexpr, PADDED: tl.constexpr, SEQUENCES: tl.constexpr, SAVE: tl.constexpr,
    HALF: tl.constexpr, PRECISION: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    WIDTH: tl.constexpr = HEADS * KEY
    head = tl.program_id(0) % HEADS
    sequence = (tl.program_id(0) // HEADS).to(tl.int64) * SEQUENCES + tl.arange(0, SEQUENCES)[None, :]
    key, column = tl.arange(0, PADDED)[:, None], tl.arange(0, PADDED)[None, :]
    live = (sequence < batch) & (key < KEY)
    w_i, w_f, w_z, w_o = _load_weights(
        recurrent, (head * KEY + key) * KEY + column, (key < KEY) & (column < KEY), WIDTH * KEY
    )
    eye = tl.where(key == column, 1.0, 0.0).to(w_i.dtype)
    state = sequence * (3 * WIDTH) + head * KEY + key
    average, log_n = tl.load(start + state, live, 0.0), tl.load(start + WIDTH + state, live, 0.0)
    h = tl.load(start + 2 * WIDTH + state, live, 0.0)
    now = sequence * time * WIDTH + head * KEY + key
    # The first position apart: with a second use, half-precision matrices stay in registers through the loop.
    if HALF:
        x_i, x_f, x_z, x_o = _load_four(input_gate, forget_gate, cell_input, output_gate, now, live)
        average, log_n, h = _step(x_i, x_f, x_z, x_o, w_i, w_f, w_z, w_o, eye, average, log_n, h, HALF, PRECISION)
        tl.store(outputs + now, h.to(outputs.dtype.element_ty), live)
        if SAVE:
            tl.store(averages + now, average.to(averages.dtype.element_ty), live)
            tl.store(logs + now, log_n, live)
    for t in tl.range(1 if HALF else 0, time, num_stages=STAGES):
        at = now + t * WIDTH
        x_i, x_f, x_z, x_o = _load_four(input_gate, forget_gate, cell_input, output_gate, at, live)
        average, log_n, h = _step(x_i, x_f, x_z, x_o, w_i, w_f, w_z, w_o, eye, average, log_n, h, HALF, PRECISION)
        tl.store(outputs + at, h.to(outputs.dtype.element_ty), live)
        if SAVE:
            tl.store(averages + at, average.to(averages.dtype.element_ty), live)
            tl.store(logs + at, log_n, live)
    tl.store(end + state, average, live)
    tl.store(end + WIDTH + state, log_n, live)
    tl.store(end + 2 * WIDTH + state, h, live)


@triton.jit
def _step_back(
    x_i, x_f, x_z, x_o, dy, average, log_n, h, w_i, w_f, w_z, w_o, v_i, v_f, v_z, v_o, eye, d_average, d_log_n, dh,
    HALF: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of a position's gates, and of the state before it; `v` are the transposed matrices.

    In single precision two sets of matrices have no room, and x holds the gates whole.
    """
    if HALF:
        i = _gate(x_i, w_i, h, eye, HALF, PRECISION)
        f = _gate(x_f, w_f, h, eye, HALF, PRECISION)
        z = _gate(x_z, w_z, h, eye, HALF, PRECISION)
        o = _gate(x_o, w_o, h, eye, HALF, PRECISION)
    else:
        i, f, z, o = x_i, x_f, x_z, x_o
    keep, renew, fall, _ = _mix(i, f, log_n)
    z, o = 2.0 * _sigmoid(2.0 * z) - 1.0, _sigmoid(o)
    slope = tl.where(f > 0.0, fall, 1.0) / (1.0 + fall)
    change = average - z
    by_gate = change * keep * renew
    by_z = renew * (1.0 - z * z)
    by_h = (z + keep * change) * o * (1.0 - o)
    dh += dy
    d_average += dh * o
    d_kept = d_average * by_gate + d_log_n * keep
    d_i = (d_log_n * renew - d_average * by_gate).to(x_i.dtype)
    d_f = (d_kept * slope).to(x_i.dtype)
    d_z = (d_average * by_z).to(x_i.dtype)
    d_o = (dh * by_h).to(x_i.dtype)
    dh = tl.dot(v_i, d_i, input_precision=PRECISION)
    dh = tl.dot(v_f, d_f, dh, input_precision=PRECISION)
    dh = tl.dot(v_z, d_z, dh, input_precision=PRECISION)
    dh = tl.dot(v_o, d_o, dh, input_precision=PRECISION)
    return d_i, d_f, d_z, d_o, d_average * keep, d_kept, dh


@triton.jit(do_not_specialize=["time", "batch"])
def _backward(
    input_gate, forget_gate, cell_input, output_gate, recurrent, start, outputs, averages, logs, d_outputs, d_end,
    d_input, d_forget, d_cell, d_output, d_start, time, batch,
    HEADS: tl.constexpr, KEY: tl.constexpr, PADDED: tl.constexpr, SEQUENCES: tl.constexpr,
    HALF: tl.constexpr, PRECISION: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    WIDTH: tl.constexpr = HEADS * KEY
    head = tl.program_id(0) % HEADS
    sequence = (tl.program_id(0) // HEADS).to(tl.int64) * SEQUENCES + tl.arange(0, SEQUENCES)[None, :]
    key, column = tl.arange(0, PADDED)[:, None], tl.arange(0, PADDED)[None, :]
    live, square = (sequence < batch) & (key < KEY), (key < KEY) & (column < KEY)
    w_i, w_f, w_z, w_o = _load_weights(recurrent, (head * KEY + key) * KEY + column, square, WIDTH * KEY)
    v_i, v_f, v_z, v_o = _load_weights(recurrent, (head * KEY + column) * KEY + key, square, WIDTH * KEY)
    eye = tl.where(key == column, 1.0, 0.0).to(w_i.dtype)
    state = sequence * (3 * WIDTH) + head * KEY + key
    d_average, d_log_n = tl.load(d_end + state, live, 0.0), tl.load(d_end + WIDTH + state, live, 0.0)
    dh = tl.load(d_end + 2 * WIDTH + state, live, 0.0)
    now = sequence * time * WIDTH + head * KEY + key
    for back in tl.range(1, time if HALF else time + 1, num_stages=STAGES):
        at = now + (time - back) * WIDTH
        x_i, x_f, x_z, x_o = _load_four(input_gate, forget_gate, cell_input, output_gate, at, live)
        later = live if HALF else live & (back + tl.zeros_like(key) < time)
        average = _enter(tl.load(averages + at - WIDTH, later, 0.0), eye, HALF)
        log_n, h = tl.load(logs + at - WIDTH, later, 0.0), tl.load(outputs + at - WIDTH, later, 0.0)
        if not HALF:
            average = tl.where(later, average, tl.load(start + state, live, 0.0))
            log_n = tl.where(later, log_n, tl.load(start + WIDTH + state, live, 0.0))
        dy = _enter(tl.load(d_outputs + at, live, 0.0), eye, HALF)
        d_i, d_f, d_z, d_o, d_average, d_log_n, dh = _step_back(
            x_i, x_f, x_z, x_o, dy, average, log_n, h, w_i, w_f, w_z, w_o, v_i, v_f, v_z, v_o, eye,
            d_average, d_log_n, dh, HALF, PRECISION,
        )  # fmt: skip
        _store_four(d_input, d_forget, d_cell, d_output, at, live, d_i, d_f, d_z, d_o)
    if HALF:
        x_i, x_f, x_z, x_o = _load_four(input_gate, forget_gate, cell_input, output_gate, now, live)
        average, log_n = tl.load(start + state, live, 0.0), tl.load(start + WIDTH + state, live, 0.0)
        h = tl.load(start + 2 * WIDTH + state, live, 0.0).to(w_i.dtype)
        dy = tl.load(d_outputs + now, live, 0.0).to(tl.float32)
        d_i, d_f, d_z, d_o, d_average, d_log_n, dh = _step_back(
            x_i, x_f, x_z, x_o, dy, average, log_n, h, w_i, w_f, w_z, w_o, v_i, v_f, v_z, v_o, eye,
            d_average, d_log_n, dh, HALF, PRECISION,
        )  # fmt: skip
        _store_four(d_input, d_forget, d_cell, d_output, now, live, d_i, d_f, d_z, d_o)
    tl.store(d_start + state, d_average, live)
    tl.store(d_start + WIDTH + state, d_log_n, live)
    tl.store(d_start + 2 * WIDTH + state, dh, live)


@triton.jit(do_not_specialize=["tokens", "time", "span"])
def _weight_gradients(
    d_input, d_forget, d_cell, d_output, outputs, start, partial, tokens, time, span,
    HEADS: tl.constexpr, KEY: tl.constexpr, PADDED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """For one gate and head: the sum over a span of tokens of gate gradient times h of the position before."""
    WIDTH: tl.constexpr = HEADS * KEY
    head, gate = tl.program_id(0) % HEADS, tl.program_id(0) // HEADS % 4
    part = (tl.program_id(0) // (4 * HEADS)).to(tl.int64)
    key = tl.arange(0, PADDED)[None, :]
    d_gate = d_input
    if gate == 1:
        d_gate = d_forget
    if gate == 2:
        d_gate = d_cell
    if gate == 3:
        d_gate = d_output
    total = tl.zeros((PADDED, PADDED), tl.float32)
    for i in range(0, span, TOKENS):
        token = part * span + i + tl.arange(0, TOKENS)[:, None]
        live = (token < tokens) & (key < KEY)
        begins = token % time == 0
        at = token * WIDTH + head * KEY + key
        h = tl.load(outputs + at - WIDTH, live & (begins == 0), 0.0)
        first = tl.load(start + (token // time * 3 + 2) * WIDTH + head * KEY + key, live & begins, 0.0)
        h = tl.where(begins, first, h.to(tl.float32)).to(outputs.dtype.element_ty)
        g = tl.load(d_gate + at, live, 0.0)
        total = tl.dot(tl.trans(g), h, total, input_precision=PRECISION)
    row = tl.arange(0, PADDED)[:, None]
    at = ((part * 4 + gate) * HEADS + head) * (KEY * KEY) + row * KEY + key
    tl.store(partial + at, total, (row < KEY) & (key < KEY))


def _tiling(gate: Tensor) -> dict[str, object]:
    _, _, heads, key = gate.shape
    half = gate.dtype != torch.float32
    return {
        "HEADS": heads,
        "KEY": key,
        "PADDED": max(16, triton.next_power_of_2(key)),
        "PRECISION": "tf32" if half else "tf32x3",
    }


def _walk(gate: Tensor) -> dict[str, object]:
    half = gate.dtype != torch.float32
    return _tiling(gate) | {
        "SEQUENCES": SEQUENCES,
        "HALF": half,
        "STAGES": 4 if half else 2,
        "num_warps": 4 if half else 8,
    }


def _programs(gate: Tensor) -> int:
    return triton.cdiv(gate.shape[0], SEQUENCES) * gate.shape[2]


@torch.library.custom_op("tsseq::slstm", mutates_args=())
def _forward_op(
    input_gate: Tensor, forget_gate: Tensor, cell_input: Tensor, output_gate: Tensor, recurrent: Tensor,
    start: Tensor, save: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Outputs, last reduced state, and if `save` all averages and log normalisers."""
    batch, time, _, _ = cell_input.shape
    outputs = torch.empty(cell_input.shape, dtype=cell_input.dtype, device=cell_input.device)
    kept = cell_input.shape if save else (0,)
    averages = torch.empty(kept, dtype=cell_input.dtype, device=cell_input.device)
    logs = torch.empty(kept, device=cell_input.device)
    end = torch.empty(start.shape, device=start.device)
    _forward[(_programs(cell_input),)](
        input_gate.contiguous(), forget_gate.contiguous(), cell_input.contiguous(), output_gate.contiguous(),
        recurrent.contiguous(), start.contiguous(), outputs, averages, logs, end, time, batch, SAVE=save,
        **_walk(cell_input),
    )  # fmt: skip
    return outputs, end, averages, logs


@_forward_op.register_fake
def _(input_gate, forget_gate, cell_input, output_gate, recurrent, start, save):  # type: ignore[no-untyped-def]
    kept = cell_input.shape if save else (0,)
    return (
        torch.empty(cell_input.shape, dtype=cell_input.dtype, device=cell_input.device),
        torch.empty(start.shape, device=start.device),
        torch.empty(kept, dtype=cell_input.dtype, device=cell_input.device),
        torch.empty(kept, device=cell_input.device),
    )


@torch.library.custom_op("tsseq::slstm_backward", mutates_args=())
def _backward_op(
    input_gate: Tensor, forget_gate: Tensor, cell_input: Tensor, output_gate: Tensor, recurrent: Tensor,
    start: Tensor, outputs: Tensor, averages: Tensor, logs: Tensor, d_outputs: Tensor, d_end: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    batch, time, heads, _ = cell_input.shape
    gates = [x.contiguous() for x in (input_gate, forget_gate, cell_input, output_gate)]
    if cell_input.dtype == torch.float32:
        before = torch.cat([start[:, None, 2], outputs[:, :-1]], dim=1)
        gates = [x + torch.einsum("bthj,hij->bthi", before, r) for x, r in zip(gates, recurrent, strict=True)]
        gates = [x.contiguous() for x in gates]
    d_gates = [torch.empty(outputs.shape, dtype=outputs.dtype, device=outputs.device) for _ in range(4)]
    d_start = torch.empty(start.shape, device=start.device)
    start = start.contiguous()
    _backward[(_programs(cell_input),)](
        *gates, recurrent.contiguous(), start, outputs, averages, logs, d_outputs.contiguous(), d_end.contiguous(),
        *d_gates, d_start, time, batch, **_walk(cell_input),
    )  # fmt: skip
    tokens = batch * time
    parts = max(1, min(triton.cdiv(tokens, TOKENS.value), 528 // (4 * heads)))
    span = triton.cdiv(triton.cdiv(tokens, parts), TOKENS.value) * TOKENS.value
    partial = torch.empty((parts, *recurrent.shape), device=outputs.device)
    _weight_gradients[(parts * 4 * heads,)](
        *d_gates, outputs, start, partial, tokens, time, span, num_warps=4, **_tiling(cell_input)
    )
    return d_gates[0], d_gates[1], d_gates[2], d_gates[3], partial.sum(0).to(recurrent.dtype), d_start


@_backward_op.register_fake
def _(*tensors):  # type: ignore[no-untyped-def]
    return tuple(torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in tensors[:6])


def _save(ctx, inputs, output):  # type: ignore[no-untyped-def]
    outputs, _, averages, logs = output
    ctx.mark_non_differentiable(averages, logs)
    ctx.save_for_backward(*inputs[:6], outputs, averages, logs)


def _differentiate(ctx, d_outputs, d_end, _, __):  # type: ignore[no-untyped-def]
    return *torch.ops.tsseq.slstm_backward(*ctx.saved_tensors, d_outputs, d_end), None


_forward_op.register_autograd(_differentiate, setup_context=_save)


def fused(
    input_gate: Float[Tensor, "batch time head key"],
    forget_gate: Float[Tensor, "batch time head key"],
    cell_input: Float[Tensor, "batch time head key"],
    output_gate: Float[Tensor, "batch time head key"],
    recurrent: Float[Tensor, "gate head key key"],
    initial_state: Float[Tensor, "batch part head key"] | None = None,
) -> tuple[Float[Tensor, "batch time head key"], Float[Tensor, "batch part head key"]]:
    """See `tsseq.kernels.slstm.slstm`; at most 64 keys and 32 bits per number."""
    batch, _, head, key = cell_input.shape
    if initial_state is None:
        start = torch.zeros((batch, 3, head, key), device=cell_input.device)
        start[:, 1] = -torch.inf
    else:
        start = reduced(initial_state.float())
    inputs = [x.to(cell_input.dtype) for x in (input_gate, forget_gate, cell_input, output_gate, recurrent)]
    save = torch.is_grad_enabled() and any(x.requires_grad for x in (*inputs, start))
    outputs, end, _, _ = torch.ops.tsseq.slstm(*inputs, start, save)
    return outputs, expanded(end)
