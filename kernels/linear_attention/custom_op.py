"""Linear attention on a GPU as torch operators: whole under torch.compile, capturable in a CUDA graph."""

from dataclasses import dataclass, replace
from typing import Any

import torch
import triton

from tsseq.array_typing import State, Tensor
from tsseq.kernels.layout import token_rows
from tsseq.kernels.linear_attention.channelwise import fused_channelwise
from tsseq.kernels.linear_attention.triton import adjoint_kernel, forward_kernel, read_kernel
from tsseq.kernels.linear_attention.triton_gates import finish_kernel, prepare_kernel
from tsseq.kernels.linear_attention.triton_gradients import key_gradients_kernel, query_gradients_kernel
from tsseq.kernels.precision import precision


def _is_ampere(x: Tensor) -> bool:
    return x.is_cuda and torch.cuda.get_device_capability(x.device) < (9, 0)


@dataclass(frozen=True)
class Launch:
    """How a kernel is launched: the values it takes at a time, its warps, loads in flight, registers a thread."""

    values: int
    warps: int = 4
    stages: int = 2
    registers: int | None = None

    def for_keys(self, value: int) -> "Launch":
        """The same without loads in flight where it takes several slices of the values: Triton 3.6 loses some of the
        gradient of the keys on Hopper otherwise.
        """
        return replace(self, stages=1) if self.values < value else self

    def options(self) -> dict[str, int | None]:
        return {"BV": self.values, "num_warps": self.warps, "STAGES": self.stages, "maxnreg": self.registers}


@dataclass(frozen=True)
class Tiling:
    """`forward` and `adjoint` walk along time, each program with a slice of the values; the others take all values of
    a chunk, slice after slice. `split` has `read` make the read-outs, so that `forward` only carries the memory.
    """

    chunk: int
    forward: Launch
    adjoint: Launch
    read: Launch
    query: Launch
    key: Launch
    split: bool = False


def _tiling(q: Tensor, v: Tensor) -> Tiling:
    """What was fastest, or spills least, for a width, a type and an architecture."""
    key, value = _padded(q.shape[-1]), _padded(v.shape[-1])
    width, values = max(key, value), min(value, 64)
    if q.dtype == torch.float32:
        same = Launch(values, warps=2 if width <= 32 else 4)
        return Tiling(16, same, same, same, same, same.for_keys(value))
    if width <= 32:
        same = Launch(values, warps=1)
        return Tiling(32, same, same, same, same, same)
    same = Launch(values)
    if key > 128 or _is_ampere(q):
        return Tiling(32, same, same, same, same, same.for_keys(value))
    ahead = Launch(values, stages=3)
    if width <= 64:
        capped = Launch(values, registers=168)
        return Tiling(64, ahead, replace(ahead, registers=128), same, capped, capped)
    whole = Launch(min(value, 128)).for_keys(value)
    return Tiling(64, ahead, same, Launch(min(value, 32), stages=3), whole, whole, split=key > 64)


def _padded(width: int) -> int:
    power: int = triton.next_power_of_2(width)
    return max(16, power)


def _options(q: Tensor, k: Tensor, v: Tensor, tiling: Tiling) -> dict[str, Any]:
    return {
        "HEADS": q.shape[2], "K": q.shape[3], "V": v.shape[3], "BK": _padded(q.shape[3]), "CHUNK": tiling.chunk,
        "Q_STRIDE": q.stride(1), "K_STRIDE": k.stride(1), "V_STRIDE": v.stride(1),
        "PRECISION": precision(q.dtype),
    }  # fmt: skip


