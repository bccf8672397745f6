"""The delta rule in parallel over chunks of time, in plain torch: any device, any dtype, memory linear in time.

Within a chunk the errors E = V - K S solve a unit-triangular system, the WY form of a product of Householder
matrices (Yang et al. 2024, arXiv 2406.06484; with decay, arXiv 2412.06464). Its inverse comes from substitution:
a series expansion explodes for the nearly equal keys of a smooth series.
"""

import math

import torch
from torch.nn.functional import pad

from tsseq.array_typing import Float, Tensor

CHUNK_ROWS = 32
"""Key-value rows (time steps times Householder steps) per chunk."""


def chunked(
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
    step = key.shape[2]
    size = math.ceil(time / math.ceil(time * step / max(CHUNK_ROWS, step)))
    chunks = math.ceil(time / size)

    q = _split(query.to(dtype), chunks, size)
    k, v, b = (_split(x.to(dtype).flatten(1, 2), chunks, size * step) for x in (key, value, beta))
    decay = _decay_between_steps(log_decay, chunks, size, q)
    decay_rows = decay.repeat_interleave(step, -1)
    score = (q @ k.mT) * decay_rows
    gram = ((k @ k.mT) * decay_rows.repeat_interleave(step, -2)).tril(-1)
    identity = torch.eye(size * step, dtype=dtype, device=q.device)
    # (I + gram diag(beta)) E = V - K S, and the state gains K^T diag(beta) E.
    inverse = torch.linalg.solve_triangular(
        identity + gram * b.unsqueeze(-2), identity.expand_as(gram), upper=False, unitriangular=True
    )
    solve = b.unsqueeze(-1) * inverse
    carry = k.new_ones(1, 1, 1, 1, 1)
    k_in = k_out = k
    if log_decay is not None:
        from_entry = _split(log_decay.to(dtype), chunks, size).cumsum(-1).exp().unsqueeze(-1)
        q, carry = q * from_entry, from_entry[..., -1:, :]
        k_in = k * from_entry.repeat_interleave(step, -2)
        k_out = k * decay_rows[..., -1, :].unsqueeze(-1)

    if initial_state is None:
        state = q.new_zeros(batch, head, width, value.shape[-1])
    else:
        state = initial_state.to(dtype)
    outputs = []
    # Iterating over the tensors, not indexing them: the gradient of each index would be a full tensor of zeros.
    for q_c, v_c, k_in_c, k_out_c, score_c, solve_c, carry_c in zip(
        q, v, k_in, k_out, score, solve, carry.expand(chunks, -1, -1, -1, -1), strict=True
    ):
        update = solve_c @ (v_c - k_in_c @ state)
        outputs.append(q_c @ state + score_c @ update)
        state = carry_c * state + k_out_c.mT @ update
    output = torch.stack(outputs, 1).transpose(2, 3).flatten(1, 2)[:, :time]
    return output.to(query.dtype), state


def _split(x: Tensor, chunks: int, size: int) -> Tensor:
    """[batch, rows, head, ...] to [chunk, batch, head, size, ...]; zero rows past the end change no state."""
    missing = chunks * size - x.shape[1]
    if missing:
        x = pad(x, (0, 0) * (x.ndim - 2) + (0, missing))
    split = x.reshape(x.shape[0], chunks, size, *x.shape[2:])
    return split.movedim(1, 0).movedim(3, 2).contiguous()


def _decay_between_steps(log_decay: Tensor | None, chunks: int, size: int, like: Tensor) -> Tensor:
    """Decay from step j to step i of a chunk, zero for j > i: [chunk, batch, head, size, size] or [size, size]."""
    causal = like.new_ones(size, size).tril()
    if log_decay is None:
        return causal
    # A sum over (j, i] for every pair, not a difference of two long sums: exact next to a reset (-inf).
    after = _split(log_decay.to(like.dtype), chunks, size).unsqueeze(-1).expand(-1, -1, -1, -1, size)
    between = after.masked_fill(causal.tril(-1) == 0, 0).cumsum(-2)
    return between.exp() * causal
