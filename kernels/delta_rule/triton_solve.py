"""The delta rule's kernel that solves each chunk's equations; `triton.py` has the notation and what they are."""

import triton
import triton.language as tl

from tsseq.kernels import precision
from tsseq.kernels.delta_rule.triton import causal_decay, product, safe_beta, split

FLOAT32 = tl.constexpr(precision.FLOAT32)


@triton.jit
def float_product(a, b, WHOLE: tl.constexpr, HALF: tl.constexpr):
    """float32 `a` times float32 `b`; where HALF, of the first eleven bits of `b` and of `a`, or of a WHOLE `a`.

    Factors of float16 take fewer instructions than those of tf32, which are no more precise.
    """
    if HALF:
        high = a.to(tl.float16)
        b = b.to(tl.float16)
        result = tl.dot(high, b)
        if WHOLE:
            result = tl.dot((a - high.to(tl.float32)).to(tl.float16), b, result)
        return result
    else:
        return product(a, b, FLOAT32)


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
def load_decay(pointer, mask):
    """Logarithms to base 2; float32 cannot tell 2^-150 from the zero of a reset, whose -inf would give NaN here."""
    decay = tl.load(pointer, mask, 0.0).to(tl.float32) * 1.4426950408889634
    return tl.where(decay < -150.0, -150.0, decay)


@triton.jit
def halves(x):
    """The upper and lower rows of a matrix."""
    return tl.split(tl.permute(tl.reshape(x, [2, x.shape[0] // 2, x.shape[1]]), 1, 2, 0))


@triton.jit
def load_gates(
    beta, log_decay, left, BLOCK: tl.constexpr, B_STRIDE: tl.constexpr, G_STRIDE: tl.constexpr, H: tl.constexpr,
    N: tl.constexpr, STEPS_PADDED: tl.constexpr, HAS_DECAY: tl.constexpr, SMALLEST: tl.constexpr,
):  # fmt: skip
    """Beta and, at a token's first step, the log decay of 16 rows of a chunk."""
    i = tl.arange(0, 16)
    token = (BLOCK * 16 + i) // STEPS_PADDED
    step = i % STEPS_PADDED
    live = (token < left) & (step < N)
    b = safe_beta(tl.load(beta + token * B_STRIDE + step * H, live, 0.0).to(tl.float32), SMALLEST)
    decay = tl.zeros([16], tl.float32)
    if HAS_DECAY:
        decay = load_decay(log_decay + token * G_STRIDE, live & (step == 0))
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
def interaction(later, b, g_later, earlier, g_earlier, mask, HAS_DECAY: tl.constexpr, PRECISION: tl.constexpr):
    """diag(beta) Gamma * K K^T of a block's rows with those of an earlier one, or with its own where `mask`."""
    a = product(later, tl.trans(earlier), PRECISION) * b[:, None]
    return a * causal_decay(g_later[:, None], g_earlier[None, :], mask, HAS_DECAY)


@triton.jit
def store_block(w, x, b, ROW: tl.constexpr, COLUMN: tl.constexpr, R: tl.constexpr):
    """X diag(beta) as a 16 x 16 block of W, or of the two bfloat16 matrices that W is the sum of."""
    i = tl.arange(0, 16)
    to = w + ROW * 16 * R + COLUMN * 16 + i[:, None] * R + i[None, :]
    block = x * b[None, :]
    if w.dtype.element_ty == tl.bfloat16:
        high, low = split(block)
        tl.store(to, high)
        tl.store(to + R * R, low)
    else:
        tl.store(to, block.to(w.dtype.element_ty))


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
    w += ((b * H + h) * chunks + c) * (2 * R * R if w.dtype.element_ty == tl.bfloat16 else R * R)
    cumulated += ((b * H + h) * chunks + c) * TOKENS
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
    token = r // STEPS_PADDED
    step = r % STEPS_PADDED
    column = tl.arange(0, BK)
    row = token * K_STRIDE + step * (H * K)
    live = (token < left) & (step < N)
    keys = tl.load(k + row[:, None] + column[None, :], live[:, None] & (column < K)[None, :], 0.0)
    if R == 64:
        upper, lower = halves(keys)
        k1, k2 = halves(upper)
        k3, k4 = halves(lower)
    elif R == 32:
        k1, k2 = halves(keys)
    else:
        k1 = keys
    g1, g_end = cumulate(cumulated, d1, 0.0, 0, STEPS_PADDED, HAS_DECAY)
    x1 = invert_unit_lower(interaction(k1, b1, g1, k1, g1, below, HAS_DECAY, PRECISION), HALF)
    store_block(w, x1, b1, 0, 0, R)
    if R >= 32:
        g2, g_end = cumulate(cumulated, d2, g_end, 1, STEPS_PADDED, HAS_DECAY)
        x2 = invert_unit_lower(interaction(k2, b2, g2, k2, g2, below, HAS_DECAY, PRECISION), HALF)
        a21 = interaction(k2, b2, g2, k1, g1, every, HAS_DECAY, PRECISION)
        x21 = -float_product(x2, float_product(a21, x1, True, HALF), True, HALF)
        store_block(w, x21, b1, 1, 0, R)
        store_block(w, x2, b2, 1, 1, R)
    if R == 64:
        g3, g_end = cumulate(cumulated, d3, g_end, 2, STEPS_PADDED, HAS_DECAY)
        g4, g_end = cumulate(cumulated, d4, g_end, 3, STEPS_PADDED, HAS_DECAY)
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
