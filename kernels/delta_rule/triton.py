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
shrink, summed over a row. Products are oriented (transposed, [value, row], in the first three kernels) so that a
result is the next product's left operand without leaving its registers, and never is a product's result transposed
into an operand: Triton 3.4 to 3.7.0 miscompiles that on Hopper.
"""

import triton
import triton.language as tl


@triton.jit
def product(a, b, PRECISION: tl.constexpr):
    return tl.dot(a, b, input_precision=PRECISION)


@triton.jit
def split(a):
    """float32 `a` as a sum of two bfloat16 matrices; cutting the first off takes fewer instructions than rounding."""
    high = (a.to(tl.int32, bitcast=True) & -65536).to(tl.float32, bitcast=True)
    return high.to(tl.bfloat16), (a - high).to(tl.bfloat16)


@triton.jit
def product_with_solve(a, w, PRECISION: tl.constexpr):
    """`a` times the stored W; for bfloat16 `a` W is float16, and enters as the sum of two bfloat16 matrices."""
    if a.dtype == tl.bfloat16:
        high, low = split(w.to(tl.float32))
        return tl.dot(a, high, product(a, low, PRECISION), input_precision=PRECISION)
    else:
        return product(a, w, PRECISION)


@triton.jit
def float_product_with_solve(a, w, dtype: tl.constexpr, SPLIT: tl.constexpr, PRECISION: tl.constexpr):
    """float32 `a` times the stored W; for nearly equal keys W magnifies what rounding `a` to bfloat16 leaves out."""
    if SPLIT and dtype == tl.bfloat16:
        high, low = split(a)
        w_high, w_low = split(w.to(tl.float32))
        total = tl.dot(high, w_low, product(low, w_high, PRECISION), input_precision=PRECISION)
        return tl.dot(high, w_high, total, input_precision=PRECISION)
    else:
        return product_with_solve(a.to(dtype), w, PRECISION)


@triton.jit
def add_float_left_product(total, a, b, SPLIT: tl.constexpr, PRECISION: tl.constexpr):
    """`total` plus float32 `a` times `b`; for bfloat16 `b` the left matrix is the sum of two bfloat16 ones."""
    if SPLIT and b.dtype == tl.bfloat16:
        high, low = split(a)
        total = tl.dot(high, b, total, input_precision=PRECISION)
        return tl.dot(low, b, total, input_precision=PRECISION)
    else:
        return tl.dot(a.to(b.dtype), b, total, input_precision=PRECISION)


@triton.jit
def add_float_right_product(total, a, b, SPLIT: tl.constexpr, PRECISION: tl.constexpr):
    """`total` plus `a` times float32 `b`, likewise."""
    if SPLIT and a.dtype == tl.bfloat16:
        high, low = split(b)
        total = tl.dot(a, high, total, input_precision=PRECISION)
        return tl.dot(a, low, total, input_precision=PRECISION)
    else:
        return tl.dot(a, b.to(a.dtype), total, input_precision=PRECISION)


@triton.jit
def float_product(a, b, WHOLE: tl.constexpr, HALF: tl.constexpr):
    """float32 `a` times float32 `b`; where HALF, of the first eleven bits of `b` and of `a`, or of a WHOLE `a`.

    That is what W itself is rounded to, and float16 factors take fewer instructions than those of tf32, which are no
    more precise.
    """
    if HALF:
        high = a.to(tl.float16)
        b = b.to(tl.float16)
        result = tl.dot(high, b)
        if WHOLE:
            result = tl.dot((a - high.to(tl.float32)).to(tl.float16), b, result)
        return result
    else:
        return product(a, b, "tf32x3")


@triton.jit
def invert_unit_lower(a, HALF: tl.constexpr):
    """(I + a)^-1 of a strictly lower 16 x 16 `a` by doubling diagonal blocks; only true inverses are multiplied."""
    i = tl.arange(0, 16)[:, None]
    j = tl.arange(0, 16)[None, :]
    x = tl.where(i == j, 1.0, 0.0) - tl.where(i // 2 == j // 2, a, 0.0)
    for level in tl.static_range(1, 4):
        below = tl.where((i >> level + 1 == j >> level + 1) & (i >> level != j >> level), a, 0.0)
        x -= float_product(x, float_product(below, x, False, HALF), False, HALF)
    return x


@triton.jit
def round_pairs(x, dtype: tl.constexpr):
    """`x` rounded, what a column loses being given to the next of its pair: for equal keys such errors cancel."""
    even, odd = tl.split(tl.reshape(x, [x.shape[0], x.shape[1] // 2, 2]))
    rounded = even.to(dtype)
    odd += even - rounded.to(tl.float32)
    return tl.reshape(tl.join(rounded, odd.to(dtype)), x.shape)


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
def tile_mask(rows, columns, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """Of a tile in memory; blocks of columns that are all there need no comparison."""
    if WIDTH % BLOCK == 0:
        return rows[:, None]
    else:
        return rows[:, None] & (columns < WIDTH)[None, :]


@triton.jit
def load_block(
    k, beta, log_decay, cumulated, before, left, BLOCK: tl.constexpr, K_STRIDE: tl.constexpr, B_STRIDE: tl.constexpr,
    G_STRIDE: tl.constexpr, H: tl.constexpr, N: tl.constexpr, K: tl.constexpr, BK: tl.constexpr,
    STEPS_PADDED: tl.constexpr, HAS_DECAY: tl.constexpr, SMALLEST: tl.constexpr,
):  # fmt: skip
    """Keys, beta and cumulated decay (`before` at the block's start) of 16 rows of a chunk, and its decay in all."""
    i = tl.arange(0, 16)
    column = tl.arange(0, BK)
    token = (BLOCK * 16 + i) // STEPS_PADDED
    step = i % STEPS_PADDED
    live = (token < left) & (step < N)
    row = token * K_STRIDE + step * (H * K)
    keys = tl.load(k + row[:, None] + column[None, :], live[:, None] & (column < K)[None, :], 0.0)
    b = safe_beta(tl.load(beta + token * B_STRIDE + step * H, live, 0.0).to(tl.float32), SMALLEST)
    g = tl.zeros([16], tl.float32)
    if HAS_DECAY:
        decay = load_decay(log_decay + token * G_STRIDE, live & (step == 0))
        g = before + tl.cumsum(decay, 0)
        before += tl.sum(decay, 0)
        tl.store(cumulated + token, g, step == 0)
    return keys, b, g, before


@triton.jit
def interaction(later, b, g_later, earlier, g_earlier, mask, HAS_DECAY: tl.constexpr, PRECISION: tl.constexpr):
    """diag(beta) Gamma * K K^T of a block's rows with those of an earlier one, or with its own where `mask`."""
    a = product(later, tl.trans(earlier), PRECISION) * b[:, None]
    return a * causal_decay(g_later[:, None], g_earlier[None, :], mask, HAS_DECAY)


@triton.jit
def store_block(w, x, b, ROW: tl.constexpr, COLUMN: tl.constexpr, R: tl.constexpr):
    """X diag(beta) as a 16 x 16 block of W."""
    i = tl.arange(0, 16)
    to = w + ROW * 16 * R + COLUMN * 16 + i[:, None] * R + i[None, :]
    tl.store(to, (x * b[None, :]).to(w.dtype.element_ty))


@triton.jit
def load_solve(w, r, row, R: tl.constexpr):
    """W of a chunk with rows `r`, at `row`; blocks above the diagonal are zero and not in memory."""
    return tl.load(w + (row[:, None] * R + r[None, :]), (r // 16)[:, None] >= (r // 16)[None, :], 0.0)


@triton.jit(do_not_specialize=["T"])
def solve_kernel(
    k, beta, log_decay, w, cumulated, T, K_STRIDE: tl.constexpr, B_STRIDE: tl.constexpr, G_STRIDE: tl.constexpr,
    H: tl.constexpr, N: tl.constexpr, K: tl.constexpr, BK: tl.constexpr, TOKENS: tl.constexpr,
    STEPS_PADDED: tl.constexpr, HAS_DECAY: tl.constexpr, SMALLEST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """W and the cumulated log decay of one chunk and head.

    W is made of 16 x 16 blocks; where a chunk has 32 rows or 64, inverses of two halves are joined.
    """
    HALF: tl.constexpr = k.dtype.element_ty != tl.float32
    R: tl.constexpr = TOKENS * STEPS_PADDED
    pid = tl.program_id(0).to(tl.int64)
    h = pid % H
    chunks = tl.cdiv(T, TOKENS)
    c = (pid // H) % chunks
    b = pid // H // chunks
    left = T - c * TOKENS
    first = b * T + c * TOKENS
    i = tl.arange(0, 16)
    below = i[:, None] > i[None, :]
    every = (i >= 0)[:, None]
    w += ((b * H + h) * chunks + c) * (R * R)
    cumulated += ((b * H + h) * chunks + c) * TOKENS
    k += first * K_STRIDE + h * K
    beta += first * B_STRIDE + h
    log_decay += first * G_STRIDE + h

    k1, b1, g1, g_end = load_block(
        k, beta, log_decay, cumulated, 0.0, left, 0, K_STRIDE, B_STRIDE, G_STRIDE, H, N, K, BK, STEPS_PADDED,
        HAS_DECAY, SMALLEST,
    )  # fmt: skip
    x1 = invert_unit_lower(interaction(k1, b1, g1, k1, g1, below, HAS_DECAY, PRECISION), HALF)
    store_block(w, x1, b1, 0, 0, R)
    if R >= 32:
        k2, b2, g2, g_end = load_block(
            k, beta, log_decay, cumulated, g_end, left, 1, K_STRIDE, B_STRIDE, G_STRIDE, H, N, K, BK, STEPS_PADDED,
            HAS_DECAY, SMALLEST,
        )  # fmt: skip
        x2 = invert_unit_lower(interaction(k2, b2, g2, k2, g2, below, HAS_DECAY, PRECISION), HALF)
        a21 = interaction(k2, b2, g2, k1, g1, every, HAS_DECAY, PRECISION)
        x21 = -float_product(x2, float_product(a21, x1, True, HALF), True, HALF)
        store_block(w, x21, b1, 1, 0, R)
        store_block(w, x2, b2, 1, 1, R)
    if R == 64:
        k3, b3, g3, g_end = load_block(
            k, beta, log_decay, cumulated, g_end, left, 2, K_STRIDE, B_STRIDE, G_STRIDE, H, N, K, BK, STEPS_PADDED,
            HAS_DECAY, SMALLEST,
        )  # fmt: skip
        k4, b4, g4, g_end = load_block(
            k, beta, log_decay, cumulated, g_end, left, 3, K_STRIDE, B_STRIDE, G_STRIDE, H, N, K, BK, STEPS_PADDED,
            HAS_DECAY, SMALLEST,
        )  # fmt: skip
        x3 = invert_unit_lower(interaction(k3, b3, g3, k3, g3, below, HAS_DECAY, PRECISION), HALF)
        x4 = invert_unit_lower(interaction(k4, b4, g4, k4, g4, below, HAS_DECAY, PRECISION), HALF)
        a43 = interaction(k4, b4, g4, k3, g3, every, HAS_DECAY, PRECISION)
        x43 = -float_product(x4, float_product(a43, x3, True, HALF), True, HALF)
        store_block(w, x3, b3, 2, 2, R)
        store_block(w, x43, b3, 3, 2, R)
        store_block(w, x4, b4, 3, 3, R)

        a31 = interaction(k3, b3, g3, k1, g1, every, HAS_DECAY, PRECISION)
        a32 = interaction(k3, b3, g3, k2, g2, every, HAS_DECAY, PRECISION)
        a41 = interaction(k4, b4, g4, k1, g1, every, HAS_DECAY, PRECISION)
        a42 = interaction(k4, b4, g4, k2, g2, every, HAS_DECAY, PRECISION)
        upper = float_product(a31, x1, True, HALF) + float_product(a32, x21, True, HALF)
        lower = float_product(a41, x1, True, HALF) + float_product(a42, x21, True, HALF)
        store_block(w, -float_product(x3, upper, True, HALF), b1, 2, 0, R)
        store_block(w, -(float_product(x43, upper, True, HALF) + float_product(x4, lower, True, HALF)), b1, 3, 0, R)
        upper = float_product(a32, x2, True, HALF)
        lower = float_product(a42, x2, True, HALF)
        store_block(w, -float_product(x3, upper, True, HALF), b2, 2, 1, R)
        store_block(w, -(float_product(x43, upper, True, HALF) + float_product(x4, lower, True, HALF)), b2, 3, 1, R)


@triton.jit(do_not_specialize=["T"])
def forward_kernel(
    q, k, v, cumulated, w, initial_state, output, final_state, u, states, T, Q_STRIDE: tl.constexpr,
    K_STRIDE: tl.constexpr, V_STRIDE: tl.constexpr, H: tl.constexpr, N: tl.constexpr, K: tl.constexpr,
    V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, TOKENS: tl.constexpr, STEPS_PADDED: tl.constexpr,
    HAS_DECAY: tl.constexpr, HAS_INITIAL: tl.constexpr, SAVE: tl.constexpr, SPLIT: tl.constexpr,
    PRECISION: tl.constexpr, STAGES: tl.constexpr,
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
    # Rounded at the end of an iteration: a product in flight over its end would make all of them wait one by one.
    operand = state.to(dtype)

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
            at = cumulated + (head * chunks + c) * TOKENS
            g_end = tl.load(at + (TOKENS - 1))
            g = tl.load(at + (token + zero))
            g_q = tl.load(at + query, cq < TOKENS, 0.0)

        row_v = (token + zero) * V_STRIDE + step * (H * V)
        v_c = tl.load(v + (first * V_STRIDE + h * V) + (row_v[:, None] + vv[None, :]), rows_v, 0.0)
        row_k = (token + zero) * K_STRIDE + step * (H * K)
        k_c = tl.load(k + (first * K_STRIDE + h * K) + (row_k[:, None] + kk[None, :]), rows_k, 0.0)
        at_q = q + (first * Q_STRIDE + h * K) + (query[:, None] * Q_STRIDE + kk[None, :])
        q_c = tl.load(at_q, live_q[:, None] & (kk < K)[None, :], 0.0)
        causal = token[:, None] <= cq[None, :]
        p = product(k_c, tl.trans(q_c), PRECISION) * causal_decay(g_q[None, :], g[:, None], causal, HAS_DECAY)

        if SAVE:
            at_s = states + (head * chunks + c) * (V * K) + ((vv + zero)[:, None] * K + kk[None, :])
            if HAS_INITIAL:
                tl.store(at_s, operand, square)
            else:
                tl.store(at_s, operand, square & (vv < c * V)[:, None])
        x = product(operand, tl.trans(k_c), PRECISION)
        if HAS_DECAY:
            x *= tl.exp2(g)[None, :]
        x = tl.trans(v_c).to(tl.float32) - x
        w_c = load_solve(w + (head * chunks + c) * (R * R), r, r + zero, R)
        update = product_with_solve(x.to(dtype), tl.trans(w_c), PRECISION)
        if SAVE:
            at_u = u + (first * N * H + h) * V + (row[None, :] * (H * V) + vv[:, None])
            tl.store(at_u, round_pairs(update, dtype), live[None, :] & (vv < V)[:, None])

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
        operand = state.to(dtype)
    at = final_state + head * (K * V) + (kk[None, :] * V + vv[:, None])
    tl.store(at, state, square)
