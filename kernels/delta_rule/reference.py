"""The delta rule as a loop over time: the specification every faster form is tested against."""

import torch

from tsseq.array_typing import Float, Tensor


def reference(
    query: Float[Tensor, "batch time head key"],
    key: Float[Tensor, "batch time step head key"],
    value: Float[Tensor, "batch time step head value"],
    beta: Float[Tensor, "batch time step head"],
    log_decay: Float[Tensor, "batch time head"] | None = None,
    initial_state: Float[Tensor, "batch head key value"] | None = None,
) -> tuple[Float[Tensor, "batch time head value"], Float[Tensor, "batch head key value"]]:
    """See `tsseq.kernels.delta_rule.delta_rule`; states are float64 where the inputs are, float32 otherwise."""
    dtype = torch.promote_types(query.dtype, torch.float32)
    batch, time, head, width = query.shape
    state = query.new_zeros(batch, head, width, value.shape[-1], dtype=dtype)
    if initial_state is not None:
        state = initial_state.to(dtype)
    outputs = []
    for t in range(time):
        if log_decay is not None:
            state = log_decay[:, t, :, None, None].to(dtype).exp() * state
        for j in range(key.shape[2]):
            k, v = key[:, t, j].to(dtype), value[:, t, j].to(dtype)
            error = v - torch.einsum("bhk,bhkv->bhv", k, state)
            state = state + torch.einsum("bh,bhk,bhv->bhkv", beta[:, t, j].to(dtype), k, error)
        outputs.append(torch.einsum("bhk,bhkv->bhv", query[:, t].to(dtype), state))
    return torch.stack(outputs, dim=1).to(query.dtype), state
