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
shrink, summed over a row. The last is Y * U / beta as well, which where decay is slow has fewer digits to lose, updates
along equal keys being large and all but cancelling; where it is fast it loses what should cancel Q * dQ. So the
slower, the more of that is taken.

Betas near two reflect: what rounding leaves out, no step shrinks, and along one key it is the same in every chunk. And
along one key W is made of long products. So heads with chunks that reflect, or of nearly one key, have kernels of their
own (CLOSE): states and Y meet keys in two parts, as does W what it multiplies; what the columns of that have in common,
and what the result adds up to, is had from exact sums of W; and U and Y are rounded so that sums over rows stay. But of
what rounding takes from other rows none gets more than its beta bears, dbeta being divided by its square. In short
series and where keys are nearly one, `triton_refinement.py` corrects gradients afterwards.

Products are oriented (transposed, [value, row], in the first three kernels) so that a result is the next product's left
operand without leaving its registers, and never is a product's result transposed into an operand: Triton 3.4 to 3.7.0
miscompiles that on Hopper (but not for the one warp of a solve). A register that a loop spills costs more than it
seems: what is loaded back comes after all that is on its way from memory. Three stages of loads are far better than
two, which Triton issues only just before they are waited for; but two programs must still fit a multiprocessor's shared
memory.
"""

import triton
import triton.language as tl

SOLVE_SCALE = tl.constexpr(256.0)
"""Of W in float16, whose columns are as small as beta."""


@triton.jit
def product(a, b, PRECISION: tl.constexpr):
    return tl.dot(a, b, input_precision=PRECISION)


@triton.jit
def split(a, dtype: tl.constexpr):
    """float32 `a` as a sum of two narrow matrices; cutting off bfloat16 takes fewer instructions than rounding."""
    if dtype == tl.bfloat16:
        high = (a.to(tl.int32, bitcast=True) & -65536).to(tl.float32, bitcast=True)
    else:
        high = a.to(dtype).to(tl.float32)
    return high.to(dtype), (a - high).to(dtype)


@triton.jit
def give_to_first(x, kept, dtype: tl.constexpr, OF: tl.constexpr):
    """`x`, of each OF elements of a row what the middle one loses in rounding, if `kept`, being added to the first."""
    within = tl.arange(0, OF)[None, None, :]
    groups = tl.reshape(x, [x.shape[0], x.shape[1] // OF, OF])
    lost = (groups - groups.to(dtype).to(x.dtype)) * tl.reshape(kept, groups.shape)
    lost = tl.sum(tl.where(within == OF // 2, lost, 0.0), 2)
    return tl.reshape(tl.where(within == 0, groups + tl.expand_dims(lost, 2), groups), x.shape)


@triton.jit
def in_halves(x):
    return tl.split(tl.permute(tl.reshape(x, [x.shape[0], 2, x.shape[1] // 2, x.shape[2]]), 0, 2, 3, 1))


@triton.jit
def round_in_turn(x, kept, carry, dtype: tl.constexpr):
    """`x` rounded along its second axis, what the first of a row loses being added to that of the next, if `kept`."""
    if x.shape[1] == 1:
        first = (tl.arange(0, x.shape[2]) == 0)[None, :]
        x = tl.reshape(x, carry.shape) + tl.reshape(kept, carry.shape) * carry
        rounded = x.to(dtype)
        return tl.expand_dims(rounded, 1), tl.where(first, x - rounded.to(x.dtype), 0.0)
    else:
        before, after = in_halves(x)
        kept_before, kept_after = in_halves(kept)
        before, carry = round_in_turn(before, kept_before, carry, dtype)
        after, carry = round_in_turn(after, kept_after, carry, dtype)
        return tl.reshape(tl.permute(tl.join(before, after), 0, 3, 1, 2), x.shape), carry


@triton.jit
def kept_columns(kept, x):
    """One for each column of `x` whose bit is set where `kept` points to, else zero."""
    column = tl.arange(0, x.shape[1])
    bits = tl.load(kept) >> column % 4 >> column // 4 * 4 & 1  # by two shifts: the second is the same in all threads
    return tl.broadcast_to(bits.to(x.dtype)[None, :], x.shape)


@triton.jit
def round_sums(x, kept, dtype: tl.constexpr):
    """`x` rounded so that sums over eight rows of a chunk (here columns), and over more of them, stay.

    Updates along one key all but cancel. Of a token's steps the first keeps the sum: the others shrink what goes back
    through it, so it has the finest digits (and is never a step that only pads). But it keeps no more than it can
    bear: `kept` points to bits of odd rows and of even ones. So a product's result lies in registers: a thread has a
    pair of every eight columns, three neighbours the others.
    """
    even, odd = tl.split(tl.reshape(x, [x.shape[0], x.shape[1] // 2, 2]))
    rounded = odd.to(dtype)
    even += (odd - rounded.to(x.dtype)) * kept_columns(kept, odd)
    kept_even = kept_columns(kept + 1, even)
    even = give_to_first(even, kept_even, dtype, 2)
    even = tl.reshape(give_to_first(even, kept_even, dtype, 4), [x.shape[0], x.shape[1] // 8, 4])
    none = tl.zeros([x.shape[0], 4], x.dtype)
    even, _ = round_in_turn(even, tl.reshape(kept_even, even.shape), none, dtype)
    return tl.reshape(tl.join(tl.reshape(even, rounded.shape), rounded), x.shape)


@triton.jit
def float_product_with_solve(a, w, SPLIT: tl.constexpr, PRECISION: tl.constexpr):
    """float32 `a` times the stored W, or the transposed one.

    For nearly equal keys W magnifies what rounding `a` leaves out, so narrow types meet it in float16, of eleven bits
    or, with SPLIT, of two times so many: rows of `a` are brought to one, what rounding them leaves is brought near it,
    and W, whose elements are not above beta squared, was stored times SOLVE_SCALE.
    """
    if w.dtype == tl.float16:
        largest = tl.maximum(tl.max(tl.abs(a), 1), 2.0**-100)
        a *= (1.0 / largest)[:, None]
        high = a.to(tl.float16)
        result = tl.dot(high, w)
        if SPLIT:
            result += tl.dot(((a - high) * 2048.0).to(tl.float16), w) * (1.0 / 2048.0)
        return result * (largest * (1.0 / SOLVE_SCALE))[:, None]
    else:
        return product(a, w, PRECISION)


@triton.jit
def close_product_with_solve(
    a, w, sums, kinds, chunk, live, rows, ROW_SUMS: tl.constexpr, R: tl.constexpr, PRECISION: tl.constexpr
):
    """The same, but in chunks that reflect or have nearly one key, all of one error of W, exact `sums` of it take part.

    With one key what the columns of `a` have in common is nearly all of it: it meets sums of W for each column of the
    result (over W's columns with ROW_SUMS, else over its rows). And what the result's columns, of which `rows` are
    `live`, add up to is all that lasts: it is had from `a` and the other sums. In memory they are by blocks.
    """
    sums += chunk * (R // 16 * 2 * R)
    exact = tl.load(kinds + chunk) != 0
    r = tl.arange(0, R)
    block = tl.arange(0, R // 16)[:, None]
    at = sums + block * R + r[None, :]
    last = tl.where(exact, r // 16, -1)[None, :]  # else nothing was stored
    of_rows = tl.sum(tl.load(at, block <= last, 0.0), 0)
    first = tl.where(exact, r // 16, R)[None, :]
    of_columns = tl.sum(tl.load(at + R // 16 * R, block >= first, 0.0), 0)
    own = of_rows if ROW_SUMS else of_columns
    other = of_columns if ROW_SUMS else of_rows
    mean = tl.where(exact, tl.sum(a, 1) / rows, 0.0)
    result = float_product_with_solve(a - mean[:, None], w, True, PRECISION) + mean[:, None] * own[None, :]
    lacking = tl.where(exact, (tl.sum(a * other[None, :], 1) - tl.sum(result, 1)) / rows, 0.0)
    return result + tl.where(live[None, :], lacking[:, None], 0.0)


@triton.jit
def add_float_left_product(total, a, b, SPLIT: tl.constexpr, PRECISION: tl.constexpr):
    """`total` plus float32 `a` times `b`; with SPLIT the left matrix is the sum of two of the right one's type."""
    if SPLIT:
        high, low = split(a, b.dtype)
        total = tl.dot(high, b, total, input_precision=PRECISION)
        return tl.dot(low, b, total, input_precision=PRECISION)
    else:
        return tl.dot(a.to(b.dtype), b, total, input_precision=PRECISION)


@triton.jit
def add_float_right_product(total, a, b, SPLIT: tl.constexpr, PRECISION: tl.constexpr):
    """`total` plus `a` times float32 `b`, likewise."""
    if SPLIT:
        high, low = split(b, a.dtype)
        total = tl.dot(a, high, total, input_precision=PRECISION)
        return tl.dot(a, low, total, input_precision=PRECISION)
    else:
        return tl.dot(a, b.to(a.dtype), total, input_precision=PRECISION)


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
def hidden_zero(position):
    """Zero, but the compiler cannot know: addresses derived from it are computed in the loop, not kept in registers."""
    return (position >> 61).to(tl.int32) * 64


@triton.jit
def reread(x, REREAD: tl.constexpr):
    """Read what a loop has loaded once more, into nothing, which costs no instruction.

    To a load that tensor cores alone read Triton gives one buffer more than to others, and shared memory has no room.
    """
    if REREAD:
        tl.inline_asm_elementwise("mov.b32 $0, 0;", "=r,r", [x], dtype=tl.int16, is_pure=False, pack=2)


@triton.jit
def tile_mask(rows, columns, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """Of a tile in memory; blocks of columns that are all there need no comparison."""
    if WIDTH % BLOCK == 0:
        return rows[:, None]
    else:
        return rows[:, None] & (columns < WIDTH)[None, :]


@triton.jit
def kind_of_head(kinds, chunks):
    """Whether one of a head's chunks reflects, and whether three of four have nearly one key.

    The last, which may be of a few rows, reflects only where there is no other. Where fewer have nearly one key, others
    make up the gradients' norms.
    """
    reflecting = 0
    alike = 0
    for start in range(0, chunks, 32):
        chunk = start + tl.arange(0, 32)
        kind = tl.load(kinds + chunk, chunk < chunks, 0).to(tl.int32)
        reflecting = tl.maximum(reflecting, tl.max(tl.where(chunk < tl.maximum(chunks - 1, 1), kind % 2, 0)))
        alike += tl.sum(kind // 2)
    return reflecting != 0, 4 * alike >= 3 * chunks


@triton.jit
def load_solve(w, chunk, r, row, R: tl.constexpr):
    """The transposed W of a chunk with rows `r`, at `row`; blocks below its diagonal are zero and not in memory."""
    upper = (r // 16)[:, None] <= (r // 16)[None, :]
    return tl.load(w + chunk * (R * R) + (row[:, None] * R + r[None, :]), upper, 0.0)


@triton.jit(do_not_specialize=["T"])
def forward_kernel(
    q, k, v, cumulated, w, sums, kept, kinds, initial_state, output, final_state, u, states, T,
    Q_STRIDE: tl.constexpr, K_STRIDE: tl.constexpr, V_STRIDE: tl.constexpr, H: tl.constexpr, N: tl.constexpr,
    K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, TOKENS: tl.constexpr,
    STEPS_PADDED: tl.constexpr,
    HAS_DECAY: tl.constexpr, HAS_INITIAL: tl.constexpr, SAVE: tl.constexpr, CLOSE: tl.constexpr,
    PRECISION: tl.constexpr, STAGES: tl.constexpr, REREAD: tl.constexpr,
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
    if HAS_INITIAL:
        entry = initial_state + head * (K * V) + (kk[None, :] * V + vv[:, None])
        state = tl.load(entry, square, 0.0).to(tl.float32)
    else:
        state = tl.zeros([BV, BK], tl.float32)
    unit = (r[:, None] == r[None, :]).to(dtype)
    operand = state.to(dtype)
    if SAVE and HAS_INITIAL:
        tl.store(states + head * chunks * (V * K) + (vv[:, None] * K + kk[None, :]), operand, square)

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
            g_q = tl.load(at + query, cq < TOKENS, float("-inf"))

        row_v = (token + zero) * V_STRIDE + step * (H * V)
        v_c = tl.load(v + (first * V_STRIDE + h * V) + (row_v[:, None] + vv[None, :]), rows_v, 0.0)
        row_k = (token + zero) * K_STRIDE + step * (H * K)
        k_c = tl.load(k + (first * K_STRIDE + h * K) + (row_k[:, None] + kk[None, :]), rows_k, 0.0)
        at_q = q + (first * Q_STRIDE + h * K) + (query[:, None] * Q_STRIDE + kk[None, :])
        q_c = tl.load(at_q, live_q[:, None] & (kk < K)[None, :], 0.0)
        reread(k_c, REREAD)
        reread(q_c, REREAD)
        causal = token[:, None] <= cq[None, :]
        p = product(k_c, tl.trans(q_c), PRECISION) * causal_decay(g_q[None, :], g[:, None], causal, HAS_DECAY)

        if SAVE:  # again, as what is carried over iterations would go through shared memory
            operand = state.to(dtype)
        o = product(operand, tl.trans(q_c), PRECISION)
        if HAS_DECAY:
            o *= tl.exp2(g_q)[None, :]
        if CLOSE:
            x = add_float_left_product(tl.zeros([BV, R], tl.float32), state, tl.trans(k_c), SPLIT, PRECISION)
        else:
            x = product(operand, tl.trans(k_c), PRECISION)
        if HAS_DECAY:
            x *= tl.exp2(g)[None, :]
        if dtype == tl.float32:
            x = tl.trans(v_c).to(tl.float32) - x
        else:  # exact, and an operand's load is under way for an iteration, where others are waited for at once
            x = product(tl.trans(v_c), unit, PRECISION) - x
        w_c = load_solve(w, head * chunks + c, r, r + zero, R)
        if CLOSE:
            rows = tl.minimum(left, TOKENS) * N
            update = close_product_with_solve(x, w_c, sums, kinds, head * chunks + c, live, rows, True, R, PRECISION)
        else:
            update = float_product_with_solve(x, w_c, False, PRECISION)
        if SAVE:
            at_u = u + (first * N * H + h) * V + (row[None, :] * (H * V) + vv[:, None])
            rounded = round_sums(update, kept + (head * chunks + c) * 2, dtype) if CLOSE else update.to(dtype)
            tl.store(at_u, rounded, live[None, :] & (vv < V)[:, None])

        o += product(update, p, PRECISION)
        at_o = output + (first * H + h) * V + (query[None, :] * (H * V) + vv[:, None])
        tl.store(at_o, o.to(dtype), live_q[None, :] & (vv < V)[:, None])

        if HAS_DECAY:
            state *= tl.exp2(g_end)
            update *= tl.exp2(g_end - g)[None, :]
        state = add_float_left_product(state, update, k_c, SPLIT, PRECISION)
        # Rounded here, though it is needed only later: a product in flight over the end of an iteration would make
        # all of them wait one by one.
        operand = state.to(dtype)
        if SAVE:
            at_s = states + (head * chunks + c + 1) * (V * K) + ((vv + zero)[:, None] * K + kk[None, :])
            tl.store(at_s, operand, square & (vv < (chunks - 1 - c) * V)[:, None])
    at = final_state + head * (K * V) + (kk[None, :] * V + vv[:, None])
    tl.store(at, state, square)
