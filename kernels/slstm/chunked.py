"""The sLSTM cell as a lean loop in plain torch, with a hand-written gradient.

A non-linear recurrence has no parallel form. What can leave the loop does: the backward pass recomputes all
gates at once from the stored states, and only the adjoint recurrence itself goes step by step.
"""

from typing import Any

import torch
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn.functional import logsigmoid

from tsseq.array_typing import Float, Tensor


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
        state = gates.new_zeros(4, *gates.shape[1:3], recurrent.shape[-1])
        state[2] = -torch.inf
    else:
        state = initial_state.to(dtype).permute(1, 2, 0, 3)
    h, last = _Cell.apply(gates, r, state)  # type: ignore[no-untyped-call]
    return h.permute(2, 0, 1, 3).to(cell_input.dtype), last.permute(2, 0, 1, 3)


class _Cell(Function):
    """`gates` [time, head, batch, 4 key], `r` [head, key, 4 key], `state` [4, head, batch, key] as c, n, m, h."""

    @staticmethod
    def forward(ctx: Any, gates: Tensor, r: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        states = state.new_empty(gates.shape[0] + 1, *state.shape)
        states[0] = state
        c, n, m, h = state
        for t, x in enumerate(gates):
            i, f, z, o = torch.baddbmm(x, h, r).chunk(4, dim=-1)
            log_forget = logsigmoid(f).add_(m)
            out = states[t + 1]
            m = torch.maximum(log_forget, i, out=out[2])
            enter, keep = (i - m).exp_(), log_forget.sub_(m).exp_()
            c = torch.mul(keep, c, out=out[0]).addcmul_(enter, torch.tanh(z))
            n = torch.addcmul(enter, keep, n, out=out[1])
            h = torch.mul(torch.sigmoid(o), c, out=out[3]).div_(n)
        ctx.save_for_backward(gates, r, states)
        return states[1:, 3].clone(), states[-1].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_outputs: Tensor, d_last: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        gates, r, states = ctx.saved_tensors
        c, n, m, h = states.unbind(1)
        i, f, z, o = (gates + h[:-1] @ r).chunk(4, dim=-1)
        enter, keep = torch.exp(i - m[1:]), torch.exp(logsigmoid(f) + m[:-1] - m[1:])
        z, o = torch.tanh(z), torch.sigmoid(o)
        ratio = c[1:] / n[1:]
        # Each gate's gradient is dc times one factor plus dn (for the output gate dh) times another.
        slope = torch.sigmoid(-f)
        by_c = torch.stack([z * enter, c[:-1] * keep * slope, enter * (1 - z * z)], dim=-2)
        by_n = torch.stack([enter, n[:-1] * keep * slope], dim=-2)
        by_h = ratio * o * (1 - o)
        # h is blind to a shift of m against log c and log n. What the last state adds to that shift's gradient
        # passes back unchanged for as long as m follows the forget gate, and ends in the input gate that set it.
        dc, dn, dm, dh = d_last
        follows = (logsigmoid(f) + m[:-1] >= i).to(i.dtype)
        last = dm - c[-1] * dc - n[-1] * dn
        shift = torch.cat([last * follows.flip(0).cumprod(0).flip(0), last.unsqueeze(0)])
        by_m = torch.stack([shift[1:] - shift[:-1], shift[:-1] * slope], dim=-2)
        to_c = o / n[1:]
        to_n = -to_c * ratio
        d_gates = torch.empty_like(gates)
        for t in range(gates.shape[0] - 1, -1, -1):
            dh = dh + d_outputs[t]
            dc = torch.addcmul(dc, dh, to_c[t])
            dn = torch.addcmul(dn, dh, to_n[t])
            out = d_gates[t].unflatten(-1, (4, -1))
            torch.mul(by_c[t], dc.unsqueeze(-2), out=out[..., :3, :])
            out[..., :2, :].addcmul_(by_n[t], dn.unsqueeze(-2)).add_(by_m[t])
            torch.mul(by_h[t], dh, out=out[..., 3, :])
            dh = d_gates[t] @ r.mT
            dc, dn = dc * keep[t], dn * keep[t]
        d_r = torch.einsum("thbk,thbg->hkg", h[:-1], d_gates)
        return d_gates, d_r, torch.stack([dc, dn, shift[0] + c[0] * dc + n[0] * dn, dh])
