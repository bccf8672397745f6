"""The sLSTM cell as a lean loop in plain torch, with a hand-written gradient.

A non-linear recurrence has no parallel form. What can leave the loop does: the backward pass recomputes all
gates at once from the stored states, and only the adjoint recurrence itself goes step by step.
"""

from typing import Any

import torch
from torch.autograd import Function
from torch.nn.functional import logsigmoid

from tsseq.array_typing import Float, Tensor
from tsseq.kernels.gradients import differentiable_gradients, in_own_precision
from tsseq.kernels.slstm.reference import reference
from tsseq.kernels.slstm.state import expanded, reduced


def chunked(
    input_gate: Float[Tensor, "batch time head key"],
    forget_gate: Float[Tensor, "batch time head key"],
    cell_input: Float[Tensor, "batch time head key"],
    output_gate: Float[Tensor, "batch time head key"],
    recurrent: Float[Tensor, "gate head key key"],
    initial_state: Float[Tensor, "batch part head key"] | None = None,
) -> tuple[Float[Tensor, "batch time head key"], Float[Tensor, "batch part head key"]]:
    """See `tsseq.kernels.slstm.slstm`."""
    dtype = torch.promote_types(cell_input.dtype, torch.float32)
    # [time, head, batch, gate * key]: one batched product per step adds what all four gates get from h.
    gates = torch.stack([x.to(dtype) for x in (input_gate, forget_gate, cell_input, output_gate)], dim=3)
    gates = gates.permute(1, 2, 0, 3, 4).flatten(3)
    r = recurrent.to(dtype).permute(1, 3, 0, 2).flatten(2)
    if initial_state is None:
        state = gates.new_zeros(3, *gates.shape[1:3], recurrent.shape[-1])
        state[1] = -torch.inf
    else:
        state = reduced(initial_state.to(dtype)).permute(1, 2, 0, 3)
    h, last = _Cell.apply(gates, r, state)  # type: ignore[no-untyped-call]
    return h.permute(2, 0, 1, 3).to(cell_input.dtype), expanded(last.permute(2, 0, 1, 3))


class _Cell(Function):
    """`gates` [time, head, batch, 4 key], `r` [head, key, 4 key], reduced `state` [3, head, batch, key]."""

    @staticmethod
    @in_own_precision
    def forward(ctx: Any, gates: Tensor, r: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        states = state.new_empty(gates.shape[0] + 1, *state.shape)
        states[0] = state
        average, log_n, h = state
        for t, x in enumerate(gates):
            i, f, z, o = torch.baddbmm(x, h, r).chunk(4, dim=-1)
            out = states[t + 1]
            kept = logsigmoid(f).add_(log_n)
            log_n = torch.logaddexp(kept, i, out=out[1])
            average = torch.lerp(torch.tanh(z), average, torch.sigmoid(kept - i), out=out[0])
            h = torch.mul(torch.sigmoid(o), average, out=out[2])
        ctx.save_for_backward(gates, r, state, states)
        return states[1:, 2].clone(), states[-1].clone()

    @staticmethod
    @in_own_precision
    def backward(ctx: Any, d_outputs: Tensor, d_last: Tensor) -> tuple[Tensor, ...]:
        gates, r, state, states = ctx.saved_tensors
        if torch.is_grad_enabled():
            return differentiable_gradients(_loop, (gates, r, state), (d_outputs, d_last))
        average, log_n, h = states.unbind(1)
        i, f, z, o = (gates + torch.einsum("thbk,hkg->thbg", h[:-1], r)).chunk(4, dim=-1)
        above = logsigmoid(f) + log_n[:-1] - i
        keep, renew = torch.sigmoid(above), torch.sigmoid(-above)
        z, o, slope = torch.tanh(z), torch.sigmoid(o), torch.sigmoid(-f)
        # Each gate's gradient is that of the average times one factor plus that of log n (of h) times another.
        by_gate = (average[:-1] - z) * keep * renew
        by_average = torch.stack([-by_gate, by_gate, renew * (1 - z * z)], dim=-2)
        by_log_n = torch.stack([renew, keep], dim=-2)
        by_h = average[1:] * o * (1 - o)
        d_gates = torch.empty_like(gates)
        by_name = d_gates.unflatten(-1, (4, -1))
        columns = (
            d_outputs, o, by_average, by_log_n, by_h, slope, keep, d_gates,
            by_name[..., :3, :], by_name[..., :2, :], by_name[..., 1, :], by_name[..., 3, :],
        )  # fmt: skip
        to_h = r.mT.contiguous()
        d_average, d_log_n, dh = d_last
        # Every view is made before the loop: on a CPU making one costs as much as multiplying what it shows.
        for d_output, o_t, average_t, log_n_t, h_t, slope_t, keep_t, d_gates_t, first, gated, forget, output in zip(
            *(x.unbind(0)[::-1] for x in columns), strict=True
        ):
            dh = d_output + dh
            d_average = torch.addcmul(d_average, dh, o_t)
            torch.mul(average_t, d_average.unsqueeze(-2), out=first)
            gated.addcmul_(log_n_t, d_log_n.unsqueeze(-2))
            torch.mul(h_t, dh, out=output)
            d_log_n = forget.clone()
            forget.mul_(slope_t)
            d_average = d_average * keep_t
            dh = torch.bmm(d_gates_t, to_h)
        d_r = torch.einsum("thbk,thbg->hkg", h[:-1], d_gates)
        return d_gates, d_r, torch.stack([d_average, d_log_n, dh])


def _loop(gates: Tensor, r: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """The reference, in the layout of `_Cell`."""
    i, f, z, o = gates.unflatten(3, (4, -1)).permute(3, 2, 0, 1, 4)
    recurrent = r.unflatten(2, (4, -1)).permute(2, 0, 3, 1)
    h, last = reference(i, f, z, o, recurrent, expanded(state.permute(2, 0, 1, 3)))
    return h.permute(1, 2, 0, 3), reduced(last).permute(1, 2, 0, 3)
