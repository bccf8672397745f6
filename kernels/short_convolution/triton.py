"""The short convolution on a GPU: one kernel forward, one backward (three for long filters).

A program owns a strip of time of one sequence and a block of channels, and slides along time with the last
rows in registers. Loads of several rows are issued before the first is used, because Triton does not move a
load above a store. In the backward pass the filter's gradient stays in registers until the strip ends, so the
partial sums are small and their order is fixed.
"""

import torch
import triton
import triton.language as tl

from tsseq.array_typing import Float, Tensor
from tsseq.kernels.layout import token_rows

PROGRAMS = 2048  # a few resident warps per scheduler of a large GPU
LONGEST_IN_REGISTERS = 8  # taps, with their gradients and two windows, in the one-kernel backward pass


@triton.jit
def _activate(c, SILU: tl.constexpr, NORMALISE: tl.constexpr, EPS: tl.constexpr):
    """The activation, its unit-length form, and the inverse length (one row of heads x channels)."""
    a = c
    if SILU:
        a = c * tl.sigmoid(c)
    y = a
    inverse = tl.full((c.shape[0], 1), 1.0, tl.float32)
    if NORMALISE:
        inverse = tl.rsqrt(tl.sum(a * a, axis=1) + EPS)[:, None]
        y = a * inverse
    return y, inverse


@triton.jit
def _activate_backward(c, dy, SILU: tl.constexpr, NORMALISE: tl.constexpr, EPS: tl.constexpr):
    d = dy
    if NORMALISE:
        y, inverse = _activate(c, SILU, NORMALISE, EPS)
        d = (dy - y * tl.sum(y * dy, axis=1)[:, None]) * inverse
    if SILU:
        gate = tl.sigmoid(c)
        d = d * gate * (1.0 + c * (1.0 - gate))
    return d


