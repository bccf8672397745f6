"""Gradients that other kernels leave imprecise, had anew; `triton.py` has the notation.

Steps along one key shrink the state before a row, S, and the gradient of that after it, dS, to little more than one
update; but to the gradient kernel they are sums over the chunk, of updates U and Y that were rounded. And in a series
of a few tokens a decay's gradient is one sum, whose terms may all but cancel, so that it hangs on what the first state,
the last one's gradient, U and Y lost. How far U and Y are off each row can tell: for x = k S and z = k dS, summed so,

    V - U / beta - x = W^-1 dU,  z - Y / beta = W^-T dY,

of which W makes what U and Y lack, as in a step of iterative refinement. With U' = U + dU and Y' = Y + dY, and the x'
and z' of these, the log decays' gradient is had anew: sums to the chunk's end of O' * dO - Y' * x' - U' * z', and, of
the end itself, d_end sum(S * dS) + sum(e K dS * U'). As U' / beta is V - x' and Y' / beta is z', but for products of
three small terms

    Y' * x' + U' * z' = (Y * x' + Y * dU / beta) + (U * z' + dY * (V - U / beta)),

where the first half needs no Y' and the second no U'. So beta's gradient has Y * dU and dY * U over beta^2 more. And
dQ, to which S matters along k, takes k times what k S lacks times dO. What sums of dU lack, steps that reflect would
keep for good, so they are as close as those of U.

Products are of 32 rows at most. Of 64, which a group of warps multiplies as one, there are more here than registers
hold descriptors for, and with Triton 3.6 they then read shared memory out of bounds.
"""

import triton
import triton.language as tl

from tsseq.kernels.delta_rule.triton import (
    add_float_left_product,
    add_float_right_product,
    causal_decay,
    close_product_with_solve,
    kind_of_head,
    load_solve,
    product,
    safe_beta,
    tile_mask,
)

SHORT = tl.constexpr(16)
"""Tokens of a series up to which its gradients of decays are refined; of more of them some are of ordinary size."""


@triton.jit
def load_rows(
    beta, cumulated, series, c, T, token, step, B_STRIDE: tl.constexpr, N: tl.constexpr, TOKENS: tl.constexpr,
    HAS_DECAY: tl.constexpr, SMALLEST: tl.constexpr,
):  # fmt: skip
    """Of a chunk its first token, the rows that are live and their number, log decays to rows and in all, and betas."""
    first = series * T + c * TOKENS
    left = T - c * TOKENS
    live = (token < left) & (step < N)
    g = tl.zeros(token.shape, tl.float32)
    g_end = 0.0
    if HAS_DECAY:
        g_end = tl.load(cumulated + (TOKENS - 1))
        g = tl.load(cumulated + token)
    b = safe_beta(tl.load(beta + first * B_STRIDE, live, 0.0).to(tl.float32), SMALLEST)
    return first, live, tl.minimum(left, TOKENS) * N, g, g_end, tl.where(live, b, 1.0)


@triton.jit
def products_of_keys(k_c, g, LATER: tl.constexpr, HAS_DECAY: tl.constexpr, PRECISION: tl.constexpr):
    """Gamma * K K^T from each row (or, where not LATER, the other way) to later columns, and each key's own."""
    i = tl.arange(0, k_c.shape[0])[:, None]
    j = tl.arange(0, k_c.shape[0])[None, :]
    keys = product(k_c, tl.trans(k_c), PRECISION)
    own = tl.sum(tl.where(i == j, keys, 0.0), 0)
    if LATER:
        keys *= causal_decay(g[None, :], g[:, None], i < j, HAS_DECAY)
    else:
        keys *= causal_decay(g[:, None], g[None, :], i > j, HAS_DECAY)
    return keys, own


@triton.jit
def add_in_memory(to, x, mask, before):
    """Adds `x` to what is stored, or replaces it where not `before`."""
    total = x + tl.load(to, mask & before, 0.0).to(tl.float32)
    tl.store(to, total.to(to.dtype.element_ty), mask)


@triton.jit
def load_grad_state(narrow, whole, mask, stored, HAS_GRAD_FINAL: tl.constexpr):
    """The gradient of the state that a chunk ends in: as it is `stored` or, that of the last one, as it was given."""
    if HAS_GRAD_FINAL:
        ds = tl.load(narrow, mask & stored, 0.0).to(tl.float32) + tl.load(whole, mask & ~stored, 0.0).to(tl.float32)
    else:
        ds = tl.load(narrow, mask, 0.0).to(tl.float32)
    return ds


