"""Linear attention with a decay per head on a GPU: one kernel forward, three backward; `triton_gates.py` has the gates.

A program owns one head of one sequence (and a slice of its values) and walks along time in chunks with the memory
in registers. It leaves the memory before every chunk for the backward pass, in which only the memory's gradient is
carried from chunk to chunk; with both at hand the gradients of queries and of keys and values are had for all
chunks at once, by kernels small enough for several programs to hide each other's waiting. What both need is computed
twice: Triton 3.4 to 3.7.0 miscompile a product whose operand is the transposed result of another on Hopper.

With a normaliser n, a query all but at right angles to the keys reads next to nothing, which is divided by next to
nothing. Where products are of narrow types a memory S is therefore kept as that of the values less their weighted mean,
S - n mean^T, and the mean beside it: where all keys are alike nothing is left of the former to be rounded. And values
and gradients, once weighed, meet keys and queries in two narrow parts.
"""

import triton
import triton.language as tl

from tsseq.kernels.linear_attention.triton_gates import LOG2E


@triton.jit
def _tile(x, left, STRIDE: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """A tile whose rows are STRIDE apart, of which `left` exist, and WIDTH columns."""
    row = tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, COLUMNS)[None, :]
    return tl.load(x + row * STRIDE + column, (row < left) & (column < WIDTH), 0.0)


@triton.jit
def _put(x, value, left, STRIDE: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    row = tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, COLUMNS)[None, :]
    tl.store(x + row * STRIDE + column, value.to(x.dtype.element_ty), (row < left) & (column < WIDTH))


@triton.jit
def _decays(high, low, at, PRECISE: tl.constexpr):
    """Cumulative decays in two parts, the second a number whose addition costs nothing if there is but one."""
    return tl.load(high + at), tl.load(low + at) if PRECISE else -0.0


@triton.jit
def _leave(high_last, low_last, key_high, key_rest, PRECISE: tl.constexpr):
    """Exponents of the keys' weights in the memory after the chunk."""
    return (high_last - key_high) + (low_last + key_rest) if PRECISE else high_last + key_rest


@triton.jit
def _weights(
    query_high, query_rest, key_high, key_rest, PRECISE: tl.constexpr, KEYS_FIRST: tl.constexpr, CHUNK: tl.constexpr
):
    """Weight of every key for every later query, queries x keys or the other way round."""
    step = tl.arange(0, CHUNK)
    if KEYS_FIRST:
        if PRECISE:
            spans = (query_high[None, :] - key_high[:, None]) + (query_rest[None, :] + key_rest[:, None])
        else:
            spans = (query_high + query_rest)[None, :] + key_rest[:, None]
        return tl.exp2(tl.where(step[:, None] <= step[None, :], spans, float("-inf")))
    if PRECISE:
        spans = (query_high[:, None] - key_high[None, :]) + (query_rest[:, None] + key_rest[None, :])
    else:
        spans = (query_high + query_rest)[:, None] + key_rest[None, :]
    return tl.exp2(tl.where(step[:, None] >= step[None, :], spans, float("-inf")))


@triton.jit
def _floor(stabilizer):
    """What a denominator is at least, exp(-m); beyond 2 ** -86 it would underflow where it is divided by."""
    return tl.exp2(-tl.minimum(stabilizer, 86.0))


@triton.jit
def _rest(x, rounded):
    """What rounding took from `x`, rounded likewise."""
    return (x - rounded.to(tl.float32)).to(rounded.dtype)


@triton.jit
def _mean(S, n):
    """The mean of the values in a memory: what `n` times it comes nearest to its columns."""
    return tl.sum(S * n[:, None], axis=0) / tl.maximum(tl.sum(n * n), 2.0**-100)


@triton.jit
def _mass(n, k, rows):
    """How many keys of the mean size of `k`, which has `rows`, make up a normaliser."""
    size = tl.sum(tl.sum(tl.abs(k.to(tl.float32)), axis=1)) / rows
    return tl.minimum(tl.sum(tl.abs(n)) / tl.maximum(size, 2.0**-60), 2.0**60)


