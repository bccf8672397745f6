"""GPU forms of the recursions over time: one launch for the whole batch."""

import torch
import triton
import triton.language as tl


@triton.jit
def _compose(decay_0, drive_0, decay_1, drive_1):
    return decay_0 * decay_1, decay_1 * drive_0 + drive_1


@triton.jit
def _linear_scan(decay, drive, out, decay_row, decay_step, drive_row, drive_step, length, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, BLOCK)
    carry = tl.sum(tl.zeros([BLOCK], tl.float32), axis=0)
    for start in range(0, length, BLOCK):
        time = start + lane
        inside = time < length
        a = tl.load(decay + row * decay_row + time * decay_step, mask=inside, other=1.0)
        b = tl.load(drive + row * drive_row + time * drive_step, mask=inside, other=0.0)
        product, state = tl.associative_scan((a, b), 0, _compose)
        state += product * carry
        tl.store(out + row * length + time, state, mask=inside)
        carry = tl.sum(tl.where(lane == BLOCK - 1, state, 0.0), axis=0)


def linear_scan(decay: torch.Tensor, drive: torch.Tensor) -> torch.Tensor:
    """h_t = decay_t h_{t-1} + drive_t for float32 batch × time, one program per series."""
    batch, length = drive.shape
    out = torch.empty((batch, length), dtype=drive.dtype, device=drive.device)
    _linear_scan[(batch,)](decay, drive, out, *decay.stride(), *drive.stride(), length, BLOCK=1024)
    return out


