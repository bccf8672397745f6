"""The selective scan on a GPU: one kernel forward, one backward, states in registers.

A program owns some channels of one sequence and steps through time; every thread holds all states of its channels.
The forward pass leaves a state every STEPS positions, from which the backward pass recomputes the few in between.
"""

import torch
import triton
import triton.language as tl

from tsseq.array_typing import Float, Tensor
from tsseq.kernels.layout import token_rows

LOG2E = tl.constexpr(1.4426950408889634)
STEPS = 8
STATES = 16  # of a program; further states are further programs, and their outputs are added up
CHANNELS = 32


@triton.jit
def _steps(x, base, t, T, offset, live, STRIDE: tl.constexpr, STEPS: tl.constexpr):
    """STEPS rows from position t on, zero after the end; all loads before the first use."""
    rows = ()
    for u in tl.static_range(STEPS):
        inside = tl.where(t + u < T, live, False)
        rows = rows + (tl.load(x + (base + t + u) * STRIDE + offset, inside, 0.0),)
    return rows


@triton.jit(do_not_specialize=["T", "tokens"])
def _forward(
    x, delta, A, B, C, D, state0, y, state, saved, T, tokens,
    WIDTH: tl.constexpr, N: tl.constexpr, X_STRIDE: tl.constexpr, DELTA_STRIDE: tl.constexpr,
    B_STRIDE: tl.constexpr, C_STRIDE: tl.constexpr, HAS_D: tl.constexpr, HAS_STATE: tl.constexpr,
    SAVE: tl.constexpr, STEPS: tl.constexpr, STATES: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    PARTS: tl.constexpr = (N + STATES - 1) // STATES
    BLOCKS: tl.constexpr = (WIDTH + CHANNELS - 1) // CHANNELS
    program = tl.program_id(0)
    channel = program % BLOCKS * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    part = program // BLOCKS % PARTS
    n = part * STATES + tl.arange(0, STATES)[:, None]
    batch = (program // BLOCKS // PARTS).to(tl.int64)
    here, among = channel < WIDTH, n < N
    chunks = tl.cdiv(T, STEPS)

    rate = tl.load(A + channel * N + n, here & among, 0.0) * LOG2E
    skip = tl.zeros((1, CHANNELS), tl.float32)
    if HAS_D:
        skip = tl.load(D + channel, tl.where(part == 0, here, False), 0.0)
    h = tl.zeros((STATES, CHANNELS), tl.float32)
    if HAS_STATE:
        h = tl.load(state0 + (batch * WIDTH + channel) * N + n, here & among, 0.0)
    for c in range(0, chunks):
        t = c * STEPS
        if SAVE:
            tl.store(saved + ((batch * chunks + c) * N + n) * WIDTH + channel, h, here & among)
        xs = _steps(x, batch * T, t, T, channel, here, X_STRIDE, STEPS)
        ds = _steps(delta, batch * T, t, T, channel, here, DELTA_STRIDE, STEPS)
        bs = _steps(B, batch * T, t, T, n, among, B_STRIDE, STEPS)
        cs = _steps(C, batch * T, t, T, n, among, C_STRIDE, STEPS)
        for u in tl.static_range(STEPS):
            u_t = xs[u].to(tl.float32)
            d = ds[u].to(tl.float32)
            h = tl.exp2(d * rate) * h + bs[u].to(tl.float32) * (d * u_t)
            out = tl.sum(h * cs[u].to(tl.float32), axis=0)[None, :] + skip * u_t
            place = (part * tokens.to(tl.int64) + batch * T + t + u) * WIDTH + channel
            tl.store(y + place, out.to(y.dtype.element_ty), tl.where(t + u < T, here, False))
    tl.store(state + (batch * WIDTH + channel) * N + n, h, here & among)


@triton.jit(do_not_specialize=["T", "tokens"])
def _backward(
    x, delta, A, B, C, D, saved, dy, dstate, dx, ddelta, dA, dB, dC, dD, dstate0, T, tokens,
    WIDTH: tl.constexpr, N: tl.constexpr, X_STRIDE: tl.constexpr, DELTA_STRIDE: tl.constexpr,
    B_STRIDE: tl.constexpr, C_STRIDE: tl.constexpr, DY_STRIDE: tl.constexpr, HAS_D: tl.constexpr,
    HAS_DSTATE: tl.constexpr, STEPS: tl.constexpr, STATES: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    PARTS: tl.constexpr = (N + STATES - 1) // STATES
    BLOCKS: tl.constexpr = (WIDTH + CHANNELS - 1) // CHANNELS
    program = tl.program_id(0)
    block = program % BLOCKS
    channel = block * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    part = program // BLOCKS % PARTS
    n = part * STATES + tl.arange(0, STATES)[:, None]
    batch = (program // BLOCKS // PARTS).to(tl.int64)
    here, among = channel < WIDTH, n < N
    chunks = tl.cdiv(T, STEPS)

    rate = tl.load(A + channel * N + n, here & among, 0.0) * LOG2E
    skip = tl.zeros((1, CHANNELS), tl.float32)
    if HAS_D:
        skip = tl.load(D + channel, tl.where(part == 0, here, False), 0.0)
    g = tl.zeros((STATES, CHANNELS), tl.float32)
    if HAS_DSTATE:
        g = tl.load(dstate + (batch * WIDTH + channel) * N + n, here & among, 0.0)
    drate = tl.zeros((STATES, CHANNELS), tl.float32)
    dskip = tl.zeros((1, CHANNELS), tl.float32)
    for back in range(0, chunks):
        c = chunks - 1 - back
        t = c * STEPS
        h = tl.load(saved + ((batch * chunks + c) * N + n) * WIDTH + channel, here & among, 0.0)
        xs = _steps(x, batch * T, t, T, channel, here, X_STRIDE, STEPS)
        ds = _steps(delta, batch * T, t, T, channel, here, DELTA_STRIDE, STEPS)
        bs = _steps(B, batch * T, t, T, n, among, B_STRIDE, STEPS)
        cs = _steps(C, batch * T, t, T, n, among, C_STRIDE, STEPS)
        gs = _steps(dy, batch * T, t, T, channel, here, DY_STRIDE, STEPS)
        states = (h,)
        for u in tl.static_range(STEPS):
            d = ds[u].to(tl.float32)
            h = tl.exp2(d * rate) * h + bs[u].to(tl.float32) * (d * xs[u].to(tl.float32))
            states = states + (h,)
        for u in tl.static_range(STEPS - 1, -1, -1):
            u_t = xs[u].to(tl.float32)
            d = ds[u].to(tl.float32)
            dout = gs[u].to(tl.float32)
            g += cs[u].to(tl.float32) * dout
            dread = tl.sum(states[u + 1] * dout, axis=1)[:, None]
            dwrite = tl.sum(g * (d * u_t), axis=1)[:, None]
            into = tl.sum(g * bs[u].to(tl.float32), axis=0)[None, :]
            g *= tl.exp2(d * rate)
            slope = g * states[u]
            drate += slope * d
            dd = tl.sum(slope * rate, axis=0)[None, :] / LOG2E + into * u_t
            dskip += dout * u_t
            token = batch * T + t + u
            inside = tl.where(t + u < T, here, False)
            place = (part * tokens.to(tl.int64) + token) * WIDTH + channel
            tl.store(dx + place, (into * d + skip * dout).to(dx.dtype.element_ty), inside)
            tl.store(ddelta + place, dd.to(ddelta.dtype.element_ty), inside)
            of = (block * tokens.to(tl.int64) + token) * N + n
            tl.store(dB + of, dwrite, tl.where(t + u < T, among, False))
            tl.store(dC + of, dread, tl.where(t + u < T, among, False))
    tl.store(dstate0 + (batch * WIDTH + channel) * N + n, g, here & among)
    tl.store(dA + (batch * WIDTH + channel) * N + n, drate, here & among)
    if HAS_D:
        tl.store(dD + batch * WIDTH + channel, dskip, tl.where(part == 0, here, False))


def _tiling(x: Tensor, A: Tensor) -> tuple[dict[str, int], int, int]:
    """Tile sizes, blocks of channels, and parts of the states."""
    states = min(STATES, triton.next_power_of_2(A.shape[1]))
    tiling = {"STEPS": STEPS, "STATES": states, "CHANNELS": CHANNELS, "num_warps": 1}
    return tiling, triton.cdiv(x.shape[2], CHANNELS), triton.cdiv(A.shape[1], states)


def _outputs(x: Tensor, A: Tensor, save: bool) -> tuple[Tensor, Tensor, Tensor]:
    batch, time, width = x.shape
    saved = batch * triton.cdiv(time, STEPS) * A.shape[1] * width if save else 0
    y = torch.empty((batch, time, width), dtype=x.dtype, device=x.device)
    state = torch.empty((batch, *A.shape), device=x.device)
    return y, state, torch.empty((saved,), device=x.device)


@torch.library.custom_op("tsseq::selective_scan_forward", mutates_args=())
def _forward_op(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, state0: Tensor | None, save: bool
) -> tuple[Tensor, Tensor, Tensor]:
    x, delta, B, C = token_rows(x), token_rows(delta), token_rows(B), token_rows(C)
    tiling, blocks, parts = _tiling(x, A)
    y, state, saved = _outputs(x, A, save)
    batch, time, width = x.shape
    sums = y if parts == 1 else torch.empty((parts, batch, time, width), device=x.device)
    _forward[(batch * parts * blocks,)](
        x, delta, A.contiguous(), B, C, D, state0, sums, state, saved, time, batch * time, WIDTH=width,
        N=A.shape[1], X_STRIDE=x.stride(1), DELTA_STRIDE=delta.stride(1), B_STRIDE=B.stride(1),
        C_STRIDE=C.stride(1), HAS_D=D is not None, HAS_STATE=state0 is not None, SAVE=save, **tiling,
    )  # fmt: skip
    return y if parts == 1 else sums.sum(0).to(x.dtype), state, saved


@_forward_op.register_fake
def _(x, delta, A, B, C, D, state0, save):
    return _outputs(x, A, save)


@torch.library.custom_op("tsseq::selective_scan_backward", mutates_args=())
def _backward_op(
    dy: Tensor, dstate: Tensor | None, x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None,
    saved: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    x, delta, B, C, dy = token_rows(x), token_rows(delta), token_rows(B), token_rows(C), token_rows(dy)
    tiling, blocks, parts = _tiling(x, A)
    batch, time, width = x.shape
    dtypes = (x.dtype, delta.dtype) if parts == 1 else (torch.float32, torch.float32)
    dx, ddelta = (torch.empty((parts, batch, time, width), dtype=dtype, device=x.device) for dtype in dtypes)
    dB, dC = torch.empty((2, blocks, batch, time, A.shape[1]), device=x.device).unbind(0)
    dA, dstate0 = torch.empty((2, batch, *A.shape), device=x.device).unbind(0)
    dD = torch.empty((batch, width if D is not None else 0), device=x.device)
    _backward[(batch * parts * blocks,)](
        x, delta, A.contiguous(), B, C, D, saved, dy, dstate, dx, ddelta, dA, dB, dC, dD, dstate0, time,
        batch * time, WIDTH=width, N=A.shape[1], X_STRIDE=x.stride(1), DELTA_STRIDE=delta.stride(1),
        B_STRIDE=B.stride(1), C_STRIDE=C.stride(1), DY_STRIDE=dy.stride(1), HAS_D=D is not None,
        HAS_DSTATE=dstate is not None, **tiling,
    )  # fmt: skip
    rows = (dx[0], ddelta[0]) if parts == 1 else (dx.sum(0).to(x.dtype), ddelta.sum(0).to(delta.dtype))
    return *rows, dA.sum(0), dB.sum(0).to(B.dtype), dC.sum(0).to(C.dtype), dD.sum(0), dstate0.clone()


@_backward_op.register_fake
def _(dy, dstate, x, delta, A, B, C, D, saved):
    like = [torch.empty(z.shape, dtype=z.dtype, device=x.device) for z in (x, delta, A, B, C)]
    width = x.shape[2] if D is not None else 0
    return *like, torch.empty((width,), device=x.device), torch.empty((x.shape[0], *A.shape), device=x.device)


def _save(ctx, inputs, output):
    *tensors, _ = inputs
    ctx.save_for_backward(*tensors, output[2])
    ctx.set_materialize_grads(False)


def _differentiate(ctx, dy, dstate, _):
    x, delta, A, B, C, D, state0, saved = ctx.saved_tensors
    dy = torch.zeros_like(x) if dy is None else dy
    dstate = None if dstate is None else dstate.contiguous()
    *gradients, dD, dstate0 = _backward_op(dy, dstate, x, delta, A, B, C, D, saved)
    return *gradients, None if D is None else dD, None if state0 is None else dstate0, None


_forward_op.register_autograd(_differentiate, setup_context=_save)


def fused(
    x: Float[Tensor, "batch time width"],
    delta: Float[Tensor, "batch time width"],
    A: Float[Tensor, "width state"],
    B: Float[Tensor, "batch time state"],
    C: Float[Tensor, "batch time state"],
    D: Float[Tensor, "width"] | None = None,
    initial_state: Float[Tensor, "batch width state"] | None = None,
) -> tuple[Float[Tensor, "batch time width"], Float[Tensor, "batch width state"]]:
    """The same function as `reference`, in one kernel each way."""
    state0 = None if initial_state is None else initial_state.float().contiguous()
    tensors = [x, delta, A.float(), B, C, None if D is None else D.float().contiguous(), state0]
    save = torch.is_grad_enabled() and any(z is not None and z.requires_grad for z in tensors)
    y, state, _ = _forward_op(*tensors, save)
    return y, state
