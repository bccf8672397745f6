"""Linear attention with a decay per head on a GPU: one kernel forward, one backward.

A program owns one head of one sequence (and a slice of its values) and walks along time in chunks with the memory
in registers. The forward pass leaves the memory before every chunk for the backward pass, which walks back with the
memory's gradient and recomputes the rest. Everything a chunk needs in both orientations is computed twice: Triton
3.4 to 3.7.0 miscompile a product whose operand is the transposed result of another on Hopper.

Exponents are to base two. Cumulative decays are held as a coarse part, whose sums are exact, and a fine part, so that
differences keep their precision however strong the decay.
"""

import torch
import triton
import triton.language as tl

from tsseq.array_typing import State, Tensor
from tsseq.kernels.layout import token_rows

LOG2E = tl.constexpr(1.4426950408889634)
FLOOR = tl.constexpr(-1e30)  # stands for minus infinity where one would be subtracted from another
RESET = tl.constexpr(-300.0)  # 2 ** RESET is zero beside anything


@triton.jit
def _tile(x, row, valid, STRIDE: tl.constexpr, start, WIDTH: tl.constexpr, BLOCK: tl.constexpr, first):
    """Rows of one head, columns [first, first + BLOCK) of its WIDTH."""
    column = first + tl.arange(0, BLOCK)
    mask = valid[:, None] & (column < WIDTH)[None, :]
    return tl.load(x + row[:, None] * STRIDE + (start + column)[None, :], mask, 0.0)


@triton.jit
def _put(x, row, valid, start, value, STRIDE: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, first):
    column = first + tl.arange(0, BLOCK)
    mask = valid[:, None] & (column < WIDTH)[None, :]
    tl.store(x + row[:, None] * STRIDE + (start + column)[None, :], value.to(x.dtype.element_ty), mask)


@triton.jit
def _matrix(bh, first, K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr):
    """Offsets and mask of columns [first, first + BV) of memory number `bh`."""
    k = tl.arange(0, BK)[:, None]
    v = first + tl.arange(0, BV)[None, :]
    return (bh * K + k) * V + v, (k < K) & (v < V)


@triton.jit
def _gates(decay, gate, row, valid, HAS_DECAY: tl.constexpr, HAS_GATE: tl.constexpr, CHUNK: tl.constexpr):
    """Cumulative decay of a chunk, coarse and fine, both totals, and the input gate; to base two."""
    i = tl.where(valid, 0.0, float("-inf"))
    if HAS_GATE:
        i = tl.load(gate + row, valid, float("-inf")) * LOG2E
    f = tl.zeros((CHUNK,), tl.float32)
    if HAS_DECAY:
        f = tl.maximum(tl.load(decay + row, valid, 0.0) * LOG2E, RESET)
    coarse = tl.floor(f * 16.0 + 0.5) * 0.0625
    fine = f - coarse
    return tl.cumsum(coarse), tl.cumsum(fine), tl.sum(coarse), tl.sum(fine), i


@triton.jit
def _stabilizer(spans, reach, NORMALIZE: tl.constexpr, CHUNK: tl.constexpr):
    """What each row's weights are divided by."""
    m = tl.zeros((CHUNK,), tl.float32)
    if NORMALIZE:
        m = tl.maximum(tl.maximum(reach, tl.max(spans, axis=1)), FLOOR)
    return m


