"""The delta rule's GPU kernels: the state and its gradient go from chunk to chunk, all else is had at once.

Time is cut into chunks of R rows, a row being one Householder step of one token (steps are padded to STEPS_PADDED,
a power of two, by rows of zeros). In a chunk with entry state S, decays d (from entry), Gamma (between rows) and e
(to the end), all in the notation of arXiv 2406.06484 and 2412.06464:

    W = (I + diag(beta) tril(Gamma * K K^T, -1))^-1 diag(beta)       `solve_kernel`
    U = W (V - d K S)
    O = d_q Q S + P U,  P = tril(Gamma * Q K^T)
    S <- d_end S + (e K)^T U                                         `forward_kernel`

and backwards, from the gradients dO and dS of the end state, with U, W and the entry states saved:

    dU = P^T dO + e K dS,  Y = W^T dU = dV
    dS <- d_end dS + (d_q Q)^T dO - (d K)^T Y                        `adjoint_kernel`

and then for all chunks in parallel

    dQ = d_q dO S^T + F K,  F = tril(Gamma * dO U^T)
    dK = (M - d Y S^T) + (M^T K + F^T Q + e U dS^T),  M = -tril(Gamma * Y U^T, -1) times K
    dbeta = sum(Y * U) / beta^2                                      `gradient_kernel`

The gradient of the cumulated log decay is Q * dQ + K * dK of the terms that grow with it - K * dK of those that
shrink, summed over a row. Products are computed transposed ([value, row]) so that a result is the next product's
left operand without leaving its registers, and never is a product's result transposed into an operand: Triton
3.4 to 3.7.0 miscompiles that on Hopper.
"""

import triton
import triton.language as tl


@triton.jit
def rounded_to_tf32(x):
    return ((x.to(tl.int32, bitcast=True) + 4096) & -8192).to(tl.float32, bitcast=True)


@triton.jit
def product(a, b, PRECISION: tl.constexpr):
    """`a` times `b`; with PRECISION "tf32x3" of float32 ones, as three products of their halves.

    Tensor cores cut off the bits that tf32 has no room for. Halves are split by rounding: those that Triton splits
    by cutting leave out remainders of one sign, which add up over a long memory.
    """
    if PRECISION == "tf32x3":
        a_high = rounded_to_tf32(a)
        b_high = rounded_to_tf32(b)
        rest = tl.dot(a - a_high, b_high, input_precision="tf32") + tl.dot(a_high, b - b_high, input_precision="tf32")
        return rest + tl.dot(a_high, b_high, input_precision="tf32")
    else:
        return tl.dot(a, b, input_precision=PRECISION)


@triton.jit
def add_product(total, a, b, PRECISION: tl.constexpr):
    if PRECISION == "tf32x3":
        return total + product(a, b, PRECISION)
    else:
        return tl.dot(a, b, total, input_precision=PRECISION)


@triton.jit
def product_with_solve(a, w, PRECISION: tl.constexpr):
    """`a` times the stored W; for bfloat16 `a` W is float16, and enters as the sum of two bfloat16 matrices."""
    if a.dtype == tl.bfloat16:
        high = w.to(tl.bfloat16)
        low = (w.to(tl.float32) - high.to(tl.float32)).to(tl.bfloat16)
        return product(a, high, PRECISION) + product(a, low, PRECISION)
    else:
        return product(a, w, PRECISION)


@triton.jit
def float_product_with_solve(a, w, dtype: tl.constexpr, SPLIT: tl.constexpr, PRECISION: tl.constexpr):
    """float32 `a` times the stored W; for nearly equal keys W magnifies what rounding `a` to bfloat16 leaves out."""
    result = product_with_solve(a.to(dtype), w, PRECISION)
    if SPLIT and dtype == tl.bfloat16:
        result += product((a - a.to(dtype).to(tl.float32)).to(dtype), w.to(dtype), PRECISION)
    return result


