"""The block recurrence with matrices formed from increments on a GPU: they live in registers, one position each.

Forward and the adjoint recurrence walk through time as in `triton.py`, but read the increments in place of the
matrices; the weights of a program's blocks stay in its registers. The gradients of increments and weights are
sums of outer products g_t h_{t-1}^T, formed tile by tile in two further kernels, parallel over all positions.
"""

import torch
import triton
import triton.language as tl

from tsseq.array_typing import Float, Tensor
from tsseq.kernels.block_scan.chunked import in_slices
from tsseq.kernels.block_scan.triton import _ahead, _indices, _programs, _rows, _tiling, fused

REGISTERS = 128
"""Weights one thread may hold; a wider control or a larger block has its matrices formed in slices of time."""

TOKENS, ENTRIES = tl.constexpr(64), tl.constexpr(64)


@triton.jit
def _weights(weights, place, live, OMEGA: tl.constexpr, STRIDE: tl.constexpr):
    rows = ()
    for i in tl.static_range(OMEGA):
        rows += (tl.load(weights + i * STRIDE + place, live, 0.0),)
    return rows


@triton.jit
def _increments(increments, origin, t, time, AHEAD: tl.constexpr, OMEGA: tl.constexpr, FORWARDS: tl.constexpr):
    """The increments of `AHEAD` positions as scalars, position after position."""
    scalars = ()
    for r in tl.static_range(AHEAD):
        if FORWARDS:
            s = tl.minimum(t + r, time - 1)
        else:
            s = tl.maximum(t - r, 0)
        for i in tl.static_range(OMEGA):
            scalars += (tl.load(increments + (origin + s) * OMEGA + i),)
    return scalars


@triton.jit
def _matrix(eye, weights, increments, FIRST: tl.constexpr, OMEGA: tl.constexpr):
    matrix = eye
    for i in tl.static_range(OMEGA):
        matrix += increments[FIRST + i].to(tl.float32) * weights[i]
    return matrix


