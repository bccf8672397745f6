"""Gradients that others leave imprecise in heads whose keys are nearly one and the same; `triton.py` has the notation.

Steps along one key shrink the state before a row, S, and the gradient of that after it, dS, to little more than one
update; but to the gradient kernel they are sums over the chunk, of updates U and Y that were rounded. How far these are
off each row can tell: for x = k S and z = k dS, summed so,

    V - U / beta - x = W^-1 dU,  z - Y / beta = W^-T dY,

of which W makes what U and Y lack, as in a step of iterative refinement. With U' = U + dU and Y' = Y + dY, and the x'
and z' of these, the log decays' gradient is had anew: sums to the chunk's end of O' * dO - Y' * x' - U' * z', and, of
the end itself, d_end sum(S * dS) + sum(e K dS * U'). As U' / beta is V - x' and Y' / beta is z', but for products of
three small terms

    Y' * x' + U' * z' = (Y * x' + Y * dU / beta) + (U * z' + dY * (V - U / beta)),

where the first half needs no Y' and the second no U'. dQ, to which S matters along k, takes k times what k S lacks
times dO.

Products are of 32 rows at most. Of 64, which a group of warps multiplies as one, there are more here than registers
hold descriptors for, and with Triton 3.6 they then read shared memory out of bounds.
"""

import triton
import triton.language as tl

from tsseq.kernels.delta_rule.triton import (
    SOLVE_SCALE,
    add_float_left_product,
    add_float_right_product,
    causal_decay,
    load_solve,
    product,
    safe_beta,
    tile_mask,
)


@triton.jit
def has_nearly_one_key(kinds, chunks):
    """Whether three of four of a head's chunks have; where fewer do, the others make up the gradients' norms."""
    found = 0
    for start in range(0, chunks, 32):
        c = start + tl.arange(0, 32)
        found += tl.sum((tl.load(kinds + c, c < chunks, 0) >= 2).to(tl.int32))
    return 4 * found >= 3 * chunks


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
def load_unscaled_solve(w, chunk, R: tl.constexpr, dtype: tl.constexpr):
    """A chunk's transposed W in the type of what it multiplies."""
    r = tl.arange(0, R)
    return (load_solve(w, chunk, r, r, R).to(tl.float32) * (1.0 / SOLVE_SCALE)).to(dtype)