@triton.jit
def add_float_left_product(total, a, b, SPLIT: tl.constexpr, PRECISION: tl.constexpr):
    """`total` plus float32 `a` times `b`; for bfloat16 `b` the left matrix is the sum of two bfloat16 ones."""
    high = a.to(b.dtype)
    total = add_product(total, high, b, PRECISION)
    if SPLIT and b.dtype == tl.bfloat16:
        total = add_product(total, (a - high.to(tl.float32)).to(b.dtype), b, PRECISION)
    return total


@triton.jit
def add_float_right_product(total, a, b, SPLIT: tl.constexpr, PRECISION: tl.constexpr):
    """`total` plus `a` times float32 `b`, likewise."""
    high = b.to(a.dtype)
    total = add_product(total, a, high, PRECISION)
    if SPLIT and a.dtype == tl.bfloat16:
        total = add_product(total, a, (b - high.to(tl.float32)).to(a.dtype), PRECISION)
    return total


@triton.jit
def float_product(a, b, EXACT: tl.constexpr):
    """float32 `a` times float32 `b`, rounded to tf32 or to float32."""
    if EXACT:
        return product(a, b, "tf32x3")
    else:
        return product(rounded_to_tf32(a), rounded_to_tf32(b), "tf32")


@triton.jit
def invert_unit_lower(a, EXACT: tl.constexpr):
    """(I + a)^-1 of a strictly lower 16 x 16 `a` by doubling diagonal blocks; only true inverses are multiplied."""
    i = tl.arange(0, 16)[:, None]
    j = tl.arange(0, 16)[None, :]
    x = tl.where(i == j, 1.0, 0.0) - tl.where(i // 2 == j // 2, a, 0.0)
    for level in tl.static_range(1, 4):
        below = tl.where((i >> level + 1 == j >> level + 1) & (i >> level != j >> level), a, 0.0)
        x -= float_product(x, float_product(below, x, EXACT), EXACT)
    return x


@triton.jit
def causal_decay(later, earlier, mask, HAS_DECAY: tl.constexpr):
    """exp2(later - earlier) where `mask`, else 0; the difference is masked first, as it may be large elsewhere."""
    if HAS_DECAY:
        return tl.exp2(tl.where(mask, later - earlier, float("-inf")))
    else:
        return tl.where(mask, 1.0, 0.0)


@triton.jit
def safe_beta(beta, SMALLEST: tl.constexpr):
    """Away from zero by less than the values' type resolves, so that errors are had by dividing updates."""
    return tl.where(tl.abs(beta) < SMALLEST, SMALLEST, beta)


@triton.jit
def load_decay(pointer, mask):
    """Logarithms to base 2; float32 cannot tell 2^-150 from the zero of a reset, whose -inf would give NaN here."""
    decay = tl.load(pointer, mask, 0.0).to(tl.float32) * 1.4426950408889634
    return tl.where(decay < -150.0, -150.0, decay)


@triton.jit
def hidden_zero(position):
    """Zero, but the compiler cannot know: addresses derived from it are computed in the loop, not kept in registers."""
    return (position >> 61).to(tl.int32) * 64


@triton.jit
def tile_mask(rows, columns, WIDTH: tl.constexpr):
    """Of a tile in memory; columns that are all there need no comparison."""
    if columns.shape[0] == WIDTH:
        return rows[:, None]
    else:
        return rows[:, None] & (columns < WIDTH)[None, :]


@triton.jit(do_not_specialize=["T"])
def solve_kernel(
    k, beta, log_decay, w, T, K_STRIDE: tl.constexpr, B_STRIDE: tl.constexpr, G_STRIDE: tl.constexpr,
    H: tl.constexpr, N: tl.constexpr, K: tl.constexpr, BK: tl.constexpr, TOKENS: tl.constexpr,
    STEPS_PADDED: tl.constexpr, HAS_DECAY: tl.constexpr, SMALLEST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """W of one chunk and head: 16 x 16 blocks, two of them joined where a chunk has 32 rows."""
    EXACT: tl.constexpr = k.dtype.element_ty == tl.float32
    R: tl.constexpr = TOKENS * STEPS_PADDED
    pid = tl.program_id(0).to(tl.int64)
    h = pid % H
    chunks = tl.cdiv(T, TOKENS)
    c = (pid // H) % chunks
    b = pid // H // chunks
    left = T - c * TOKENS
    first = b * T + c * TOKENS
    i = tl.arange(0, 16)
    column = tl.arange(0, BK)
    below = i[:, None] > i[None, :]
    w += ((b * H + h) * chunks + c) * (R * R) + i[:, None] * R + i[None, :]
    k += first * K_STRIDE + h * K
    beta += first * B_STRIDE + h
    log_decay += first * G_STRIDE + h

    token = i // STEPS_PADDED
    step = i % STEPS_PADDED
    live = (token < left) & (step < N)
    row = token * K_STRIDE + step * (H * K)
    k1 = tl.load(k + row[:, None] + column[None, :], live[:, None] & (column < K)[None, :], 0.0)
    b1 = safe_beta(tl.load(beta + token * B_STRIDE + step * H, live, 0.0).to(tl.float32), SMALLEST)
    g1 = tl.zeros([16], tl.float32)
    if HAS_DECAY:
        g1 = tl.cumsum(load_decay(log_decay + token * G_STRIDE, live & (step == 0)), 0)
    a = product(k1, tl.trans(k1), PRECISION) * causal_decay(g1[:, None], g1[None, :], below, HAS_DECAY)
    x1 = invert_unit_lower(b1[:, None] * a, EXACT)
    tl.store(w, (x1 * b1[None, :]).to(w.dtype.element_ty))

    if R == 32:
        token += 16 // STEPS_PADDED
        live = (token < left) & (step < N)
        row = token * K_STRIDE + step * (H * K)
        k2 = tl.load(k + row[:, None] + column[None, :], live[:, None] & (column < K)[None, :], 0.0)
        b2 = safe_beta(tl.load(beta + token * B_STRIDE + step * H, live, 0.0).to(tl.float32), SMALLEST)
        g2 = tl.zeros([16], tl.float32)
        if HAS_DECAY:
            decay = load_decay(log_decay + token * G_STRIDE, live & (step == 0))
            g2 = tl.cumsum(decay, 0) + tl.sum(tl.where(i == 15, g1, 0.0), 0)
        a = product(k2, tl.trans(k2), PRECISION) * causal_decay(g2[:, None], g2[None, :], below, HAS_DECAY)
        x2 = invert_unit_lower(b2[:, None] * a, EXACT)
        a = product(k2, tl.trans(k1), PRECISION) * b2[:, None]
        a *= causal_decay(g2[:, None], g1[None, :], (i >= 0)[:, None], HAS_DECAY)
        x21 = -float_product(x2, float_product(a, x1, True), True)
        tl.store(w + 16, tl.zeros([16, 16], w.dtype.element_ty))
        tl.store(w + 16 * R, (x21 * b1[None, :]).to(w.dtype.element_ty))
        tl.store(w + 16 * R + 16, (x2 * b2[None, :]).to(w.dtype.element_ty))


@triton.jit(do_not_specialize=["T"])
def forward_kernel(
    q, k, v, log_decay, w, initial_state, output, final_state, u, states, T, Q_STRIDE: tl.constexpr,
    K_STRIDE: tl.constexpr, V_STRIDE: tl.constexpr, G_STRIDE: tl.constexpr, H: tl.constexpr, N: tl.constexpr,
    K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, TOKENS: tl.constexpr,
    STEPS_PADDED: tl.constexpr, HAS_DECAY: tl.constexpr, HAS_INITIAL: tl.constexpr, SAVE: tl.constexpr,
    SPLIT: tl.constexpr, PRECISION: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Output and final state of one head and slice of value columns; U and entry states too where they are saved."""
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
    if HAS_INITIAL:
        entry = initial_state + head * (K * V) + (kk[None, :] * V + vv[:, None])
        state = tl.load(entry, square, 0.0).to(tl.float32)
    else:
        state = tl.zeros([BV, BK], tl.float32)

    for c in tl.range(0, chunks, num_stages=STAGES):
        first = b * T + c * TOKENS
        zero = hidden_zero(first)
        row = token * N + step + zero
        query = cq + zero
        left = T - c * TOKENS
        live = (token < left) & (step < N)
        live_q = (cq < left) & (cq < TOKENS)
        rows_k = live[:, None] & (kk < K)[None, :]
        rows_v = live[:, None] & (vv < V)[None, :]

        g = tl.zeros([R], tl.float32)
        g_q = tl.zeros([Q], tl.float32)
        if HAS_DECAY:
            at = log_decay + first * G_STRIDE + h
            g = tl.cumsum(load_decay(at + token * G_STRIDE, live & (step == 0)), 0)
            decay_q = load_decay(at + query * G_STRIDE, live_q)
            g_q = tl.cumsum(decay_q, 0)
            g_end = tl.sum(decay_q, 0)

        row_k = (token + zero) * K_STRIDE + step * (H * K)
        k_c = tl.load(k + (first * K_STRIDE + h * K) + (row_k[:, None] + kk[None, :]), rows_k, 0.0)
        at_q = q + (first * Q_STRIDE + h * K) + (query[:, None] * Q_STRIDE + kk[None, :])
        q_c = tl.load(at_q, live_q[:, None] & (kk < K)[None, :], 0.0)
        causal = token[:, None] <= cq[None, :]
        p = product(k_c, tl.trans(q_c), PRECISION) * causal_decay(g_q[None, :], g[:, None], causal, HAS_DECAY)

        operand = state.to(dtype)
        if SAVE:
            at_s = states + (head * chunks + c) * (V * K) + ((vv + zero)[:, None] * K + kk[None, :])
            if HAS_INITIAL:
                tl.store(at_s, operand, square)
            else:
                tl.store(at_s, operand, square & (vv < c * V)[:, None])
        x = product(operand, tl.trans(k_c), PRECISION)
        if HAS_DECAY:
            x *= tl.exp2(g)[None, :]
        row_v = (token + zero) * V_STRIDE + step * (H * V)
        v_c = tl.load(v + (first * V_STRIDE + h * V) + (row_v[:, None] + vv[None, :]), rows_v, 0.0)
        x = tl.trans(v_c).to(tl.float32) - x
        w_c = tl.load(w + (head * chunks + c) * (R * R) + ((r + zero)[:, None] * R + r[None, :]))
        update = product_with_solve(x.to(dtype), tl.trans(w_c), PRECISION)
        if SAVE:
            at_u = u + (first * N * H + h) * V + (row[None, :] * (H * V) + vv[:, None])
            tl.store(at_u, update.to(dtype), live[None, :] & (vv < V)[:, None])

        o = product(operand, tl.trans(q_c), PRECISION)
        if HAS_DECAY:
            o *= tl.exp2(g_q)[None, :]
        o += product(update, p, PRECISION)
        at_o = output + (first * H + h) * V + (query[None, :] * (H * V) + vv[:, None])
        tl.store(at_o, o.to(dtype), live_q[None, :] & (vv < V)[:, None])

        if HAS_DECAY:
            state *= tl.exp2(g_end)
            update *= tl.exp2(g_end - g)[None, :]
        state = add_float_left_product(state, update, k_c, SPLIT, PRECISION)
    at = final_state + head * (K * V) + (kk[None, :] * V + vv[:, None])
    tl.store(at, state, square)
