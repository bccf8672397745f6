"""Linear attention on a GPU as torch operators: whole under torch.compile, capturable in a CUDA graph."""

from typing import Any

import torch
import triton

from tsseq.array_typing import State, Tensor
from tsseq.kernels.layout import token_rows
from tsseq.kernels.linear_attention.channelwise import fused_channelwise
from tsseq.kernels.linear_attention.triton import adjoint_kernel, finish_kernel, forward_kernel, prepare_kernel
from tsseq.kernels.linear_attention.triton_gradients import key_gradients_kernel, query_gradients_kernel


def _is_ampere(x: Tensor) -> bool:
    return x.is_cuda and torch.cuda.get_device_capability(x.device) < (9, 0)


def _tiling(q: Tensor, v: Tensor) -> dict[str, int]:
    """Chunk length, slice of the values and warps: what spills least for a width, a type and an architecture."""
    bk = max(16, triton.next_power_of_2(q.shape[-1]))
    bv = max(16, triton.next_power_of_2(v.shape[-1]))
    chunk = 16 if q.dtype == torch.float32 else 32 if bk > 64 or max(bk, bv) <= 32 or _is_ampere(q) else 64
    return {"BK": bk, "BV": min(bv, 64), "CHUNK": chunk, "num_warps": 2 if max(bk, bv, chunk) <= 32 else 4}


def _options(q: Tensor, k: Tensor, v: Tensor) -> dict[str, Any]:
    return {
        "HEADS": q.shape[2], "K": q.shape[3], "V": v.shape[3], "Q_STRIDE": q.stride(1), "K_STRIDE": k.stride(1),
        "V_STRIDE": v.stride(1), "PRECISION": "tf32x3" if q.dtype == torch.float32 else "tf32", **_tiling(q, v),
    }  # fmt: skip


