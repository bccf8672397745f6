"""The diagonal recurrence on a GPU: one kernel forward, one backward, every number read and written once.

A program owns a tile of consecutive positions of a few channels, all of it in registers. Each warp walks its
own rows of the tile, a short scan across the warps joins them, and the state that enters the tile comes from
the program before it in time, handed over through memory in words that carry their own "ready" mark. Tiles of
one instant come first in the grid, so a program waits only for programs that were started before it.
"""

import torch
import triton
import triton.language as tl

from tsseq.array_typing import Bool, Inexact, Tensor

STEPS = 8
"""Rows one warp walks: loads per operand in flight at once, and what still fits 64 registers a thread."""

READY = tl.constexpr(1 << 32)
LOW = tl.constexpr(0xFFFFFFFF)


@triton.jit
def _decode(x, COMPLEX: tl.constexpr):
    """Float32 real and imaginary part of a loaded number; complex64 comes as int64."""
    if COMPLEX:
        return (x & LOW).to(tl.int32).to(tl.float32, bitcast=True), (x >> 32).to(tl.int32).to(tl.float32, bitcast=True)
    else:
        return x.to(tl.float32), 0.0


@triton.jit
def _encode(re, im, dtype: tl.constexpr, COMPLEX: tl.constexpr):
    if COMPLEX:
        low = re.to(tl.int32, bitcast=True).to(tl.int64) & LOW
        return low | (im.to(tl.int32, bitcast=True).to(tl.int64) << 32)
    else:
        return re.to(dtype)


@triton.jit
def _multiply_add(ar, ai, xr, xi, br, bi, COMPLEX: tl.constexpr):
    """a * x + b"""
    if COMPLEX:
        return ar * xr - ai * xi + br, ar * xi + ai * xr + bi
    else:
        return ar * xr + br, 0.0


@triton.jit
def _join_real(a1, h1, p1, q1, a2, h2, p2, q2):
    """Maps x -> a x + h of two neighbouring spans, each with the map p x + q of all but its last member."""
    return a2 * a1, a2 * h1 + h2, p2 * a1, p2 * h1 + q2


@triton.jit
def _join_complex(ar1, ai1, hr1, hi1, pr1, pi1, qr1, qi1, ar2, ai2, hr2, hi2, pr2, pi2, qr2, qi2):
    ar, ai = _multiply_add(ar2, ai2, ar1, ai1, 0.0, 0.0, True)
    hr, hi = _multiply_add(ar2, ai2, hr1, hi1, hr2, hi2, True)
    pr, pi = _multiply_add(pr2, pi2, ar1, ai1, 0.0, 0.0, True)
    qr, qi = _multiply_add(pr2, pi2, hr1, hi1, qr2, qi2, True)
    return ar, ai, hr, hi, pr, pi, qr, qi


@triton.jit
def _join_warps(ar, ai, hr, hi, COMPLEX: tl.constexpr):
    """For every warp (axis 0) the map through its last row, then the map up to its first row."""
    one, zero = tl.full(hr.shape, 1.0, tl.float32), tl.zeros_like(hr)
    if COMPLEX:
        return tl.associative_scan((ar, ai, hr, hi, one, zero, zero, zero), 0, _join_complex)
    else:
        a, h, p, q = tl.associative_scan((ar, hr, one, zero), 0, _join_real)
        return a, 0.0, h, 0.0, p, 0.0, q, 0.0


@triton.jit
def _send(words, live, x):
    tl.store(words, (x.to(tl.int32, bitcast=True).to(tl.int64) & LOW) | READY, live)


@triton.jit
def _receive(words, live):
    """Wait until every word is marked as ready; its low half is the number."""
    word = tl.load(words, live, READY, volatile=True)
    while tl.min(word >> 32) == 0:
        word = tl.load(words, live, READY, volatile=True)
    return (word & LOW).to(tl.int32).to(tl.float32, bitcast=True)


