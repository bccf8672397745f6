"""The gates of linear attention with a decay per head: what they weigh, before its kernels, and their gradients, after.

Exponents are to base two. Cumulative decays are held as a coarse part, whose sums are exact, and a fine part, so that
differences keep their precision however strong the decay; where products round what is weighed to bfloat16 the sum
of both serves, one number to load instead of two.
"""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
FLOOR = tl.constexpr(-1e30)  # stands for minus infinity where one would be subtracted from another
RESET = tl.constexpr(-300.0)  # 2 ** RESET is zero beside anything


@triton.jit
def _maximum(a, b):
    return tl.maximum(a, b)


@triton.jit(do_not_specialize=["T"])
def prepare_kernel(
    decay, gate, high, low, source, top, T,
    HEADS: tl.constexpr, BLOCK: tl.constexpr, CHUNK: tl.constexpr, HAS_DECAY: tl.constexpr, HAS_GATE: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Per chunk of one sequence and all heads, to base two, head-major and padded to whole chunks:

    cumulative decays as `high + low`, or `high` alone; `source`, which with their end less `high`, or with their end
    alone, is the exponent of a key's weight; and `top`, the largest exponent among the keys a query sees. With `high`
    alone `low` has, in a chunk's last row, the exponent of the sum of its keys' weights.
    """
    chunks = tl.cdiv(T, CHUNK)
    batch = (tl.program_id(0) // chunks).to(tl.int64)
    t = tl.program_id(0) % chunks * CHUNK + tl.arange(0, CHUNK)[:, None]
    head = tl.arange(0, BLOCK)[None, :]
    valid = (t < T) & (head < HEADS)
    place = (batch * T + t) * HEADS + head
    i = tl.where(valid, 0.0, float("-inf"))
    if HAS_GATE:
        i = tl.load(gate + place, valid, float("-inf")).to(tl.float32) * LOG2E
    f = tl.zeros((CHUNK, BLOCK), tl.float32)
    if HAS_DECAY:
        f = tl.maximum(tl.load(decay + place, valid, 0.0).to(tl.float32) * LOG2E, RESET)
    coarse = tl.floor(f * 16.0 + 0.5) * 0.0625
    coarse_sum = tl.cumsum(coarse, axis=0)
    fine_sum = tl.cumsum(f - coarse, axis=0)
    largest = tl.associative_scan(i - fine_sum - coarse_sum, 0, _maximum) + fine_sum + coarse_sum
    # The last row also scales the states, so that it must be precise; for the others any scale near will do.
    rest = (tl.sum(coarse, axis=0)[None, :] - coarse_sum) + (tl.sum(f - coarse, axis=0)[None, :] + i - fine_sum)
    last = tl.arange(0, CHUNK)[:, None] == CHUNK - 1
    largest = tl.where(last, tl.max(rest, axis=0)[None, :], largest)
    out = (batch * HEADS + head) * (chunks * CHUNK) + t
    if PRECISION == "tf32":  # beside products of narrow types one number is precise enough
        tl.store(high + out, coarse_sum + fine_sum, head < HEADS)
        tl.store(source + out, i - (coarse_sum + fine_sum), head < HEADS)
        most = tl.max(tl.maximum(rest, FLOOR), axis=0)[None, :]
        total = most + tl.log2(tl.maximum(tl.sum(tl.exp2(rest - most), axis=0), 1.0))[None, :]
        tl.store(low + out, tl.broadcast_to(total, (CHUNK, BLOCK)), last & (head < HEADS))
    else:
        tl.store(high + out, coarse_sum, head < HEADS)
        tl.store(low + out, fine_sum, head < HEADS)
        tl.store(source + out, i - fine_sum, head < HEADS)
    tl.store(top + out, tl.maximum(largest, FLOOR), head < HEADS)


@triton.jit(do_not_specialize=["T"])
def finish_kernel(
    rows, columns, carries, totals, dgate_columns, ddecay, dgate, T,
    HEADS: tl.constexpr, BLOCK: tl.constexpr, CHUNK: tl.constexpr, HAS_DECAY: tl.constexpr, HAS_GATE: tl.constexpr,
):  # fmt: skip
    """Gradients of the gates from what queries, keys and states said about the cumulative decays of a chunk."""
    chunks = tl.cdiv(T, CHUNK)
    batch = (tl.program_id(0) // chunks).to(tl.int64)
    c = tl.program_id(0) % chunks
    t = c * CHUNK + tl.arange(0, CHUNK)[:, None]
    head = tl.arange(0, BLOCK)[None, :]
    valid = (t < T) & (head < HEADS)
    place = (batch * T + t) * HEADS + head
    pair = batch * HEADS + head
    of = pair * (chunks * CHUNK) + t
    carry = tl.load(carries + of, valid, 0.0)
    if HAS_GATE:
        tl.store(dgate + place, tl.load(dgate_columns + of, valid, 0.0) + carry, valid)
    if HAS_DECAY:
        differences = tl.load(rows + of, valid, 0.0) - tl.load(columns + of, valid, 0.0)
        total = tl.load(totals + pair * chunks + c, head < HEADS, 0.0)
        df = tl.cumsum(differences, axis=0, reverse=True) + tl.cumsum(carry, axis=0) - carry + total
        tl.store(ddecay + place, df, valid)