def _prepared(
    q: Tensor, decay: Tensor | None, gate: Tensor | None, chunk: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    batch, time, head, _ = q.shape
    chunks = triton.cdiv(time, chunk)
    high, low, source, top = torch.empty((4, batch, head, chunks * chunk), device=q.device).unbind(0)
    prepare_kernel[(batch * chunks,)](
        decay, gate, high, low, source, top, time, HEADS=head, BLOCK=triton.next_power_of_2(head), CHUNK=chunk,
        HAS_DECAY=decay is not None, HAS_GATE=gate is not None, num_warps=4,
    )  # fmt: skip
    return high, low, source, top


def _outputs(
    q: Tensor, v: Tensor, normalize: bool, save: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Read-outs, the last state, and the states before every chunk (flat; empty where there are none)."""
    batch, time, head, width = q.shape
    entries = batch * head * triton.cdiv(time, _tiling(q, v)["CHUNK"]) if save else 0
    n = int(normalize)

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=q.device)

    return (
        empty(*v.shape, dtype=q.dtype),
        empty(batch, head, width, v.shape[3]), empty(n * batch, head, width), empty(n * batch, head),
        empty(entries * width * v.shape[3], dtype=q.dtype), empty(n * entries * width), empty(n * entries),
    )  # fmt: skip


@torch.library.custom_op("tsseq::linear_attention_forward", mutates_args=())
def _forward_op(
    q: Tensor, k: Tensor, v: Tensor, decay: Tensor | None, gate: Tensor | None, memory0: Tensor | None,
    normalizer0: Tensor | None, maximum0: Tensor | None, normalize: bool, scale: float, save: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    q, k, v = token_rows(q), token_rows(k), token_rows(v)
    outputs = _outputs(q, v, normalize, save)
    options = _options(q, k, v)
    batch, time, head, _ = q.shape
    prepared = _prepared(q, decay, gate, options["CHUNK"])
    forward_kernel[(batch * head * triton.cdiv(v.shape[3], options["BV"]),)](
        q, k, v, *prepared, memory0, normalizer0, maximum0, *outputs, time, SCALE=scale,
        HAS_STATE=memory0 is not None, NORMALIZE=normalize, SAVE=save, STAGES=2, **options,
    )  # fmt: skip
    return outputs


@_forward_op.register_fake
def _(
    q: Any, k: Any, v: Any, decay: Any, gate: Any, memory0: Any, normalizer0: Any, maximum0: Any, normalize: bool,
    scale: float, save: bool,
) -> Any:  # fmt: skip
    return _outputs(q, v, normalize, save)


def _gradients(q: Tensor, v: Tensor, slices: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Room for the gradients of query, key, value, decay and gate; sums over values in slices."""
    batch, time, head, _ = q.shape
    partial = q.dtype if slices == 1 else torch.float32

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=q.device)

    return (
        empty(slices, *q.shape, dtype=partial), empty(slices, *q.shape, dtype=partial),
        empty(*v.shape, dtype=q.dtype), empty(batch, time, head), empty(batch, time, head),
    )  # fmt: skip


def _adjoint(
    q: Tensor, do: Tensor, dstate: tuple[Tensor | None, Tensor | None], memories: Tensor, normalizers: Tensor,
    inputs: tuple[Tensor, ...], options: dict[str, Any],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of the states after every chunk and of the first state."""
    batch, time, head, width = q.shape
    dmemory, dnormalizer = dstate
    normalize = options["NORMALIZE"]
    if dmemory is not None and normalize and dnormalizer is None:
        dnormalizer = torch.zeros_like(dmemory[..., 0])
    dmemories, dnormalizers = torch.empty_like(memories), torch.empty_like(normalizers)
    dmemory0 = torch.empty((batch, head, width, options["V"]), device=q.device)
    dnormalizer0 = torch.empty((batch * int(normalize), head, width), device=q.device)
    adjoint_kernel[(batch * head * triton.cdiv(options["V"], options["BV"]),)](
        q, do, *inputs, dmemory, dnormalizer, dmemories, dnormalizers, dmemory0, dnormalizer0, time,
        HAS_DSTATE=dmemory is not None, STAGES=2,
        **{name: x for name, x in options.items() if name not in ("K_STRIDE", "V_STRIDE")},
    )  # fmt: skip
    return dmemories, dnormalizers, dmemory0, dnormalizer0


@torch.library.custom_op("tsseq::linear_attention_backward", mutates_args=())
def _backward_op(
    do: Tensor, o: Tensor, dmemory: Tensor | None, dnormalizer: Tensor | None, q: Tensor, k: Tensor, v: Tensor,
    decay: Tensor | None, gate: Tensor | None, memories: Tensor, normalizers: Tensor, maxima: Tensor,
    normalize: bool, scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    q, k, v, do = token_rows(q), token_rows(k), token_rows(v), token_rows(do)
    options = _options(q, k, v) | {"SCALE": scale, "DO_STRIDE": do.stride(1), "NORMALIZE": normalize}
    slices = triton.cdiv(v.shape[3], options["BV"])
    dq, dk, dv, ddecay, dgate = _gradients(q, v, slices)
    batch, time, head, _ = q.shape
    chunk = options["CHUNK"]
    chunks = triton.cdiv(time, chunk)
    programs = batch * head * chunks * slices
    rows, columns, carries, dgate_columns = torch.empty((4, programs * chunk), device=q.device).unbind(0)
    totals = torch.empty((programs,), device=q.device)
    scales, feedbacks = torch.empty((2, maxima.numel() * chunk), device=q.device).unbind(0)
    has = {"HAS_DECAY": decay is not None, "HAS_GATE": gate is not None}
    prepared = _prepared(q, decay, gate, chunk)
    shared = (q, k, v, *prepared, memories, normalizers, maxima, do)
    query_gradients_kernel[(programs,)](
        *shared, (do.float() * o).sum(-1) if normalize and slices > 1 else None, scales, feedbacks, dq, rows, time,
        batch * time, HAS_DECAY=decay is not None, **options,
    )  # fmt: skip
    high, low, _, top = prepared
    dmemories, dnormalizers, dmemory0, dnormalizer0 = _adjoint(
        q, do, (dmemory, dnormalizer), memories, normalizers, (high, low, top, maxima, scales, feedbacks), options
    )
    key_gradients_kernel[(programs,)](
        *shared, scales, feedbacks, dmemories, dnormalizers, dk, dv, columns, carries, totals, dgate_columns, time,
        batch * time, **has, **options,
    )  # fmt: skip
    finish_kernel[(batch * chunks,)](
        rows, columns, carries, totals, dgate_columns, ddecay, dgate, time, batch * head * chunks, HEADS=head,
        BLOCK=triton.next_power_of_2(head), CHUNK=chunk, SLICES=slices, num_warps=4, **has,
    )  # fmt: skip
    if slices == 1:
        return dq[0], dk[0], dv, ddecay, dgate, dmemory0, dnormalizer0
    return dq.sum(0).to(q.dtype), dk.sum(0).to(q.dtype), dv, ddecay, dgate, dmemory0, dnormalizer0


@_backward_op.register_fake
def _(do: Any, o: Any, dmemory: Any, dnormalizer: Any, q: Any, k: Any, v: Any, *others: Any) -> Any:
    normalize = others[5]
    batch, _, head, width = q.shape
    dq, dk, dv, ddecay, dgate = _gradients(q, v, 1)
    dmemory0 = torch.empty((batch, head, width, v.shape[3]), device=q.device)
    dnormalizer0 = torch.empty((batch * int(normalize), head, width), device=q.device)
    return dq[0], dk[0], dv, ddecay, dgate, dmemory0, dnormalizer0


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.normalize, ctx.scale, _ = inputs[8:]
    ctx.save_for_backward(*inputs[:8], *output)
    ctx.set_materialize_grads(False)


def _differentiate(
    ctx: Any, do: Tensor | None, dmemory: Tensor | None, dnormalizer: Tensor | None, dmaximum: Tensor | None,
    *_: None,
) -> tuple[Tensor | None, ...]:  # fmt: skip
    q, k, v, decay, gate, memory0, normalizer0, maximum0, o, *state = ctx.saved_tensors
    do = torch.zeros_like(o) if do is None else do.to(q.dtype)
    if dmemory is None and dnormalizer is not None:
        dmemory = torch.zeros_like(state[0])
    contiguous = [None if x is None else x.contiguous() for x in (dmemory, dnormalizer)]
    found = _backward_op(do, o, *contiguous, q, k, v, decay, gate, *state[3:], ctx.normalize, ctx.scale)
    dq, dk, dv, ddecay, dgate, dmemory0, dnormalizer0 = found
    dmaximum0 = None
    if maximum0 is not None:
        dmaximum0 = (dmemory0 * memory0).sum((-1, -2)) + (dnormalizer0 * normalizer0).sum(-1)
    if ctx.normalize and any(x is not None for x in (dmemory, dnormalizer, dmaximum)):
        excess = torch.zeros_like(state[2]) if dmaximum is None else dmaximum
        for gradient, member in zip((dmemory, dnormalizer), state[:2], strict=True):
            if gradient is not None:
                excess = excess - (gradient * member).flatten(2).sum(-1)
        late, chosen, from_start = _through_maximum(q, decay, gate, maximum0)
        ddecay, dgate = ddecay + late * excess[:, None], dgate + chosen * excess[:, None]
        if dmaximum0 is not None:
            dmaximum0 = dmaximum0 + from_start * excess
    return (
        dq, dk, dv, None if decay is None else ddecay, None if gate is None else dgate,
        None if memory0 is None else dmemory0, None if normalizer0 is None else dnormalizer0, dmaximum0,
        None, None, None,
    )  # fmt: skip


def _through_maximum(
    q: Tensor, decay: Tensor | None, gate: Tensor | None, maximum0: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradient of the final maximum to the decays, the gates and the first maximum: it picks one position.

    Outputs do not depend on it; the state it scales does. Only a loss on the final state comes here.
    """
    zeros = torch.zeros(q.shape[:3], device=q.device)
    f, i = (zeros if x is None else x for x in (decay, gate))
    until_end = f.flip(1).cumsum(1).flip(1)
    start = zeros[:, :1] - torch.inf if maximum0 is None else maximum0[:, None] + until_end[:, :1]
    winner = torch.cat([start, until_end - f + i], dim=1).argmax(1, keepdim=True)
    position = torch.arange(q.shape[1] + 1, device=q.device)[:, None]
    chosen = (position == winner).float()
    return (position > winner)[:, 1:].float(), chosen[:, 1:], chosen[:, 0]


_forward_op.register_autograd(_differentiate, setup_context=_save)


def fused(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    log_decay: Tensor | None = None,
    input_gate: Tensor | None = None,
    initial_state: State | None = None,
    *,
    normalize: bool = False,
    scale: float | None = None,
) -> tuple[Tensor, State]:
    """The same function as `reference`, in one kernel each way."""
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    if log_decay is not None and log_decay.ndim == 4:
        if input_gate is not None:
            key = key * input_gate.exp()[..., None].to(key.dtype)
        return fused_channelwise(query, key, value, log_decay, initial_state, scale)
    tensors: list[Tensor | None] = [query, key.to(query.dtype), value.to(query.dtype)]
    for x in (log_decay, input_gate, *(initial_state or ())):
        tensors.append(None if x is None else x.float().contiguous())
    tensors += [None] * (8 - len(tensors))
    save = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)
    o, *state = _forward_op(*tensors, normalize, scale, save)
    return o, tuple(state[:3] if normalize else state[:1])