@triton.jit
def _enter(
    ar, ai, hr, hi, start, end, words, plane, sub, channel, live, chunk, chunks, batch_index,
    WIDTH: tl.constexpr, HAS_START: tl.constexpr, SUBS: tl.constexpr, COMPLEX: tl.constexpr,
):  # fmt: skip
    """From each warp's map x -> a x + h, the state before each warp's rows; passes the tile's last one on."""
    channel = channel + tl.zeros_like(sub)
    own = batch_index * WIDTH + channel
    cr, ci = tl.zeros_like(hr), tl.zeros_like(hr)
    if chunk == 0:
        if HAS_START:
            cr, ci = _decode(tl.load(start + own, live, 0), COMPLEX)
            if not COMPLEX:
                ci = tl.zeros_like(cr)
    if SUBS > 1:
        ar, ai, hr, hi, pr, pi, qr, qi = _join_warps(ar, ai, hr, hi, COMPLEX)
    inbox = words + (batch_index * (chunks - 1) + chunk - 1) * WIDTH + channel
    if chunk > 0:
        cr = _receive(inbox, live)
        if COMPLEX:
            ci = _receive(inbox + plane, live)
    hr, hi = _multiply_add(ar, ai, cr, ci, hr, hi, COMPLEX)
    last = live & (sub == SUBS - 1)
    if chunk < chunks - 1:
        _send(inbox + WIDTH, last, hr)
        if COMPLEX:
            _send(inbox + WIDTH + plane, last, hi)
    else:
        tl.store(end + own, _encode(hr, hi, tl.float32, COMPLEX), last)
    if SUBS > 1:
        return _multiply_add(pr, pi, cr, ci, qr, qi, COMPLEX)
    else:
        return cr, ci


