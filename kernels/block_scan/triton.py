"""The block-diagonal recurrence on a GPU: one kernel forward, one backward, every matrix read once.

A program walks through time with the state of a few blocks in its registers; the matrices of the next few
positions are already on their way while the present ones are multiplied. Only the sequences and the blocks are
parallel: a product of two matrices costs more than the time it saves as soon as they fill the chip.
"""

import torch
import triton
import triton.language as tl

from tsseq.array_typing import Float, Tensor

FEW = 1200
"""Programs of one warp that leave a large GPU room for many registers each."""


@triton.jit
def _indices(BLOCKS: tl.constexpr, SIZE: tl.constexpr, GROUP: tl.constexpr, PADDED: tl.constexpr):
    """Sequence of this program; offsets of its matrices, its states along their columns, and its states; masks."""
    GROUPS: tl.constexpr = (BLOCKS + GROUP - 1) // GROUP
    sequence = (tl.program_id(0) // GROUPS).to(tl.int64)
    first = (tl.program_id(0) % GROUPS) * GROUP
    block, row = first + tl.arange(0, GROUP)[:, None, None], tl.arange(0, PADDED)[None, :, None]
    column = tl.arange(0, PADDED)[None, None, :] + tl.zeros_like(row)
    live = (block < BLOCKS) & (row < SIZE) & (column < SIZE)
    flat_block, flat_row = first + tl.arange(0, GROUP)[:, None], tl.arange(0, PADDED)[None, :]
    flat_live = (flat_block < BLOCKS) & (flat_row < SIZE)
    place = (block * SIZE + row) * SIZE + column
    return sequence, place, block * SIZE + column, live, flat_block * SIZE + flat_row, flat_live


@triton.jit
def _rows(x, place, origin, t, time, live, AHEAD: tl.constexpr, STRIDE: tl.constexpr, FORWARDS: tl.constexpr):
    """What `x` holds for `AHEAD` positions from t on, or back; the loads are issued together.

    Beyond the sequence the nearest position is read again; nothing is made of it.
    """
    rows = ()
    for r in tl.static_range(AHEAD):
        if FORWARDS:
            s = tl.minimum(t + r, time - 1)
        else:
            s = tl.maximum(t - r, 0)
        rows += (tl.load(x + (origin + s) * STRIDE + place, live, 0.0),)
    return rows


@triton.jit(do_not_specialize=["time"])
def _forward(
    transitions, inputs, start, states, end, time,
    BLOCKS: tl.constexpr, SIZE: tl.constexpr, GROUP: tl.constexpr, PADDED: tl.constexpr, AHEAD: tl.constexpr,
    HAS_INPUTS: tl.constexpr, HAS_START: tl.constexpr,
):  # fmt: skip
    WIDTH: tl.constexpr = BLOCKS * SIZE
    sequence, place, _, live, entry, entry_live = _indices(BLOCKS, SIZE, GROUP, PADDED)
    origin = sequence * time
    h = tl.zeros((GROUP, PADDED), tl.float32)
    if HAS_START:
        h = tl.load(start + sequence * WIDTH + entry, entry_live, 0.0)
    coming = _rows(transitions, place, origin, 0, time, live, AHEAD, WIDTH * SIZE, True)
    coming_b = ()
    if HAS_INPUTS:
        coming_b = _rows(inputs, entry, origin, 0, time, entry_live, AHEAD, WIDTH, True)
    for t in range(0, time, AHEAD):
        present, present_b = coming, coming_b
        coming = _rows(transitions, place, origin, t + AHEAD, time, live, AHEAD, WIDTH * SIZE, True)
        if HAS_INPUTS:
            coming_b = _rows(inputs, entry, origin, t + AHEAD, time, entry_live, AHEAD, WIDTH, True)
        for r in tl.static_range(AHEAD):
            x = tl.sum(present[r].to(tl.float32) * h[:, None, :], axis=2)
            if HAS_INPUTS:
                x += present_b[r].to(tl.float32)
            there = t + r + tl.zeros_like(entry) < time
            h = tl.where(there, x, h)
            tl.store(states + (origin + t + r) * WIDTH + entry, h.to(states.dtype.element_ty), entry_live & there)
    tl.store(end + sequence * WIDTH + entry, h, entry_live)


@triton.jit(do_not_specialize=["time"])
def _backward(
    transitions, states, start, d_states, d_end, d_transitions, d_inputs, d_start, time,
    BLOCKS: tl.constexpr, SIZE: tl.constexpr, GROUP: tl.constexpr, PADDED: tl.constexpr, AHEAD: tl.constexpr,
    HAS_START: tl.constexpr,
):  # fmt: skip
    """g_t = dh_t + A_{t+1}^T g_{t+1}; dA_t = g_t h_{t-1}^T."""
    WIDTH: tl.constexpr = BLOCKS * SIZE
    sequence, place, column_entry, live, entry, entry_live = _indices(BLOCKS, SIZE, GROUP, PADDED)
    origin = sequence * time
    k = tl.load(d_end + sequence * WIDTH + entry, entry_live, 0.0)
    first = tl.zeros((GROUP, PADDED, PADDED), tl.float32)
    if HAS_START:
        first = tl.load(start + sequence * WIDTH + column_entry, live, 0.0)
    coming = _rows(transitions, place, origin, time - 1, time, live, AHEAD, WIDTH * SIZE, False)
    coming_g = _rows(d_states, entry, origin, time - 1, time, entry_live, AHEAD, WIDTH, False)
    coming_h = _rows(states, column_entry, origin, time - 2, time, live, AHEAD, WIDTH, False)
    for i in range(0, time, AHEAD):
        t = time - 1 - i
        present, present_g, present_h = coming, coming_g, coming_h
        coming = _rows(transitions, place, origin, t - AHEAD, time, live, AHEAD, WIDTH * SIZE, False)
        coming_g = _rows(d_states, entry, origin, t - AHEAD, time, entry_live, AHEAD, WIDTH, False)
        coming_h = _rows(states, column_entry, origin, t - AHEAD - 1, time, live, AHEAD, WIDTH, False)
        for r in tl.static_range(AHEAD):
            s = t - r
            there, entry_there = s + tl.zeros_like(place) >= 0, s + tl.zeros_like(entry) >= 0
            g = present_g[r].to(tl.float32) + k
            at = d_inputs + (origin + s) * WIDTH + entry
            tl.store(at, g.to(d_inputs.dtype.element_ty), entry_live & entry_there)
            h = tl.where(s == 0, first, present_h[r].to(tl.float32))
            d_matrix = (g[:, :, None] * h).to(d_transitions.dtype.element_ty)
            tl.store(d_transitions + (origin + s) * (WIDTH * SIZE) + place, d_matrix, live & there)
            x = tl.sum(present[r].to(tl.float32) * g[:, :, None], axis=1)
            k = tl.where(entry_there, x, k)
    tl.store(d_start + sequence * WIDTH + entry, k, entry_live)


def _tiling(block: int, size: int) -> dict[str, int]:
    """A warp for 32 rows of small blocks, a program for one large block."""
    padded = triton.next_power_of_2(size)
    return {
        "BLOCKS": block,
        "SIZE": size,
        "GROUP": max(1, min(32 // padded, triton.next_power_of_2(block))),
        "PADDED": padded,
        "num_warps": max(1, min(8, padded * padded // 1024)),
    }


def _programs(batch: int, tiling: dict[str, int]) -> int:
    return batch * triton.cdiv(tiling["BLOCKS"], tiling["GROUP"])


def _ahead(batch: int, tiling: dict[str, int], most: int) -> int:
    """Positions to load ahead: `most` if few programs share the chip, else half, so that all fit it at once."""
    return max(1, most if _programs(batch, tiling) < FEW else most // 2)


@torch.library.custom_op("tsseq::block_scan", mutates_args=())
def _forward_op(transitions: Tensor, inputs: Tensor | None, start: Tensor | None) -> tuple[Tensor, Tensor]:
    batch, time, block, size, _ = transitions.shape
    transitions = transitions.contiguous()
    states = torch.empty(transitions.shape[:-1], dtype=transitions.dtype, device=transitions.device)
    end = torch.empty((batch, block, size), device=transitions.device)
    tiling = _tiling(block, size)
    ahead = min(8, 32 // tiling["PADDED"])
    _forward[(_programs(batch, tiling),)](
        transitions, states if inputs is None else inputs.contiguous(), end if start is None else start.contiguous(),
        states, end, time, HAS_INPUTS=inputs is not None, HAS_START=start is not None, AHEAD=max(1, ahead), **tiling,
    )  # fmt: skip
    return states, end


@_forward_op.register_fake
def _(transitions, inputs, start):  # type: ignore[no-untyped-def]
    batch, _, block, size, _ = transitions.shape
    states = torch.empty(transitions.shape[:-1], dtype=transitions.dtype, device=transitions.device)
    return states, torch.empty((batch, block, size), device=transitions.device)


@torch.library.custom_op("tsseq::block_scan_backward", mutates_args=())
def _backward_op(
    transitions: Tensor, states: Tensor, start: Tensor | None, d_states: Tensor, d_end: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    batch, time, block, size, _ = transitions.shape
    transitions = transitions.contiguous()
    d_transitions = torch.empty(transitions.shape, dtype=transitions.dtype, device=transitions.device)
    d_inputs = torch.empty(states.shape, dtype=states.dtype, device=states.device)
    d_start = torch.empty(d_end.shape, device=d_end.device)
    tiling = _tiling(block, size)
    ahead = _ahead(batch, tiling, min(8, 32 // tiling["PADDED"]))
    _backward[(_programs(batch, tiling),)](
        transitions, states, d_end if start is None else start.contiguous(), d_states.contiguous(),
        d_end.contiguous(), d_transitions, d_inputs, d_start, time, HAS_START=start is not None, AHEAD=ahead, **tiling,
    )  # fmt: skip
    return d_transitions, d_inputs, d_start


@_backward_op.register_fake
def _(transitions, states, start, d_states, d_end):  # type: ignore[no-untyped-def]
    return tuple(torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (transitions, states, d_end))


def _save(ctx, inputs, output):  # type: ignore[no-untyped-def]
    transitions, b, start = inputs
    ctx.has_inputs = b is not None
    ctx.save_for_backward(transitions, output[0], start)


def _differentiate(ctx, d_states, d_end):  # type: ignore[no-untyped-def]
    transitions, states, start = ctx.saved_tensors
    gradients = torch.ops.tsseq.block_scan_backward(transitions, states, start, d_states, d_end)
    d_transitions, d_inputs, d_start = gradients
    return d_transitions, d_inputs if ctx.has_inputs else None, None if start is None else d_start


_forward_op.register_autograd(_differentiate, setup_context=_save)


def fused(
    transitions: Float[Tensor, "batch time block size size"],
    inputs: Float[Tensor, "batch time block size"] | None = None,
    initial_state: Float[Tensor, "batch block size"] | None = None,
) -> tuple[Float[Tensor, "batch time block size"], Float[Tensor, "batch block size"]]:
    """See `tsseq.kernels.block_scan.block_scan`; blocks that fit a program's registers, at most 32 bits per number."""
    b = None if inputs is None else inputs.to(transitions.dtype)
    start = None if initial_state is None else initial_state.float()
    states, end = torch.ops.tsseq.block_scan(transitions, b, start)
    return states, end
