"""Gradients of queries, keys and values of linear attention, all chunks at once; `triton.py` carries the memory's.

A program's time goes into waiting for what it reads, and no load is moved over the barriers of a product: the tiles of
a chunk are all loaded before its first product, to wait once. What is summed of scores is summed as soon as it is
known, so that three programs fit a multiprocessor at width 64.
"""

import triton
import triton.language as tl

from tsseq.kernels.linear_attention.triton import _decays, _floor, _leave, _put, _rest, _tile, _weights


@triton.jit
def _slice(
    memories, do, v, first, left, K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
    CHUNK: tl.constexpr, DO_STRIDE: tl.constexpr, V_STRIDE: tl.constexpr,
):  # fmt: skip
    """BV values, from `first` on, of a memory or its gradient, of the gradient of the read-outs and of the values."""
    return (
        _tile(memories + first, K, V, V - first, BK, BV),
        _tile(do + first, left, DO_STRIDE, V - first, CHUNK, BV),
        _tile(v + first, left, V_STRIDE, V - first, CHUNK, BV),
    )


@triton.jit
def _inner(dS, S, n, means, value, V: tl.constexpr, CENTRED: tl.constexpr):
    """Sum of the products of a memory's elements with those of its gradient, for the given values."""
    if CENTRED:
        S = S.to(tl.float32) + n[:, None] * tl.load(means + value, value < V, 0.0)[None, :]
    return tl.sum(dS.to(tl.float32) * S.to(tl.float32))