@triton.jit
def _place(rows, chunks, WIDTH: tl.constexpr, CHANNELS: tl.constexpr, SUBS: tl.constexpr):
    """Which tile this program owns: all batch rows and channels of the first chunk come first."""
    BLOCKS: tl.constexpr = (WIDTH + CHANNELS - 1) // CHANNELS
    chunk = tl.program_id(0) // rows
    row = tl.program_id(0) % rows
    batch_index = (row // BLOCKS).to(tl.int64)
    channel = (row % BLOCKS) * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    sub = tl.arange(0, SUBS)[:, None]
    return chunk, batch_index, channel, sub


@triton.jit(do_not_specialize=["time", "rows", "chunks", "plane"])
def _forward(
    decay, inputs, start, resets, states, end, words, time, rows, chunks, plane,
    WIDTH: tl.constexpr, CHANNELS: tl.constexpr, SUBS: tl.constexpr, STEPS: tl.constexpr, COMPLEX: tl.constexpr,
    CONSTANT: tl.constexpr, REVERSE: tl.constexpr, HAS_START: tl.constexpr, HAS_RESETS: tl.constexpr,
):  # fmt: skip
    chunk, batch_index, channel, sub = _place(rows, chunks, WIDTH, CHANNELS, SUBS)
    live = (channel < WIDTH) & (sub >= 0)
    first = chunk * (SUBS * STEPS) + sub * STEPS
    ONE: tl.constexpr = 0x3F800000 if COMPLEX else 1.0
    a_rows, b_rows, keeps = (), (), ()
    if CONSTANT:
        constant = tl.load(decay + channel, channel < WIDTH, 0)
    for r in tl.static_range(STEPS):
        there = first + r < time
        row = batch_index * time + (time - 1 - first - r if REVERSE else first + r)
        if not CONSTANT:
            a_rows += (tl.load(decay + row * WIDTH + channel, live & there, ONE),)
        b_rows += (tl.load(inputs + row * WIDTH + channel, live & there, 0),)
        if HAS_RESETS:
            keeps += (tl.load(resets + row, there, 0) == 0,)
    ar, ai = tl.full((SUBS, CHANNELS), 1.0, tl.float32), tl.zeros((SUBS, CHANNELS), tl.float32)
    hr, hi = tl.zeros((SUBS, CHANNELS), tl.float32), tl.zeros((SUBS, CHANNELS), tl.float32)
    for r in tl.static_range(STEPS):
        if CONSTANT:
            x = tl.where(first + r < time, constant, ONE)
        else:
            x = a_rows[r]
        if HAS_RESETS:
            x = tl.where(keeps[r], x, 0)
        xr, xi = _decode(x, COMPLEX)
        br, bi = _decode(b_rows[r], COMPLEX)
        ar, ai = _multiply_add(xr, xi, ar, ai, 0.0, 0.0, COMPLEX)
        hr, hi = _multiply_add(xr, xi, hr, hi, br, bi, COMPLEX)
    hr, hi = _enter(
        ar, ai, hr, hi, start, end, words, plane, sub, channel, live, chunk, chunks, batch_index,
        WIDTH, HAS_START, SUBS, COMPLEX,
    )  # fmt: skip
    for r in tl.static_range(STEPS):
        if CONSTANT:
            x = constant
        else:
            x = a_rows[r]
        if HAS_RESETS:
            x = tl.where(keeps[r], x, 0)
        xr, xi = _decode(x, COMPLEX)
        br, bi = _decode(b_rows[r], COMPLEX)
        hr, hi = _multiply_add(xr, xi, hr, hi, br, bi, COMPLEX)
        row = batch_index * time + (time - 1 - first - r if REVERSE else first + r)
        value = _encode(hr, hi, states.dtype.element_ty, COMPLEX)
        tl.store(states + row * WIDTH + channel, value, live & (first + r < time))


@triton.jit(do_not_specialize=["time", "rows", "chunks", "plane"])
def _backward(
    decay, states, start, resets, d_states, d_end, d_decay, d_inputs, d_start, words, time, rows, chunks, plane,
    WIDTH: tl.constexpr, CHANNELS: tl.constexpr, SUBS: tl.constexpr, STEPS: tl.constexpr, COMPLEX: tl.constexpr,
    CONSTANT: tl.constexpr, REVERSE: tl.constexpr, HAS_START: tl.constexpr, HAS_RESETS: tl.constexpr,
):  # fmt: skip
    """The adjoint k, what a position hands to the one before it: g = dh + k, k <- conj(a) g, last position first."""
    chunk, batch_index, channel, sub = _place(rows, chunks, WIDTH, CHANNELS, SUBS)
    live = (channel < WIDTH) & (sub >= 0)
    first = chunk * (SUBS * STEPS) + sub * STEPS
    ONE: tl.constexpr = 0x3F800000 if COMPLEX else 1.0
    BEFORE: tl.constexpr = WIDTH if REVERSE else -WIDTH
    a_rows, g_rows, h_rows, keeps = (), (), (), ()
    if CONSTANT:
        constant = tl.load(decay + channel, channel < WIDTH, 0)
    for r in tl.static_range(STEPS):
        there = first + r < time
        row = batch_index * time + (first + r if REVERSE else time - 1 - first - r)
        if not CONSTANT:
            a_rows += (tl.load(decay + row * WIDTH + channel, live & there, ONE),)
        g_rows += (tl.load(d_states + row * WIDTH + channel, live & there, 0),)
        if HAS_RESETS:
            keeps += (tl.load(resets + row, there, 0) == 0,)
    for r in tl.static_range(STEPS):
        row = batch_index * time + (first + r if REVERSE else time - 1 - first - r)
        h_rows += (tl.load(states + row * WIDTH + BEFORE + channel, live & (first + r < time - 1), 0),)
    ar, ai = tl.full((SUBS, CHANNELS), 1.0, tl.float32), tl.zeros((SUBS, CHANNELS), tl.float32)
    kr, ki = tl.zeros((SUBS, CHANNELS), tl.float32), tl.zeros((SUBS, CHANNELS), tl.float32)
    for r in tl.static_range(STEPS):
        if CONSTANT:
            x = tl.where(first + r < time, constant, ONE)
        else:
            x = a_rows[r]
        if HAS_RESETS:
            x = tl.where(keeps[r], x, 0)
        xr, xi = _decode(x, COMPLEX)
        gr, gi = _decode(g_rows[r], COMPLEX)
        ar, ai = _multiply_add(xr, -xi, ar, ai, 0.0, 0.0, COMPLEX)
        kr, ki = _multiply_add(xr, -xi, kr + gr, ki + gi, 0.0, 0.0, COMPLEX)
    kr, ki = _enter(
        ar, ai, kr, ki, d_end, d_start, words, plane, sub, channel, live, chunk, chunks, batch_index,
        WIDTH, True, SUBS, COMPLEX,
    )  # fmt: skip
    if HAS_START:
        sr, si = _decode(tl.load(start + batch_index * WIDTH + channel, channel < WIDTH, 0), COMPLEX)
    dr, di = tl.zeros((SUBS, CHANNELS), tl.float32), tl.zeros((SUBS, CHANNELS), tl.float32)
    for r in tl.static_range(STEPS):
        there = live & (first + r < time)
        row = batch_index * time + (first + r if REVERSE else time - 1 - first - r)
        gr, gi = _decode(g_rows[r], COMPLEX)
        gr, gi = gr + kr, gi + ki
        tl.store(d_inputs + row * WIDTH + channel, _encode(gr, gi, d_inputs.dtype.element_ty, COMPLEX), there)
        hr, hi = _decode(h_rows[r], COMPLEX)
        if HAS_START:
            hr = tl.where(first + r == time - 1, sr, hr)
            if COMPLEX:
                hi = tl.where(first + r == time - 1, si, hi)
        if HAS_RESETS:
            hr = tl.where(keeps[r], hr, 0.0)
            if COMPLEX:
                hi = tl.where(keeps[r], hi, 0.0)
        if CONSTANT:
            x = constant
            dr, di = _multiply_add(hr, -hi, gr, gi, dr, di, COMPLEX)
        else:
            x = a_rows[r]
            dr, di = _multiply_add(hr, -hi, gr, gi, 0.0, 0.0, COMPLEX)
            tl.store(d_decay + row * WIDTH + channel, _encode(dr, di, d_decay.dtype.element_ty, COMPLEX), there)
        if HAS_RESETS:
            x = tl.where(keeps[r], x, 0)
        xr, xi = _decode(x, COMPLEX)
        kr, ki = _multiply_add(xr, -xi, gr, gi, 0.0, 0.0, COMPLEX)
    if CONSTANT:
        dr = tl.sum(dr, axis=0, keep_dims=True)
        if COMPLEX:
            di = tl.sum(di, axis=0, keep_dims=True)
        partial = d_decay + (batch_index * chunks + chunk) * WIDTH + channel
        tl.store(partial, _encode(dr, di, tl.float32, COMPLEX), channel < WIDTH)


def _numbers(x: Tensor) -> Tensor:
    """Dense, and as something Triton has a name for: a complex64 is one int64."""
    x = x.resolve_conj().resolve_neg().contiguous()
    return x.view(torch.int64) if x.is_complex() else x


def _tiling(x: Tensor) -> dict[str, int]:
    """Tile shape for [batch, time, state]; one row of a warp is 256 bytes."""
    _, time, width = x.shape
    subs = min(8, triton.next_power_of_2(triton.cdiv(time, STEPS)))
    channels = min(256 // x.element_size(), triton.next_power_of_2(width))
    return {"WIDTH": width, "CHANNELS": channels, "SUBS": subs, "STEPS": STEPS, "num_warps": subs}


def _grid(x: Tensor, tiling: dict[str, int]) -> tuple[int, int, Tensor]:
    """Programs per chunk, number of chunks, and the zeroed words in which a chunk hands its state on."""
    batch, time, width = x.shape
    chunks = triton.cdiv(time, tiling["SUBS"] * STEPS)
    words = torch.zeros((1 + x.is_complex(), batch, chunks - 1, width), dtype=torch.int64, device=x.device)
    return batch * triton.cdiv(width, tiling["CHANNELS"]), chunks, words


def _flags(
    decay: Tensor, states: Tensor, start: Tensor | None, resets: Tensor | None, reverse: bool
) -> dict[str, bool]:
    return {
        "COMPLEX": states.is_complex(),
        "CONSTANT": decay.ndim == 1,
        "REVERSE": reverse,
        "HAS_START": start is not None,
        "HAS_RESETS": resets is not None,
    }


@torch.library.custom_op("tsseq::diagonal_scan", mutates_args=())
def _forward_op(
    decay: Tensor, inputs: Tensor, start: Tensor | None, resets: Tensor | None, reverse: bool
) -> tuple[Tensor, Tensor]:
    batch, time, width = inputs.shape
    states = torch.empty(inputs.shape, dtype=inputs.dtype, device=inputs.device)
    end = inputs.new_empty((batch, width), dtype=torch.promote_types(inputs.dtype, torch.float32))
    tiling = _tiling(inputs)
    rows, chunks, words = _grid(inputs, tiling)
    _forward[(rows * chunks,)](
        _numbers(decay), _numbers(inputs), words if start is None else _numbers(start),
        words if resets is None else resets.contiguous().view(torch.uint8), _numbers(states), _numbers(end), words,
        time, rows, chunks, batch * (chunks - 1) * width, **tiling, **_flags(decay, inputs, start, resets, reverse),
    )  # fmt: skip
    return states, end


@_forward_op.register_fake
def _(decay, inputs, start, resets, reverse):  # type: ignore[no-untyped-def]
    end = inputs.new_empty(inputs[:, 0].shape, dtype=torch.promote_types(inputs.dtype, torch.float32))
    return torch.empty(inputs.shape, dtype=inputs.dtype, device=inputs.device), end


@torch.library.custom_op("tsseq::diagonal_scan_backward", mutates_args=())
def _backward_op(
    decay: Tensor, states: Tensor, start: Tensor | None, resets: Tensor | None, d_states: Tensor, d_end: Tensor,
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    batch, time, width = states.shape
    tiling = _tiling(states)
    rows, chunks, words = _grid(states, tiling)
    d_inputs = torch.empty(states.shape, dtype=states.dtype, device=states.device)
    d_start = torch.empty(d_end.shape, dtype=d_end.dtype, device=d_end.device)
    constant = decay.ndim == 1
    d_decay = torch.empty((batch * chunks, width) if constant else decay.shape, dtype=decay.dtype, device=decay.device)
    _backward[(rows * chunks,)](
        _numbers(decay), _numbers(states), words if start is None else _numbers(start),
        words if resets is None else resets.contiguous().view(torch.uint8), _numbers(d_states), _numbers(d_end),
        _numbers(d_decay), _numbers(d_inputs), _numbers(d_start), words, time, rows, chunks,
        batch * (chunks - 1) * width, **tiling, **_flags(decay, states, start, resets, reverse),
    )  # fmt: skip
    return d_decay.sum(0) if constant else d_decay, d_inputs, d_start


@_backward_op.register_fake
def _(decay, states, start, resets, d_states, d_end, reverse):  # type: ignore[no-untyped-def]
    return tuple(torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (decay, states, d_end))


def _save(ctx, inputs, output):  # type: ignore[no-untyped-def]
    decay, _, start, resets, ctx.reverse = inputs
    ctx.save_for_backward(decay, output[0], start, resets)


def _differentiate(ctx, d_states, d_end):  # type: ignore[no-untyped-def]
    decay, states, start, resets = ctx.saved_tensors
    gradients = torch.ops.tsseq.diagonal_scan_backward(decay, states, start, resets, d_states, d_end, ctx.reverse)
    d_decay, d_inputs, d_start = gradients
    return d_decay, d_inputs, None if start is None else d_start, None, None


_forward_op.register_autograd(_differentiate, setup_context=_save)


def fused(
    decay: Inexact[Tensor, "batch time state"] | Inexact[Tensor, "state"],
    inputs: Inexact[Tensor, "batch time state"],
    initial_state: Inexact[Tensor, "batch state"] | None = None,
    *,
    reverse: bool = False,
    resets: Bool[Tensor, "batch time"] | None = None,
) -> tuple[Inexact[Tensor, "batch time state"], Inexact[Tensor, "batch state"]]:
    """See `tsseq.kernels.diagonal_scan.diagonal_scan`; at most 32 bits per real number."""
    wide = torch.promote_types(inputs.dtype, torch.float32)
    if decay.ndim == 1 or inputs.is_complex():
        decay = decay.to(wide)
    if initial_state is not None:
        initial_state = initial_state.to(wide)
    if resets is not None and reverse:
        resets = torch.cat([resets[:, 1:], torch.zeros_like(resets[:, :1])], dim=1)
    states, end = torch.ops.tsseq.diagonal_scan(decay, inputs, initial_state, resets, reverse)
    return states, end