@triton.jit(do_not_specialize=["T"])
def forward_kernel(
    q, k, v, high, low, source, top, memory0, normalizer0, maximum0, o, memory, normalizer, maximum, memories,
    means, normalizers, maxima, T,
    SCALE: tl.constexpr, HEADS: tl.constexpr, K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr,
    BV: tl.constexpr, CHUNK: tl.constexpr, Q_STRIDE: tl.constexpr, K_STRIDE: tl.constexpr, V_STRIDE: tl.constexpr,
    HAS_STATE: tl.constexpr, NORMALIZE: tl.constexpr, SAVE: tl.constexpr, READ: tl.constexpr,
    PRECISION: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """The memory along time, and the read-outs unless `read_kernel` does them."""
    SLICES: tl.constexpr = (V + BV - 1) // BV
    PRECISE: tl.constexpr = PRECISION != "tf32"
    CENTRED: tl.constexpr = NORMALIZE and not PRECISE
    value = tl.arange(0, BV)
    SCORES: tl.constexpr = "ieee" if PRECISE else PRECISION  # what they weigh may sum to nearly nothing
    first = tl.program_id(0) % SLICES * BV
    bh = (tl.program_id(0) // SLICES).to(tl.int64)
    batch = bh // HEADS
    head = (bh % HEADS).to(tl.int32)
    dtype = q.dtype.element_ty
    kk = tl.arange(0, BK)
    step = tl.arange(0, CHUNK)
    chunks = tl.cdiv(T, CHUNK)
    width = V - first

    S = tl.zeros((BK, BV), tl.float32)
    n = tl.zeros((BK,), tl.float32)
    mean = tl.zeros((BV,), tl.float32)
    mass = tl.full((), 0.0, tl.float32)
    m = tl.full((), float("-inf"), tl.float32) if NORMALIZE else tl.full((), 0.0, tl.float32)
    if HAS_STATE:
        S = _tile(memory0 + bh * K * V + first, K, V, width, BK, BV)
        if NORMALIZE:
            n = tl.load(normalizer0 + bh * K + kk, kk < K, 0.0)
            m = tl.load(maximum0 + bh) * LOG2E
        if CENTRED:
            kc = _tile(k + batch * T * K_STRIDE + head * K, T, K_STRIDE, K, CHUNK, BK)
            mean, mass = _mean(S, n), _mass(n, kc, tl.minimum(T, CHUNK))

    for c in tl.range(0, chunks, num_stages=STAGES):
        token = batch * T + c * CHUNK
        left = T - c * CHUNK
        entry = bh * chunks + c
        g = entry * CHUNK + step
        last = entry * CHUNK + CHUNK - 1
        kc = _tile(k + token * K_STRIDE + head * K, left, K_STRIDE, K, CHUNK, BK)
        vc = _tile(v + token * V_STRIDE + head * V + first, left, V_STRIDE, width, CHUNK, BV)
        h_row, l_row = _decays(high, low, g, PRECISE)
        s_row = tl.load(source + g)
        centred = S
        if CENTRED:
            centred -= n[:, None] * mean[None, :]
        if SAVE:
            _put(memories + entry * K * V + first, centred, K, V, width, BK, BV)
            if CENTRED:
                tl.store(means + entry * V + first + value, mean, value < width)
            if NORMALIZE:
                tl.store(normalizers + entry * K + kk, n, kk < K)
                tl.store(maxima + entry, m)

        if READ:
            qc = _tile(q + token * Q_STRIDE + head * K, left, Q_STRIDE, K, CHUNK, BK)
            reach = h_row + l_row + m
            stabilizer = tl.zeros((CHUNK,), tl.float32)
            if NORMALIZE:
                stabilizer = tl.maximum(reach, tl.load(top + g))
            W = _weights(h_row, l_row - stabilizer, h_row, s_row, PRECISE, False, CHUNK)
            P = tl.dot(qc, tl.trans(kc), input_precision=SCORES) * W
            e = tl.exp2(reach - stabilizer)
            h = tl.dot(qc, centred.to(dtype), input_precision=PRECISION) * e[:, None]
            h = tl.dot(P.to(dtype), vc, h, input_precision=PRECISION)
            if NORMALIZE:
                remembered = e * tl.sum(qc.to(tl.float32) * n[None, :], axis=1)
                if CENTRED:
                    h += remembered[:, None] * mean[None, :]
                weight = SCALE * (tl.sum(P, axis=1) + remembered)
                h *= (SCALE / tl.maximum(tl.abs(weight), _floor(stabilizer)))[:, None]
            else:
                h *= SCALE
            _put(o + token * (HEADS * V) + head * V + first, h, left, HEADS * V, width, CHUNK, BV)

        high_last, low_last = _decays(high, low, last, PRECISE)
        leave = _leave(high_last, low_last, h_row, s_row, PRECISE)
        keep = high_last + low_last + m
        if NORMALIZE:
            m = tl.maximum(keep, tl.load(top + last))
            keep -= m
            leave -= m
        kept = tl.exp2(keep)
        weights = tl.exp2(leave)[:, None]
        # Values are weighed, not keys: rounding turns none, and a query all but at right angles to one stays so.
        weighted = vc.to(tl.float32) * weights
        if CENTRED:
            mean = mass * kept * mean + tl.sum(weighted, axis=0)
            mass = mass * kept + tl.exp2(tl.load(low + last) - m)
            mean /= tl.maximum(mass, 2.0**-100)
        if NORMALIZE:
            n = n * kept + tl.sum(kc.to(tl.float32) * weights, axis=0)
        rounded = weighted.to(dtype)
        S = tl.dot(tl.trans(kc), rounded, S * kept, input_precision=PRECISION)
        if CENTRED:
            S = tl.dot(tl.trans(kc), _rest(weighted, rounded), S)

    _put(memory + bh * K * V + first, S, K, V, width, BK, BV)
    if NORMALIZE:
        tl.store(normalizer + bh * K + kk, n, kk < K)
        tl.store(maximum + bh, m / LOG2E)


@triton.jit(do_not_specialize=["T"])
def read_kernel(
    q, k, v, high, low, source, top, memories, means, normalizers, maxima, o, T,
    SCALE: tl.constexpr, HEADS: tl.constexpr, K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr,
    BV: tl.constexpr, CHUNK: tl.constexpr, Q_STRIDE: tl.constexpr, K_STRIDE: tl.constexpr, V_STRIDE: tl.constexpr,
    NORMALIZE: tl.constexpr, PRECISION: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """The read-outs of one chunk from the memory before it."""
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
    kk = tl.arange(0, BK)
    token = batch * T + c * CHUNK
    left = T - c * CHUNK
    g = entry * CHUNK + tl.arange(0, CHUNK)

    qc = _tile(q + token * Q_STRIDE + head * K, left, Q_STRIDE, K, CHUNK, BK)
    kc = _tile(k + token * K_STRIDE + head * K, left, K_STRIDE, K, CHUNK, BK)
    h_row, l_row = _decays(high, low, g, PRECISE)
    reach = h_row + l_row
    stabilizer = tl.zeros((CHUNK,), tl.float32)
    if NORMALIZE:
        reach += tl.load(maxima + entry)
        stabilizer = tl.maximum(reach, tl.load(top + g))
    e = tl.exp2(reach - stabilizer)
    W = _weights(h_row, l_row - stabilizer, h_row, tl.load(source + g), PRECISE, False, CHUNK)
    P = tl.dot(qc, tl.trans(kc), input_precision=SCORES) * W
    u = tl.full((CHUNK,), SCALE, tl.float32)
    if NORMALIZE:
        n = tl.load(normalizers + entry * K + kk, kk < K, 0.0)
        remembered = e * tl.sum(qc.to(tl.float32) * n[None, :], axis=1)
        weight = SCALE * (tl.sum(P, axis=1) + remembered)
        u = SCALE / tl.maximum(tl.abs(weight), _floor(stabilizer))
        remembered *= u
    for first in tl.range(0, V, BV, num_stages=STAGES):
        S = _tile(memories + entry * K * V + first, K, V, V - first, BK, BV)
        vc = _tile(v + token * V_STRIDE + head * V + first, left, V_STRIDE, V - first, CHUNK, BV)
        if CENTRED:
            mean = tl.load(means + entry * V + first + value, value < V - first, 0.0)
        h = tl.dot(qc, S, input_precision=PRECISION) * e[:, None]
        h = tl.dot(P.to(vc.dtype), vc, h, input_precision=PRECISION) * u[:, None]
        if CENTRED:
            h += remembered[:, None] * mean[None, :]
        _put(o + token * (HEADS * V) + head * V + first, h, left, HEADS * V, V - first, CHUNK, BV)


@triton.jit(do_not_specialize=["T"])
def adjoint_kernel(
    q, do, high, low, top, maxima, rests, feedbacks, dmemory, dnormalizer, dmemories, dnormalizers, dmemory0,
    dnormalizer0, T,
    SCALE: tl.constexpr, HEADS: tl.constexpr, K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr,
    BV: tl.constexpr, CHUNK: tl.constexpr, Q_STRIDE: tl.constexpr, DO_STRIDE: tl.constexpr,
    HAS_DSTATE: tl.constexpr, NORMALIZE: tl.constexpr, PRECISION: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """The memory's gradient after every chunk, from the last to the first."""
    SLICES: tl.constexpr = (V + BV - 1) // BV
    part = tl.program_id(0) % SLICES
    first = part * BV
    bh = (tl.program_id(0) // SLICES).to(tl.int64)
    batch = bh // HEADS
    head = (bh % HEADS).to(tl.int32)
    PRECISE: tl.constexpr = PRECISION != "tf32"
    dtype = q.dtype.element_ty
    kk = tl.arange(0, BK)
    step = tl.arange(0, CHUNK)
    chunks = tl.cdiv(T, CHUNK)
    width = V - first

    dS = tl.zeros((BK, BV), tl.float32)
    dn = tl.zeros((BK,), tl.float32)
    if HAS_DSTATE:
        dS = _tile(dmemory + bh * K * V + first, K, V, width, BK, BV)
        if NORMALIZE:
            dn = tl.load(dnormalizer + bh * K + kk, kk < K, 0.0)

    for back in tl.range(0, chunks, num_stages=STAGES):
        c = chunks - 1 - back
        token = batch * T + c * CHUNK
        left = T - c * CHUNK
        entry = bh * chunks + c
        g = entry * CHUNK + step
        last = entry * CHUNK + CHUNK - 1
        _put(dmemories + entry * K * V + first, dS, K, V, width, BK, BV)
        qc = _tile(q + token * Q_STRIDE + head * K, left, Q_STRIDE, K, CHUNK, BK)
        dc = _tile(do + token * DO_STRIDE + head * V + first, left, DO_STRIDE, width, CHUNK, BV)
        if NORMALIZE:
            if part == 0:
                tl.store(dnormalizers + entry * K + kk, dn, kk < K)
            reach = tl.load(rests + g)
            if PRECISE:
                reach += tl.load(high + g)
            z = tl.load(feedbacks + g)
            high_last, low_last = _decays(high, low, last, PRECISE)
            m = tl.load(maxima + entry)
            keep = high_last + low_last + m
            reach += m
            keep -= tl.maximum(keep, tl.load(top + last))
        else:
            h_row, l_row = _decays(high, low, g, PRECISE)
            reach = h_row + l_row + tl.log2(tl.full((), SCALE, tl.float32))
            high_last, low_last = _decays(high, low, last, PRECISE)
            keep = high_last + low_last
        kept = tl.exp2(keep)
        weights = tl.exp2(reach)[:, None]
        dS *= kept
        weighted = dc.to(tl.float32) * weights
        rounded = weighted.to(dtype)
        dS = tl.dot(tl.trans(qc), rounded, dS, input_precision=PRECISION)
        if NORMALIZE and not PRECISE:
            dS = tl.dot(tl.trans(qc), _rest(weighted, rounded), dS)
        if NORMALIZE:
            dn = dn * kept + tl.sum(qc.to(tl.float32) * (weights * z[:, None]), axis=0)

    _put(dmemory0 + bh * K * V + first, dS, K, V, width, BK, BV)
    if NORMALIZE:
        if part == 0:
            tl.store(dnormalizer0 + bh * K + kk, dn, kk < K)
