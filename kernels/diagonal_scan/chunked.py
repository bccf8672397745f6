"""The diagonal recurrence in plain torch: any device, real or complex, memory linear in time.

Time is cut into equal chunks that advance together, one position at a time, from a zero state; the products of
the decays then carry each chunk's last state into the next. Nothing is divided and no logarithm is taken, so
a decay may be zero, negative or complex. With many series at once one chunk is enough to fill each step.
The gradient is the same recurrence in the other direction.
"""

import math
from typing import Any

import torch
from torch.autograd import Function

from tsseq.array_typing import Bool, Inexact, Tensor

NUMBERS_PER_STEP = 8192
"""Enough work in one step to hide the cost of starting it on a CPU."""


def chunked(
    decay: Inexact[Tensor, "batch time state"] | Inexact[Tensor, "state"],
    inputs: Inexact[Tensor, "batch time state"],
    initial_state: Inexact[Tensor, "batch state"] | None = None,
    *,
    reverse: bool = False,
    resets: Bool[Tensor, "batch time"] | None = None,
) -> tuple[Inexact[Tensor, "batch time state"], Inexact[Tensor, "batch state"]]:
    """See `tsseq.kernels.diagonal_scan.diagonal_scan`."""
    dtype = torch.promote_types(inputs.dtype, torch.float32)
    a, b = decay.to(dtype), inputs.to(dtype)
    a = a if a.ndim == 3 else a[None, None]
    state = torch.zeros_like(b[:, 0]) if initial_state is None else initial_state.to(dtype)
    if resets is not None:
        if reverse:
            resets = torch.cat([resets[:, 1:], torch.zeros_like(resets[:, :1])], dim=1)
        a = a.expand(b.shape).masked_fill(resets.unsqueeze(-1), 0)
    if b.shape[1] == 1:
        state = a[:, 0] * state + b[:, 0]
        return state.unsqueeze(1).to(inputs.dtype), state
    states: Tensor = _Scan.apply(a, b, state, reverse)  # type: ignore[no-untyped-call]
    return states.to(inputs.dtype), states[:, 0 if reverse else -1]


class _Scan(Function):
    """States from decays [batch or 1, time or 1, state], inputs and the initial state."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, state: Tensor, reverse: bool) -> Tensor:
        states = _scan(a, b, state, reverse)
        ctx.reverse = reverse
        ctx.save_for_backward(a, state, states)
        return states

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        a, state, states = ctx.saved_tensors
        first = -1 if ctx.reverse else 0
        conjugate = a.conj().resolve_conj()
        # The gradient of position t reaches it through the decay of the position after it in scan order.
        after = _shift(conjugate, not ctx.reverse) if a.shape[1] > 1 else conjugate
        g, zero = gradients[0], torch.zeros_like(state)
        d_inputs: Tensor = _Scan.apply(after, g, zero, not ctx.reverse)  # type: ignore[no-untyped-call]
        before = _shift(states, ctx.reverse, state)
        d_decay = (d_inputs * before.conj()).sum_to_size(a.shape)
        return d_decay, d_inputs, conjugate[:, first] * d_inputs[:, first], None


def _shift(x: Tensor, earlier: bool, fill: Tensor | None = None) -> Tensor:
    """Each position gets its right neighbour (`earlier`) or its left one; the freed end gets `fill` or zero."""
    end = (torch.zeros_like(x[:, 0]) if fill is None else fill).unsqueeze(1)
    return torch.cat([x[:, 1:], end] if earlier else [end, x[:, :-1]], dim=1)


@torch.no_grad()
def _scan(a: Tensor, b: Tensor, state: Tensor, reverse: bool) -> Tensor:
    """All states: chunks of equal length together, then the remainder, in scan order."""
    batch, time, width = b.shape
    chunks = min(math.isqrt(time), math.ceil(NUMBERS_PER_STEP / max(1, batch * width)))
    size = time // chunks
    rest = time - chunks * size
    states = torch.empty_like(b, memory_format=torch.contiguous_format)
    whole = slice(rest, time) if reverse else slice(0, time - rest)
    a = a.expand(-1, time, -1)
    a_chunks, b_chunks, states_chunks = (x[:, whole].unflatten(1, (chunks, size)) for x in (a, b, states))
    state = _scan_chunks(a_chunks, b_chunks, states_chunks, state, reverse)
    if rest:
        left = slice(0, rest) if reverse else slice(time - rest, time)
        a_left, b_left, states_left = (x[:, left].unsqueeze(1) for x in (a, b, states))
        _scan_chunks(a_left, b_left, states_left, state, reverse)
    return states


def _scan_chunks(a: Tensor, b: Tensor, states: Tensor, state: Tensor, reverse: bool) -> Tensor:
    """Fill `states` [batch, chunk, size, state]; return the last one in scan order."""
    chunks, size = b.shape[1:3]
    step = -1 if reverse else 1
    times, order = range(size)[::step], range(chunks)[::step]
    h = torch.zeros_like(b[:, :, 0])
    h[:, order[0]] = state
    for t in times:
        h = torch.addcmul(b[:, :, t], a[:, :, t], h, out=states[:, :, t])
    if chunks == 1:
        return h[:, 0]
    products = a[:, :1] if a.stride(1) == 0 else a
    products = products.flip(2).cumprod(2).flip(2) if reverse else products.cumprod(2)
    carry = products[:, :, times[-1]].expand(-1, chunks, -1)
    # First each chunk's last state, one chunk after the other; then all other states in one pass.
    for before, chunk in zip(order[:-1], order[1:], strict=True):
        h[:, chunk].addcmul_(carry[:, chunk], h[:, before])
    others = slice(1, None) if reverse else slice(0, -1)
    into, out_of = (slice(0, -1), slice(1, None)) if reverse else (slice(1, None), slice(0, -1))
    factors = products[:, :, others].expand(-1, chunks, -1, -1)[:, into]
    states[:, into, others].addcmul_(factors, h[:, out_of].unsqueeze(2))
    return h[:, order[-1]]