@triton.jit(do_not_specialize=["T"])
def query_gradients_kernel(
    q, k, v, high, low, source, top, memories, means, normalizers, maxima, do, rests, feedbacks, dq, rows, T,
    SCALE: tl.constexpr, HEADS: tl.constexpr, K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr,
    BV: tl.constexpr, CHUNK: tl.constexpr, Q_STRIDE: tl.constexpr, K_STRIDE: tl.constexpr, V_STRIDE: tl.constexpr,
    DO_STRIDE: tl.constexpr, HAS_DECAY: tl.constexpr, NORMALIZE: tl.constexpr, PRECISION: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """One chunk: gradients of its queries, and what they say about the decays up to their positions.

    A query's read-out is num * u with u = scale / max(|weight|, floor); `rests` gets what u, the stabiliser and
    the decays (their fine part if they have two) put into the exponents of its weights, `feedbacks` z, what the
    gradient of the weight adds to every score's before that is multiplied by u.
    """
    PRECISE: tl.constexpr = PRECISION != "tf32"
    CENTRED: tl.constexpr = NORMALIZE and not PRECISE
    value = tl.arange(0, BV)
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
    memory = memories + entry * K * V
    gradient = do + token * DO_STRIDE + head * V
    values = v + token * V_STRIDE + head * V
    S, dc, vc = _slice(memory, gradient, values, 0, left, K, V, BK, BV, CHUNK, DO_STRIDE, V_STRIDE)
    h_row, l_row = _decays(high, low, g, PRECISE)
    s_row = tl.load(source + g)
    reach = h_row + l_row
    stabilizer = tl.zeros((CHUNK,), tl.float32)
    if NORMALIZE:
        n = tl.load(normalizers + entry * K + kk, kk < K, 0.0)
        reach += tl.load(maxima + entry)
        stabilizer = tl.maximum(reach, tl.load(top + g))
    if CENTRED:
        mean = tl.load(means + entry * V + value, value < V, 0.0)
    e = tl.exp2(reach - stabilizer)
    scores = tl.dot(qc, tl.trans(kc), input_precision=SCORES)
    W = _weights(h_row, l_row - stabilizer, h_row, s_row, PRECISE, False, CHUNK)
    qf = qc.to(tl.float32)
    u = tl.full((CHUNK,), SCALE, tl.float32)
    if NORMALIZE:
        remembered = e * tl.sum(qf * n[None, :], axis=1)
        weight = SCALE * (tl.sum(scores * W, axis=1) + remembered)
        floor = _floor(stabilizer)
        u = SCALE / tl.maximum(tl.abs(weight), floor)
        rest = l_row - stabilizer + tl.log2(u)
        tl.store(rests + g, rest if PRECISE else h_row + rest)
    dq_tile = tl.zeros((CHUNK, BK), tl.float32)
    along_mean = tl.zeros((CHUNK,), tl.float32)
    for first in tl.range(0, V, BV, num_stages=STAGES):
        if V > BV:
            S, dc, vc = _slice(memory, gradient, values, first, left, K, V, BK, BV, CHUNK, DO_STRIDE, V_STRIDE)
        dq_tile = tl.dot(dc, tl.trans(S), dq_tile, input_precision=PRECISION)
        if CENTRED:
            if V > BV:
                mean = tl.load(means + entry * V + first + value, value < V - first, 0.0)
            along_mean += tl.sum(dc.to(tl.float32) * mean[None, :], axis=1)
    if CENTRED:
        dq_tile += along_mean[:, None] * n[None, :]
    dP = tl.zeros((CHUNK, CHUNK), tl.float32)
    for first in tl.range(0, V, BV, num_stages=STAGES):
        if V > BV:
            S, dc, vc = _slice(memory, gradient, values, first, left, K, V, BK, BV, CHUNK, DO_STRIDE, V_STRIDE)
        dP = tl.dot(dc, tl.trans(vc), dP, input_precision=PRECISION)
    from_memory = e * tl.sum(qf * dq_tile, axis=1)
    dscores = dP * W
    if NORMALIZE:
        along = u * (tl.sum(scores * dscores, axis=1) + from_memory)
        z = tl.where(tl.abs(weight) >= floor, tl.where(weight > 0, -along, along), 0.0)
        tl.store(feedbacks + g, z)
        dscores += z[:, None] * W
        dq_tile += z[:, None] * n[None, :]
        from_memory += z * remembered
    if HAS_DECAY:
        dreach = tl.sum(tl.where(step[:, None] > step[None, :], scores * dscores, 0.0), axis=1) + from_memory
        tl.store(rows + g, dreach * u)
    rounded = dscores.to(dtype)
    dq_tile *= e[:, None]
    if NORMALIZE and not PRECISE:
        # Where keys are nearly equal a read-out hardly depends on its query, and the sum below cancels.
        dq_tile = tl.dot(_rest(dscores, rounded), kc, dq_tile)
    dq_tile = tl.dot(rounded, kc, dq_tile, input_precision=PRECISION) * u[:, None]
    _put(dq + token * (HEADS * K) + head * K, dq_tile, left, HEADS * K, K, CHUNK, BK)


@triton.jit(do_not_specialize=["T"])
def key_gradients_kernel(
    q, k, v, high, low, source, top, memories, means, normalizers, maxima, do, rests, feedbacks, dmemories,
    dnormalizers, dk, dv, columns, carries, totals, dgate_columns, T,
    SCALE: tl.constexpr, HEADS: tl.constexpr, K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr,
    BV: tl.constexpr, CHUNK: tl.constexpr, Q_STRIDE: tl.constexpr, K_STRIDE: tl.constexpr, V_STRIDE: tl.constexpr,
    DO_STRIDE: tl.constexpr, HAS_DECAY: tl.constexpr, HAS_GATE: tl.constexpr, NORMALIZE: tl.constexpr,
    PRECISION: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """One chunk: gradients of its keys and values, and what they and the memory say about decays and gates."""
    PRECISE: tl.constexpr = PRECISION != "tf32"
    CENTRED: tl.constexpr = NORMALIZE and not PRECISE
    value = tl.arange(0, BV)
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
    memory = memories + entry * K * V
    dmemory = dmemories + entry * K * V
    gradient = do + token * DO_STRIDE + head * V
    values = v + token * V_STRIDE + head * V
    dS, dc, vc = _slice(dmemory, gradient, values, 0, left, K, V, BK, BV, CHUNK, DO_STRIDE, V_STRIDE)
    if HAS_DECAY:
        S = _tile(memory, K, V, V, BK, BV)
    h_row = tl.load(high + g) if PRECISE else -0.0
    s_row = tl.load(source + g)
    high_last, low_last = _decays(high, low, last, PRECISE)
    leave = _leave(high_last, low_last, h_row, s_row, PRECISE)
    if NORMALIZE:
        rest = tl.load(rests + g)
        keep = high_last + low_last + tl.load(maxima + entry)
        after = tl.maximum(keep, tl.load(top + last))
        keep -= after
        leave -= after
    else:
        rest = tl.load((low if PRECISE else high) + g) + tl.log2(tl.full((), SCALE, tl.float32))
        keep = high_last + low_last
    n = tl.zeros((BK,), tl.float32)
    dkeep = 0.0
    if NORMALIZE:
        n = tl.load(normalizers + entry * K + kk, kk < K, 0.0)
    if HAS_DECAY and V <= BV:
        dkeep = _inner(dS, S, n, means + entry * V, value, V, CENTRED)
    a = tl.exp2(leave)
    W = _weights(h_row, rest, h_row, s_row, PRECISE, True, CHUNK)
    P = tl.dot(kc, tl.trans(qc), input_precision=SCORES) * W
    if NORMALIZE:
        z = tl.load(feedbacks + g)
    dP = tl.zeros((CHUNK, CHUNK), tl.float32)
    for first in tl.range(0, V, BV, num_stages=STAGES):
        if V > BV:
            dS, dc, vc = _slice(dmemory, gradient, values, first, left, K, V, BK, BV, CHUNK, DO_STRIDE, V_STRIDE)
        dP = tl.dot(vc, tl.trans(dc), dP, input_precision=PRECISION)
    if NORMALIZE:
        dP += z[None, :]
    if HAS_GATE:
        tl.store(dgate_columns + g, tl.sum(P * dP, axis=1))
    if HAS_DECAY:
        tl.store(columns + g, tl.sum(tl.where(step[:, None] < step[None, :], P * dP, 0.0), axis=1))
    scores = P.to(dtype)
    dscores = (dP * W).to(dtype)
    if NORMALIZE:
        dn = tl.load(dnormalizers + entry * K + kk, kk < K, 0.0)
        if V > BV:  # again, so that it is not held meanwhile
            n = tl.load(normalizers + entry * K + kk, kk < K, 0.0)

    dk_tile = tl.zeros((CHUNK, BK), tl.float32)
    for first in tl.range(0, V, BV, num_stages=STAGES):
        if V > BV:
            dS, dc, vc = _slice(dmemory, gradient, values, first, left, K, V, BK, BV, CHUNK, DO_STRIDE, V_STRIDE)
            if HAS_DECAY:
                S = _tile(memory + first, K, V, V - first, BK, BV)
                dkeep += _inner(dS, S, n, means + entry * V, first + value, V, CENTRED)
        dv_tile = tl.dot(kc, dS, input_precision=PRECISION) * a[:, None]
        dv_tile = tl.dot(scores, dc, dv_tile, input_precision=PRECISION)
        _put(dv + token * (HEADS * V) + head * V + first, dv_tile, left, HEADS * V, V - first, CHUNK, BV)
        dk_tile = tl.dot(vc, tl.trans(dS), dk_tile, input_precision=PRECISION)

    if NORMALIZE:
        dk_tile += dn[None, :]
    dk_tile *= a[:, None]
    tl.store(carries + g, tl.sum(kc.to(tl.float32) * dk_tile, axis=1))
    if HAS_DECAY:
        if NORMALIZE:
            dkeep += tl.sum(dn * n)
        tl.store(totals + entry, tl.exp2(keep) * dkeep)
    dk_tile = tl.dot(dscores, qc, dk_tile, input_precision=PRECISION)
    _put(dk + token * (HEADS * K) + head * K, dk_tile, left, HEADS * K, K, CHUNK, BK)
