"""The delta rule's kernel that solves each chunk's equations; `triton.py` has the notation and what they are."""

import triton
import triton.language as tl

from tsseq.kernels.delta_rule.triton import SOLVE_SCALE, causal_decay, safe_beta

REFLECTING = tl.constexpr(1.25)
"""Beta above which, on average, a chunk reflects: below, steps soon shrink what rounding leaves, whatever the keys."""
ALIKE = tl.constexpr(0.92)
"""Mean product of a chunk's keys above which they are nearly one: below, rounded sums over the chunk are precise."""


@triton.jit
def widen(x, HALF: tl.constexpr):
    """float32 `x` as it is computed with here: for nearly equal keys the inverse magnifies the last digit."""
    return x if HALF else x.to(tl.float64)


@triton.jit
def add_product(total, a, b_t, WHOLE: tl.constexpr, HALF: tl.constexpr):
    """`total` plus `a` times the transpose of `b_t`; where HALF, their first eleven bits, or 22 bits where WHOLE.

    Factors of float16 take fewer instructions than those of tf32, which are no more precise. A product's result lies in
    registers as a left factor does and as the transpose of a right one: no matrix here is turned over.
    """
    b = tl.trans(b_t)  # before it is rounded: Triton would turn a rounded one over in shared memory
    if HALF:
        high, b_high = a.to(tl.float16), b.to(tl.float16)
        if WHOLE:
            total = tl.dot(high, (b - b_high.to(tl.float32)).to(tl.float16), total)
            total = tl.dot((a - high.to(tl.float32)).to(tl.float16), b_high, total)
        return tl.dot(high, b_high, total)
    else:
        return tl.dot(a, b, total, out_dtype=tl.float64)


