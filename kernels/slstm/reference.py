"""The sLSTM cell as a loop over time: the specification every faster form is tested against."""

import torch
from torch.nn.functional import logsigmoid

from tsseq.array_typing import Float, Tensor


def reference(
    input_gate: Float[Tensor, "batch time head key"],
    forget_gate: Float[Tensor, "batch time head key"],
    cell_input: Float[Tensor, "batch time head key"],
    output_gate: Float[Tensor, "batch time head key"],
    recurrent: Float[Tensor, "gate head key key"],
    initial_state: Float[Tensor, "batch part head key"] | None = None,
) -> tuple[Float[Tensor, "batch time head key"], Float[Tensor, "batch part head key"]]:
    """See `tsseq.kernels.slstm.slstm`."""
    dtype = torch.promote_types(cell_input.dtype, torch.float32)
    gates = [x.to(dtype) for x in (input_gate, forget_gate, cell_input, output_gate)]
    r = recurrent.to(dtype)
    if initial_state is None:
        c = n = h = torch.zeros_like(gates[0][:, 0])
        m = torch.full_like(c, -torch.inf)
    else:
        c, n, m, h = initial_state.to(dtype).unbind(1)
    outputs = []
    for t in range(cell_input.shape[1]):
        i, f, z, o = (x[:, t] + torch.einsum("hij,bhj->bhi", r[g], h) for g, x in enumerate(gates))
        log_forget = logsigmoid(f)
        previous, m = m, torch.maximum(log_forget + m, i)
        enter, keep = torch.exp(i - m), torch.exp(log_forget + previous - m)
        c = keep * c + enter * torch.tanh(z)
        n = keep * n + enter
        h = torch.sigmoid(o) * c / n
        outputs.append(h)
    return torch.stack(outputs, dim=1).to(cell_input.dtype), torch.stack(
        [c / n, torch.ones_like(n), m + n.log(), h], dim=1
    )
