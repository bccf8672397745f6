"""Linear attention as a loop over time: the specification."""

import torch

from tsseq.array_typing import Float, State, Tensor


def reference(
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
    """One position at a time: decay the memory, add an outer product, read it out."""
    wide = torch.promote_types(query.dtype, torch.float32)
    q, k, v = (x.to(wide) for x in (query, key, value))
    batch, time, head, width = key.shape
    q = q * (width**-0.5 if scale is None else scale)
    f = q.new_zeros(batch, time, head) if log_decay is None else log_decay.to(wide)
    i = q.new_zeros(batch, time, head) if input_gate is None else input_gate.to(wide)
    f = f if f.ndim == 4 else f[..., None]
    state = initial_state or empty_state(key, value, normalize)
    read = _read_normalized if normalize else _read
    outputs = []
    for t in range(time):
        o, state = read(q[:, t], k[:, t], v[:, t], f[:, t], i[:, t], state)
        outputs.append(o)
    return torch.stack(outputs, dim=1).to(query.dtype), state


def _read(q: Tensor, k: Tensor, v: Tensor, f: Tensor, i: Tensor, state: State) -> tuple[Tensor, State]:
    (memory,) = state
    memory = f.exp()[..., None] * memory + (i.exp()[..., None] * k)[..., None] * v[..., None, :]
    return torch.einsum("bhk,bhkv->bhv", q, memory), (memory,)


def _read_normalized(q: Tensor, k: Tensor, v: Tensor, f: Tensor, i: Tensor, state: State) -> tuple[Tensor, State]:
    memory, normalizer, maximum = state
    f = f[..., 0]
    stabilizer = torch.maximum(f + maximum, i)
    keep = (f + maximum - stabilizer).exp()[..., None]
    k = (i - stabilizer).exp()[..., None] * k
    memory = keep[..., None] * memory + k[..., None] * v[..., None, :]
    normalizer = keep * normalizer + k
    weight = torch.maximum((q * normalizer).sum(-1).abs(), (-stabilizer).exp())
    return torch.einsum("bhk,bhkv->bhv", q, memory) / weight[..., None], (memory, normalizer, stabilizer)


def empty_state(key: Tensor, value: Tensor, normalize: bool) -> State:
    """The state before the first position, in float32 or wider."""
    wide = torch.promote_types(key.dtype, torch.float32)
    batch, _, head, width = key.shape
    memory = torch.zeros(batch, head, width, value.shape[-1], dtype=wide, device=key.device)
    if not normalize:
        return (memory,)
    maximum = torch.full((batch, head), -torch.inf, dtype=wide, device=key.device)
    return memory, torch.zeros_like(memory[..., 0]), maximum