@triton.jit
def _channels(block, WIDTH: tl.constexpr, SPAN: tl.constexpr, GROUP: tl.constexpr, GROUPS: tl.constexpr):
    """Channel indices of a block as groups x channels, and which of them exist."""
    within = tl.arange(0, GROUPS)[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    channel = block * SPAN + within
    return channel, (within < SPAN) & (channel < WIDTH)


@triton.jit
def _when(condition, live):
    """`live` under a scalar condition (`&` of a block and a scalar is wrong in Triton 3.9's interpreter)."""
    return tl.where(condition, live, False)


@triton.jit
def _row(x, state, batch, s, T, channel, live, WIDTH: tl.constexpr, STRIDE: tl.constexpr, WINDOW: tl.constexpr,
         HAS_STATE: tl.constexpr):  # fmt: skip
    """Row `s` of the state followed by the sequence, zero outside."""
    t = s - WINDOW
    value = tl.load(x + (batch * T + t) * STRIDE + channel, _when((t >= 0) & (t < T), live), 0.0).to(tl.float32)
    if HAS_STATE:
        value += tl.load(state + (batch * WINDOW + s) * WIDTH + channel, _when((s >= 0) & (t < 0), live), 0.0)
    return value


@triton.jit(do_not_specialize=["T", "OUT"])
def _forward(
    x, filters, bias, state, dy, y, T, OUT,
    WIDTH: tl.constexpr, STRIDE: tl.constexpr, DY_STRIDE: tl.constexpr, KERNEL: tl.constexpr, SHIFT: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_STATE: tl.constexpr, HAS_DY: tl.constexpr, SILU: tl.constexpr,
    NORMALISE: tl.constexpr, EPS: tl.constexpr, SPAN: tl.constexpr, GROUP: tl.constexpr, GROUPS: tl.constexpr,
    STEPS: tl.constexpr, TAPS: tl.constexpr,
):  # fmt: skip
    """Filter rows SHIFT, SHIFT + 1, ... of the state and the sequence into OUT outputs.

    With `dy` the outputs are the gradients of the filtered rows before activation.
    """
    WINDOW: tl.constexpr = KERNEL - 1
    BLOCKS: tl.constexpr = (WIDTH + SPAN - 1) // SPAN
    program = tl.program_id(0)
    strips = tl.cdiv(OUT, STEPS)
    channel, live = _channels(program % BLOCKS, WIDTH, SPAN, GROUP, GROUPS)
    start = (program // BLOCKS) % strips * STEPS
    batch = (program // BLOCKS // strips).to(tl.int64)

    offset = tl.zeros((GROUPS, GROUP), tl.float32)
    if HAS_BIAS:
        offset = tl.load(bias + channel, live, 0.0).to(tl.float32)
    sums = ()
    for _ in tl.static_range(STEPS):
        sums = sums + (offset,)
    for first in range(0, KERNEL, TAPS):  # filters longer than TAPS would not stay in registers
        taps = ()
        rows = ()
        for k in tl.static_range(TAPS):
            taps = taps + (tl.load(filters + (first + k) * WIDTH + channel, live, 0.0).to(tl.float32),)
        for j in tl.static_range(TAPS + STEPS - 1):
            s = start + SHIFT + first + j
            rows = rows + (_row(x, state, batch, s, T, channel, live, WIDTH, STRIDE, WINDOW, HAS_STATE),)
        further = ()
        for u in tl.static_range(STEPS):
            c = sums[u]
            for k in tl.static_range(TAPS):
                c += taps[k] * rows[u + k]
            further = further + (c,)
        sums = further
    for u in tl.static_range(STEPS):
        t = start + u
        inside = _when(t < OUT, live)
        if HAS_DY:
            d = tl.load(dy + (batch * T + t) * DY_STRIDE + channel, inside, 0.0).to(tl.float32)
            value = _activate_backward(sums[u], d, SILU, NORMALISE, EPS)
        else:
            value, _ = _activate(sums[u], SILU, NORMALISE, EPS)
        tl.store(y + (batch * OUT + t) * WIDTH + channel, value.to(y.dtype.element_ty), inside)


@triton.jit(do_not_specialize=["T", "STRIP"])
def _backward(
    x, filters, bias, state, dy, dx, dstate, partial, T, STRIP,
    WIDTH: tl.constexpr, STRIDE: tl.constexpr, DY_STRIDE: tl.constexpr, KERNEL: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_STATE: tl.constexpr, SILU: tl.constexpr, NORMALISE: tl.constexpr,
    EPS: tl.constexpr, SPAN: tl.constexpr, GROUP: tl.constexpr, GROUPS: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    WINDOW: tl.constexpr = KERNEL - 1
    WARM: tl.constexpr = (WINDOW + STEPS - 1) // STEPS * STEPS
    BLOCKS: tl.constexpr = (WIDTH + SPAN - 1) // SPAN
    program = tl.program_id(0)
    strips = tl.cdiv(T + WINDOW, STRIP)
    channel, live = _channels(program % BLOCKS, WIDTH, SPAN, GROUP, GROUPS)
    worker = (program // BLOCKS).to(tl.int64)
    first = (program // BLOCKS) % strips * STRIP
    batch = (program // BLOCKS // strips).to(tl.int64)
    begin = tl.maximum(first - WARM, 0)  # rows whose gradient reaches into this strip
    dtype = x.dtype.element_ty
    zero = tl.zeros((GROUPS, GROUP), tl.float32)

    taps = ()
    window = ()
    recent = ()
    dtaps = ()
    for k in tl.static_range(KERNEL):
        taps = taps + (tl.load(filters + k * WIDTH + channel, live, 0.0).to(tl.float32),)
        dtaps = dtaps + (zero,)
    for j in tl.static_range(WINDOW):
        row = _row(x, state, batch, begin + j, T, channel, live, WIDTH, STRIDE, WINDOW, HAS_STATE)
        window = window + (row.to(dtype),)
        recent = recent + (zero,)
    dbias = zero
    offset = zero
    if HAS_BIAS:
        offset = tl.load(bias + channel, live, 0.0).to(tl.float32)

    for t in range(begin, tl.minimum(first + STRIP, T + WINDOW), STEPS):
        seen = window
        dys = ()
        for u in tl.static_range(STEPS):
            inside = _when(t + u < T, live)
            seen = seen + (tl.load(x + (batch * T + t + u) * STRIDE + channel, inside, 0.0),)
            dys = dys + (tl.load(dy + (batch * T + t + u) * DY_STRIDE + channel, inside, 0.0),)
        own = t >= first
        dcs = recent
        for u in tl.static_range(STEPS):
            c = offset
            for k in tl.static_range(KERNEL):
                c += taps[k] * seen[u + k].to(tl.float32)
            dc = _activate_backward(c, dys[u].to(tl.float32), SILU, NORMALISE, EPS)
            dcs = dcs + (dc,)
            counted = tl.where(own, dc, 0.0)
            dbias += counted
            sums = ()
            for k in tl.static_range(KERNEL):
                sums = sums + (dtaps[k] + counted * seen[u + k].to(tl.float32),)
            dtaps = sums
            d = zero
            for k in tl.static_range(KERNEL):
                d += taps[k] * dcs[WINDOW + u - k]
            s = t + u
            here = _when(own & (s < T + WINDOW), live)
            tl.store(dx + (batch * T + s - WINDOW) * WIDTH + channel, d.to(dtype), _when(s >= WINDOW, here))
            if HAS_STATE:
                tl.store(dstate + (batch * WINDOW + s) * WIDTH + channel, d, _when(s < WINDOW, here))
        window = ()
        recent = ()
        for j in tl.static_range(WINDOW):
            window = window + (seen[STEPS + j],)
            recent = recent + (dcs[STEPS + j],)

    for k in tl.static_range(KERNEL):
        tl.store(partial + (worker * (KERNEL + 1) + k) * WIDTH + channel, dtaps[k], live)
    tl.store(partial + (worker * (KERNEL + 1) + KERNEL) * WIDTH + channel, dbias, live)


@triton.jit(do_not_specialize=["T", "ITEMS", "PER_WORKER"])
def _filter_gradient(
    x, state, dc, partial, T, ITEMS, PER_WORKER,
    WIDTH: tl.constexpr, STRIDE: tl.constexpr, KERNEL: tl.constexpr, HAS_STATE: tl.constexpr, SPAN: tl.constexpr,
    GROUP: tl.constexpr, GROUPS: tl.constexpr, STEPS: tl.constexpr, TAPS: tl.constexpr,
):  # fmt: skip
    """Sums over some strips of a long filter's gradient, TAPS of its taps at a time, and the bias's as one more."""
    WINDOW: tl.constexpr = KERNEL - 1
    BLOCKS: tl.constexpr = (WIDTH + SPAN - 1) // SPAN
    program = tl.program_id(0)
    channel, live = _channels(program % BLOCKS, WIDTH, SPAN, GROUP, GROUPS)
    first = (program // BLOCKS) % (KERNEL // TAPS) * TAPS
    worker = (program // BLOCKS // (KERNEL // TAPS)).to(tl.int64)
    strips = tl.cdiv(T, STEPS)
    sums = ()
    for _ in tl.static_range(TAPS + 1):
        sums = sums + (tl.zeros((GROUPS, GROUP), tl.float32),)
    for item in range(worker * PER_WORKER, tl.minimum((worker + 1) * PER_WORKER, ITEMS)):
        batch = item // strips
        start = item % strips * STEPS
        rows = ()
        ds = ()
        for j in tl.static_range(TAPS + STEPS - 1):
            s = start + first + j
            rows = rows + (_row(x, state, batch, s, T, channel, live, WIDTH, STRIDE, WINDOW, HAS_STATE),)
        for u in tl.static_range(STEPS):
            inside = _when(start + u < T, live)
            ds = ds + (tl.load(dc + (batch * T + start + u) * WIDTH + channel, inside, 0.0).to(tl.float32),)
        further = ()
        for k in tl.static_range(TAPS):
            total = sums[k]
            for u in tl.static_range(STEPS):
                total += ds[u] * rows[u + k]
            further = further + (total,)
        total = sums[TAPS]
        for u in tl.static_range(STEPS):
            total += ds[u]
        sums = further + (total,)
    place = partial + worker * ((KERNEL + 1) * WIDTH) + channel
    for k in tl.static_range(TAPS):
        tl.store(place + (first + k) * WIDTH, sums[k], live)
    if first == 0:
        tl.store(place + KERNEL * WIDTH, sums[TAPS], live)


def _blocking(width: int, head_dim: int | None, per_warp: int) -> dict[str, int]:
    """Which channels a program takes: whole heads where they are normalised."""
    group = triton.next_power_of_2(head_dim or min(width, per_warp))
    groups = max(1, min(per_warp, triton.next_power_of_2(width)) // group) if group == head_dim else 1
    span = (head_dim or group) * groups
    return {"SPAN": span, "GROUP": group, "GROUPS": groups, "num_warps": max(1, group * groups // per_warp)}


def _taps(kernel: int) -> int:
    """How many taps are taken at a time."""
    return next(n for n in (8, 7, 6, 5, 4, 3, 2, 1) if kernel % n == 0)


def _filter(
    x: Tensor, filters: Tensor, bias: Tensor | None, state: Tensor | None, dy: Tensor | None, y: Tensor, silu: bool,
    head_dim: int, eps: float, shift: int = 0,
) -> None:  # fmt: skip
    """Launch `_forward` into `y`."""
    kernel, width = filters.shape
    blocking = _blocking(width, head_dim or None, 128)
    grid = (x.shape[0] * triton.cdiv(y.shape[1], 16) * triton.cdiv(width, blocking["SPAN"]),)
    _forward[grid](
        x, filters, bias, state, dy, y, x.shape[1], y.shape[1], WIDTH=width, STRIDE=x.stride(1),
        DY_STRIDE=0 if dy is None else dy.stride(1), KERNEL=kernel, SHIFT=shift, HAS_BIAS=bias is not None,
        HAS_STATE=state is not None, HAS_DY=dy is not None, SILU=silu, NORMALISE=head_dim > 0, EPS=eps, STEPS=16,
        TAPS=_taps(kernel), **blocking,
    )  # fmt: skip


@torch.library.custom_op("tsseq::short_convolution_forward", mutates_args=())
def _forward_op(
    x: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor | None, silu: bool, head_dim: int, eps: float
) -> Tensor:
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    _filter(token_rows(x), weight.T.contiguous(), bias, state, None, y, silu, head_dim, eps)
    return y


@_forward_op.register_fake
def _(x, weight, bias, state, silu, head_dim, eps):  # type: ignore[no-untyped-def]
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


@torch.library.custom_op("tsseq::short_convolution_backward", mutates_args=())
def _backward_op(
    dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor | None, silu: bool, head_dim: int,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of the input, of the filters with the bias as one more tap, and of the state (or empty)."""
    x, dy, filters = token_rows(x), token_rows(dy), weight.T.contiguous()
    batch, time, width = x.shape
    kernel = weight.shape[1]
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    dstate = torch.empty((batch, kernel - 1, width) if state is not None else (0,), device=x.device)
    if kernel > LONGEST_IN_REGISTERS:
        dc = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        _filter(x, filters, bias, state, dy, dc, silu, head_dim, eps)
        backwards = filters.flip(0)
        _filter(dc, backwards, None, None, None, dx, False, 0, eps, shift=kernel - 1)
        if state is not None:
            _filter(dc, backwards, None, None, None, dstate, False, 0, eps)
        return dx, _long_filter_gradient(x, state, dc, kernel), dstate
    blocking = _blocking(width, head_dim or None, 128)
    blocks = triton.cdiv(width, blocking["SPAN"])
    rows = time + kernel - 1
    wanted = max(1, PROGRAMS // (batch * blocks))
    strip = triton.cdiv(max(triton.cdiv(rows, wanted), 32), 8) * 8
    workers = batch * triton.cdiv(rows, strip)
    partial = torch.empty((workers, kernel + 1, width), device=x.device)
    _backward[(workers * blocks,)](
        x, filters, bias, state, dy, dx, dstate, partial, time, strip, WIDTH=width, STRIDE=x.stride(1),
        DY_STRIDE=dy.stride(1), KERNEL=kernel, HAS_BIAS=bias is not None, HAS_STATE=state is not None, SILU=silu,
        NORMALISE=head_dim > 0, EPS=eps, STEPS=8, **blocking,
    )  # fmt: skip
    return dx, partial.sum(0).T, dstate


def _long_filter_gradient(x: Tensor, state: Tensor | None, dc: Tensor, kernel: int) -> Tensor:
    batch, time, width = x.shape
    blocking = _blocking(width, None, 128)
    programs = triton.cdiv(width, blocking["SPAN"]) * (kernel // _taps(kernel))
    items = batch * triton.cdiv(time, 16)
    per_worker = triton.cdiv(items, max(1, PROGRAMS // programs))
    workers = triton.cdiv(items, per_worker)
    partial = torch.empty((workers, kernel + 1, width), device=x.device)
    _filter_gradient[(workers * programs,)](
        x, state, dc, partial, time, items, per_worker, WIDTH=width, STRIDE=x.stride(1), KERNEL=kernel,
        HAS_STATE=state is not None, STEPS=16, TAPS=_taps(kernel), **blocking,
    )  # fmt: skip
    return partial.sum(0).T


@_backward_op.register_fake
def _(dy, x, weight, bias, state, silu, head_dim, eps):  # type: ignore[no-untyped-def]
    batch, time, width = x.shape
    kernel = weight.shape[1]
    dx = torch.empty((batch, time, width), dtype=x.dtype, device=x.device)
    dstate = torch.empty((batch, kernel - 1, width) if state is not None else (0,), device=x.device)
    return dx, torch.empty((kernel + 1, width), device=x.device).T, dstate


def _save(ctx, inputs, output):  # type: ignore[no-untyped-def]
    x, weight, bias, state, *ctx.options = inputs
    ctx.save_for_backward(x, weight, bias, state)


def _differentiate(ctx, dy):  # type: ignore[no-untyped-def]
    x, weight, bias, state = ctx.saved_tensors
    dx, dtaps, dstate = _backward_op(dy, x, weight, bias, state, *ctx.options)
    dbias = None if bias is None else dtaps[:, -1].to(bias.dtype)
    return dx, dtaps[:, :-1].to(weight.dtype), dbias, None if state is None else dstate, None, None, None


_forward_op.register_autograd(_differentiate, setup_context=_save)


def fused(
    x: Float[Tensor, "batch time width"],
    weight: Float[Tensor, "width kernel"],
    bias: Float[Tensor, "width"] | None = None,
    initial_state: Float[Tensor, "batch window width"] | None = None,
    *,
    silu: bool = True,
    head_dim: int | None = None,
    eps: float = 1e-6,
) -> tuple[Float[Tensor, "batch time width"], Float[Tensor, "batch window width"]]:
    """The same function as `reference`, in one kernel each way."""
    state = None if initial_state is None else initial_state.float().contiguous()
    bias = None if bias is None else bias.contiguous()
    y = _forward_op(x, weight, bias, state, silu, head_dim or 0, eps)
    window, time = weight.shape[1] - 1, x.shape[1]
    last = x[:, max(0, time - window) :].float()
    missing = window - last.shape[1]
    if missing > 0:
        before = last.new_zeros(x.shape[0], window, x.shape[2]) if state is None else state
        last = torch.cat([before[:, window - missing :], last], dim=1)
    return y, last
