"""The selective scan in plain torch: a lean loop over time inside slices that stay in the cache.

Exponentials, input and output maps are had for a whole slice at once; what goes step by step is one multiply-add.
The gradient is hand-written. It forms the states of a slice again from the state that entered it, so that only
those are kept: memory is linear in time, and a small fraction of all states.
"""

from typing import Any

import torch
from torch.autograd import Function

from tsseq.array_typing import Float, Tensor
from tsseq.kernels.gradients import differentiable_gradients, in_own_precision
from tsseq.kernels.selective_scan.reference import reference

NUMBERS_PER_SLICE = 2**17
"""States of one slice: few enough for the cache of a core, many enough to hide the cost of starting an operation."""


def chunked(
    x: Float[Tensor, "batch time width"],
    delta: Float[Tensor, "batch time width"],
    A: Float[Tensor, "width state"],
    B: Float[Tensor, "batch time state"],
    C: Float[Tensor, "batch time state"],
    D: Float[Tensor, "width"] | None = None,
    initial_state: Float[Tensor, "batch width state"] | None = None,
) -> tuple[Float[Tensor, "batch time width"], Float[Tensor, "batch width state"]]:
    """The same function as `reference`."""
    wide = torch.promote_types(x.dtype, torch.float32)
    u = x.to(wide)
    state = u.new_zeros(u.shape[0], *A.shape) if initial_state is None else initial_state.to(wide)
    inputs = (z.to(wide).transpose(0, 1) for z in (x, delta, B, C))
    y, last = _SelectiveScan.apply(*inputs, A.to(wide), state)  # type: ignore[no-untyped-call]
    y = y.transpose(0, 1)
    return (y if D is None else y + D * u).to(x.dtype), last


class _SelectiveScan(Function):
    """`u`, `step` [time, batch, width], `write`, `read` [time, batch, state], `rate` [width, state]."""

    @staticmethod
    @in_own_precision
    def forward(
        ctx: Any, u: Tensor, step: Tensor, write: Tensor, read: Tensor, rate: Tensor, state: Tensor
    ) -> tuple[Tensor, Tensor]:
        y = torch.empty_like(u, memory_format=torch.contiguous_format)
        entering = []
        for now in _slices(u, rate):
            entering.append(state)
            _, states = _states(u[now], step[now], write[now], rate, state)
            torch.matmul(states, read[now].unsqueeze(-1), out=y[now].unsqueeze(-1))
            state = states[-1].clone()
        ctx.save_for_backward(u, step, write, read, rate, *entering)
        return y, state

    @staticmethod
    @in_own_precision
    def backward(ctx: Any, d_y: Tensor, carried: Tensor) -> tuple[Tensor, ...]:
        u, step, write, read, rate, *entering = ctx.saved_tensors
        if torch.is_grad_enabled():
            return differentiable_gradients(_loop, ctx.saved_tensors[:6], (d_y, carried))
        d_u, d_step, d_write, d_read = (
            torch.empty_like(z, memory_format=torch.contiguous_format) for z in (u, step, write, read)
        )
        d_rate = torch.zeros_like(rate)
        for now, state in reversed(list(zip(_slices(u, rate), entering, strict=True))):
            u_now, step_now, d_y_now = u[now], step[now], d_y[now]
            decay, states = _states(u_now, step_now, write[now], rate, state)
            g = d_y_now.unsqueeze(-1) * read[now].unsqueeze(2)
            g[-1] += carried
            rows, decays = g.unbind(0), decay.unbind(0)
            for t in range(len(rows) - 2, -1, -1):
                rows[t].addcmul_(decays[t + 1], rows[t + 1])
            carried = decay[0] * g[0]
            d_read[now] = (d_y_now.unsqueeze(2) @ states).squeeze(2)
            d_write[now] = ((step_now * u_now).unsqueeze(2) @ g).squeeze(2)
            through = (g @ write[now].unsqueeze(-1)).squeeze(-1)
            d_u[now] = step_now * through
            # The gradient of step * rate, by way of the decay.
            exponent = decay.mul_(g)
            exponent[0] *= state
            exponent[1:] *= states[:-1]
            d_rate += (exponent * step_now.unsqueeze(-1)).sum((0, 1))
            d_step[now] = exponent.mul_(rate).sum(-1).addcmul_(u_now, through)
        return d_u, d_step, d_write, d_read, d_rate, carried


def _loop(u: Tensor, step: Tensor, write: Tensor, read: Tensor, rate: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """The reference, with time first."""
    x, delta, B, C = (z.transpose(0, 1) for z in (u, step, write, read))
    y, last = reference(x, delta, rate, B, C, None, state)
    return y.transpose(0, 1), last


def _slices(u: Tensor, rate: Tensor) -> list[slice]:
    time, batch, _ = u.shape
    length = max(1, NUMBERS_PER_SLICE // max(1, batch * rate.numel()))
    return [slice(t, min(t + length, time)) for t in range(0, time, length)]


def _states(u: Tensor, step: Tensor, write: Tensor, rate: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """Decays and states [time, batch, width, state] of a slice."""
    decay = (step.unsqueeze(-1) * rate).exp_()
    states = (step * u).unsqueeze(-1) * write.unsqueeze(2)
    for a, h in zip(decay.unbind(0), states.unbind(0), strict=True):
        state = h.addcmul_(a, state)
    return decay, states
