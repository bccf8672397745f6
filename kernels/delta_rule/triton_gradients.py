"""The delta rule's kernels of the backward pass; `triton.py` has the notation and what they compute."""

import triton
import triton.language as tl

from tsseq.kernels.delta_rule.triton import (
    causal_decay,
    float_left_product,
    float_product_with_solve,
    float_right_product,
    hidden_zero,
    load_decay,
    product,
    safe_beta,
)


@triton.jit(do_not_specialize=["T"])
def adjoint_kernel(
    q, k, log_decay, w, grad_output, grad_final, grad_v, rest, grad_states, grad_initial, T,
    Q_STRIDE: tl.constexpr, K_STRIDE: tl.constexpr, G_STRIDE: tl.constexpr, O_STRIDE: tl.constexpr, H: tl.constexpr,
    N: tl.constexpr, K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, TOKENS: tl.constexpr,
    STEPS_PADDED: tl.constexpr, HAS_DECAY: tl.constexpr, HAS_INITIAL: tl.constexpr, HAS_GRAD_FINAL: tl.constexpr,
    REST: tl.constexpr, SPLIT: tl.constexpr, PRECISION: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """dV, what rounding it leaves out, and the gradients of the states that chunks end in, of some value columns."""
    R: tl.constexpr = TOKENS * STEPS_PADDED
    Q: tl.constexpr = TOKENS if TOKENS > 16 else 16
    slices: tl.constexpr = (V + BV - 1) // BV
    pid = tl.program_id(0).to(tl.int64)
    head = pid // slices
    b = head // H
    h = head % H
    chunks = tl.cdiv(T, TOKENS)
    dtype: tl.constexpr = k.dtype.element_ty

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
        live = (token < left) & (step < N)
        live_q = (cq < left) & (cq < TOKENS)
        g = tl.zeros([R], tl.float32)
        g_q = tl.zeros([Q], tl.float32)
        if HAS_DECAY:
            at = log_decay + first * G_STRIDE + h
            g = tl.cumsum(load_decay(at + token * G_STRIDE, live & (step == 0)), 0)
            decay_q = load_decay(at + query * G_STRIDE, live_q)
            g_q = tl.cumsum(decay_q, 0)
            g_end = tl.sum(decay_q, 0)

        row_k = (token + zero) * K_STRIDE + step * (H * K)
        at_k = k + (first * K_STRIDE + h * K) + (row_k[:, None] + kk[None, :])
        k_c = tl.load(at_k, live[:, None] & (kk < K)[None, :], 0.0)
        at_q = q + (first * Q_STRIDE + h * K) + (query[:, None] * Q_STRIDE + kk[None, :])
        q_c = tl.load(at_q, live_q[:, None] & (kk < K)[None, :], 0.0)
        p = product(q_c, tl.trans(k_c), PRECISION)
        p *= causal_decay(g_q[:, None], g[None, :], cq[:, None] >= token[None, :], HAS_DECAY)

        at_o = grad_output + (first * O_STRIDE + h * V) + (query[:, None] * O_STRIDE + vv[None, :])
        do = tl.load(at_o, live_q[:, None] & (vv < V)[None, :], 0.0)
        operand = ds.to(dtype)
        at_s = grad_states + (head * chunks + c) * (V * K) + ((vv + zero)[:, None] * K + kk[None, :])
        tl.store(at_s, operand, square)
        du = product(operand, tl.trans(k_c), PRECISION)
        if HAS_DECAY:
            du *= tl.exp2(g_end - g)[None, :]
        du += float_right_product(tl.trans(do), p, SPLIT, PRECISION)
        w_c = tl.load(w + (head * chunks + c) * (R * R) + ((r + zero)[:, None] * R + r[None, :]))
        y = float_product_with_solve(du, w_c, dtype, SPLIT, PRECISION)
        at_v = (first * N * H + h) * V + (row[None, :] * (H * V) + vv[:, None])
        tl.store(grad_v + at_v, y.to(dtype), live[None, :] & (vv < V)[:, None])
        if REST:
            tl.store(rest + at_v, (y - y.to(dtype).to(tl.float32)).to(dtype), live[None, :] & (vv < V)[:, None])

        do_t = tl.trans(do)
        y = -y
        if HAS_DECAY:
            do_t = (do_t.to(tl.float32) * tl.exp2(g_q)[None, :]).to(dtype)
            y *= tl.exp2(g)[None, :]
            ds *= tl.exp2(g_end)
        ds += product(do_t, q_c, PRECISION)
        ds += float_left_product(y, k_c, SPLIT, PRECISION)
    if HAS_INITIAL:
        tl.store(grad_initial + head * (K * V) + (kk[None, :] * V + vv[:, None]), ds, square)


@triton.jit(do_not_specialize=["T"])
def gradient_kernel(
    q, k, beta, log_decay, u, states, grad_output, grad_v, rest, grad_states, grad_q, grad_k, grad_beta,
    grad_log_decay, T, Q_STRIDE: tl.constexpr, K_STRIDE: tl.constexpr, B_STRIDE: tl.constexpr,
    G_STRIDE: tl.constexpr, O_STRIDE: tl.constexpr, H: tl.constexpr, N: tl.constexpr, K: tl.constexpr,
    V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, TOKENS: tl.constexpr, STEPS_PADDED: tl.constexpr,
    HAS_DECAY: tl.constexpr, HAS_INITIAL: tl.constexpr, REST: tl.constexpr, SMALLEST: tl.constexpr,
    SPLIT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """All gradients but dV of one chunk and head."""
    R: tl.constexpr = TOKENS * STEPS_PADDED
    Q: tl.constexpr = TOKENS if TOKENS > 16 else 16
    pid = tl.program_id(0).to(tl.int64)
    chunks = tl.cdiv(T, TOKENS)
    c = pid % chunks
    b = pid // chunks // H
    h = pid // chunks % H
    dtype: tl.constexpr = k.dtype.element_ty

    r = tl.arange(0, R)
    token = r // STEPS_PADDED
    step = r % STEPS_PADDED
    row = token * N + step
    cq = tl.arange(0, Q)
    kk = tl.arange(0, BK)
    vv = tl.arange(0, BV)
    square = (vv < V)[:, None] & (kk < K)[None, :]
    first = b * T + c * TOKENS
    left = T - c * TOKENS
    live = (token < left) & (step < N)
    live_q = (cq < left) & (cq < TOKENS)
    rows_v = live[:, None] & (vv < V)[None, :]
    rows_k = live[:, None] & (kk < K)[None, :]
    first_k = (first * N * H + h) * K
    first_v = (first * N * H + h) * V
    g = tl.zeros([R], tl.float32)
    g_q = tl.zeros([Q], tl.float32)
    if HAS_DECAY:
        at = log_decay + first * G_STRIDE + h
        g = tl.cumsum(load_decay(at + token * G_STRIDE, live & (step == 0)), 0)
        decay_q = load_decay(at + cq * G_STRIDE, live_q)
        g_q = tl.cumsum(decay_q, 0)
        g_end = tl.sum(decay_q, 0)

    row_k = token * K_STRIDE + step * (H * K)
    k_c = tl.load(k + (first * K_STRIDE + h * K) + (row_k[:, None] + kk[None, :]), rows_k, 0.0)
    at_q = q + (first * Q_STRIDE + h * K) + (cq[:, None] * Q_STRIDE + kk[None, :])
    q_c = tl.load(at_q, live_q[:, None] & (kk < K)[None, :], 0.0)
    at_o = grad_output + (first * O_STRIDE + h * V) + (cq[:, None] * O_STRIDE + vv[None, :])
    do = tl.load(at_o, live_q[:, None] & (vv < V)[None, :], 0.0)
    u_c = tl.load(u + first_v + (row[:, None] * (H * V) + vv[None, :]), rows_v, 0.0)
    at_v = first_v + (row[:, None] * (H * V) + vv[None, :])
    y = tl.load(grad_v + at_v, rows_v, 0.0)
    at_s = pid * (V * K) + (vv[:, None] * K + kk[None, :])
    ds = tl.load(grad_states + at_s, square, 0.0)
    if HAS_INITIAL:
        s_c = tl.load(states + at_s, square, 0.0)
    else:
        s_c = tl.load(states + at_s, square & (vv < c * V)[:, None], 0.0)

    f = product(u_c, tl.trans(do), PRECISION)
    f *= causal_decay(g_q[None, :], g[:, None], token[:, None] <= cq[None, :], HAS_DECAY)
    uy = product(u_c, tl.trans(y), PRECISION)
    growing = product(tl.trans(s_c), tl.trans(y), PRECISION)
    if REST:
        y_rest = tl.load(rest + at_v, rows_v, 0.0)
        uy += product(u_c, tl.trans(y_rest), PRECISION)
        growing += product(tl.trans(s_c), tl.trans(y_rest), PRECISION)
    at_b = beta + first * B_STRIDE + h + (token * B_STRIDE + step * H)
    b_c = safe_beta(tl.load(at_b, live, 0.0).to(tl.float32), SMALLEST)
    db = tl.sum(tl.where(r[:, None] == r[None, :], uy, 0.0), 0) / (b_c * b_c)
    tl.store(grad_beta + first * (N * H) + h + row * H, db.to(grad_beta.dtype.element_ty), live)
    m = -uy * causal_decay(g[None, :], g[:, None], r[None, :] > r[:, None], HAS_DECAY)

    dk = product(u_c, ds, PRECISION)
    if HAS_DECAY:
        dk *= tl.exp2(g_end - g)[:, None]
        at_end = tl.sum(dk * k_c) + tl.exp2(g_end) * tl.sum(ds.to(tl.float32) * s_c.to(tl.float32))
    dk += float_left_product(m, k_c, SPLIT, PRECISION)
    dk += float_left_product(f, q_c, SPLIT, PRECISION)

    dq = product(tl.trans(s_c), tl.trans(do), PRECISION)
    if HAS_DECAY:
        dq *= tl.exp2(g_q)[None, :]
    dq += float_right_product(tl.trans(k_c), f, SPLIT, PRECISION)
    at = grad_q + (first * H + h) * K + (cq[None, :] * (H * K) + kk[:, None])
    tl.store(at, dq.to(dtype), live_q[None, :] & (kk < K)[:, None])

    growing = -growing
    if HAS_DECAY:
        growing *= tl.exp2(g)[None, :]
    growing += float_right_product(tl.trans(k_c), m, SPLIT, PRECISION)
    if HAS_DECAY:
        dg_q = dq * tl.trans(q_c)
        dg = growing * tl.trans(k_c)
        if STEPS_PADDED == 1:
            dg = tl.sum(dg + dg_q, 0)
        else:
            first_row = (token[:, None] == cq[None, :]) & (step == 0)[:, None]
            dg = tl.sum(dg, 0) + tl.sum(tl.where(first_row, tl.sum(dg_q, 0)[None, :], 0.0), 1)
        dg = at_end + tl.cumsum(dg - tl.sum(dk * k_c, 1), 0, reverse=True)
        to = grad_log_decay + first * H + h + token * H
        tl.store(to, dg.to(grad_log_decay.dtype.element_ty), live & (step == 0))
    dk += tl.trans(growing)
    tl.store(grad_k + first_k + (row[:, None] * (H * K) + kk[None, :]), dk.to(dtype), rows_k)