def _outputs(q: Tensor, v: Tensor, normalize: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Read-outs and the last state, without its normaliser and maximum empty."""
    batch, _, head, width = q.shape
    n = int(normalize)
    return (
        torch.empty(v.shape, dtype=q.dtype, device=q.device),
        torch.empty((batch, head, width, v.shape[3]), device=q.device),
        torch.empty((n * batch, head, width), device=q.device),
        torch.empty((n * batch, head), device=q.device),
    )


def _before_chunks(q: Tensor, v: Tensor, normalize: bool, kept: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Room for memories, the means of their values, normalisers and maxima before every chunk; flat, or empty."""
    entries = _chunks(q, v) if kept else 0
    width, n = q.shape[3], int(normalize)
    return (
        torch.empty(entries * width * v.shape[3], dtype=q.dtype, device=q.device),
        torch.empty(n * entries * v.shape[3], device=q.device),
        torch.empty(n * entries * width, device=q.device),
        torch.empty(n * entries, device=q.device),
    )


def _chunks(q: Tensor, v: Tensor) -> int:
    """Of all heads of all sequences."""
    chunks: int = triton.cdiv(q.shape[1], _tiling(q, v).chunk)  # perhaps symbolic
    return q.shape[0] * q.shape[2] * chunks


def _gate_warps(head: int) -> int:
    """One for few heads: the sums along a chunk then pass no barriers."""
    return 1 if head <= 8 else 4


def _prepared(q: Tensor, v: Tensor, decay: Tensor | None, gate: Tensor | None) -> Tensor:
    batch, time, head, _ = q.shape
    chunk = _tiling(q, v).chunk
    prepared = torch.empty((4, _chunks(q, v) * chunk), device=q.device)
    prepare_kernel[(batch * triton.cdiv(time, chunk),)](
        decay, gate, *prepared.unbind(0), time, HEADS=head, BLOCK=triton.next_power_of_2(head), CHUNK=chunk,
        HAS_DECAY=decay is not None, HAS_GATE=gate is not None, PRECISION=precision(q.dtype),
        num_warps=_gate_warps(head),
    )  # fmt: skip
    return prepared


@torch.library.custom_op("tsseq::linear_attention_forward", mutates_args=())
def _forward_op(
    q: Tensor, k: Tensor, v: Tensor, decay: Tensor | None, gate: Tensor | None, memory0: Tensor | None,
    normalizer0: Tensor | None, maximum0: Tensor | None, normalize: bool, scale: float, save: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    q, k, v = token_rows(q), token_rows(k), token_rows(v)
    tiling = _tiling(q, v)
    o, memory, normalizer, maximum = _outputs(q, v, normalize)
    before = _before_chunks(q, v, normalize, save or tiling.split)
    prepared = _prepared(q, v, decay, gate)
    options = _options(q, k, v, tiling) | {"SCALE": scale, "NORMALIZE": normalize}
    batch, time, head, _ = q.shape
    gates = prepared.unbind(0)
    forward_kernel[(batch * head * triton.cdiv(v.shape[3], tiling.forward.values),)](
        q, k, v, *gates, memory0, normalizer0, maximum0, o, memory, normalizer, maximum, *before, time,
        HAS_STATE=memory0 is not None, SAVE=save or tiling.split, READ=not tiling.split, **options,
        **tiling.forward.options(),
    )  # fmt: skip
    if tiling.split:
        read_kernel[(batch * head * triton.cdiv(time, tiling.chunk),)](
            q, k, v, *gates, *before, o, time, **options, **tiling.read.options()
        )
    if not save:
        before, prepared = _before_chunks(q, v, normalize, False), prepared.new_empty(4, 0)
    return o, memory, normalizer, maximum, *before, prepared


@_forward_op.register_fake
def _(
    q: Any, k: Any, v: Any, decay: Any, gate: Any, memory0: Any, normalizer0: Any, maximum0: Any, normalize: bool,
    scale: float, save: bool,
) -> Any:  # fmt: skip
    prepared = torch.empty((4, _chunks(q, v) * _tiling(q, v).chunk if save else 0), device=q.device)
    return *_outputs(q, v, normalize), *_before_chunks(q, v, normalize, save), prepared


def _gradients(q: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Room for the gradients of query, key, value, decay and gate."""
    dq, dk = (torch.empty(q.shape, dtype=q.dtype, device=q.device) for _ in range(2))
    ddecay, dgate = (torch.empty(q.shape[:3], device=q.device) for _ in range(2))
    return dq, dk, torch.empty(v.shape, dtype=q.dtype, device=q.device), ddecay, dgate


def _adjoint(
    q: Tensor, do: Tensor, dstate: tuple[Tensor | None, Tensor | None], memories: Tensor, normalizers: Tensor,
    inputs: tuple[Tensor, ...], options: dict[str, Any], launch: Launch,
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
    adjoint_kernel[(batch * head * triton.cdiv(options["V"], launch.values),)](
        q, do, *inputs, dmemory, dnormalizer, dmemories, dnormalizers, dmemory0, dnormalizer0, time,
        HAS_DSTATE=dmemory is not None, **launch.options(),
        **{name: x for name, x in options.items() if name not in ("K_STRIDE", "V_STRIDE")},
    )  # fmt: skip
    return dmemories, dnormalizers, dmemory0, dnormalizer0


@torch.library.custom_op("tsseq::linear_attention_backward", mutates_args=())
def _backward_op(
    do: Tensor, dmemory: Tensor | None, dnormalizer: Tensor | None, q: Tensor, k: Tensor, v: Tensor,
    memories: Tensor, means: Tensor, normalizers: Tensor, maxima: Tensor, prepared: Tensor, has_decay: bool,
    has_gate: bool, normalize: bool, scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    q, k, v, do = token_rows(q), token_rows(k), token_rows(v), token_rows(do)
    tiling = _tiling(q, v)
    options = _options(q, k, v, tiling) | {"SCALE": scale, "DO_STRIDE": do.stride(1), "NORMALIZE": normalize}
    dq, dk, dv, ddecay, dgate = _gradients(q, v)
    batch, time, head, _ = q.shape
    chunks = triton.cdiv(time, tiling.chunk)
    programs = batch * head * chunks
    rows, columns, carries, dgate_columns = torch.empty((4, programs * tiling.chunk), device=q.device).unbind(0)
    totals = torch.empty((programs,), device=q.device)
    rests, feedbacks = torch.empty((2, maxima.numel() * tiling.chunk), device=q.device).unbind(0)
    high, low, source, top = prepared.unbind(0)
    shared = (q, k, v, high, low, source, top, memories, means, normalizers, maxima, do)
    query_gradients_kernel[(programs,)](
        *shared, rests, feedbacks, dq, rows, time, HAS_DECAY=has_decay, **options, **tiling.query.options()
    )
    inputs = high, low, top, maxima, rests, feedbacks
    dmemories, dnormalizers, dmemory0, dnormalizer0 = _adjoint(
        q, do, (dmemory, dnormalizer), memories, normalizers, inputs, options, tiling.adjoint
    )
    key_gradients_kernel[(programs,)](
        *shared, rests, feedbacks, dmemories, dnormalizers, dk, dv, columns, carries, totals, dgate_columns, time,
        HAS_DECAY=has_decay or normalize, HAS_GATE=has_gate, **options, **tiling.key.options(),
    )  # fmt: skip
    finish_kernel[(batch * chunks,)](
        rows, columns, carries, totals, dgate_columns, ddecay, dgate, time, HEADS=head, HAS_DECAY=has_decay,
        HAS_GATE=has_gate, BLOCK=triton.next_power_of_2(head), CHUNK=tiling.chunk, num_warps=_gate_warps(head),
    )  # fmt: skip
    through_state = q.new_empty(0, dtype=torch.float32)
    if normalize and dmemory is not None:  # the last state's product with its gradient, of what the kernels rounded
        of_last_keys = carries.view(batch, head, chunks, -1)[:, :, -1].sum(-1)
        through_state = of_last_keys + totals.view(batch, head, chunks)[..., -1]
    return dq, dk, dv, ddecay, dgate, dmemory0, dnormalizer0, through_state


@_backward_op.register_fake
def _(do: Any, dmemory: Any, dnormalizer: Any, q: Any, k: Any, v: Any, *others: Any) -> Any:
    normalize = others[7]
    batch, _, head, width = q.shape
    dmemory0 = torch.empty((batch, head, width, v.shape[3]), device=q.device)
    dnormalizer0 = torch.empty((batch * int(normalize), head, width), device=q.device)
    through_state = torch.empty((batch, head) if normalize and dmemory is not None else 0, device=q.device)
    return *_gradients(q, v), dmemory0, dnormalizer0, through_state


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.normalize, ctx.scale, _ = inputs[8:]
    ctx.save_for_backward(*inputs[:8], *output[1:])
    ctx.set_materialize_grads(False)


def _differentiate(
    ctx: Any, do: Tensor | None, dmemory: Tensor | None, dnormalizer: Tensor | None, dmaximum: Tensor | None,
    *_: None,
) -> tuple[Tensor | None, ...]:  # fmt: skip
    q, k, v, decay, gate, memory0, normalizer0, maximum0, *state = ctx.saved_tensors
    do = torch.zeros_like(v, dtype=q.dtype) if do is None else do.to(q.dtype)
    if dmemory is None and dnormalizer is not None:
        dmemory = torch.zeros_like(state[0])
    contiguous = [None if x is None else x.contiguous() for x in (dmemory, dnormalizer)]
    has = decay is not None, gate is not None
    found = _backward_op(do, *contiguous, q, k, v, *state[3:], *has, ctx.normalize, ctx.scale)
    dq, dk, dv, ddecay, dgate, dmemory0, dnormalizer0, through_state = found
    dmaximum0 = None
    if maximum0 is not None:
        dmaximum0 = _inner(dmemory0, memory0) + _inner(dnormalizer0, normalizer0)
    if ctx.normalize and any(x is not None for x in (dmemory, dnormalizer, dmaximum)):
        direct = torch.zeros_like(state[2]) if dmaximum is None else dmaximum
        late, chosen, from_start = _through_maximum(q, decay, gate, maximum0)
        # A gate that makes the maximum does nothing to the state: what the two do cancels, in sums of one rounding.
        excess = direct if dmemory is None else direct - through_state
        ddecay, dgate = ddecay + late * excess[:, None], dgate + chosen * excess[:, None]
        if dmaximum0 is not None:
            exact = direct - _inner(dmemory, state[0]) - _inner(dnormalizer, state[1])
            dmaximum0 = dmaximum0 + from_start * exact
    return (
        dq, dk, dv, None if decay is None else ddecay, None if gate is None else dgate,
        None if memory0 is None else dmemory0, None if normalizer0 is None else dnormalizer0, dmaximum0,
        None, None, None,
    )  # fmt: skip


def _inner(gradient: Tensor | None, member: Tensor) -> Tensor:
    """Sum of products per head; zero without a gradient."""
    return member.new_zeros(member.shape[:2]) if gradient is None else (gradient * member).flatten(2).sum(-1)


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