@triton.jit
def invert_unit_lower(a, a_t, HALF: tl.constexpr):
    """(I - a)^-1 of a strictly lower 16 x 16 `a`, whose transpose is `a_t`, and the transpose of the inverse.

    Diagonal blocks double; only true inverses are multiplied. Where HALF, a step of Newton's method makes up for the
    digits that products dropped.
    """
    i = tl.arange(0, 16)[:, None]
    j = tl.arange(0, 16)[None, :]
    none = tl.zeros([16, 16], a.dtype)
    unit = tl.where(i == j, 1.0, none)
    x = unit + tl.where(i // 2 == j // 2, a, 0.0)
    x_t = unit + tl.where(i // 2 == j // 2, a_t, 0.0)
    for level in tl.static_range(1, 4):
        below = tl.where((i >> level + 1 == j >> level + 1) & (i >> level != j >> level), a, 0.0)
        y_t = add_product(none, x_t, below, False, HALF)
        doubled = add_product(x, x, y_t, False, HALF)
        x_t = add_product(x_t, y_t, x, False, HALF)
        x = doubled
    if HALF:
        rest_t = add_product(unit - x_t, x_t, a, True, HALF)
        better = add_product(x, x, rest_t, False, HALF)
        x_t = add_product(x_t, rest_t, x, False, HALF)
        x = better
    return x, x_t


@triton.jit
def load_decay(pointer, mask):
    """Logarithms to base 2; float32 cannot tell 2^-150 from the zero of a reset, whose -inf would give NaN here."""
    decay = tl.load(pointer, mask, 0.0).to(tl.float32) * 1.4426950408889634
    return tl.where(decay < -150.0, -150.0, decay)


@triton.jit
def halves(x):
    """The upper and lower rows of a matrix."""
    return tl.split(tl.permute(tl.reshape(x, [2, x.shape[0] // 2, x.shape[1]]), 1, 2, 0))


@triton.jit
def load_betas(beta, row, left, B_STRIDE: tl.constexpr, H: tl.constexpr, N: tl.constexpr, STEPS_PADDED: tl.constexpr):
    token, step = row // STEPS_PADDED, row % STEPS_PADDED
    return tl.load(beta + token * B_STRIDE + step * H, (token < left) & (step < N), 0.0)


@triton.jit
def load_gates(
    beta, log_decay, left, BLOCK: tl.constexpr, B_STRIDE: tl.constexpr, G_STRIDE: tl.constexpr, H: tl.constexpr,
    N: tl.constexpr, STEPS_PADDED: tl.constexpr, HAS_DECAY: tl.constexpr, SMALLEST: tl.constexpr,
):  # fmt: skip
    """Beta and, at a token's first step, the log decay of 16 rows of a chunk."""
    i = tl.arange(0, 16)
    token = (BLOCK * 16 + i) // STEPS_PADDED
    step = i % STEPS_PADDED
    b = load_betas(beta, BLOCK * 16 + i, left, B_STRIDE, H, N, STEPS_PADDED).to(tl.float32)
    b = safe_beta(b, SMALLEST)
    decay = tl.zeros([16], tl.float32)
    if HAS_DECAY:
        decay = load_decay(log_decay + token * G_STRIDE, (token < left) & (step == 0))
    return b, decay


@triton.jit
def cumulate(cumulated, decay, before, BLOCK: tl.constexpr, STEPS_PADDED: tl.constexpr, HAS_DECAY: tl.constexpr):
    """The decay up to each of 16 rows (`before` at the block's start), which is stored too, and the block's in all."""
    i = tl.arange(0, 16)
    g = tl.zeros([16], tl.float32)
    if HAS_DECAY:
        g = before + tl.cumsum(decay, 0)
        before += tl.sum(decay, 0)
        tl.store(cumulated + (BLOCK * 16 + i) // STEPS_PADDED, g, i % STEPS_PADDED == 0)
    return g, before


@triton.jit
def interaction(products, b, g_later, g_earlier, HAS_DECAY: tl.constexpr, HALF: tl.constexpr):
    """-diag(beta) Gamma * K K^T of a block's rows with those of an earlier one."""
    a = widen(products, HALF) * -b[:, None]
    if HAS_DECAY:
        a *= tl.exp2(widen(g_later, HALF)[:, None] - widen(g_earlier, HALF)[None, :])
    return a


@triton.jit
def invert_block(products, b, g, HAS_DECAY: tl.constexpr, HALF: tl.constexpr):
    """The inverse of a block on the diagonal, of its rows' products with one another, and its transpose."""
    i = tl.arange(0, 16)[:, None]
    j = tl.arange(0, 16)[None, :]
    products = widen(products, HALF)
    g = widen(g, HALF)
    a = products * -b[:, None] * causal_decay(g[:, None], g[None, :], i > j, HAS_DECAY)
    a_t = products * -b[None, :] * causal_decay(g[None, :], g[:, None], i < j, HAS_DECAY)
    return invert_unit_lower(a, a_t, HALF)


@triton.jit
def store_block(w, sums, x_t, b, exact_sums, ROW: tl.constexpr, COLUMN: tl.constexpr, R: tl.constexpr):
    """X diag(beta), of the transposed X, as a 16 x 16 block of the transposed W; with `exact_sums` these too."""
    i = tl.arange(0, 16)
    dtype: tl.constexpr = w.dtype.element_ty
    block = x_t * (b * SOLVE_SCALE if dtype == tl.float16 else b)[:, None]
    if exact_sums:
        tl.store(sums + COLUMN * R + ROW * 16 + i, tl.sum(block, 0) * (1.0 / SOLVE_SCALE))
        tl.store(sums + (R // 16 + ROW) * R + COLUMN * 16 + i, tl.sum(block, 1) * (1.0 / SOLVE_SCALE))
    tl.store(w + COLUMN * 16 * R + ROW * 16 + i[:, None] * R + i[None, :], block)


@triton.jit
def store_kept(to, row, own, other):
    """Of odd and of even rows a bit each: whether another one may take what it loses in rounding.

    dbeta's error is what is taken over beta. As `round_sums` goes, a row gives to that of `other` beta, one bit less
    than itself: the second of two to the first, the third of four and the fifth of eight, too. The first of eight takes
    from that of the eight before, whose beta may be two. Less is asked of a token's steps, on whose sum the gradient
    of its decay hangs.
    """
    losing = tl.where(row % 8 == 0, 2.0, tl.abs(own.to(tl.float32)))
    taking = tl.abs(other.to(tl.float32)) * tl.where(row % 4 == 0, 2.0, 4.0)
    bits = (losing <= taking).to(tl.int32) << row // 2
    tl.store(to, tl.sum(tl.where(row % 2 == 1, bits, 0)))
    tl.store(to + 1, tl.sum(tl.where(row % 2 == 0, bits, 0)))


@triton.jit(do_not_specialize=["T"])
def solve_kernel(
    k, beta, log_decay, w, sums, kept, cumulated, kinds, T, K_STRIDE: tl.constexpr, B_STRIDE: tl.constexpr,
    G_STRIDE: tl.constexpr, H: tl.constexpr, N: tl.constexpr, K: tl.constexpr, BK: tl.constexpr, TOKENS: tl.constexpr,
    STEPS_PADDED: tl.constexpr, HAS_DECAY: tl.constexpr, SMALLEST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """W, cumulated log decay and kind of one chunk and head: one where it reflects, plus two if of nearly one key.

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
    w += ((b * H + h) * chunks + c) * (R * R)
    sums += ((b * H + h) * chunks + c) * (R // 16 * 2 * R)
    cumulated += ((b * H + h) * chunks + c) * TOKENS
    kept += ((b * H + h) * chunks + c) * 2
    kinds += (b * H + h) * chunks + c
    k += first * K_STRIDE + h * K
    beta += first * B_STRIDE + h
    log_decay += first * G_STRIDE + h

    # All that is read is under way before any of it is waited for.
    b1, d1 = load_gates(beta, log_decay, left, 0, B_STRIDE, G_STRIDE, H, N, STEPS_PADDED, HAS_DECAY, SMALLEST)
    if R >= 32:
        b2, d2 = load_gates(beta, log_decay, left, 1, B_STRIDE, G_STRIDE, H, N, STEPS_PADDED, HAS_DECAY, SMALLEST)
    if R == 64:
        b3, d3 = load_gates(beta, log_decay, left, 2, B_STRIDE, G_STRIDE, H, N, STEPS_PADDED, HAS_DECAY, SMALLEST)
        b4, d4 = load_gates(beta, log_decay, left, 3, B_STRIDE, G_STRIDE, H, N, STEPS_PADDED, HAS_DECAY, SMALLEST)
    r = tl.arange(0, R)
    own = load_betas(beta, r, left, B_STRIDE, H, N, STEPS_PADDED)
    other = tl.where(r % 8 == 0, r, r & (r - 1))
    other = load_betas(beta, other, left, B_STRIDE, H, N, STEPS_PADDED)
    token = r // STEPS_PADDED
    step = r % STEPS_PADDED
    row = token * K_STRIDE + step * (H * K)
    live = (token < left) & (step < N)
    PART: tl.constexpr = BK if BK < 64 else 64  # of the keys' columns; more of them at once take too many registers
    a11 = tl.zeros([16, 16], tl.float32 if HALF else tl.float64)
    if R >= 32:
        a21, a22 = a11, a11
    if R == 64:
        a31, a32, a33 = a11, a11, a11
        a41, a42, a43, a44 = a11, a11, a11, a11
    for part in tl.static_range(BK // PART):
        column = part * PART + tl.arange(0, PART)
        keys = tl.load(k + row[:, None] + column[None, :], live[:, None] & (column < K)[None, :], 0.0)
        if R == 16:
            if not HALF:  # reflections keep all that is off here, and every one of them adds to it
                keys = keys.to(tl.float64)
            a11 = tl.dot(keys, tl.trans(keys), a11, input_precision=PRECISION, out_dtype=a11.dtype)
        elif R == 32:
            k1, k2 = halves(keys)
            a11 = tl.dot(k1, tl.trans(k1), a11, input_precision=PRECISION)
            a21 = tl.dot(k2, tl.trans(k1), a21, input_precision=PRECISION)
            a22 = tl.dot(k2, tl.trans(k2), a22, input_precision=PRECISION)
        else:
            upper, lower = halves(keys)
            k1, k2 = halves(upper)
            k3, k4 = halves(lower)
            a11 = tl.dot(k1, tl.trans(k1), a11, input_precision=PRECISION)
            a21 = tl.dot(k2, tl.trans(k1), a21, input_precision=PRECISION)
            a22 = tl.dot(k2, tl.trans(k2), a22, input_precision=PRECISION)
            a33 = tl.dot(k3, tl.trans(k3), a33, input_precision=PRECISION)
            a43 = tl.dot(k4, tl.trans(k3), a43, input_precision=PRECISION)
            a44 = tl.dot(k4, tl.trans(k4), a44, input_precision=PRECISION)
            a31 = tl.dot(k3, tl.trans(k1), a31, input_precision=PRECISION)
            a32 = tl.dot(k3, tl.trans(k2), a32, input_precision=PRECISION)
            a41 = tl.dot(k4, tl.trans(k1), a41, input_precision=PRECISION)
            a42 = tl.dot(k4, tl.trans(k2), a42, input_precision=PRECISION)

    exact_sums = False
    if HALF:
        store_kept(kept, r, own, other)
        betas, blocks, below = b1, a11, tl.zeros([16, 16], tl.float32)
        if R >= 32:
            betas, blocks, below = betas + b2, blocks + a22, a21
        if R == 64:
            betas, blocks, below = betas + b3 + b4, blocks + a33 + a44, below + a43 + a31 + a32 + a41 + a42
        rows = N * tl.minimum(left, TOKENS)
        reflecting = tl.sum(betas) > REFLECTING * rows
        i = tl.arange(0, 16)
        squares = tl.sum(tl.where(i[:, None] == i[None, :], blocks, 0.0))
        one_key = tl.sum(blocks + 2.0 * below) > ALIKE * rows * squares
        kind = reflecting.to(tl.uint8) + 2 * one_key.to(tl.uint8)
        tl.store(kinds, kind)
        exact_sums = kind != 0

    g1, g_end = cumulate(cumulated, d1, 0.0, 0, STEPS_PADDED, HAS_DECAY)
    _, x1_t = invert_block(a11, b1, g1, HAS_DECAY, HALF)
    store_block(w, sums, x1_t, b1, exact_sums, 0, 0, R)
    if R >= 32:
        g2, g_end = cumulate(cumulated, d2, g_end, 1, STEPS_PADDED, HAS_DECAY)
        x2, x2_t = invert_block(a22, b2, g2, HAS_DECAY, HALF)
        a21 = interaction(a21, b2, g2, g1, HAS_DECAY, HALF)
        none = tl.zeros([16, 16], a21.dtype)
        x21_t = add_product(none, add_product(none, x1_t, a21, True, HALF), x2, True, HALF)
        store_block(w, sums, x21_t, b1, exact_sums, 1, 0, R)
        store_block(w, sums, x2_t, b2, exact_sums, 1, 1, R)
    if R == 64:
        g3, g_end = cumulate(cumulated, d3, g_end, 2, STEPS_PADDED, HAS_DECAY)
        g4, g_end = cumulate(cumulated, d4, g_end, 3, STEPS_PADDED, HAS_DECAY)
        x3, x3_t = invert_block(a33, b3, g3, HAS_DECAY, HALF)
        x4, x4_t = invert_block(a44, b4, g4, HAS_DECAY, HALF)
        a43 = interaction(a43, b4, g4, g3, HAS_DECAY, HALF)
        y_t = add_product(none, x3_t, a43, True, HALF)
        x43 = add_product(none, x4, y_t, True, HALF)
        store_block(w, sums, x3_t, b3, exact_sums, 2, 2, R)
        store_block(w, sums, add_product(none, y_t, x4, True, HALF), b3, exact_sums, 3, 2, R)
        store_block(w, sums, x4_t, b4, exact_sums, 3, 3, R)

        a31 = interaction(a31, b3, g3, g1, HAS_DECAY, HALF)
        a32 = interaction(a32, b3, g3, g2, HAS_DECAY, HALF)
        a41 = interaction(a41, b4, g4, g1, HAS_DECAY, HALF)
        a42 = interaction(a42, b4, g4, g2, HAS_DECAY, HALF)
        upper_t = add_product(add_product(none, x1_t, a31, True, HALF), x21_t, a32, True, HALF)
        lower_t = add_product(add_product(none, x1_t, a41, True, HALF), x21_t, a42, True, HALF)
        row_t = add_product(add_product(none, upper_t, x43, True, HALF), lower_t, x4, True, HALF)
        store_block(w, sums, add_product(none, upper_t, x3, True, HALF), b1, exact_sums, 2, 0, R)
        store_block(w, sums, row_t, b1, exact_sums, 3, 0, R)
        upper_t = add_product(none, x2_t, a32, True, HALF)
        lower_t = add_product(none, x2_t, a42, True, HALF)
        row_t = add_product(add_product(none, upper_t, x43, True, HALF), lower_t, x4, True, HALF)
        store_block(w, sums, add_product(none, upper_t, x3, True, HALF), b2, exact_sums, 2, 1, R)
        store_block(w, sums, row_t, b2, exact_sums, 3, 1, R)