@triton.jit(do_not_specialize=["T"])
def refinement_kernel(
    q, k, v, beta, cumulated, w, sums, kinds, initial_state, u, grad_output, grad_v, grad_final, grad_states, grad_q,
    grad_beta, grad_log_decay, T, Q_STRIDE: tl.constexpr, K_STRIDE: tl.constexpr, V_STRIDE: tl.constexpr,
    B_STRIDE: tl.constexpr, O_STRIDE: tl.constexpr, H: tl.constexpr, N: tl.constexpr, K: tl.constexpr,
    V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, TOKENS: tl.constexpr, STEPS_PADDED: tl.constexpr,
    HAS_DECAY: tl.constexpr, HAS_INITIAL: tl.constexpr, HAS_GRAD_FINAL: tl.constexpr, SMALLEST: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Corrects the gradients of a head, if it is short or its keys are nearly one, by slices of values.

    First what hangs on the states, of float32, which each chunk has from the one before; then what is left.
    """
    R: tl.constexpr = TOKENS * STEPS_PADDED
    chunks = tl.cdiv(T, TOKENS)
    head = tl.program_id(0).to(tl.int64)
    reflects, alike = kind_of_head(kinds + head * chunks, chunks)
    if T > SHORT and not alike:
        return

    h = head % H
    r = tl.arange(0, R)
    token = r // STEPS_PADDED
    step = r % STEPS_PADDED
    kk = tl.arange(0, BK)
    k += h * K + ((token * K_STRIDE + step * (H * K))[:, None] + kk[None, :])
    q += h * K + ((token * Q_STRIDE)[:, None] + kk[None, :])
    beta += h + (token * B_STRIDE + step * H)
    grad_q += h * K + ((token * (H * K))[:, None] + kk[None, :])
    grad_beta += h + (token * N + step) * H
    grad_log_decay += h + token * H
    for start in tl.range(0, V, BV, num_stages=1):
        vv = start + tl.arange(0, BV)
        of_slice = vv[:, None]
        row_v = (token * V_STRIDE + step * (H * V))[None, :]
        row_u = ((token * N + step) * (H * V))[None, :]
        row_o = (token * O_STRIDE)[None, :]
        ends = grad_states + (of_slice * K + kk[None, :])
        outside = head * (K * V) + (kk[None, :] * V + of_slice)
        last = grad_final + outside
        square = tile_mask(vv < V, kk, K, BK)
        s = tl.zeros([BV, BK], tl.float32)
        if HAS_INITIAL:
            s += tl.load(initial_state + outside, square, 0.0).to(tl.float32)
        for c in tl.range(0, chunks, num_stages=1):
            at = head * chunks + c
            first, live, rows, g, g_end, b = load_rows(
                beta, cumulated + at * TOKENS, head // H, c, T, token, step, B_STRIDE, N, TOKENS, HAS_DECAY, SMALLEST
            )
            rows_k = tile_mask(live, kk, K, BK)
            rows_v = live[None, :] & (vv < V)[:, None]
            k_c = tl.load(k + first * K_STRIDE, rows_k, 0.0)
            u_c = tl.load(u + (first * N * H + h) * V + (row_u + of_slice), rows_v, 0.0)
            v_c = tl.load(v + first * V_STRIDE + h * V + (row_v + of_slice), rows_v, 0.0)
            do = tl.load(grad_output + first * O_STRIDE + h * V + (row_o + of_slice), rows_v, 0.0)

            x = add_float_left_product(tl.zeros([BV, R], tl.float32), s, tl.trans(k_c), True, PRECISION)
            if HAS_DECAY:
                x *= tl.exp2(g)[None, :]
            later, own = products_of_keys(k_c, g, True, HAS_DECAY, PRECISION)
            x = add_float_right_product(x, u_c, later, True, PRECISION)
            rest = v_c.to(tl.float32) - u_c.to(tl.float32) / b[None, :] - x
            w_c = load_solve(w, at, r, r, R)
            exact_du = close_product_with_solve(rest, w_c, sums, kinds, at, live, rows, True, R, PRECISION)
            du = exact_du.to(u_c.dtype)
            dx = add_float_right_product(tl.zeros([BV, R], tl.float32), du, later, True, PRECISION)
            y = tl.load(grad_v + (first * N * H + h) * V + (row_u + of_slice), rows_v, 0.0)
            db = tl.sum(y.to(tl.float32) * du.to(tl.float32), 0) / (b * b)
            add_in_memory(grad_beta + first * (N * H), db, live, True)
            lacking = tl.sum((dx + own[None, :] * du.to(tl.float32)) * do.to(tl.float32), 0)
            of_last = tile_mask(live & (step == N - 1), kk, K, BK)  # the query sees all its token's steps
            add_in_memory(grad_q + first * (H * K), lacking[:, None] * k_c.to(tl.float32), of_last, True)
            leaving = u_c.to(tl.float32) + exact_du
            if HAS_DECAY:
                q_c = tl.load(q + first * Q_STRIDE, rows_k, 0.0)
                o = add_float_left_product(tl.zeros([BV, R], tl.float32), s, tl.trans(q_c), True, PRECISION)
                o *= tl.exp2(g)[None, :]
                seen = product(k_c, tl.trans(q_c), PRECISION)
                seen *= causal_decay(g[None, :], g[:, None], token[:, None] <= token[None, :], HAS_DECAY)
                o = add_float_right_product(o, u_c, seen, True, PRECISION)
                o = add_float_right_product(o, du, seen, True, PRECISION)
                dg = tl.where(step == 0, tl.sum(o * do.to(tl.float32), 0), 0.0)
                dg -= tl.sum(y.to(tl.float32) * (x + dx + du.to(tl.float32) / b[None, :]), 0)
                s *= tl.exp2(g_end)
                leaving *= tl.exp2(g_end - g)[None, :]
                ds = load_grad_state(ends + at * (V * K), last, square, of_slice < (chunks - 1 - c) * V, HAS_GRAD_FINAL)
                # Made of the very numbers that other terms take away again, lest rounding be left where decay is fast.
                ds_k = add_float_left_product(tl.zeros([BV, R], tl.float32), ds, tl.trans(k_c), True, PRECISION)
                kept = (u_c.to(tl.float32) + du.to(tl.float32)) * tl.exp2(g_end - g)[None, :]
                dg = tl.sum(ds * s) + tl.sum(ds_k * kept) + tl.cumsum(dg, 0, reverse=True)
                of_first = live & (step == 0) & (HAS_INITIAL | (token + c > 0))
                add_in_memory(grad_log_decay + first * H, dg, of_first, start > 0)
            s = add_float_left_product(s, leaving, k_c, True, PRECISION)

        for c in tl.range(0, chunks, num_stages=1):
            at = head * chunks + c
            first, live, rows, g, g_end, b = load_rows(
                beta, cumulated + at * TOKENS, head // H, c, T, token, step, B_STRIDE, N, TOKENS, HAS_DECAY, SMALLEST
            )
            rows_k = tile_mask(live, kk, K, BK)
            rows_v = live[None, :] & (vv < V)[:, None]
            ds = load_grad_state(ends + at * (V * K), last, square, of_slice < (chunks - 1 - c) * V, HAS_GRAD_FINAL)
            k_c = tl.load(k + first * K_STRIDE, rows_k, 0.0)
            q_c = tl.load(q + first * Q_STRIDE, rows_k, 0.0)
            y = tl.load(grad_v + (first * N * H + h) * V + (row_u + of_slice), rows_v, 0.0)
            do = tl.load(grad_output + first * O_STRIDE + h * V + (row_o + of_slice), rows_v, 0.0)

            z = add_float_left_product(tl.zeros([BV, R], tl.float32), ds, tl.trans(k_c), True, PRECISION)
            if HAS_DECAY:
                z *= tl.exp2(g_end - g)[None, :]
            once = (token[:, None] >= token[None, :]) & (step == 0)[:, None]
            read = product(q_c, tl.trans(k_c), PRECISION) * causal_decay(g[:, None], g[None, :], once, HAS_DECAY)
            z = add_float_right_product(z, do, read, True, PRECISION)
            earlier, _ = products_of_keys(k_c, g, False, HAS_DECAY, PRECISION)
            earlier = -earlier
            z = add_float_right_product(z, y, earlier, True, PRECISION)
            rest = z - y.to(tl.float32) / b[None, :]
            w_t = load_solve(w, at, r, r, R)
            dy = close_product_with_solve(rest, tl.trans(w_t), sums, kinds, at, live, rows, False, R, PRECISION)
            z = add_float_right_product(z, dy.to(y.dtype), earlier, True, PRECISION)
            u_c = tl.load(u + (first * N * H + h) * V + (row_u + of_slice), rows_v, 0.0).to(tl.float32)
            db = tl.sum(dy * u_c, 0) / (b * b)
            add_in_memory(grad_beta + first * (N * H), db, live, True)
            if HAS_DECAY:
                v_c = tl.load(v + first * V_STRIDE + h * V + (row_v + of_slice), rows_v, 0.0)
                dg = tl.sum(u_c * z + dy * (v_c.to(tl.float32) - u_c / b[None, :]), 0)
                of_first = live & (step == 0) & (HAS_INITIAL | (token + c > 0))
                add_in_memory(grad_log_decay + first * H, -tl.cumsum(dg, 0, reverse=True), of_first, True)
