"""The delta rule's kernels of the backward pass; `triton.py` has the notation and what they compute."""

import triton
import triton.language as tl

from tsseq.kernels.delta_rule.triton import (
    add_float_left_product,
    add_float_right_product,
    causal_decay,
    close_product_with_solve,
    float_product_with_solve,
    hidden_zero,
    kind_of_head,
    load_solve,
    product,
    reread,
    round_sums,
    safe_beta,
    tile_mask,
)


@triton.jit
def prefetch_rows(
    x, left, STRIDE: tl.constexpr, STEP_STRIDE: tl.constexpr, TOKENS: tl.constexpr, STEPS_PADDED: tl.constexpr,
    N: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Start to bring rows of `x`, `left` tokens at most, into the L2 cache, where they take no shared memory.

    A loop's loads are issued at the end of the iteration before the one that waits for them. Where too little shared
    memory is left for more of them to be in flight they should not have to come from far. A prefetch brings 32 bytes.
    """
    PART: tl.constexpr = 256 // x.dtype.element_ty.primitive_bitwidth
    PARTS: tl.constexpr = (BLOCK + PART - 1) // PART
    i = tl.arange(0, TOKENS * STEPS_PADDED * PARTS)
    token = tl.minimum(i // (PARTS * STEPS_PADDED), left - 1)
    step = tl.minimum(i // PARTS % STEPS_PADDED, N - 1)
    column = tl.minimum(i % PARTS * PART, WIDTH - 1)
    at = (x + (token * STRIDE + step * STEP_STRIDE + column)).to(tl.int64)
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.b32 $0, 0;", "=r,l", [at], dtype=tl.int32, is_pure=False, pack=1
    )


@triton.jit(do_not_specialize=["T"])
def adjoint_kernel(
    q, k, cumulated, w, sums, kept, kinds, grad_output, grad_final, grad_v, grad_states, grad_initial, T,
    Q_STRIDE: tl.constexpr, K_STRIDE: tl.constexpr, O_STRIDE: tl.constexpr, H: tl.constexpr,
    N: tl.constexpr, K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, TOKENS: tl.constexpr,
    STEPS_PADDED: tl.constexpr, HAS_DECAY: tl.constexpr, HAS_INITIAL: tl.constexpr, HAS_GRAD_FINAL: tl.constexpr,
    CLOSE: tl.constexpr, PRECISION: tl.constexpr, STAGES: tl.constexpr, PREFETCH: tl.constexpr,
):  # fmt: skip
    """dV and the gradients of the states that chunks end in, for some value columns of a head."""
    R: tl.constexpr = TOKENS * STEPS_PADDED
    Q: tl.constexpr = TOKENS if TOKENS > 16 else 16
    slices: tl.constexpr = (V + BV - 1) // BV
    pid = tl.program_id(0).to(tl.int64)
    head = pid // slices
    b = head // H
    h = head % H
    chunks = tl.cdiv(T, TOKENS)
    dtype: tl.constexpr = k.dtype.element_ty
    SPLIT: tl.constexpr = CLOSE or dtype == tl.bfloat16
    if dtype != tl.float32:
        reflects, alike = kind_of_head(kinds + head * chunks, chunks)
        if (reflects | alike) != CLOSE:
            return

    r = tl.arange(0, R)
    token = r // STEPS_PADDED
    step = r % STEPS_PADDED
    cq = tl.arange(0, Q)
    kk = tl.arange(0, BK)
    vv = (pid % slices).to(tl.int32) * BV + tl.arange(0, BV)
    square = (vv < V)[:, None] & (kk < K)[None, :]
    if HAS_GRAD_FINAL:
        entry = grad_final + head * (K * V) + (kk[None, :] * V + vv[:, None])
        ds = tl.load(entry, square, 0.0).to(tl.float32)
    else:
        ds = tl.zeros([BV, BK], tl.float32)

    for reverse in tl.range(0, chunks, num_stages=STAGES):
        c = chunks - 1 - reverse
        first = b * T + c * TOKENS
        zero = hidden_zero(first)
        row = token * N + step + zero
        query = cq + zero
        left = T - c * TOKENS
        if PREFETCH:
            before = tl.maximum(c - 1, 0)
            start = b * T + before * TOKENS
            more = T - before * TOKENS
            prefetch_rows(k + (start * K_STRIDE + h * K), more, K_STRIDE, H * K, TOKENS, STEPS_PADDED, N, K, BK)
            prefetch_rows(q + (start * Q_STRIDE + h * K), more, Q_STRIDE, 0, TOKENS, 1, 1, K, BK)
            prefetch_rows(grad_output + (start * O_STRIDE + h * V), more, O_STRIDE, 0, TOKENS, 1, 1, V, BV)
            prefetch_rows(w + (head * chunks + before) * (R * R), R, R, 0, R, 1, 1, R, R)
        live = (token < left) & (step < N)
        live_q = (cq < left) & (cq < TOKENS)
        g = tl.zeros([R], tl.float32)
        g_q = tl.zeros([Q], tl.float32)
        if HAS_DECAY:
            at = cumulated + (head * chunks + c) * TOKENS
            g_end = tl.load(at + (TOKENS - 1))
            g = tl.load(at + (token + zero))
            g_q = tl.load(at + query, cq < TOKENS, float("-inf"))  # else columns of no token grow to inf, times 0 NaN

        row_k = (token + zero) * K_STRIDE + step * (H * K)
        at_k = k + (first * K_STRIDE + h * K) + (row_k[:, None] + kk[None, :])
        k_c = tl.load(at_k, live[:, None] & (kk < K)[None, :], 0.0)
        at_q = q + (first * Q_STRIDE + h * K) + (query[:, None] * Q_STRIDE + kk[None, :])
        q_c = tl.load(at_q, live_q[:, None] & (kk < K)[None, :], 0.0)
        p = product(q_c, tl.trans(k_c), PRECISION)
        p *= causal_decay(g_q[:, None], g[None, :], cq[:, None] >= token[None, :], HAS_DECAY)

        at_o = grad_output + (first * O_STRIDE + h * V) + (query[:, None] * O_STRIDE + vv[None, :])
        do = tl.load(at_o, live_q[:, None] & (vv < V)[None, :], 0.0)
        at_s = grad_states + (head * chunks + c) * (V * K) + ((vv + zero)[:, None] * K + kk[None, :])
        tl.store(at_s, ds.to(dtype), square)
        # Steps along one key leave so little of dU in dV that dS rounded once is not enough.
        du = tl.zeros([BV, R], tl.float32)
        du = add_float_left_product(du, ds, tl.trans(k_c), SPLIT and (CLOSE or STEPS_PADDED > 1), PRECISION)
        if HAS_DECAY:
            du *= tl.exp2(g_end - g)[None, :]
        du = add_float_right_product(du, tl.trans(do), p, SPLIT, PRECISION)
        w_t = load_solve(w, head * chunks + c, r, r + zero, R)
        if CLOSE:
            at, rows = head * chunks + c, tl.minimum(left, TOKENS) * N
            y = close_product_with_solve(du, tl.trans(w_t), sums, kinds, at, live, rows, False, R, PRECISION)
        else:
            y = float_product_with_solve(du, tl.trans(w_t), False, PRECISION)
        at_v = (first * N * H + h) * V + (row[None, :] * (H * V) + vv[:, None])
        rounded = round_sums(y, kept + (head * chunks + c) * 2, dtype) if CLOSE else y.to(dtype)
        tl.store(grad_v + at_v, rounded, live[None, :] & (vv < V)[:, None])

        do_t = tl.trans(do)
        y = -y
        if HAS_DECAY:
            do_t = (do_t.to(tl.float32) * tl.exp2(g_q)[None, :]).to(dtype)
            y *= tl.exp2(g)[None, :]
            ds *= tl.exp2(g_end)
        ds += product(do_t, q_c, PRECISION)
        if CLOSE:
            ds = add_float_left_product(ds, y, k_c, SPLIT, PRECISION)
        else:
            ds += product(y.to(dtype), k_c, PRECISION)
    if HAS_INITIAL:
        tl.store(grad_initial + head * (K * V) + (kk[None, :] * V + vv[:, None]), ds, square)


@triton.jit
def decayed_product(a, b, decay, HAS_DECAY: tl.constexpr, PRECISION: tl.constexpr):
    """`a` times `b`, and each row of it times two to the power of its `decay`."""
    result = product(a, b, PRECISION)
    if HAS_DECAY:
        result *= tl.exp2(decay)[:, None]
    return result


@triton.jit
def store_log_decay(
    to, dg, dg_q, at_end, token, step, cq, zero, live, live_q, c, STRIDE: tl.constexpr, STEPS_PADDED: tl.constexpr,
    BY_TOKENS: tl.constexpr, HAS_INITIAL: tl.constexpr,
):  # fmt: skip
    """Sums to the end of chunk `c`, where it is `at_end`, of the rows' `dg` and the queries' `dg_q`, a token each."""
    if BY_TOKENS:
        dg = tl.sum(tl.reshape(dg, [cq.shape[0], STEPS_PADDED]), 1) + dg_q
        at, first_row = cq, live_q
    else:
        if STEPS_PADDED == 1:
            dg += dg_q
        else:
            own = (token[:, None] == cq[None, :]) & (step == 0)[:, None]
            dg += tl.sum(tl.where(own, dg_q[None, :], 0.0), 1)
        at, first_row = token, live & (step == 0)
    dg = at_end + tl.cumsum(dg, 0, reverse=True)
    if not HAS_INITIAL:  # the first token's decay meets no state
        dg = tl.where(at + c == 0, 0.0, dg)
    tl.store(to + (at + zero) * STRIDE, dg.to(to.dtype.element_ty), first_row)


@triton.jit(do_not_specialize=["T", "TOTAL", "COUNT"])
def gradient_kernel(
    q, k, beta, cumulated, u, states, grad_output, grad_v, grad_states, grad_q, grad_k, grad_beta, grad_log_decay, T,
    TOTAL, COUNT, Q_STRIDE: tl.constexpr, K_STRIDE: tl.constexpr, B_STRIDE: tl.constexpr, O_STRIDE: tl.constexpr,
    H: tl.constexpr, N: tl.constexpr, K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
    TOKENS: tl.constexpr, STEPS_PADDED: tl.constexpr, HAS_DECAY: tl.constexpr, HAS_INITIAL: tl.constexpr,
    SMALLEST: tl.constexpr, PRECISION: tl.constexpr, STAGES: tl.constexpr, TURN: tl.constexpr, REREAD: tl.constexpr,
):  # fmt: skip
    """All gradients but dV of COUNT of the TOTAL chunks of all heads and a slice of key columns, each chunk by itself.

    A loop keeps the next chunk's loads in flight. Slices give the log decay's gradient in parts, to be summed.
    F and M are left operands as they are, from registers. What takes them transposed has them as right operands, from
    shared memory, where TURN, and is transposed itself; else it has each from a product of its own, the other way.
    """
    R: tl.constexpr = TOKENS * STEPS_PADDED
    Q: tl.constexpr = TOKENS if TOKENS > 16 else 16
    slices: tl.constexpr = (K + BK - 1) // BK
    pid = tl.program_id(0).to(tl.int64)
    slice_ = (pid % slices).to(tl.int32)
    start = (pid // slices).to(tl.int32) * COUNT
    # Where its terms all but cancel, a decay's gradient takes more digits than float32 has.
    SUM: tl.constexpr = tl.float64 if q.dtype.element_ty == tl.float32 else tl.float32
    chunks = tl.cdiv(T, TOKENS)
    dtype: tl.constexpr = k.dtype.element_ty
    SPLIT: tl.constexpr = dtype != tl.float32

    r = tl.arange(0, R)
    token = r // STEPS_PADDED
    step = r % STEPS_PADDED
    cq = tl.arange(0, Q)
    kk = slice_ * BK + tl.arange(0, BK)
    vv = tl.arange(0, BV)
    for chunk in tl.range(start, tl.minimum(start + COUNT, TOTAL), num_stages=STAGES):
        head = chunk // chunks
        c = chunk - head * chunks
        h = head % H
        first = (head // H).to(tl.int64) * T + c * TOKENS
        head = head.to(tl.int64)
        zero = hidden_zero(first)
        row = token * N + step + zero
        rows = r if TURN else r + zero  # for comparisons; the sum is not kept in registers over iterations
        query = cq + zero
        left = T - c * TOKENS
        live = (token < left) & (step < N)
        live_q = (cq < left) & (cq < TOKENS)
        rows_v = tile_mask(live, vv, V, BV)
        rows_k = tile_mask(live, kk, K, BK)
        first_v = (first * N * H + h) * V
        g = tl.zeros([R], tl.float32)
        g_q = tl.zeros([Q], tl.float32)
        if HAS_DECAY:
            at = cumulated + (head * chunks + c) * TOKENS
            g_end = tl.load(at + (TOKENS - 1))
            g = tl.load(at + (token + zero))
            g_q = tl.load(at + query, cq < TOKENS, float("-inf"))  # else columns of no token grow to inf, times 0 NaN

        row_k = (token + zero) * K_STRIDE + step * (H * K)
        k_c = tl.load(k + (first * K_STRIDE + h * K) + (row_k[:, None] + kk[None, :]), rows_k, 0.0)
        at_q = q + (first * Q_STRIDE + h * K) + (query[:, None] * Q_STRIDE + kk[None, :])
        q_c = tl.load(at_q, tile_mask(live_q, kk, K, BK), 0.0)
        at_o = grad_output + (first * O_STRIDE + h * V) + (query[:, None] * O_STRIDE + vv[None, :])
        do = tl.load(at_o, tile_mask(live_q, vv, V, BV), 0.0)
        at_v = row[:, None] * (H * V) + vv[None, :]
        u_c = tl.load(u + first_v + at_v, rows_v, 0.0)
        y = tl.load(grad_v + first_v + at_v, rows_v, 0.0)
        chunk_s = (head * chunks + c) * (V * K)
        at_s = (vv + zero)[:, None] * K + kk[None, :]
        ds = tl.load(grad_states + chunk_s + at_s, tile_mask(vv < V, kk, K, BK), 0.0)
        stored = vv < V if HAS_INITIAL else vv < tl.minimum(c, 1) * V
        s_c = tl.load(states + chunk_s + at_s, tile_mask(stored, kk, K, BK), 0.0)
        at_b = beta + first * B_STRIDE + h + ((token + zero) * B_STRIDE + step * H)
        b_c = safe_beta(tl.load(at_b, live, 0.0).to(tl.float32), SMALLEST)

        reread(do, REREAD)
        reread(u_c, REREAD)
        reread(y, REREAD)
        at_end = 0.0
        g_left = g
        if HAS_DECAY:
            at_end = tl.exp2(g_end) * tl.sum(ds.to(tl.float32) * s_c.to(tl.float32))
            g_left = g_end - g
        f = product(do, tl.trans(u_c), PRECISION)
        f *= causal_decay(g_q[:, None], g[None, :], query[:, None] >= token[None, :], HAS_DECAY)
        if TURN:
            turned = add_float_right_product(tl.zeros([BK, R], tl.float32), tl.trans(q_c), f, SPLIT, PRECISION)
        dq = decayed_product(do, s_c, g_q, HAS_DECAY, PRECISION)
        dq = add_float_left_product(dq, f, k_c, SPLIT, PRECISION)
        at = grad_q + (first * H + h) * K + (query[:, None] * (H * K) + kk[None, :])
        tl.store(at, dq.to(dtype), tile_mask(live_q, kk, K, BK))
        dg_q = tl.sum(dq.to(SUM) * q_c, 1)

        if not TURN:
            dk = decayed_product(u_c, ds, g_left, HAS_DECAY, PRECISION)
            if HAS_DECAY:
                at_end += tl.sum(dk.to(SUM) * k_c)
            f = product(u_c, tl.trans(do), PRECISION)
            f *= causal_decay(g_q[None, :], g[:, None], token[:, None] <= query[None, :], HAS_DECAY)
            dk = add_float_left_product(dk, f, q_c, SPLIT, PRECISION)
            m = -product(u_c, tl.trans(y), PRECISION)
            m *= causal_decay(g[None, :], g[:, None], r[None, :] > rows[:, None], HAS_DECAY)
            dk = add_float_left_product(dk, m, k_c, SPLIT, PRECISION)

        m = product(y, tl.trans(u_c), PRECISION)
        db = tl.sum(tl.where(rows[:, None] == r[None, :], m, 0.0), 1) / (b_c * b_c)
        tl.store(grad_beta + first * (N * H) + h + row * H, db.to(grad_beta.dtype.element_ty), live)
        m *= -causal_decay(g[:, None], g[None, :], rows[:, None] > r[None, :], HAS_DECAY)
        if TURN:
            turned = add_float_right_product(turned, tl.trans(k_c), m, SPLIT, PRECISION)
        growing = -decayed_product(y, s_c, g, HAS_DECAY, PRECISION)
        growing = add_float_left_product(growing, m, k_c, SPLIT, PRECISION)

        if TURN:
            dk = decayed_product(u_c, ds, g_left, HAS_DECAY, PRECISION)
            if HAS_DECAY:
                at_end += tl.sum(dk.to(SUM) * k_c)
            dk += tl.trans(turned)
        if HAS_DECAY:
            slow = tl.exp2(g_end * (64.0 / R))
            yu = db * safe_beta(tl.load(at_b, live, 0.0).to(tl.float32), SMALLEST)  # again: kept, it spills
            dg = tl.sum((growing.to(SUM) - dk * (1.0 - slow)) * k_c, 1) - yu * (slow / slices)
            to = grad_log_decay + (first * slices + slice_) * H + h
            # By tokens it takes fewer instructions, but with TURN more registers spill: an eighth of the time.
            store_log_decay(
                to, dg, dg_q, at_end, token, step, cq, zero, live, live_q, c, slices * H, STEPS_PADDED,
                not TURN and Q == TOKENS, HAS_INITIAL,
            )  # fmt: skip
        at = grad_k + (first * N * H + h) * K + (row[:, None] * (H * K) + kk[None, :])
        tl.store(at, (dk + growing).to(dtype), rows_k)