@triton.jit(do_not_specialize=["T"])
def one_key_kernel(
    q, k, v, beta, cumulated, w, kinds, u, states, grad_output, grad_v, grad_states, grad_q, grad_log_decay, T,
    Q_STRIDE: tl.constexpr, K_STRIDE: tl.constexpr, V_STRIDE: tl.constexpr, B_STRIDE: tl.constexpr,
    O_STRIDE: tl.constexpr, H: tl.constexpr, N: tl.constexpr, K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr,
    BV: tl.constexpr, TOKENS: tl.constexpr, STEPS_PADDED: tl.constexpr, HAS_DECAY: tl.constexpr,
    HAS_INITIAL: tl.constexpr, SMALLEST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Corrects the gradients of a head, if its keys are nearly one, by slices of values.

    First what hangs on the states, of float32, which each chunk has from the one before; then what is left.
    """
    R: tl.constexpr = TOKENS * STEPS_PADDED
    chunks = tl.cdiv(T, TOKENS)
    head = tl.program_id(0).to(tl.int64)
    if not has_nearly_one_key(kinds + head * chunks, chunks):
        return

    h = head % H
    token = tl.arange(0, R) // STEPS_PADDED
    step = tl.arange(0, R) % STEPS_PADDED
    kk = tl.arange(0, BK)
    k += h * K + ((token * K_STRIDE + step * (H * K))[:, None] + kk[None, :])
    q += h * K + ((token * Q_STRIDE)[:, None] + kk[None, :])
    beta += h + (token * B_STRIDE + step * H)
    grad_q += h * K + ((token * (H * K))[:, None] + kk[None, :])
    grad_log_decay += h + token * H
    for start in tl.range(0, V, BV, num_stages=1):
        vv = start + tl.arange(0, BV)
        of_slice = vv[:, None]
        row_v = (token * V_STRIDE + step * (H * V))[None, :]
        row_u = ((token * N + step) * (H * V))[None, :]
        row_o = (token * O_STRIDE)[None, :]
        of_state = vv[:, None] * K + kk[None, :]
        s = tl.zeros([BV, BK], tl.float32)
        if HAS_INITIAL:
            s += tl.load(states + head * chunks * (V * K) + of_state, tile_mask(vv < V, kk, K, BK), 0.0).to(tl.float32)
        for c in tl.range(0, chunks, num_stages=1):
            first = head // H * T + c * TOKENS
            live = (token < T - c * TOKENS) & (step < N)
            rows_k = tile_mask(live, kk, K, BK)
            rows_v = live[None, :] & (vv < V)[:, None]
            g = tl.zeros([R], tl.float32)
            g_end = 0.0
            if HAS_DECAY:
                at_d = cumulated + (head * chunks + c) * TOKENS
                g_end = tl.load(at_d + (TOKENS - 1))
                g = tl.load(at_d + token)
            b = tl.where(live, safe_beta(tl.load(beta + first * B_STRIDE, live, 0.0).to(tl.float32), SMALLEST), 1.0)
            k_c = tl.load(k + first * K_STRIDE, rows_k, 0.0)
            u_c = tl.load(u + (first * N * H + h) * V + (row_u + of_slice), rows_v, 0.0)
            v_c = tl.load(v + first * V_STRIDE + h * V + (row_v + of_slice), rows_v, 0.0)
            do = tl.load(grad_output + first * O_STRIDE + h * V + (row_o + of_slice), rows_v, 0.0)

            x = add_float_left_product(tl.zeros([BV, R], tl.float32), s, tl.trans(k_c), True, PRECISION)
            if HAS_DECAY:
                x *= tl.exp2(g)[None, :]
            later, own = products_of_keys(k_c, g, True, HAS_DECAY, PRECISION)
            x = add_float_right_product(x, u_c, later, True, PRECISION)
            du = (v_c.to(tl.float32) - u_c.to(tl.float32) / b[None, :] - x).to(u_c.dtype)
            w_t = load_unscaled_solve(w, head * chunks + c, R, u_c.dtype)
            du = product(du, w_t, PRECISION).to(u_c.dtype)
            dx = add_float_right_product(tl.zeros([BV, R], tl.float32), du, later, True, PRECISION)
            lacking = tl.sum((dx + own[None, :] * du.to(tl.float32)) * do.to(tl.float32), 0)
            of_last = tile_mask(live & (step == N - 1), kk, K, BK)
            dq = tl.load(grad_q + first * (H * K), of_last, 0.0).to(tl.float32)  # the query sees all its token's steps
            dq += lacking[:, None] * k_c.to(tl.float32)
            tl.store(grad_q + first * (H * K), dq.to(grad_q.dtype.element_ty), of_last)
            leaving = u_c.to(tl.float32) + du.to(tl.float32)
            if HAS_DECAY:
                q_c = tl.load(q + first * Q_STRIDE, rows_k, 0.0)
                o = add_float_left_product(tl.zeros([BV, R], tl.float32), s, tl.trans(q_c), True, PRECISION)
                o *= tl.exp2(g)[None, :]
                seen = product(k_c, tl.trans(q_c), PRECISION)
                seen *= causal_decay(g[None, :], g[:, None], token[:, None] <= token[None, :], HAS_DECAY)
                o = add_float_right_product(o, u_c, seen, True, PRECISION)
                o = add_float_right_product(o, du, seen, True, PRECISION)
                dg = tl.where(step == 0, tl.sum(o * do.to(tl.float32), 0), 0.0)
                y = tl.load(grad_v + (first * N * H + h) * V + (row_u + of_slice), rows_v, 0.0)
                dg -= tl.sum(y.to(tl.float32) * (x + dx + du.to(tl.float32) / b[None, :]), 0)
                s *= tl.exp2(g_end)
                leaving *= tl.exp2(g_end - g)[None, :]
                at_s = grad_states + (head * chunks + c) * (V * K) + of_state
                ds = tl.load(at_s, tile_mask(vv < V, kk, K, BK), 0.0)
                at_end = tl.sum(ds.to(tl.float32) * s) + tl.sum(product(ds, tl.trans(k_c), PRECISION) * leaving)
                dg = at_end + tl.cumsum(dg, 0, reverse=True)
                of_first = live & (step == 0) & (HAS_INITIAL | (token + c > 0))
                dg += tl.load(grad_log_decay + first * H, of_first & (start > 0), 0.0).to(tl.float32)
                tl.store(grad_log_decay + first * H, dg.to(grad_log_decay.dtype.element_ty), of_first)
            s = add_float_left_product(s, leaving, k_c, True, PRECISION)

        for c in tl.range(0, chunks if HAS_DECAY else 0, num_stages=1):
            first = head // H * T + c * TOKENS
            live = (token < T - c * TOKENS) & (step < N)
            rows_k = tile_mask(live, kk, K, BK)
            rows_v = live[None, :] & (vv < V)[:, None]
            at_d = cumulated + (head * chunks + c) * TOKENS
            g = tl.load(at_d + token)
            at_s = grad_states + (head * chunks + c) * (V * K) + of_state
            ds = tl.load(at_s, tile_mask(vv < V, kk, K, BK), 0.0)
            k_c = tl.load(k + first * K_STRIDE, rows_k, 0.0)
            q_c = tl.load(q + first * Q_STRIDE, rows_k, 0.0)
            y = tl.load(grad_v + (first * N * H + h) * V + (row_u + of_slice), rows_v, 0.0)
            do = tl.load(grad_output + first * O_STRIDE + h * V + (row_o + of_slice), rows_v, 0.0)
            b = tl.where(live, safe_beta(tl.load(beta + first * B_STRIDE, live, 0.0).to(tl.float32), SMALLEST), 1.0)

            z = product(ds, tl.trans(k_c), PRECISION) * tl.exp2(tl.load(at_d + (TOKENS - 1)) - g)[None, :]
            once = (token[:, None] >= token[None, :]) & (step == 0)[:, None]
            read = product(q_c, tl.trans(k_c), PRECISION) * causal_decay(g[:, None], g[None, :], once, HAS_DECAY)
            z = add_float_right_product(z, do, read, True, PRECISION)
            earlier, _ = products_of_keys(k_c, g, False, HAS_DECAY, PRECISION)
            earlier = -earlier
            z = add_float_right_product(z, y, earlier, True, PRECISION)
            dy = (z - y.to(tl.float32) / b[None, :]).to(y.dtype)
            w_t = load_unscaled_solve(w, head * chunks + c, R, y.dtype)
            dy = product(dy, tl.trans(w_t), PRECISION).to(y.dtype)
            z = add_float_right_product(z, dy, earlier, True, PRECISION)
            v_c = tl.load(v + first * V_STRIDE + h * V + (row_v + of_slice), rows_v, 0.0)
            u_c = tl.load(u + (first * N * H + h) * V + (row_u + of_slice), rows_v, 0.0).to(tl.float32)
            of_row = tl.sum(u_c * z + dy.to(tl.float32) * (v_c.to(tl.float32) - u_c / b[None, :]), 0)
            dg = -tl.cumsum(of_row, 0, reverse=True)
            of_first = live & (step == 0) & (HAS_INITIAL | (token + c > 0))
            dg += tl.load(grad_log_decay + first * H, of_first, 0.0).to(tl.float32)
            tl.store(grad_log_decay + first * H, dg.to(grad_log_decay.dtype.element_ty), of_first)
