"""Gradients of queries, keys and values of linear attention, all chunks at once; `triton.py` carries the memory's."""

import triton
import triton.language as tl

from tsseq.kernels.linear_attention.triton import _floor, _put, _tile, _weights


@triton.jit(do_not_specialize=["T"])
def query_gradients_kernel(
    q, k, v, high, low, source, top, memories, normalizers, maxima, do, scales, feedbacks, dq, rows, T,
    SCALE: tl.constexpr, HEADS: tl.constexpr, K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr,
    BV: tl.constexpr, CHUNK: tl.constexpr, Q_STRIDE: tl.constexpr, K_STRIDE: tl.constexpr, V_STRIDE: tl.constexpr,
    DO_STRIDE: tl.constexpr, HAS_DECAY: tl.constexpr, NORMALIZE: tl.constexpr, PRECISION: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """One chunk: gradients of its queries, and what they say about the decays up to their positions.

    A query's read-out is num * u with u = scale / max(|weight|, floor), left in `scales`; `feedbacks` gets z, what
    the gradient of the weight adds to every score's before that is multiplied by u.
    """
    PRECISE: tl.constexpr = PRECISION != "tf32"
    SCORES: tl.constexpr = "ieee" if PRECISE else PRECISION  # what they weigh may sum to nearly nothing
    entry = tl.program_id(0).to(tl.int64)
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

    qc = _tile(q + token * Q_STRIDE + head * K, left, Q_STRIDE, K, CHUNK, BK)
    kc = _tile(k + token * K_STRIDE + head * K, left, K_STRIDE, K, CHUNK, BK)
    h_row = tl.load(high + g)
    l_row = tl.load(low + g)
    s_row = tl.load(source + g)
    reach = h_row + l_row
    stabilizer = tl.zeros((CHUNK,), tl.float32)
    if NORMALIZE:
        reach += tl.load(maxima + entry)
        stabilizer = tl.maximum(reach, tl.load(top + g))
    e = tl.exp2(reach - stabilizer)
    W = _weights(h_row, l_row - stabilizer, h_row, s_row, PRECISE, False, CHUNK)
    P = tl.dot(qc, tl.trans(kc), input_precision=SCORES) * W
    dP = tl.zeros((CHUNK, CHUNK), tl.float32)
    dq_tile = tl.zeros((CHUNK, BK), tl.float32)
    for first in tl.range(0, V, BV, num_stages=STAGES):
        dc = _tile(do + token * DO_STRIDE + head * V + first, left, DO_STRIDE, V - first, CHUNK, BV)
        vc = _tile(v + token * V_STRIDE + head * V + first, left, V_STRIDE, V - first, CHUNK, BV)
        S = _tile(memories + entry * K * V + first, K, V, V - first, BK, BV)
        dP = tl.dot(dc, tl.trans(vc), dP, input_precision=PRECISION)
        dq_tile = tl.dot(dc, tl.trans(S), dq_tile, input_precision=PRECISION)

    qf = qc.to(tl.float32)
    from_memory = e * tl.sum(qf * dq_tile, axis=1)
    u = tl.full((CHUNK,), SCALE, tl.float32)
    if NORMALIZE:
        n = tl.load(normalizers + entry * K + kk, kk < K, 0.0)
        remembered = e * tl.sum(qf * n[None, :], axis=1)
        weight = SCALE * (tl.sum(P, axis=1) + remembered)
        floor = _floor(stabilizer)
        u = SCALE / tl.maximum(tl.abs(weight), floor)
        along = u * (tl.sum(P * dP, axis=1) + from_memory)
        z = tl.where(tl.abs(weight) >= floor, tl.where(weight > 0, -along, along), 0.0)
        tl.store(scales + g, u)
        tl.store(feedbacks + g, z)
        dP += z[:, None]
        dq_tile += z[:, None] * n[None, :]
        from_memory += z * remembered
    if HAS_DECAY:
        dreach = tl.sum(tl.where(step[:, None] > step[None, :], P * dP, 0.0), axis=1) + from_memory
        tl.store(rows + g, dreach * u)
    dscores = dP * W
    rounded = dscores.to(dtype)
    dq_tile *= e[:, None]
    if NORMALIZE and not PRECISE:
        # Where keys are nearly equal a read-out hardly depends on its query, and the sum below cancels.
        dq_tile = tl.dot((dscores - rounded.to(tl.float32)).to(dtype), kc, dq_tile)
    dq_tile = tl.dot(rounded, kc, dq_tile, input_precision=PRECISION) * u[:, None]
    _put(dq + token * (HEADS * K) + head * K, dq_tile, left, HEADS * K, K, CHUNK, BK)


@triton.jit(do_not_specialize=["T"])
def key_gradients_kernel(
    q, k, v, high, low, source, top, memories, normalizers, maxima, do, scales, feedbacks, dmemories, dnormalizers,
    dk, dv, columns, carries, totals, dgate_columns, T,
    SCALE: tl.constexpr, HEADS: tl.constexpr, K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr,
    BV: tl.constexpr, CHUNK: tl.constexpr, Q_STRIDE: tl.constexpr, K_STRIDE: tl.constexpr, V_STRIDE: tl.constexpr,
    DO_STRIDE: tl.constexpr, HAS_DECAY: tl.constexpr, HAS_GATE: tl.constexpr, NORMALIZE: tl.constexpr,
    PRECISION: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """One chunk: gradients of its keys and values, and what they and the memory say about decays and gates."""
    PRECISE: tl.constexpr = PRECISION != "tf32"
    SCORES: tl.constexpr = "ieee" if PRECISE else PRECISION  # what they weigh may sum to nearly nothing
    entry = tl.program_id(0).to(tl.int64)
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

    qc = _tile(q + token * Q_STRIDE + head * K, left, Q_STRIDE, K, CHUNK, BK)
    kc = _tile(k + token * K_STRIDE + head * K, left, K_STRIDE, K, CHUNK, BK)
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
    a = tl.exp2(leave)
    # u enters through the exponents.
    W = _weights(h_row, l_row - stabilizer + tl.log2(u), h_row, s_row, PRECISE, True, CHUNK)
    P = tl.dot(kc, tl.trans(qc), input_precision=SCORES) * W
    dP = tl.zeros((CHUNK, CHUNK), tl.float32)
    dk_tile = tl.zeros((CHUNK, BK), tl.float32)
    dkeep = tl.full((), 0.0, tl.float32)
    for first in tl.range(0, V, BV, num_stages=STAGES):
        dS = _tile(dmemories + entry * K * V + first, K, V, V - first, BK, BV)
        dc = _tile(do + token * DO_STRIDE + head * V + first, left, DO_STRIDE, V - first, CHUNK, BV)
        vc = _tile(v + token * V_STRIDE + head * V + first, left, V_STRIDE, V - first, CHUNK, BV)
        if HAS_DECAY:
            S = _tile(memories + entry * K * V + first, K, V, V - first, BK, BV)
            dkeep += tl.sum(dS.to(tl.float32) * S.to(tl.float32))
        dv_tile = tl.dot(kc, dS, input_precision=PRECISION) * a[:, None]
        dv_tile = tl.dot(P.to(dtype), dc, dv_tile, input_precision=PRECISION)
        _put(dv + token * (HEADS * V) + head * V + first, dv_tile, left, HEADS * V, V - first, CHUNK, BV)
        dP = tl.dot(vc, tl.trans(dc), dP, input_precision=PRECISION)
        dk_tile = tl.dot(vc, tl.trans(dS), dk_tile, input_precision=PRECISION)

    if NORMALIZE:
        dn = tl.load(dnormalizers + entry * K + kk, kk < K, 0.0)
        dk_tile += dn[None, :]
        dP += tl.load(feedbacks + g)[None, :]
    dk_tile *= a[:, None]
    tl.store(carries + g, tl.sum(kc.to(tl.float32) * dk_tile, axis=1))
    if HAS_GATE:
        tl.store(dgate_columns + g, tl.sum(P * dP, axis=1))
    if HAS_DECAY:
        if NORMALIZE:
            dkeep += tl.sum(dn * tl.load(normalizers + entry * K + kk, kk < K, 0.0))
        tl.store(totals + entry, tl.exp2(keep) * dkeep)
        earlier = tl.where(step[:, None] < step[None, :], P * dP, 0.0)
        tl.store(columns + g, tl.sum(earlier, axis=1))
    dk_tile = tl.dot((dP * W).to(dtype), qc, dk_tile, input_precision=PRECISION)
    _put(dk + token * (HEADS * K) + head * K, dk_tile, left, HEADS * K, K, CHUNK, BK)