@triton.jit(do_not_specialize=["T"])
def _forward(
    q, k, v, decay, gate, memory0, normalizer0, maximum0, o, memory, normalizer, maximum, memories, normalizers,
    maxima, T,
    SCALE: tl.constexpr, HEADS: tl.constexpr, K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr,
    BV: tl.constexpr, CHUNK: tl.constexpr, Q_STRIDE: tl.constexpr, K_STRIDE: tl.constexpr, V_STRIDE: tl.constexpr,
    HAS_DECAY: tl.constexpr, HAS_GATE: tl.constexpr, HAS_STATE: tl.constexpr, NORMALIZE: tl.constexpr,
    SAVE: tl.constexpr, PRECISION: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    SLICES: tl.constexpr = (V + BV - 1) // BV
    first = tl.program_id(0) % SLICES * BV
    bh = (tl.program_id(0) // SLICES).to(tl.int64)
    batch = bh // HEADS
    head = (bh % HEADS).to(tl.int32)
    dtype = q.dtype.element_ty
    kk = tl.arange(0, BK)
    step = tl.arange(0, CHUNK)
    chunks = tl.cdiv(T, CHUNK)

    place, present = _matrix(bh, first, K, V, BK, BV)
    S = tl.zeros((BK, BV), tl.float32)
    n = tl.zeros((BK,), tl.float32)
    m = tl.full((), float("-inf"), tl.float32) if NORMALIZE else tl.full((), 0.0, tl.float32)
    if HAS_STATE:
        S = tl.load(memory0 + place, present, 0.0)
        if NORMALIZE:
            n = tl.load(normalizer0 + bh * K + kk, kk < K, 0.0)
            m = tl.load(maximum0 + bh) * LOG2E

    for c in tl.range(0, chunks, num_stages=STAGES):
        t = c * CHUNK + step
        valid = t < T
        row = batch * T + t
        qc = _tile(q, row, valid, Q_STRIDE, head * K, K, BK, 0)
        kc = _tile(k, row, valid, K_STRIDE, head * K, K, BK, 0)
        vc = _tile(v, row, valid, V_STRIDE, head * V, V, BV, first)
        high, low, high_all, low_all, i = _gates(decay, gate, row * HEADS + head, valid, HAS_DECAY, HAS_GATE, CHUNK)
        if SAVE:
            entry = bh * chunks + c
            chunk_place, _ = _matrix(entry, first, K, V, BK, BV)
            tl.store(memories + chunk_place, S.to(dtype), present)
            if NORMALIZE:
                tl.store(normalizers + entry * K + kk, n, kk < K)
                tl.store(maxima + entry, m)

        spans = (high[:, None] - high[None, :]) + (low[:, None] + (i - low)[None, :])
        spans = tl.where(step[:, None] >= step[None, :], spans, float("-inf"))
        reach = high + low + m
        stabilizer = _stabilizer(spans, reach, NORMALIZE, CHUNK)
        P = tl.dot(qc, tl.trans(kc), input_precision=PRECISION) * tl.exp2(spans - stabilizer[:, None])
        e = tl.exp2(reach - stabilizer)
        h = tl.dot(qc, S.to(dtype), input_precision=PRECISION) * e[:, None]
        h = tl.dot(P.to(dtype), vc, h, input_precision=PRECISION)
        if NORMALIZE:
            weight = tl.sum(P, axis=1) + e * tl.sum(qc.to(tl.float32) * n[None, :], axis=1)
            weight = tl.maximum(tl.abs(weight * SCALE), tl.exp2(-tl.minimum(stabilizer, 86.0)))
            h *= (SCALE / weight)[:, None]
        else:
            h *= SCALE
        _put(o, row, valid, head * V, h, HEADS * V, V, BV, first)

        leave = (high_all - high) + (low_all - low) + i
        keep = high_all + low_all + m
        if NORMALIZE:
            m = tl.maximum(tl.maximum(keep, tl.max(leave, axis=0)), FLOOR)
            keep -= m
            leave -= m
        weighted = kc.to(tl.float32) * tl.exp2(leave)[:, None]
        S *= tl.exp2(keep)
        S = tl.dot(tl.trans(weighted.to(dtype)), vc, S, input_precision=PRECISION)
        if NORMALIZE:
            n = n * tl.exp2(keep) + tl.sum(weighted, axis=0)

    tl.store(memory + place, S, present)
    if NORMALIZE:
        tl.store(normalizer + bh * K + kk, n, kk < K)
        tl.store(maximum + bh, m / LOG2E)


@triton.jit(do_not_specialize=["T", "partial"])
def _backward(
    q, k, v, decay, gate, memories, normalizers, maxima, do, delta, dmemory, dnormalizer, dq, dk, dv, ddecay, dgate,
    dmemory0, dnormalizer0, T, partial,
    SCALE: tl.constexpr, HEADS: tl.constexpr, K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr,
    BV: tl.constexpr, CHUNK: tl.constexpr, Q_STRIDE: tl.constexpr, K_STRIDE: tl.constexpr, V_STRIDE: tl.constexpr,
    DO_STRIDE: tl.constexpr, HAS_DECAY: tl.constexpr, HAS_GATE: tl.constexpr, HAS_DSTATE: tl.constexpr,
    NORMALIZE: tl.constexpr, PRECISION: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    SLICES: tl.constexpr = (V + BV - 1) // BV
    part = tl.program_id(0) % SLICES
    first = part * BV
    bh = (tl.program_id(0) // SLICES).to(tl.int64)
    batch = bh // HEADS
    head = (bh % HEADS).to(tl.int32)
    dtype = q.dtype.element_ty
    kk = tl.arange(0, BK)
    step = tl.arange(0, CHUNK)
    chunks = tl.cdiv(T, CHUNK)
    tokens = part.to(tl.int64) * partial  # where this slice's share of the sums over values starts
    leading = tl.where(part == 0, 1.0, 0.0)  # the normaliser's gradient belongs to one slice

    place, present = _matrix(bh, first, K, V, BK, BV)
    dS = tl.zeros((BK, BV), tl.float32)
    dn = tl.zeros((BK,), tl.float32)
    if HAS_DSTATE:
        dS = tl.load(dmemory + place, present, 0.0)
        if NORMALIZE:
            dn = tl.load(dnormalizer + bh * K + kk, kk < K, 0.0) * leading

    for back in tl.range(0, chunks, num_stages=STAGES):
        c = chunks - 1 - back
        t = c * CHUNK + step
        valid = t < T
        row = batch * T + t
        qc = _tile(q, row, valid, Q_STRIDE, head * K, K, BK, 0)
        kc = _tile(k, row, valid, K_STRIDE, head * K, K, BK, 0)
        vc = _tile(v, row, valid, V_STRIDE, head * V, V, BV, first)
        dc = _tile(do, row, valid, DO_STRIDE, head * V, V, BV, first)
        high, low, high_all, low_all, i = _gates(decay, gate, row * HEADS + head, valid, HAS_DECAY, HAS_GATE, CHUNK)
        entry = bh * chunks + c
        chunk_place, _ = _matrix(entry, first, K, V, BK, BV)
        S = tl.load(memories + chunk_place, present, 0.0)
        n = tl.zeros((BK,), tl.float32)
        m = tl.full((), 0.0, tl.float32)
        if NORMALIZE:
            n = tl.load(normalizers + entry * K + kk, kk < K, 0.0)
            m = tl.load(maxima + entry)
        reach = high + low + m
        leave = (high_all - high) + (low_all - low) + i
        keep = high_all + low_all + m
        if NORMALIZE:
            after = tl.maximum(tl.maximum(keep, tl.max(leave, axis=0)), FLOOR)
            keep -= after
            leave -= after
        a = tl.exp2(leave)
        kept = tl.exp2(keep)

        # Rows are queries: weights, normaliser, the gradient of the queries.
        spans = (high[:, None] - high[None, :]) + (low[:, None] + (i - low)[None, :])
        spans = tl.where(step[:, None] >= step[None, :], spans, float("-inf"))
        stabilizer = _stabilizer(spans, reach, NORMALIZE, CHUNK)
        W = tl.exp2(spans - stabilizer[:, None])
        e = tl.exp2(reach - stabilizer)
        P = tl.dot(qc, tl.trans(kc), input_precision=PRECISION) * W
        dP = tl.dot(dc, tl.trans(vc), input_precision=PRECISION)
        dq_state = tl.dot(dc, tl.trans(S), input_precision=PRECISION)
        qf = qc.to(tl.float32)
        through = tl.sum(qf * dq_state, axis=1)
        u = tl.full((CHUNK,), SCALE, tl.float32)
        w = tl.zeros((CHUNK,), tl.float32)
        if NORMALIZE:
            qn = tl.sum(qf * n[None, :], axis=1)
            weight = SCALE * (tl.sum(P, axis=1) + e * qn)
            floor = tl.exp2(-tl.minimum(stabilizer, 86.0))
            inverse = 1.0 / tl.maximum(tl.abs(weight), floor)
            if SLICES == 1:
                along = SCALE * (tl.sum(P * dP, axis=1) + e * through) * inverse
            else:
                along = tl.load(delta + row * HEADS + head, valid, 0.0)
            side = tl.where(weight > 0, -1.0, 1.0)
            w = tl.where(tl.abs(weight) >= floor, side * along * inverse, 0.0) * SCALE * leading
            u = inverse * SCALE
        dP = dP * u[:, None] + w[:, None]
        dq_tile = dq_state * (e * u)[:, None]
        dreach = e * u * through
        if NORMALIZE:
            dq_tile += (e * w)[:, None] * n[None, :]
            dreach += e * w * qn
        dq_tile = tl.dot((dP * W).to(dtype), kc, dq_tile, input_precision=PRECISION)
        _put(dq + tokens * K, row, valid, head * K, dq_tile, HEADS * K, K, BK, 0)
        later = step[:, None] > step[None, :]
        dhigh = dreach + tl.sum(tl.where(later, P * dP, 0.0), axis=1)

        # Rows are keys: the gradients of keys, values and gates.
        spans = (high[None, :] - high[:, None]) + (low[None, :] + (i - low)[:, None])
        spans = tl.where(step[:, None] <= step[None, :], spans, float("-inf"))
        W = tl.exp2(spans - stabilizer[None, :])
        P = tl.dot(kc, tl.trans(qc), input_precision=PRECISION) * W
        dP = tl.dot(vc, tl.trans(dc), input_precision=PRECISION) * u[None, :] + w[None, :]
        dS_operand = dS.to(dtype)
        dv_tile = tl.dot(kc, dS_operand, input_precision=PRECISION) * a[:, None]
        carry = tl.sum(vc.to(tl.float32) * dv_tile, axis=1)
        dv_tile = tl.dot((P * u[None, :]).to(dtype), dc, dv_tile, input_precision=PRECISION)
        _put(dv, row, valid, head * V, dv_tile, HEADS * V, V, BV, first)
        dk_tile = tl.trans(tl.dot(dS_operand, tl.trans(vc), input_precision=PRECISION)) * a[:, None]
        if NORMALIZE:
            dk_tile += a[:, None] * dn[None, :]
            carry += a * tl.sum(kc.to(tl.float32) * dn[None, :], axis=1)
        dk_tile = tl.dot((dP * W).to(dtype), qc, dk_tile, input_precision=PRECISION)
        _put(dk + tokens * K, row, valid, head * K, dk_tile, HEADS * K, K, BK, 0)
        if HAS_GATE:
            di = carry + tl.sum(P * dP, axis=1)
            tl.store(dgate + tokens + row * HEADS + head, di, valid)
        if HAS_DECAY:
            dhigh -= tl.sum(tl.where(step[:, None] < step[None, :], P * dP, 0.0), axis=1)
            dkeep = tl.sum(dS * S.to(tl.float32))
            if NORMALIZE:
                dkeep += tl.sum(dn * n)
            df = tl.cumsum(dhigh, reverse=True) + tl.cumsum(carry) - carry + kept * dkeep
            tl.store(ddecay + tokens + row * HEADS + head, df, valid)

        dS *= kept
        dS = tl.dot(tl.trans((qf * (e * u)[:, None]).to(dtype)), dc, dS, input_precision=PRECISION)
        if NORMALIZE:
            dn = dn * kept + tl.sum(qf * (e * w)[:, None], axis=0)

    tl.store(dmemory0 + place, dS, present)
    if NORMALIZE:
        if part == 0:
            tl.store(dnormalizer0 + bh * K + kk, dn, kk < K)


def _tiling(q: Tensor, v: Tensor) -> dict[str, int]:
    """Chunk length, slice of the values and warps, from what stays in registers without spilling."""
    bk = max(16, triton.next_power_of_2(q.shape[-1]))
    bv = max(16, triton.next_power_of_2(v.shape[-1]))
    chunk = 64 if q.dtype != torch.float32 else 32
    return {"BK": bk, "BV": min(bv, 64), "CHUNK": chunk, "num_warps": 4}


def _options(q: Tensor, k: Tensor, v: Tensor, decay: Tensor | None, gate: Tensor | None) -> dict[str, object]:
    return {
        "HEADS": q.shape[2], "K": q.shape[3], "V": v.shape[3], "Q_STRIDE": q.stride(1), "K_STRIDE": k.stride(1),
        "V_STRIDE": v.stride(1), "HAS_DECAY": decay is not None, "HAS_GATE": gate is not None,
        "PRECISION": "tf32x3" if q.dtype == torch.float32 else "tf32", **_tiling(q, v),
    }  # fmt: skip


def _outputs(
    q: Tensor, v: Tensor, normalize: bool, save: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Read-outs, the last state, and the states before every chunk (empty where there are none)."""
    batch, time, head, width = q.shape
    chunks = triton.cdiv(time, _tiling(q, v)["CHUNK"]) if save else 0
    n, entries = int(normalize), chunks * int(normalize)

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=q.device)

    return (
        empty(*v.shape, dtype=q.dtype),
        empty(batch, head, width, v.shape[3]), empty(n * batch, head, width), empty(n * batch, head),
        empty(batch, head, chunks, width, v.shape[3], dtype=q.dtype), empty(batch, head, entries, width),
        empty(batch, head, entries),
    )  # fmt: skip


@torch.library.custom_op("tsseq::linear_attention_forward", mutates_args=())
def _forward_op(
    q: Tensor, k: Tensor, v: Tensor, decay: Tensor | None, gate: Tensor | None, memory0: Tensor | None,
    normalizer0: Tensor | None, maximum0: Tensor | None, normalize: bool, scale: float, save: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    q, k, v = token_rows(q), token_rows(k), token_rows(v)
    outputs = _outputs(q, v, normalize, save)
    options = _options(q, k, v, decay, gate)
    batch, time, head, _ = q.shape
    _forward[(batch * head * triton.cdiv(v.shape[3], options["BV"]),)](
        q, k, v, decay, gate, memory0, normalizer0, maximum0, *outputs, time, SCALE=scale,
        HAS_STATE=memory0 is not None, NORMALIZE=normalize, SAVE=save, STAGES=2, **options,
    )  # fmt: skip
    return outputs


@_forward_op.register_fake
def _(q, k, v, decay, gate, memory0, normalizer0, maximum0, normalize, scale, save):  # type: ignore[no-untyped-def]
    return _outputs(q, v, normalize, save)


def _gradients(
    q: Tensor, v: Tensor, normalize: bool, slices: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Room for the gradients of query, key, value, decay, gate and initial state; sums over values in slices."""
    batch, time, head, width = q.shape
    partial = q.dtype if slices == 1 else torch.float32

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=q.device)

    return (
        empty(slices, *q.shape, dtype=partial), empty(slices, *q.shape, dtype=partial),
        empty(*v.shape, dtype=q.dtype), empty(slices, batch, time, head), empty(slices, batch, time, head),
        empty(batch, head, width, v.shape[3]), empty(batch * int(normalize), head, width),
    )  # fmt: skip


@torch.library.custom_op("tsseq::linear_attention_backward", mutates_args=())
def _backward_op(
    do: Tensor, o: Tensor, dmemory: Tensor | None, dnormalizer: Tensor | None, q: Tensor, k: Tensor, v: Tensor,
    decay: Tensor | None, gate: Tensor | None, memories: Tensor, normalizers: Tensor, maxima: Tensor,
    normalize: bool, scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    q, k, v, do = token_rows(q), token_rows(k), token_rows(v), token_rows(do)
    options = _options(q, k, v, decay, gate)
    slices = triton.cdiv(v.shape[3], options["BV"])
    found = _gradients(q, v, normalize, slices)
    batch, time, head, _ = q.shape
    delta = (do.float() * o).sum(-1) if normalize and slices > 1 else None
    if dmemory is not None and normalize and dnormalizer is None:
        dnormalizer = torch.zeros_like(dmemory[..., 0])
    _backward[(batch * head * slices,)](
        q, k, v, decay, gate, memories, normalizers, maxima, do, delta, dmemory, dnormalizer, *found, time,
        batch * time * head, SCALE=scale, DO_STRIDE=do.stride(1), HAS_DSTATE=dmemory is not None,
        NORMALIZE=normalize, STAGES=1, **options,
    )  # fmt: skip
    dq, dk, dv, ddecay, dgate, dmemory0, dnormalizer0 = found
    if slices == 1:
        return dq[0], dk[0], dv, ddecay[0], dgate[0], dmemory0, dnormalizer0
    return dq.sum(0).to(q.dtype), dk.sum(0).to(q.dtype), dv, ddecay.sum(0), dgate.sum(0), dmemory0, dnormalizer0


@_backward_op.register_fake
def _(do, o, dmemory, dnormalizer, q, k, v, decay, gate, memories, normalizers, maxima, normalize, scale):  # type: ignore[no-untyped-def]
    dq, dk, dv, ddecay, dgate, dmemory0, dnormalizer0 = _gradients(q, v, normalize, 1)
    return dq[0], dk[0], dv, ddecay[0], dgate[0], dmemory0, dnormalizer0


def _save(ctx, inputs, output):  # type: ignore[no-untyped-def]
    ctx.normalize, ctx.scale, _ = inputs[8:]
    ctx.save_for_backward(*inputs[:8], *output)
    ctx.set_materialize_grads(False)


def _differentiate(ctx, do, dmemory, dnormalizer, dmaximum, *_):  # type: ignore[no-untyped-def]
    q, k, v, decay, gate, memory0, normalizer0, maximum0, o, *state, memories, normalizers, maxima = ctx.saved_tensors
    do = torch.zeros_like(o) if do is None else do.to(q.dtype)
    if dmemory is None and dnormalizer is not None:
        dmemory = torch.zeros_like(state[0])
    contiguous = [None if x is None else x.contiguous() for x in (dmemory, dnormalizer)]
    found = _backward_op(
        do, o, *contiguous, q, k, v, decay, gate, memories, normalizers, maxima, ctx.normalize, ctx.scale
    )
    dq, dk, dv, ddecay, dgate, dmemory0, dnormalizer0 = found
    dmaximum0 = None
    if maximum0 is not None:
        dmaximum0 = (dmemory0 * memory0).sum((-1, -2)) + (dnormalizer0 * normalizer0).sum(-1)
    if ctx.normalize and any(x is not None for x in (dmemory, dnormalizer, dmaximum)):
        excess = torch.zeros_like(state[2]) if dmaximum is None else dmaximum
        for gradient, member in zip((dmemory, dnormalizer), state[:2], strict=True):
            if gradient is not None:
                excess = excess - (gradient * member).flatten(2).sum(-1)
        late, chosen, from_start = _through_maximum(q, decay, gate, maximum0)
        ddecay, dgate = ddecay + late * excess[:, None], dgate + chosen * excess[:, None]
        if dmaximum0 is not None:
            dmaximum0 = dmaximum0 + from_start * excess
    return (
        dq, dk, dv, None if decay is None else ddecay, None if gate is None else dgate,
        None if memory0 is None else dmemory0, None if normalizer0 is None else dnormalizer0, dmaximum0,
        None, None, None,
    )  # fmt: skip


def _through_maximum(
    q: Tensor, decay: Tensor | None, gate: Tensor | None, maximum0: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradient of the final maximum to the decays, the gates and the first maximum: it picks one position.

    Outputs do not depend on it; the state it scales does. Only a loss on the final state comes here.
    """
    zeros = torch.zeros(q.shape[:3], device=q.device)
    f, i = (zeros if x is None else x for x in (decay, gate))
    until_end = f.flip(1).cumsum(1).flip(1)
    start = zeros[:, :1] - torch.inf if maximum0 is None else maximum0[:, None] + until_end[:, :1]
    winner = torch.cat([start, until_end - f + i], dim=1).argmax(1, keepdim=True)
    position = torch.arange(q.shape[1] + 1, device=q.device)[:, None]
    chosen = (position == winner).float()
    return (position > winner)[:, 1:].float(), chosen[:, 1:], chosen[:, 0]


_forward_op.register_autograd(_differentiate, setup_context=_save)


def fused(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    log_decay: Tensor | None = None,
    input_gate: Tensor | None = None,
    initial_state: State | None = None,
    *,
    normalize: bool = False,
    scale: float | None = None,
) -> tuple[Tensor, State]:
    """The same function as `reference`, in one kernel each way."""
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    tensors = [query, key.to(query.dtype), value.to(query.dtype)]
    for x in (log_decay, input_gate, *(initial_state or ())):
        tensors.append(None if x is None else x.float().contiguous())
    tensors += [None] * (8 - len(tensors))
    save = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)
    o, *state = _forward_op(*tensors, normalize, scale, save)
    return o, tuple(state[:3] if normalize else state[:1])