@triton.jit
def _lookup(
    table, phase, out, table_row, phase_row, phase_step, length, slots, LINEAR: tl.constexpr, BLOCK: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    time = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = time < length
    cycles = tl.load(phase + row * phase_row + time * phase_step, mask=inside, other=0.0)
    position = (cycles - tl.floor(cycles)) * slots
    index = tl.minimum(position.to(tl.int32), slots - 1)
    value = tl.load(table + row * table_row + index, mask=inside, other=0.0)
    if LINEAR:
        after = tl.where(index == slots - 1, 0, index + 1)
        value += (position - index) * (tl.load(table + row * table_row + after, mask=inside, other=0.0) - value)
    tl.store(out + row * length + time, value, mask=inside)


@triton.jit
def _spline(knots, position, out, knot_row, position_row, position_step, length, last, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    time = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = time < length
    place = tl.load(position + row * position_row + time * position_step, mask=inside, other=0.0)
    index = tl.minimum(tl.maximum(place.to(tl.int32), 0), last)
    u = place - index
    v = 1 - u
    first = knots + row * knot_row + index
    value = tl.load(first, mask=inside, other=0.0) * (v * v * v)
    value += tl.load(first + 1, mask=inside, other=0.0) * (4 + u * u * (3 * u - 6))
    value += tl.load(first + 2, mask=inside, other=0.0) * (4 + v * v * (3 * v - 6))
    value += tl.load(first + 3, mask=inside, other=0.0) * (u * u * u)
    tl.store(out + row * length + time, value / 6, mask=inside)


def _pointwise(kernel, table: torch.Tensor, position: torch.Tensor, *sizes) -> torch.Tensor:
    """Evaluate one row of `table` at every position of the same row; float32, one read and one write a point."""
    batch, length = position.shape
    table = table.expand(batch, -1)
    table = table if table.stride(1) == 1 else table.contiguous()
    out = torch.empty((batch, length), dtype=torch.float32, device=position.device)
    if batch:
        grid = (batch, triton.cdiv(length, 1024))
        kernel[grid](table, position, out, table.stride(0), *position.stride(), length, *sizes, BLOCK=1024)
    return out


def lookup(table: torch.Tensor, phase: torch.Tensor, *, linear: bool) -> torch.Tensor:
    """`curves.lookup` or, if not linear, `curves.held`."""
    return _pointwise(_lookup, table, phase, table.shape[-1], linear)


def spline(knots: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    """`curves.spline`."""
    return _pointwise(_spline, knots, position, knots.shape[-1] - 4)


@triton.jit
def _polynomial(c, stride, x, y, z, w):
    """One row of coefficients, in the order of `dynamics.MONOMIALS`, at the state (x, y, z, w)."""
    constant = tl.load(c)
    linear = tl.load(c + stride) * x + tl.load(c + 2 * stride) * y
    linear += tl.load(c + 3 * stride) * z + tl.load(c + 4 * stride) * w
    by_x = tl.load(c + 5 * stride) * x + tl.load(c + 6 * stride) * y
    by_x += tl.load(c + 7 * stride) * z + tl.load(c + 8 * stride) * w + tl.load(c + 15 * stride) * x * x
    by_y = tl.load(c + 9 * stride) * y + tl.load(c + 10 * stride) * z + tl.load(c + 11 * stride) * w
    by_z = tl.load(c + 12 * stride) * z + tl.load(c + 13 * stride) * w
    return constant + linear + by_x * x + by_y * y + by_z * z + tl.load(c + 14 * stride) * w * w


@triton.jit
def _velocity(c, stride, x, y, z, w):
    dx = _polynomial(c, stride, x, y, z, w)
    dy = _polynomial(c + 16 * stride, stride, x, y, z, w)
    dz = _polynomial(c + 32 * stride, stride, x, y, z, w)
    dw = _polynomial(c + 48 * stride, stride, x, y, z, w)
    return dx, dy, dz, dw


@triton.jit
def _trajectories(
    table,
    start,
    step,
    output,
    out,
    batch,
    length,
    bound,
    SUBSTEPS: tl.constexpr,
    ITERATE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    series = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = series < batch
    column = tl.where(inside, series, 0)
    c = table + column
    h = tl.load(step + column)
    x, y = tl.load(start + column), tl.load(start + batch + column)
    z, w = tl.load(start + 2 * batch + column), tl.load(start + 3 * batch + column)
    o_x, o_y = tl.load(output + column), tl.load(output + batch + column)
    o_z, o_w = tl.load(output + 2 * batch + column), tl.load(output + 3 * batch + column)
    for time in range(length):
        tl.store(out + tl.cast(time, tl.int64) * batch + series, o_x * x + o_y * y + o_z * z + o_w * w, mask=inside)
        for _ in range(SUBSTEPS):
            a_x, a_y, a_z, a_w = _velocity(c, batch, x, y, z, w)
            if ITERATE:
                x, y, z, w = a_x, a_y, a_z, a_w
            else:
                k = 0.5 * h
                b_x, b_y, b_z, b_w = _velocity(c, batch, x + k * a_x, y + k * a_y, z + k * a_z, w + k * a_w)
                c_x, c_y, c_z, c_w = _velocity(c, batch, x + k * b_x, y + k * b_y, z + k * b_z, w + k * b_w)
                d_x, d_y, d_z, d_w = _velocity(c, batch, x + h * c_x, y + h * c_y, z + h * c_z, w + h * c_w)
                x += h / 6 * (a_x + 2 * b_x + 2 * c_x + d_x)
                y += h / 6 * (a_y + 2 * b_y + 2 * c_y + d_y)
                z += h / 6 * (a_z + 2 * b_z + 2 * c_z + d_z)
                w += h / 6 * (a_w + 2 * b_w + 2 * c_w + d_w)
            x = tl.minimum(tl.maximum(x, -bound), bound)
            y = tl.minimum(tl.maximum(y, -bound), bound)
            z = tl.minimum(tl.maximum(z, -bound), bound)
            w = tl.minimum(tl.maximum(w, -bound), bound)


def trajectories(
    table: torch.Tensor,
    start: torch.Tensor,
    step: torch.Tensor,
    output: torch.Tensor,
    length: int,
    bound: float,
    substeps: int,
    iterate: bool,
) -> torch.Tensor:
    """Runge–Kutta paths, or iterates, of polynomial systems (see `dynamics.trajectories`), one series per thread."""
    batch = start.shape[0]
    columns = (
        table.flatten(1).t().contiguous(),
        start.t().contiguous(),
        step.flatten().contiguous(),
        output.t().contiguous(),
    )
    out = torch.empty((length, batch), dtype=torch.float32, device=start.device)
    grid = (triton.cdiv(batch, 32),)
    _trajectories[grid](*columns, out, batch, length, bound, substeps, iterate, BLOCK=32, num_warps=1)
    return out.t().contiguous()


@triton.jit
def _threshold(shocks, above, below, threshold, out, batch, length, bound, BLOCK: tl.constexpr):
    series = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = series < batch
    column = tl.where(inside, series, 0)
    level = tl.load(threshold + column)
    c_0, a_0 = tl.load(below + column), tl.load(below + batch + column)
    b_0, s_0 = tl.load(below + 2 * batch + column), tl.load(below + 3 * batch + column)
    c_1, a_1 = tl.load(above + column), tl.load(above + batch + column)
    b_1, s_1 = tl.load(above + 2 * batch + column), tl.load(above + 3 * batch + column)
    last = level
    # Read anew: Triton carries a variable through a loop only if an iteration leaves it another value than it had, and
    # of two names of one value it would take `before` for unchanged.
    before = tl.load(threshold + column)
    for time in range(length):
        place = tl.cast(time, tl.int64) * batch + series
        e = tl.load(shocks + place, mask=inside, other=0.0)
        high = last > level
        after = tl.where(high, c_1, c_0) + tl.where(high, a_1, a_0) * last
        after += tl.where(high, b_1, b_0) * before + tl.where(high, s_1, s_0) * e
        before = last
        last = tl.minimum(tl.maximum(after, -bound), bound)
        tl.store(out + place, last, mask=inside)


def threshold_autoregression(
    shocks: torch.Tensor, above: torch.Tensor, below: torch.Tensor, threshold: torch.Tensor, bound: float
) -> torch.Tensor:
    """See `threshold.threshold_autoregression`; one series per thread."""
    batch, length = shocks.shape
    columns = [x.t().contiguous() for x in (shocks, above, below)]
    out = torch.empty((length, batch), dtype=torch.float32, device=shocks.device)
    grid = (triton.cdiv(batch, 32),)
    _threshold[grid](*columns, threshold.flatten().contiguous(), out, batch, length, bound, BLOCK=32, num_warps=1)
    return out.t().contiguous()
