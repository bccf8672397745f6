"""The gated normalisation on a GPU: one kernel forward, one backward, each tensor touched once."""

import torch
import triton
import triton.language as tl

from tsseq.array_typing import Float, Tensor
from tsseq.kernels.layout import token_rows

PROGRAMS = 1056  # eight per multiprocessor of a large GPU; bounds the partial sums of the weight's gradient


@triton.jit
def _tile(head, first, tokens, VALUE: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """Token and value indices of a tile of one head, and which entries exist."""
    token = first + tl.arange(0, ROWS)[:, None]
    value = tl.arange(0, BLOCK)[None, :]
    return token.to(tl.int64), head * VALUE + value, (token < tokens) & (value < VALUE)


@triton.jit(do_not_specialize=["tokens"])
def _forward(
    x, gate, weight, y, tokens,
    HEADS: tl.constexpr, VALUE: tl.constexpr, X_STRIDE: tl.constexpr, GATE_STRIDE: tl.constexpr,
    SILU: tl.constexpr, EPS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(0) % HEADS
    token, channel, live = _tile(head, tl.program_id(0) // HEADS * ROWS, tokens, VALUE, ROWS, BLOCK)
    o = tl.load(x + token * X_STRIDE + channel, live, 0.0).to(tl.float32)
    g = tl.load(gate + token * GATE_STRIDE + channel, live, 0.0).to(tl.float32)
    w = tl.load(weight + channel, channel < (head + 1) * VALUE, 0.0).to(tl.float32)
    inverse = tl.rsqrt(tl.sum(o * o, axis=1) / VALUE + EPS)[:, None]
    opening = tl.sigmoid(g)
    if SILU:
        opening *= g
    tl.store(y + token * (HEADS * VALUE) + channel, (o * inverse * w * opening).to(y.dtype.element_ty), live)


@triton.jit(do_not_specialize=["tokens", "workers"])
def _backward(
    x, gate, weight, dy, dx, dgate, partial, tokens, workers,
    HEADS: tl.constexpr, VALUE: tl.constexpr, X_STRIDE: tl.constexpr, GATE_STRIDE: tl.constexpr,
    DY_STRIDE: tl.constexpr, SILU: tl.constexpr, EPS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(0) % HEADS
    worker = tl.program_id(0) // HEADS
    _, channel, _ = _tile(head, 0, tokens, VALUE, ROWS, BLOCK)
    w = tl.load(weight + channel, channel < (head + 1) * VALUE, 0.0).to(tl.float32)
    dweight = tl.zeros((ROWS, BLOCK), tl.float32)
    for first in range(worker * ROWS, tokens, workers * ROWS):
        token, channel, live = _tile(head, first, tokens, VALUE, ROWS, BLOCK)
        o = tl.load(x + token * X_STRIDE + channel, live, 0.0).to(tl.float32)
        g = tl.load(gate + token * GATE_STRIDE + channel, live, 0.0).to(tl.float32)
        d = tl.load(dy + token * DY_STRIDE + channel, live, 0.0).to(tl.float32)
        inverse = tl.rsqrt(tl.sum(o * o, axis=1) / VALUE + EPS)[:, None]
        o *= inverse
        sigmoid = tl.sigmoid(g)
        opening = sigmoid
        slope = sigmoid * (1.0 - sigmoid)
        if SILU:
            opening = g * sigmoid
            slope = sigmoid + g * slope
        dweight += d * o * opening
        dg = d * o * w * slope
        dn = d * w * opening
        do = inverse * (dn - o * (tl.sum(dn * o, axis=1) / VALUE)[:, None])
        tl.store(dgate + token * (HEADS * VALUE) + channel, dg.to(dgate.dtype.element_ty), live)
        tl.store(dx + token * (HEADS * VALUE) + channel, do.to(dx.dtype.element_ty), live)
    value = tl.arange(0, BLOCK)
    row = worker.to(tl.int64) * (HEADS * VALUE) + head * VALUE
    tl.store(partial + row + value, tl.sum(dweight, axis=0), value < VALUE)


def _tiling(value: int) -> dict[str, int]:
    block = triton.next_power_of_2(value)
    return {"BLOCK": block, "ROWS": max(1, 2048 // block), "num_warps": 4}


@torch.library.custom_op("tsseq::gated_norm_forward", mutates_args=())
def _forward_op(x: Tensor, gate: Tensor, weight: Tensor, silu: bool, eps: float) -> Tensor:
    batch, time, heads, value = x.shape
    x, gate, tiling = token_rows(x), token_rows(gate), _tiling(value)
    y = torch.empty((batch, time, heads, value), dtype=x.dtype, device=x.device)
    _forward[(triton.cdiv(batch * time, tiling["ROWS"]) * heads,)](
        x, gate, weight.contiguous(), y, batch * time, HEADS=heads, VALUE=value, X_STRIDE=x.stride(1),
        GATE_STRIDE=gate.stride(1), SILU=silu, EPS=eps, **tiling,
    )  # fmt: skip
    return y


@_forward_op.register_fake
def _(x, gate, weight, silu, eps):  # type: ignore[no-untyped-def]
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


@torch.library.custom_op("tsseq::gated_norm_backward", mutates_args=())
def _backward_op(
    dy: Tensor, x: Tensor, gate: Tensor, weight: Tensor, silu: bool, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    batch, time, heads, value = x.shape
    x, gate, dy, tiling = token_rows(x), token_rows(gate), token_rows(dy), _tiling(value)
    dx = torch.empty((batch, time, heads, value), dtype=x.dtype, device=x.device)
    dgate = torch.empty((batch, time, heads, value), dtype=gate.dtype, device=x.device)
    workers = max(1, min(triton.cdiv(batch * time, tiling["ROWS"]), PROGRAMS // heads))
    partial = torch.empty((workers, heads, value), device=x.device)
    _backward[(workers * heads,)](
        x, gate, weight.contiguous(), dy, dx, dgate, partial, batch * time, workers, HEADS=heads, VALUE=value,
        X_STRIDE=x.stride(1), GATE_STRIDE=gate.stride(1), DY_STRIDE=dy.stride(1), SILU=silu, EPS=eps, **tiling,
    )  # fmt: skip
    return dx, dgate, partial.sum(0)


@_backward_op.register_fake
def _(dy, x, gate, weight, silu, eps):  # type: ignore[no-untyped-def]
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    dgate = torch.empty(x.shape, dtype=gate.dtype, device=x.device)
    return dx, dgate, torch.empty(weight.shape, device=x.device)


def _save(ctx, inputs, output):  # type: ignore[no-untyped-def]
    x, gate, weight, *ctx.options = inputs
    ctx.save_for_backward(x, gate, weight)


def _differentiate(ctx, dy):  # type: ignore[no-untyped-def]
    x, gate, weight = ctx.saved_tensors
    dx, dgate, dweight = _backward_op(dy, x, gate, weight, *ctx.options)
    return dx, dgate, dweight.to(weight.dtype), None, None


_forward_op.register_autograd(_differentiate, setup_context=_save)


def fused(
    x: Float[Tensor, "batch time head value"],
    gate: Float[Tensor, "batch time head value"],
    weight: Float[Tensor, "head value"],
    *,
    silu: bool = True,
    eps: float = 1e-5,
) -> Float[Tensor, "batch time head value"]:
    """The same function as `reference`, in one kernel each way."""
    return _forward_op(x, gate, weight, silu, eps)
