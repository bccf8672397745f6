"""Linear attention in plain torch: products inside chunks, a short loop over chunk states.

Exponents are sums over the positions they span, never differences of long sums, so they keep their precision
whatever the decay. Every exponential is of something that is at most the stabiliser.
"""

import torch
from torch.nn import functional as F

from tsseq.array_typing import Float, State, Tensor
from tsseq.kernels.linear_attention.reference import empty_state

CHUNK = 64
CHANNELWISE_CHUNK = 16


def chunked(
    query: Float[Tensor, "batch time head key"],
    key: Float[Tensor, "batch time head key"],
    value: Float[Tensor, "batch time head value"],
    log_decay: Tensor | None = None,
    input_gate: Float[Tensor, "batch time head"] | None = None,
    initial_state: State | None = None,
    *,
    normalize: bool = False,
    scale: float | None = None,
) -> tuple[Float[Tensor, "batch time head value"], State]:
    """The same function as `reference`, parallel inside chunks and linear in memory."""
    wide = torch.promote_types(query.dtype, torch.float32)
    scale = key.shape[-1] ** -0.5 if scale is None else scale
    state = tuple(x.to(wide) for x in initial_state) if initial_state else empty_state(key, value, normalize)
    if log_decay is not None and log_decay.ndim == 4:
        if input_gate is not None:
            key = key * input_gate.exp()[..., None].to(key.dtype)
        size = min(CHANNELWISE_CHUNK, 1 << (query.shape[1] - 1).bit_length())
        q, k, v, f = (_split(x.to(wide), size) for x in (query * scale, key, value, log_decay))
        o, state = _channelwise(q, k, v, f, state)
    else:
        size = min(CHUNK, query.shape[1])
        zeros = query.new_zeros(query.shape[:3], dtype=wide)
        f = _split(zeros if log_decay is None else log_decay.to(wide), size)
        i = _split(zeros if input_gate is None else input_gate.to(wide), size, -torch.inf)
        q, k, v = (_split(x.to(wide), size) for x in (query * scale, key, value))
        o, state = (_normalized if normalize else _headwise)(q, k, v, f, i, state)
    return o.flatten(2, 3)[:, :, : query.shape[1]].transpose(1, 2).to(query.dtype), state


def _split(x: Tensor, size: int, padding: float = 0.0) -> Tensor:
    """[batch, time, head, ...] to [batch, head, chunk, size, ...], padded at the end."""
    missing = -x.shape[1] % size
    if missing:
        x = F.pad(x, (0, 0) * (x.ndim - 2) + (0, missing), value=padding)
    chunks: Tensor = x.unflatten(1, (-1, size)).movedim(3, 1)
    return chunks


def _spans(f: Tensor) -> Tensor:
    """[..., i, j] = sum of f over (j, i], minus infinity above the diagonal."""
    size = f.shape[-1]
    later = torch.ones(size, size, dtype=torch.bool, device=f.device).tril(-1)
    spans = f[..., None].expand(*f.shape, size).masked_fill(~later, 0.0).cumsum(-2)
    return spans.masked_fill(~later.logical_or(torch.eye(size, dtype=torch.bool, device=f.device)), -torch.inf)


def _carry(decay: Tensor, update: Tensor, first: Tensor) -> tuple[Tensor, Tensor]:
    """States before every chunk, stacked along axis 2, and the state after the last."""
    states = [first]
    for n in range(decay.shape[2]):
        states.append(decay[:, :, n] * states[-1] + update[:, :, n])
    return torch.stack(states[:-1], dim=2), states[-1]


def _headwise(q: Tensor, k: Tensor, v: Tensor, f: Tensor, i: Tensor, state: State) -> tuple[Tensor, State]:
    spans = _spans(f) + i[..., None, :]
    before = f.cumsum(-1)
    update = (k * spans[..., -1, :].exp()[..., None]).mT @ v
    memory, last = _carry(before[..., -1, None, None].exp(), update, state[0])
    o = (q @ k.mT * spans.exp()) @ v + before.exp()[..., None] * (q @ memory)
    return o, (last,)


def _normalized(q: Tensor, k: Tensor, v: Tensor, f: Tensor, i: Tensor, state: State) -> tuple[Tensor, State]:
    """The read-out does not depend on the stabiliser, so that gradients pass it by except where it is a result.

    There what is owed to a gate and to the stabiliser that it sets are the same numbers, and cancel.
    """
    memory, normalizer, maximum = state
    spans = _spans(f) + i[..., None, :]
    before = f.cumsum(-1)
    stabilizers = [maximum]
    for n in range(f.shape[2]):
        stabilizers.append(torch.maximum(before[:, :, n, -1] + stabilizers[-1], spans[:, :, n, -1].amax(-1)))
    edges = torch.stack(stabilizers, dim=2).detach()
    entry, leave = edges[..., :-1, None], torch.cat([edges[..., 1:-1], stabilizers[-1][..., None]], dim=-1)[..., None]
    m = torch.maximum(before + entry, spans.amax(-1)).detach()

    shift = (maximum - edges[..., 0]).nan_to_num(0.0).exp()[..., None, None]
    first = torch.cat([memory, normalizer[..., None]], dim=-1) * shift
    v = torch.cat([v, torch.ones_like(v[..., :1])], dim=-1)
    update = (k * (spans[..., -1, :] - leave).exp()[..., None]).mT @ v
    memories, last = _carry((before[..., -1:] + entry - leave).exp()[..., None], update, first)
    inside = (q @ k.mT * (spans - m[..., None]).exp()) @ v
    o = inside + (before + entry - m).exp()[..., None] * (q @ memories)
    weight = torch.maximum(o[..., -1].abs(), (-m).exp())
    return o[..., :-1] / weight[..., None], (last[..., :-1], last[..., -1], stabilizers[-1])


def _channelwise(q: Tensor, k: Tensor, v: Tensor, f: Tensor, state: State) -> tuple[Tensor, State]:
    """Decay per key channel. A pair (i, j) of a chunk is taken where halving the chunk first parts them: both its
    factors, from j to the middle and from the middle to i, are then at most one."""
    size = q.shape[-2]
    before = f.cumsum(-2)
    after = F.pad(f, (0, 0, 0, 1))[..., 1:, :].flip(-2).cumsum(-2).flip(-2)
    update = (k * after.exp()).mT @ v
    memory, last = _carry(before[..., -1, :, None].exp(), update, state[0])
    o = (q * before.exp()) @ memory + (q * k).sum(-1, keepdim=True) * v
    half = 1
    while half < size:
        left_k, right_q = (x.unflatten(-2, (-1, 2, half))[..., s, :, :] for x, s in ((k, 0), (q, 1)))
        left_v = v.unflatten(-2, (-1, 2, half))[..., 0, :, :]
        left_f, right_f = f.unflatten(-2, (-1, 2, half)).unbind(-3)
        reach = F.pad(left_f, (0, 0, 0, 1))[..., 1:, :].flip(-2).cumsum(-2).flip(-2)
        part = (right_q * right_f.cumsum(-2).exp()) @ (left_k * reach.exp()).mT @ left_v
        o = o + torch.stack([torch.zeros_like(part), part], dim=-3).flatten(-4, -2)
        half *= 2
    return o, (last,)
