"""Gradients of queries, keys and values of linear attention, all chunks at once; `triton.py` carries the memory's."""

import triton
import triton.language as tl

from tsseq.kernels.linear_attention.triton import _floor, _put, _tile, _weights


@triton.jit(do_not_specialize=["T", "tokens"])
def query_gradients_kernel(
    q, k, v, high, low, source, top, memories, normalizers, maxima, do, delta, scales, feedbacks, dq, rows, T, tokens,
    SCALE: tl.constexpr, HEADS: tl.constexpr, K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr,
    BV: tl.constexpr, CHUNK: tl.constexpr, Q_STRIDE: tl.constexpr, K_STRIDE: tl.constexpr, V_STRIDE: tl.constexpr,
    DO_STRIDE: tl.constexpr, HAS_DECAY: tl.constexpr, NORMALIZE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One chunk: gradients of its queries, and what they say about the decays up to their positions.

    A query's read-out is num * u with u = scale / max(|weight|, floor), left in `scales`; `feedbacks` gets z, what
    the gradient of the weight adds to every score's before that is multiplied by u.
    """
    SLICES: tl.constexpr = (V + BV - 1) // BV
    PRECISE: tl.constexpr = PRECISION != "tf32"
    part = tl.program_id(0) % SLICES
    first = part * BV
    entry = (tl.program_id(0) // SLICES).to(tl.int64)
    chunks = tl.cdiv(T, CHUNK)
    c = entry % chunks
    bh = entry // chunks
    batch = bh // HEADS
    head = (bh % HEADS).to(tl.int32)
    dtype = q.dtype.element_ty
    kk = tl.arange(0, BK)
    step = tl.arange(0, CHUNK)
    token = batch * T + c * CHUNK
    left = T - c * CHUNK
    g = entry * CHUNK + step
    width = V - first

    qc = _tile(q + token * Q_STRIDE + head * K, left, Q_STRIDE, K, CHUNK, BK)
    kc = _tile(k + token * K_STRIDE + head * K, left, K_STRIDE, K, CHUNK, BK)
    vc = _tile(v + token * V_STRIDE + head * V + first, left, V_STRIDE, width, CHUNK, BV)
    dc = _tile(do + token * DO_STRIDE + head * V + first, left, DO_STRIDE, width, CHUNK, BV)
    S = _tile(memories + entry * K * V + first, K, V, width, BK, BV)
    h_row = tl.load(high + g)
    l_row = tl.load(low + g)
    s_row = tl.load(source + g)
    reach = h_row + l_row
    stabilizer = tl.zeros((CHUNK,), tl.float32)
    if NORMALIZE:
        reach += tl.load(maxima + entry)
        stabilizer = tl.maximum(reach, tl.load(top + g))
    e = tl.exp2(reach - stabilizer)
    qf = qc.to(tl.float32)
    W = _weights(h_row, l_row - stabilizer, h_row, s_row, PRECISE, False, CHUNK)
    P = tl.dot(qc, tl.trans(kc), input_precision=PRECISION) * W
    dP = tl.dot(dc, tl.trans(vc), input_precision=PRECISION)
    dq_tile = tl.dot(dc, tl.trans(S), input_precision=PRECISION)
    u = tl.full((CHUNK,), SCALE, tl.float32)
    if NORMALIZE:
        n = tl.load(normalizers + entry * K + kk, kk < K, 0.0)
        weight = SCALE * (tl.sum(P, axis=1) + e * tl.sum(qf * n[None, :], axis=1))
        floor = _floor(stabilizer)
        u = SCALE / tl.maximum(tl.abs(weight), floor)
        if SLICES == 1:
            along = u * (tl.sum(P * dP, axis=1) + e * tl.sum(qf * dq_tile, axis=1))
        else:
            along = tl.load(delta + (token + step) * HEADS + head, step < left, 0.0)
        z = tl.where(tl.abs(weight) >= floor, tl.where(weight > 0, -along, along), 0.0)
        if part == 0:
            tl.store(scales + g, u)
            tl.store(feedbacks + g, z)
        z *= tl.where(part == 0, 1.0, 0.0)
        dP += z[:, None]
        dq_tile += z[:, None] * n[None, :]
    dq_tile *= e[:, None]
    if HAS_DECAY:
        dreach = tl.sum(tl.where(step[:, None] > step[None, :], P * dP, 0.0), axis=1) + tl.sum(qf * dq_tile, axis=1)
        tl.store(rows + part.to(tl.int64) * (tl.num_programs(0) // SLICES * CHUNK) + g, dreach * u)
    dq_tile = tl.dot((dP * W).to(dtype), kc, dq_tile, input_precision=PRECISION) * u[:, None]
    to = dq + (part.to(tl.int64) * tokens + token) * (HEADS * K) + head * K
    _put(to, dq_tile, left, HEADS * K, K, CHUNK, BK)


@triton.jit(do_not_specialize=["T", "tokens"])
def key_gradients_kernel(
    q, k, v, high, low, source, top, memories, normalizers, maxima, do, scales, feedbacks, dmemories, dnormalizers,
    dk, dv, columns, carries, totals, dgate_columns, T, tokens,
    SCALE: tl.constexpr, HEADS: tl.constexpr, K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr,
    BV: tl.constexpr, CHUNK: tl.constexpr, Q_STRIDE: tl.constexpr, K_STRIDE: tl.constexpr, V_STRIDE: tl.constexpr,
    DO_STRIDE: tl.constexpr, HAS_DECAY: tl.constexpr, HAS_GATE: tl.constexpr, NORMALIZE: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """One chunk: gradients of its keys and values, and what they and the memory say about decays and gates."""
    SLICES: tl.constexpr = (V + BV - 1) // BV
    PRECISE: tl.constexpr = PRECISION != "tf32"
    part = tl.program_id(0) % SLICES
    first = part * BV
    entry = (tl.program_id(0) // SLICES).to(tl.int64)
    chunks = tl.cdiv(T, CHUNK)
    c = entry % chunks
    bh = entry // chunks
    batch = bh // HEADS
    head = (bh % HEADS).to(tl.int32)
    dtype = q.dtype.element_ty
    kk = tl.arange(0, BK)
    step = tl.arange(0, CHUNK)
    token = batch * T + c * CHUNK
    left = T - c * CHUNK
    g = entry * CHUNK + step
    last = entry * CHUNK + CHUNK - 1
    width = V - first
    # Where this slice's share of the sums over values starts, and whether the normaliser's gradient is its own.
    share = part.to(tl.int64) * (tl.num_programs(0) // SLICES)
    leading = tl.where(part == 0, 1.0, 0.0)

    qc = _tile(q + token * Q_STRIDE + head * K, left, Q_STRIDE, K, CHUNK, BK)
    kc = _tile(k + token * K_STRIDE + head * K, left, K_STRIDE, K, CHUNK, BK)
    vc = _tile(v + token * V_STRIDE + head * V + first, left, V_STRIDE, width, CHUNK, BV)
    dc = _tile(do + token * DO_STRIDE + head * V + first, left, DO_STRIDE, width, CHUNK, BV)
    dS = _tile(dmemories + entry * K * V + first, K, V, width, BK, BV)
    h_row = tl.load(high + g)
    l_row = tl.load(low + g)
    s_row = tl.load(source + g)
    leave = (tl.load(high + last) - h_row) + (tl.load(low + last) + s_row)
    keep = tl.load(high + last) + tl.load(low + last)
    stabilizer = tl.zeros((CHUNK,), tl.float32)
    u = tl.full((CHUNK,), SCALE, tl.float32)
    if NORMALIZE:
        m = tl.load(maxima + entry)
        stabilizer = tl.maximum(h_row + l_row + m, tl.load(top + g))
        u = tl.load(scales + g)
        keep += m
        after = tl.maximum(keep, tl.load(top + last))
        keep -= after
        leave -= after
        dn = tl.load(dnormalizers + entry * K + kk, kk < K, 0.0) * leading
    a = tl.exp2(leave)
    if HAS_DECAY:
        S = _tile(memories + entry * K * V + first, K, V, width, BK, BV)
        dkeep = tl.sum(dS.to(tl.float32) * S.to(tl.float32))
        if NORMALIZE:
            dkeep += tl.sum(dn * tl.load(normalizers + entry * K + kk, kk < K, 0.0))
        tl.store(totals + share + entry, tl.exp2(keep) * dkeep)

    # u enters through the exponents.
    W = _weights(h_row, l_row - stabilizer + tl.log2(u), h_row, s_row, PRECISE, True, CHUNK)
    P = tl.dot(kc, tl.trans(qc), input_precision=PRECISION) * W
    dv_tile = tl.dot(kc, dS, input_precision=PRECISION) * a[:, None]
    carry = tl.sum(vc.to(tl.float32) * dv_tile, axis=1)
    dv_tile = tl.dot(P.to(dtype), dc, dv_tile, input_precision=PRECISION)
    _put(dv + token * (HEADS * V) + head * V + first, dv_tile, left, HEADS * V, width, CHUNK, BV)

    dP = tl.dot(vc, tl.trans(dc), input_precision=PRECISION)
    if NORMALIZE:
        dP += (tl.load(feedbacks + g) * leading)[None, :]
    if HAS_GATE:
        tl.store(dgate_columns + share * CHUNK + g, tl.sum(P * dP, axis=1))
    if HAS_DECAY:
        earlier = tl.where(step[:, None] < step[None, :], P * dP, 0.0)
        tl.store(columns + share * CHUNK + g, tl.sum(earlier, axis=1))
    dk_tile = tl.dot(vc, tl.trans(dS), input_precision=PRECISION)
    if NORMALIZE:
        dk_tile += dn[None, :]
        carry += a * tl.sum(kc.to(tl.float32) * dn[None, :], axis=1)
    tl.store(carries + share * CHUNK + g, carry)
    dk_tile = tl.dot((dP * W).to(dtype), qc, dk_tile * a[:, None], input_precision=PRECISION)
    to = dk + (part.to(tl.int64) * tokens + token) * (HEADS * K) + head * K
    _put(to, dk_tile, left, HEADS * K, K, CHUNK, BK)