@triton.jit(do_not_specialize=["time"])
def _forward(
    increments, weights, inputs, start, states, end, time,
    BLOCKS: tl.constexpr, SIZE: tl.constexpr, GROUP: tl.constexpr, PADDED: tl.constexpr, AHEAD: tl.constexpr,
    OMEGA: tl.constexpr, HAS_INPUTS: tl.constexpr, HAS_START: tl.constexpr,
):  # fmt: skip
    WIDTH: tl.constexpr = BLOCKS * SIZE
    sequence, place, _, live, entry, entry_live = _indices(BLOCKS, SIZE, GROUP, PADDED)
    origin = sequence * time
    w = _weights(weights, place, live, OMEGA, WIDTH * SIZE)
    eye = tl.where(live & (place // SIZE % SIZE == place % SIZE), 1.0, 0.0)
    h = tl.zeros((GROUP, PADDED), tl.float32)
    if HAS_START:
        h = tl.load(start + sequence * WIDTH + entry, entry_live, 0.0)
    coming = _increments(increments, origin, 0, time, AHEAD, OMEGA, True)
    coming_b = ()
    if HAS_INPUTS:
        coming_b = _rows(inputs, entry, origin, 0, time, entry_live, AHEAD, WIDTH, True)
    for t in range(0, time, AHEAD):
        present, present_b = coming, coming_b
        coming = _increments(increments, origin, t + AHEAD, time, AHEAD, OMEGA, True)
        if HAS_INPUTS:
            coming_b = _rows(inputs, entry, origin, t + AHEAD, time, entry_live, AHEAD, WIDTH, True)
        for r in tl.static_range(AHEAD):
            x = tl.sum(_matrix(eye, w, present, r * OMEGA, OMEGA) * h[:, None, :], axis=2)
            if HAS_INPUTS:
                x += present_b[r].to(tl.float32)
            there = t + r + tl.zeros_like(entry) < time
            h = tl.where(there, x, h)
            tl.store(states + (origin + t + r) * WIDTH + entry, h.to(states.dtype.element_ty), entry_live & there)
    tl.store(end + sequence * WIDTH + entry, h, entry_live)


@triton.jit(do_not_specialize=["time"])
def _adjoint(
    increments, weights, d_states, d_end, d_inputs, d_start, time,
    BLOCKS: tl.constexpr, SIZE: tl.constexpr, GROUP: tl.constexpr, PADDED: tl.constexpr, AHEAD: tl.constexpr,
    OMEGA: tl.constexpr,
):  # fmt: skip
    """g_t = dh_t + A_{t+1}^T g_{t+1}, which is the gradient of the inputs."""
    WIDTH: tl.constexpr = BLOCKS * SIZE
    sequence, place, _, live, entry, entry_live = _indices(BLOCKS, SIZE, GROUP, PADDED)
    origin = sequence * time
    w = _weights(weights, place, live, OMEGA, WIDTH * SIZE)
    eye = tl.where(live & (place // SIZE % SIZE == place % SIZE), 1.0, 0.0)
    k = tl.load(d_end + sequence * WIDTH + entry, entry_live, 0.0)
    coming = _increments(increments, origin, time - 1, time, AHEAD, OMEGA, False)
    coming_g = _rows(d_states, entry, origin, time - 1, time, entry_live, AHEAD, WIDTH, False)
    for i in range(0, time, AHEAD):
        t = time - 1 - i
        present, present_g = coming, coming_g
        coming = _increments(increments, origin, t - AHEAD, time, AHEAD, OMEGA, False)
        coming_g = _rows(d_states, entry, origin, t - AHEAD, time, entry_live, AHEAD, WIDTH, False)
        for r in tl.static_range(AHEAD):
            there = t - r + tl.zeros_like(entry) >= 0
            g = present_g[r].to(tl.float32) + k
            at = d_inputs + (origin + t - r) * WIDTH + entry
            tl.store(at, g.to(d_inputs.dtype.element_ty), entry_live & there)
            x = tl.sum(_matrix(eye, w, present, r * OMEGA, OMEGA) * g[:, :, None], axis=1)
            k = tl.where(there, x, k)
    tl.store(d_start + sequence * WIDTH + entry, k, entry_live)


@triton.jit
def _outer_products(
    gradients, states, start, token, tokens, time, first,
    WIDTH: tl.constexpr, SIZE: tl.constexpr, HAS_START: tl.constexpr,
):  # fmt: skip
    """Tile [token, entry] of g_t h_{t-1}^T, whose entries are those of one position's matrices in memory order."""
    # The last axis of both operands is contiguous in memory and spread over neighbouring threads.
    WHOLE: tl.constexpr = SIZE == 1 or SIZE == 2 or SIZE == 4 or SIZE == 8
    begins = (token % time == 0)[:, None]
    sequence = (token // time).to(tl.int64)[:, None]
    at = token.to(tl.int64)[:, None] * WIDTH
    if WHOLE:
        ROWS: tl.constexpr = ENTRIES // SIZE
        row = first // SIZE + tl.arange(0, ROWS)[None, :]
        column = row
        live = (token < tokens)[:, None] & (row < WIDTH)
    else:
        entry = first + tl.arange(0, ENTRIES)[None, :]
        row = entry // SIZE
        column = entry // (SIZE * SIZE) * SIZE + entry % SIZE
        live = (token < tokens)[:, None] & (entry < WIDTH * SIZE)
    g = tl.load(gradients + at + row, live, 0.0).to(tl.float32)
    h = tl.load(states + at - WIDTH + column, live & (begins == 0), 0.0).to(tl.float32)
    if HAS_START:
        h += tl.load(start + sequence * WIDTH + column, live & begins, 0.0)
    if WHOLE:
        g = tl.reshape(g, (TOKENS, ENTRIES // (SIZE * SIZE), SIZE, 1))
        h = tl.reshape(h, (TOKENS, ENTRIES // (SIZE * SIZE), 1, SIZE))
        return tl.reshape(g * h, (TOKENS, ENTRIES))
    else:
        return g * h


@triton.jit(do_not_specialize=["tokens", "time"])
def _increment_gradients(
    weights, gradients, states, start, d_increments, tokens, time,
    WIDTH: tl.constexpr, SIZE: tl.constexpr, OMEGA: tl.constexpr, OMEGA_PADDED: tl.constexpr,
    HAS_START: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    omega = tl.arange(0, OMEGA_PADDED)[None, :]
    total = tl.zeros((TOKENS, OMEGA_PADDED), tl.float32)
    for first in range(0, WIDTH * SIZE, ENTRIES):
        outer = _outer_products(gradients, states, start, token, tokens, time, first, WIDTH, SIZE, HAS_START)
        entry = first + tl.arange(0, ENTRIES)[:, None]
        w = tl.load(weights + omega * (WIDTH * SIZE) + entry, (omega < OMEGA) & (entry < WIDTH * SIZE), 0.0)
        total = tl.dot(outer, w, total, input_precision=PRECISION)
    at = d_increments + token.to(tl.int64)[:, None] * OMEGA + omega
    tl.store(at, total.to(d_increments.dtype.element_ty), (token < tokens)[:, None] & (omega < OMEGA))


@triton.jit(do_not_specialize=["tokens", "time", "span"])
def _weight_gradients(
    increments, gradients, states, start, partial, tokens, time, span,
    WIDTH: tl.constexpr, SIZE: tl.constexpr, OMEGA: tl.constexpr, OMEGA_PADDED: tl.constexpr,
    HAS_START: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Sums over a span of tokens for some entries."""
    TILES: tl.constexpr = (WIDTH * SIZE + ENTRIES - 1) // ENTRIES
    part = tl.program_id(0) // TILES
    first = (tl.program_id(0) % TILES) * ENTRIES
    omega = tl.arange(0, OMEGA_PADDED)[None, :]
    total = tl.zeros((ENTRIES, OMEGA_PADDED), tl.float32)
    for i in range(0, span, TOKENS):
        token = part * span + i + tl.arange(0, TOKENS)
        outer = _outer_products(gradients, states, start, token, tokens, time, first, WIDTH, SIZE, HAS_START)
        at = increments + token.to(tl.int64)[:, None] * OMEGA + omega
        delta = tl.load(at, (token < tokens)[:, None] & (omega < OMEGA), 0.0)
        total = tl.dot(tl.trans(outer), delta.to(tl.float32), total, input_precision=PRECISION)
    entry = first + tl.arange(0, ENTRIES)[:, None]
    at = partial + part.to(tl.int64) * (OMEGA * WIDTH * SIZE) + omega * (WIDTH * SIZE) + entry
    tl.store(at, total, (omega < OMEGA) & (entry < WIDTH * SIZE))


def _controlled_tiling(batch: int, weights: Tensor) -> dict[str, int]:
    omega, block, size, _ = weights.shape
    tiling = _tiling(block, size)
    return tiling | {"AHEAD": _ahead(batch, tiling, min(4, 32 // omega)), "OMEGA": omega}


@torch.library.custom_op("tsseq::controlled_block_scan", mutates_args=())
def _forward_op(
    increments: Tensor, weights: Tensor, inputs: Tensor | None, start: Tensor | None
) -> tuple[Tensor, Tensor]:
    batch, time, _ = increments.shape
    _, block, size, _ = weights.shape
    states = torch.empty((batch, time, block, size), dtype=increments.dtype, device=increments.device)
    end = torch.empty((batch, block, size), device=increments.device)
    tiling = _controlled_tiling(batch, weights)
    _forward[(_programs(batch, tiling),)](
        increments.contiguous(), weights.contiguous(), states if inputs is None else inputs.contiguous(),
        end if start is None else start.contiguous(), states, end, time,
        HAS_INPUTS=inputs is not None, HAS_START=start is not None, **tiling,
    )  # fmt: skip
    return states, end


@_forward_op.register_fake
def _(increments, weights, inputs, start):  # type: ignore[no-untyped-def]
    batch, time, _ = increments.shape
    _, block, size, _ = weights.shape
    states = torch.empty((batch, time, block, size), dtype=increments.dtype, device=increments.device)
    return states, torch.empty((batch, block, size), device=increments.device)


@torch.library.custom_op("tsseq::controlled_block_scan_backward", mutates_args=())
def _backward_op(
    increments: Tensor, weights: Tensor, states: Tensor, start: Tensor | None, d_states: Tensor, d_end: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    batch, time, omega = increments.shape
    increments, weights = increments.contiguous(), weights.contiguous()
    d_inputs = torch.empty(states.shape, dtype=states.dtype, device=states.device)
    d_start = torch.empty(d_end.shape, device=d_end.device)
    tiling = _controlled_tiling(batch, weights)
    _adjoint[(_programs(batch, tiling),)](
        increments, weights, d_states.contiguous(), d_end.contiguous(), d_inputs, d_start, time, **tiling
    )
    d_increments = torch.empty(increments.shape, dtype=increments.dtype, device=increments.device)
    first = d_end if start is None else start.contiguous()
    tokens, entries = batch * time, weights[0].numel()
    tiles = triton.cdiv(entries, ENTRIES.value)
    parts = max(1, min(triton.cdiv(tokens, TOKENS.value), 1024 // tiles))
    span = triton.cdiv(triton.cdiv(tokens, parts), TOKENS.value) * TOKENS.value
    partial = torch.empty((parts, *weights.shape), device=weights.device)
    sizes = {
        "WIDTH": states.shape[2] * states.shape[3],
        "SIZE": states.shape[3],
        "OMEGA": omega,
        "OMEGA_PADDED": max(16, triton.next_power_of_2(omega)),
        "HAS_START": start is not None,
        "PRECISION": "tf32x3" if increments.dtype == torch.float32 else "tf32",
        "num_warps": 4,
    }
    _increment_gradients[(triton.cdiv(tokens, TOKENS.value),)](
        weights, d_inputs, states, first, d_increments, tokens, time, **sizes
    )
    _weight_gradients[(parts * tiles,)](increments, d_inputs, states, first, partial, tokens, time, span, **sizes)
    return d_increments, partial.sum(0), d_inputs, d_start


@_backward_op.register_fake
def _(increments, weights, states, start, d_states, d_end):  # type: ignore[no-untyped-def]
    return tuple(torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (increments, weights, states, d_end))


def _save(ctx, inputs, output):  # type: ignore[no-untyped-def]
    increments, weights, b, start = inputs
    ctx.has_inputs = b is not None
    ctx.save_for_backward(increments, weights, output[0], start)


def _differentiate(ctx, d_states, d_end):  # type: ignore[no-untyped-def]
    increments, weights, states, start = ctx.saved_tensors
    gradients = torch.ops.tsseq.controlled_block_scan_backward(increments, weights, states, start, d_states, d_end)
    d_increments, d_weights, d_inputs, d_start = gradients
    return d_increments, d_weights, d_inputs if ctx.has_inputs else None, None if start is None else d_start


_forward_op.register_autograd(_differentiate, setup_context=_save)


def controlled(
    increments: Float[Tensor, "batch time omega"],
    weights: Float[Tensor, "omega block size size"],
    inputs: Float[Tensor, "batch time block size"] | None = None,
    initial_state: Float[Tensor, "batch block size"] | None = None,
) -> tuple[Float[Tensor, "batch time block size"], Float[Tensor, "batch block size"]]:
    """See `tsseq.kernels.block_scan.controlled_block_scan`; at most 32 bits per number."""
    omega, _, size, _ = weights.shape
    if omega * min(32, triton.next_power_of_2(size)) > REGISTERS or size > 32:
        return in_slices(fused, increments, weights, inputs, initial_state)
    b = None if inputs is None else inputs.to(increments.dtype)
    start = None if initial_state is None else initial_state.float()
    states, end = torch.ops.tsseq.controlled_block_scan(increments, weights.float(), b, start)
    return states, end
