"""Linear attention with a decay per key channel on a GPU: one kernel forward, one backward.

A weight exp(sum of f over (j, i]) per channel does not factor into a query's and a key's part without overflow.
A chunk is therefore halved again and again: a pair (i, j) is taken at the level whose middle parts them, where both
its parts, from j to the middle and from the middle to i, are at most one. The sums over such segments are products
with masks of zeros and ones, exact whatever the decay, and their gradients are the transposed products.

Tiles that are needed transposed are computed transposed, for the reason given in `triton.py`.
"""

from typing import Any

import torch
import triton
import triton.language as tl

from tsseq.array_typing import State, Tensor
from tsseq.kernels.layout import token_rows
from tsseq.kernels.linear_attention.triton import _put, _tile
from tsseq.kernels.linear_attention.triton_gates import LOG2E, RESET
from tsseq.kernels.precision import precision


@triton.jit
def _segments(p, other, half):
    """Which entries `other` lie between position `p` and the middle of its block of 2 * half."""
    together = (p // (2 * half)) == (other // (2 * half))
    right = ((p & half) != 0) & ((other & half) != 0) & (other <= p)
    left = ((p & half) == 0) & ((other & half) == 0) & (other > p)
    return (together & (right | left)).to(tl.float32)


@triton.jit
def _parted(i, j, half):
    """Whether the middle of a block of 2 * half lies between key `j` and the later query `i`."""
    return ((i // (2 * half)) == (j // (2 * half))) & ((i & half) != 0) & ((j & half) == 0)


@triton.jit(do_not_specialize=["T"])
def channelwise_forward_kernel(
    q, k, v, decay, memory0, o, memory, memories, T,
    SCALE: tl.constexpr, HEADS: tl.constexpr, K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr,
    BV: tl.constexpr, CHUNK: tl.constexpr, Q_STRIDE: tl.constexpr, K_STRIDE: tl.constexpr, V_STRIDE: tl.constexpr,
    F_STRIDE: tl.constexpr, HAS_STATE: tl.constexpr, SAVE: tl.constexpr, LEVELS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    SLICES: tl.constexpr = (V + BV - 1) // BV
    first = tl.program_id(0) % SLICES * BV
    bh = (tl.program_id(0) // SLICES).to(tl.int64)
    batch = bh // HEADS
    head = (bh % HEADS).to(tl.int32)
    dtype = q.dtype.element_ty
    row = tl.arange(0, CHUNK)[:, None]
    column = tl.arange(0, CHUNK)[None, :]
    chunks = tl.cdiv(T, CHUNK)
    width = V - first

    S = tl.zeros((BK, BV), tl.float32)
    if HAS_STATE:
        S = _tile(memory0 + bh * K * V + first, K, V, width, BK, BV)
    for c in range(0, chunks):
        token = batch * T + c * CHUNK
        left = T - c * CHUNK
        qc = _tile(q + token * Q_STRIDE + head * K, left, Q_STRIDE, K, CHUNK, BK).to(tl.float32) * SCALE
        kc = _tile(k + token * K_STRIDE + head * K, left, K_STRIDE, K, CHUNK, BK)
        vc = _tile(v + token * V_STRIDE + head * V + first, left, V_STRIDE, width, CHUNK, BV)
        f = _tile(decay + token * F_STRIDE + head * K, left, F_STRIDE, K, CHUNK, BK).to(tl.float32)
        f = tl.maximum(f * LOG2E, RESET)
        fT = tl.trans(f)
        kT = tl.trans(kc).to(tl.float32)
        if SAVE:
            _put(memories + (bh * chunks + c) * K * V + first, S, K, V, width, BK, BV)

        P = tl.where(row == column, tl.sum(qc * kc.to(tl.float32), axis=1)[:, None], 0.0)
        for level in range(LEVELS):
            half = 1 << level
            reach = tl.exp2(tl.dot(_segments(row, column, half), f, input_precision=PRECISION))
            reachT = tl.exp2(tl.dot(fT, _segments(column, row, half), input_precision=PRECISION))
            scores = tl.dot((qc * reach).to(dtype), (kT * reachT).to(dtype), input_precision=PRECISION)
            P += tl.where(_parted(row, column, half), scores, 0.0)
        before = tl.exp2(tl.dot((column <= row).to(tl.float32), f, input_precision=PRECISION))
        afterT = tl.exp2(tl.dot(fT, (row > column).to(tl.float32), input_precision=PRECISION))
        h = tl.dot((qc * before).to(dtype), S.to(dtype), input_precision=PRECISION)
        h = tl.dot(P.to(dtype), vc, h, input_precision=PRECISION)
        _put(o + token * (HEADS * V) + head * V + first, h, left, HEADS * V, width, CHUNK, BV)
        S *= tl.exp2(tl.sum(f, axis=0))[:, None]
        S = tl.dot((kT * afterT).to(dtype), vc, S, input_precision=PRECISION)
    _put(memory + bh * K * V + first, S, K, V, width, BK, BV)


@triton.jit(do_not_specialize=["T", "tokens"])
def channelwise_backward_kernel(
    q, k, v, decay, memories, do, dmemory, dq, dk, dv, ddecay, dmemory0, T, tokens,
    SCALE: tl.constexpr, HEADS: tl.constexpr, K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr,
    BV: tl.constexpr, CHUNK: tl.constexpr, Q_STRIDE: tl.constexpr, K_STRIDE: tl.constexpr, V_STRIDE: tl.constexpr,
    F_STRIDE: tl.constexpr, DO_STRIDE: tl.constexpr, HAS_DSTATE: tl.constexpr, LEVELS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    SLICES: tl.constexpr = (V + BV - 1) // BV
    part = tl.program_id(0) % SLICES
    first = part * BV
    bh = (tl.program_id(0) // SLICES).to(tl.int64)
    batch = bh // HEADS
    head = (bh % HEADS).to(tl.int32)
    dtype = q.dtype.element_ty
    row = tl.arange(0, CHUNK)[:, None]
    column = tl.arange(0, CHUNK)[None, :]
    chunks = tl.cdiv(T, CHUNK)
    width = V - first
    shift = part.to(tl.int64) * tokens

    dS = tl.zeros((BK, BV), tl.float32)
    if HAS_DSTATE:
        dS = _tile(dmemory + bh * K * V + first, K, V, width, BK, BV)
    for back in range(0, chunks):
        c = chunks - 1 - back
        token = batch * T + c * CHUNK
        left = T - c * CHUNK
        qc = _tile(q + token * Q_STRIDE + head * K, left, Q_STRIDE, K, CHUNK, BK)
        kc = _tile(k + token * K_STRIDE + head * K, left, K_STRIDE, K, CHUNK, BK)
        vc = _tile(v + token * V_STRIDE + head * V + first, left, V_STRIDE, width, CHUNK, BV)
        dc = _tile(do + token * DO_STRIDE + head * V + first, left, DO_STRIDE, width, CHUNK, BV)
        f = _tile(decay + token * F_STRIDE + head * K, left, F_STRIDE, K, CHUNK, BK).to(tl.float32)
        f = tl.maximum(f * LOG2E, RESET)
        fT = tl.trans(f)
        qT = tl.trans(qc).to(tl.float32) * SCALE
        qc = qc.to(tl.float32) * SCALE
        kc = kc.to(tl.float32)
        S = _tile(memories + (bh * chunks + c) * K * V + first, K, V, width, BK, BV)

        # Within the chunk, level by level; the diagonal has no decay in it.
        dP = tl.dot(dc, tl.trans(vc), input_precision=PRECISION)
        dPT = tl.dot(vc, tl.trans(dc), input_precision=PRECISION)
        own = tl.sum(dc.to(tl.float32) * vc.to(tl.float32), axis=1)[:, None]
        dq_tile = own * kc
        dk_tile = own * qc
        PT = tl.where(row == column, tl.sum(qc * kc, axis=1)[:, None], 0.0)
        df = tl.zeros((CHUNK, BK), tl.float32)
        for level in range(LEVELS):
            half = 1 << level
            reach = tl.exp2(tl.dot(_segments(row, column, half), f, input_precision=PRECISION))
            reachT = tl.exp2(tl.dot(fT, _segments(column, row, half), input_precision=PRECISION))
            queries = qc * reach
            keys = kc * reach
            scores = tl.dot(keys.to(dtype), (qT * reachT).to(dtype), input_precision=PRECISION)
            parted = _parted(row, column, half)
            partedT = _parted(column, row, half)
            PT += tl.where(partedT, scores, 0.0)
            dqueries = tl.dot(tl.where(parted, dP, 0.0).to(dtype), keys.to(dtype), input_precision=PRECISION)
            dkeys = tl.dot(tl.where(partedT, dPT, 0.0).to(dtype), queries.to(dtype), input_precision=PRECISION)
            dq_tile += dqueries * reach
            dk_tile += dkeys * reach
            dreach = queries * dqueries + keys * dkeys
            df = tl.dot(_segments(column, row, half), dreach, df, input_precision=PRECISION)

        # Through the memory before the chunk and the one after it.
        before = tl.exp2(tl.dot((column <= row).to(tl.float32), f, input_precision=PRECISION))
        dqueries = tl.dot(dc, tl.trans(S), input_precision=PRECISION) * before
        dq_tile += dqueries
        df = tl.dot((column >= row).to(tl.float32), qc * dqueries, df, input_precision=PRECISION)
        after = tl.exp2(tl.dot((column > row).to(tl.float32), f, input_precision=PRECISION))
        dkeys = tl.trans(tl.dot(dS.to(dtype), tl.trans(vc), input_precision=PRECISION)) * after
        dk_tile += dkeys
        df = tl.dot((column < row).to(tl.float32), kc * dkeys, df, input_precision=PRECISION)
        total = tl.exp2(tl.sum(f, axis=0))
        df += (total * tl.sum(dS * S.to(tl.float32), axis=1))[None, :]
        dv_tile = tl.dot((kc * after).to(dtype), dS.to(dtype), input_precision=PRECISION)
        dv_tile = tl.dot(PT.to(dtype), dc, dv_tile, input_precision=PRECISION)
        _put(dq + (shift + token) * (HEADS * K) + head * K, dq_tile * SCALE, left, HEADS * K, K, CHUNK, BK)
        _put(dk + (shift + token) * (HEADS * K) + head * K, dk_tile, left, HEADS * K, K, CHUNK, BK)
        _put(dv + token * (HEADS * V) + head * V + first, dv_tile, left, HEADS * V, width, CHUNK, BV)
        _put(ddecay + (shift + token) * (HEADS * K) + head * K, df, left, HEADS * K, K, CHUNK, BK)

        beforeT = tl.exp2(tl.dot(fT, (row <= column).to(tl.float32), input_precision=PRECISION))
        dS *= total[:, None]
        dS = tl.dot((qT * beforeT).to(dtype), dc, dS, input_precision=PRECISION)
    _put(dmemory0 + bh * K * V + first, dS, K, V, width, BK, BV)


def _options(q: Tensor, k: Tensor, v: Tensor, decay: Tensor) -> dict[str, Any]:
    chunk = 16 if q.dtype == torch.float32 else 32
    return {
        "HEADS": q.shape[2], "K": q.shape[3], "V": v.shape[3], "Q_STRIDE": q.stride(1), "K_STRIDE": k.stride(1),
        "V_STRIDE": v.stride(1), "F_STRIDE": decay.stride(1), "CHUNK": chunk, "LEVELS": chunk.bit_length() - 1,
        "BK": max(16, triton.next_power_of_2(q.shape[3])), "BV": min(64, max(16, triton.next_power_of_2(v.shape[3]))),
        "PRECISION": precision(q.dtype), "num_warps": 4, "num_stages": 1,
    }  # fmt: skip


def _outputs(q: Tensor, k: Tensor, v: Tensor, decay: Tensor, save: bool) -> tuple[Tensor, Tensor, Tensor]:
    batch, time, head, width = q.shape
    entries = batch * head * triton.cdiv(time, _options(q, k, v, decay)["CHUNK"]) if save else 0
    o = torch.empty(v.shape, dtype=q.dtype, device=q.device)
    memory = torch.empty((batch, head, width, v.shape[3]), device=q.device)
    return o, memory, torch.empty((entries * width * v.shape[3],), dtype=q.dtype, device=q.device)


@torch.library.custom_op("tsseq::channelwise_attention_forward", mutates_args=())
def _forward_op(
    q: Tensor, k: Tensor, v: Tensor, decay: Tensor, memory0: Tensor | None, scale: float, save: bool
) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v, decay = token_rows(q), token_rows(k), token_rows(v), token_rows(decay)
    o, memory, memories = _outputs(q, k, v, decay, save)
    options = _options(q, k, v, decay)
    batch, time, head, _ = q.shape
    channelwise_forward_kernel[(batch * head * triton.cdiv(v.shape[3], options["BV"]),)](
        q, k, v, decay, memory0, o, memory, memories, time, SCALE=scale, HAS_STATE=memory0 is not None, SAVE=save,
        **options,
    )  # fmt: skip
    return o, memory, memories


@_forward_op.register_fake
def _(q: Any, k: Any, v: Any, decay: Any, memory0: Any, scale: float, save: bool) -> Any:
    return _outputs(q, k, v, decay, save)


@torch.library.custom_op("tsseq::channelwise_attention_backward", mutates_args=())
def _backward_op(
    do: Tensor, dmemory: Tensor | None, q: Tensor, k: Tensor, v: Tensor, decay: Tensor, memories: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    q, k, v, decay, do = token_rows(q), token_rows(k), token_rows(v), token_rows(decay), token_rows(do)
    options = _options(q, k, v, decay)
    slices = triton.cdiv(v.shape[3], options["BV"])
    batch, time, head, width = q.shape
    dtypes = (q.dtype, q.dtype, decay.dtype) if slices == 1 else (torch.float32,) * 3
    sums = [torch.empty((slices, *q.shape), dtype=dtype, device=q.device) for dtype in dtypes]
    dv = torch.empty(v.shape, dtype=q.dtype, device=q.device)
    dmemory0 = torch.empty((batch, head, width, v.shape[3]), device=q.device)
    dq, dk, ddecay = sums
    channelwise_backward_kernel[(batch * head * slices,)](
        q, k, v, decay, memories, do, dmemory, dq, dk, dv, ddecay, dmemory0, time, batch * time, SCALE=scale,
        DO_STRIDE=do.stride(1), HAS_DSTATE=dmemory is not None, **options,
    )  # fmt: skip
    if slices == 1:
        return dq[0], dk[0], dv, ddecay[0], dmemory0
    return dq.sum(0).to(q.dtype), dk.sum(0).to(q.dtype), dv, ddecay.sum(0).to(decay.dtype), dmemory0


@_backward_op.register_fake
def _(do: Any, dmemory: Any, q: Any, k: Any, v: Any, decay: Any, memories: Any, scale: float) -> Any:
    batch, _, head, width = q.shape
    dmemory0 = torch.empty((batch, head, width, v.shape[3]), device=q.device)
    shapes = ((q.shape, q.dtype), (q.shape, q.dtype), (v.shape, q.dtype), (q.shape, decay.dtype))
    return *(torch.empty(shape, dtype=dtype, device=q.device) for shape, dtype in shapes), dmemory0


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.scale, _ = inputs
    ctx.save_for_backward(*tensors, output[2])
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, do: Tensor | None, dmemory: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    q, k, v, decay, memory0, memories = ctx.saved_tensors
    do = torch.zeros_like(v) if do is None else do.to(q.dtype)
    dmemory = None if dmemory is None else dmemory.contiguous()
    *gradients, dmemory0 = _backward_op(do, dmemory, q, k, v, decay, memories, ctx.scale)
    return *gradients, None if memory0 is None else dmemory0, None, None


_forward_op.register_autograd(_differentiate, setup_context=_save)


def fused_channelwise(
    query: Tensor, key: Tensor, value: Tensor, log_decay: Tensor, initial_state: State | None, scale: float
) -> tuple[Tensor, State]:
    """The same function as `reference` with a decay per key channel and no input gate, in one kernel each way."""
    memory0 = None if initial_state is None else initial_state[0].float().contiguous()
    tensors = [query, key.to(query.dtype), value.to(query.dtype), log_decay, memory0]
    save = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)
    o, memory, _ = _forward_op(*tensors, scale, save)
    return o, (memory,)
