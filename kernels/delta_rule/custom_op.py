"""The GPU form of the delta rule as a torch operator: whole under torch.compile, capturable in a CUDA graph."""

import os
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from tsseq.kernels.delta_rule.triton import forward_kernel
from tsseq.kernels.delta_rule.triton_gradients import adjoint_kernel, gradient_kernel
from tsseq.kernels.delta_rule.triton_refinement import refinement_kernel
from tsseq.kernels.delta_rule.triton_solve import solve_kernel
from tsseq.kernels.layout import token_rows
from tsseq.kernels.precision import precision

Results = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]
MAX_STEPS = 4
ASSEMBLY = os.environ.get("TRITON_INTERPRET") != "1" and torch.version.hip is None
"""Whether kernels may hold instructions of NVIDIA's, which Triton's interpreter cannot read."""


@dataclass(frozen=True)
class Launch:
    """How the kernels are cut for one width.

    Rows per chunk (tokens times padded steps: 16, 32 or 64; float32 takes 16, its tiles being twice as large), warps
    per program (but of the solves, which take one), value columns per program (of the gradients: key columns, and at
    most so many chunks), and stages of loads in flight. `prefetch` has the adjoint kernel bring what it loads next
    into the L2 cache, and `turn` has the gradient kernel use its F and M on both sides.
    """

    rows: int
    warps: int
    values: int
    forward_stages: int
    adjoint_stages: int
    prefetch: bool
    keys: int
    chunks: int
    gradient_stages: int
    turn: bool


LAUNCH = {
    (16, 1): Launch(32, 1, 16, 2, 2, False, 16, 4, 2, False),
    (32, 1): Launch(32, 1, 32, 2, 2, False, 32, 4, 2, False),
    (64, 1): Launch(64, 4, 64, 3, 2, True, 64, 8, 2, True),
    (128, 1): Launch(64, 4, 64, 2, 2, False, 64, 8, 2, False),
    (16, 2): Launch(32, 1, 16, 2, 2, False, 16, 4, 2, False),
    (32, 2): Launch(32, 1, 32, 2, 2, False, 32, 4, 2, False),
    (64, 2): Launch(64, 4, 64, 3, 3, False, 64, 32, 3, False),
    (128, 2): Launch(64, 4, 64, 3, 3, False, 64, 32, 2, True),
}
"""By the larger of key and value width, rounded up to a power of two, and by one step per token or more.

Fixed: nothing is tuned at run time.
"""


def supports(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether the kernels take these widths, steps and types on this device; wider tiles spill before Hopper."""
    architecture = _architecture(query)
    widest = 128 if architecture >= 9 else 64
    if query.dtype == torch.float32:
        widest = 128 if architecture >= 9 else 32
    return (
        architecture >= 8
        and query.dtype in (torch.float32, torch.bfloat16, torch.float16)
        and key.shape[2] <= MAX_STEPS
        and max(query.shape[-1], value.shape[-1]) <= widest
    )


def delta_rule_triton(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    beta: Tensor,
    log_decay: Tensor | None,
    initial_state: Tensor | None,
    save: bool,
) -> tuple[Tensor, Tensor]:
    """`save` keeps what the gradients need."""
    output, final_state, *_ = _forward(
        query, key.to(query.dtype), value.to(query.dtype), beta, log_decay, initial_state, save
    )
    return output, final_state


@torch.library.custom_op("tsseq::delta_rule", mutates_args=())
def _forward(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor | None, initial: Tensor | None, save: bool
) -> Results:
    q, k, v, beta = token_rows(q), token_rows(k), token_rows(v), token_rows(beta)
    log_decay = None if log_decay is None else token_rows(log_decay)
    initial = None if initial is None else initial.contiguous()
    output, final, w, sums, kept, u, states, cumulated, kinds = _allocate(q, k, v, log_decay, save)
    shape = _shape(q, k, v)
    launch = _launch(k, v)
    batch, time, head, _ = q.shape
    flags = {"HAS_DECAY": log_decay is not None, "PRECISION": precision(q.dtype)}
    solve_shape = {name: x for name, x in shape.items() if name not in ("V", "BV")}
    solve_kernel[(batch * head * w.shape[2],)](
        k, beta, q if log_decay is None else log_decay, w, sums, kept, cumulated, kinds, time,
        K_STRIDE=k.stride(1), B_STRIDE=beta.stride(1), G_STRIDE=_stride(log_decay), **solve_shape, **flags,
        SMALLEST=_smallest_beta(q), num_warps=1,
    )  # fmt: skip
    shape["BV"] = min(shape["BV"], launch.values)
    slices = -(-v.shape[-1] // shape["BV"])
    for close in _close(q):
        forward_kernel[(batch * head * slices,)](
            q, k, v, cumulated, w, sums, kept, kinds, q if initial is None else initial, output, final, u, states,
            time, Q_STRIDE=q.stride(1), K_STRIDE=k.stride(1), V_STRIDE=v.stride(1), **shape, **flags,
            HAS_INITIAL=initial is not None, SAVE=save, CLOSE=close, STAGES=launch.forward_stages,
            REREAD=_reread(q), num_warps=launch.warps,
        )  # fmt: skip
    return output, final, w, sums, kept, u, states, cumulated, kinds


@_forward.register_fake
def _forward_fake(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor | None, initial: Tensor | None, save: bool
) -> Results:
    return _allocate(q, k, v, log_decay, save)


@torch.library.custom_op("tsseq::delta_rule_backward", mutates_args=())
def _backward(
    grad_output: Tensor,
    grad_final: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    log_decay: Tensor | None,
    w: Tensor,
    sums: Tensor,
    kept: Tensor,
    u: Tensor,
    states: Tensor,
    cumulated: Tensor,
    kinds: Tensor,
    initial: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    q, k, v, beta, grad_output = (token_rows(x) for x in (q, k, v, beta, grad_output))
    grad_final = None if grad_final is None else grad_final.contiguous()
    initial = None if initial is None else initial.contiguous()
    gradients = _allocate_gradients(q, k, beta, log_decay, u, initial is not None)
    dq, dk, dv, dbeta, dlog_decay, dinitial = gradients
    grad_states = torch.empty_like(states)
    shape = _shape(q, k, u)
    launch = _launch(k, u)
    batch, time, head, _ = q.shape
    flags: dict[str, Any] = {
        "Q_STRIDE": q.stride(1), "K_STRIDE": k.stride(1), "O_STRIDE": grad_output.stride(1),
        "HAS_DECAY": log_decay is not None, "HAS_INITIAL": initial is not None, "PRECISION": precision(q.dtype),
    }  # fmt: skip
    values = min(shape["BV"], launch.values)
    for close in _close(q):
        adjoint_kernel[(batch * head * -(-u.shape[-1] // values),)](
            q, k, cumulated, w, sums, kept, kinds, grad_output, q if grad_final is None else grad_final, dv,
            grad_states, dinitial, time, HAS_GRAD_FINAL=grad_final is not None, CLOSE=close,
            STAGES=launch.adjoint_stages, PREFETCH=ASSEMBLY and launch.prefetch, num_warps=launch.warps, **flags,
            **(shape | {"BV": values}),
        )  # fmt: skip
    shape["BK"] = min(shape["BK"], launch.keys)
    slices = -(-q.shape[-1] // shape["BK"])
    total = batch * head * w.shape[2]
    count = min(launch.chunks, max(1, total * slices // (2 * _processors(q))))  # enough programs for two on each
    in_slices = dlog_decay
    if log_decay is not None and (slices > 1 or log_decay.dtype != torch.float32):  # its terms all but cancel
        in_slices = q.new_empty(batch, time, slices, head, dtype=torch.float32)
    gradient_kernel[(-(-total // count) * slices,)](
        q, k, beta, cumulated, u, states, grad_output, dv, grad_states, dq, dk, dbeta, in_slices, time, total, count,
        B_STRIDE=beta.stride(1), SMALLEST=_smallest_beta(q), STAGES=launch.gradient_stages, TURN=launch.turn,
        REREAD=_reread(q) and not launch.turn, num_warps=launch.warps, **flags, **shape,
    )  # fmt: skip
    whole = in_slices if in_slices is dlog_decay else in_slices.sum(2)
    if q.dtype != torch.float32:
        refinement_kernel[(batch * head,)](
            q, k, v, beta, cumulated, w, sums, kinds, q if initial is None else initial, u, grad_output, dv,
            q if grad_final is None else grad_final, grad_states, dq, dbeta, whole, time, V_STRIDE=v.stride(1),
            B_STRIDE=beta.stride(1), HAS_GRAD_FINAL=grad_final is not None, SMALLEST=_smallest_beta(q), num_warps=4,
            **flags, **_shape(q, k, u) | {"BV": min(shape["BV"], 32)},
        )  # fmt: skip
    if whole is not dlog_decay:
        dlog_decay.copy_(whole)
    return gradients


@_backward.register_fake
def _backward_fake(
    grad_output: Tensor,
    grad_final: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    log_decay: Tensor | None,
    w: Tensor,
    sums: Tensor,
    kept: Tensor,
    u: Tensor,
    states: Tensor,
    cumulated: Tensor,
    kinds: Tensor,
    initial: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    return _allocate_gradients(q, k, beta, log_decay, u, initial is not None)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    q, k, v, beta, log_decay, initial, save = inputs
    assert save, "gradients need save=True"
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(q, k, v, beta, log_decay, initial, *output[2:])


def _differentiate(ctx: Any, grad_output: Tensor | None, grad_final: Tensor | None, *_: None) -> tuple[Any, ...]:
    q, k, v, beta, log_decay, initial, w, sums, kept, u, states, cumulated, kinds = ctx.saved_tensors
    if grad_output is None:
        grad_output = u.new_zeros(*q.shape[:-1], u.shape[-1])
    dq, dk, dv, dbeta, dlog_decay, dinitial = _backward(
        grad_output, grad_final, q, k, v, beta, log_decay, w, sums, kept, u, states, cumulated, kinds, initial
    )
    return (
        dq,
        dk,
        dv,
        dbeta,
        None if log_decay is None else dlog_decay,
        None if initial is None else dinitial.to(initial.dtype),
        None,
    )


_forward.register_autograd(_differentiate, setup_context=_setup_context)


def _allocate(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None, save: bool) -> Results:
    """Output, final state, and what the backward pass reads.

    That is W, sums of its rows and columns, bits of the rows whose loss in rounding is kept in another, U, the
    state each chunk starts from, the logarithm (base 2) of a chunk's decay up to each token, and the chunk's kind (see
    `solve_kernel`).
    """
    batch, time, head, key_width = q.shape
    value_width = v.shape[-1]
    tokens, padded = _chunk(k, v)
    chunks = (time + tokens - 1) // tokens
    rows = tokens * padded
    whole = q.dtype == torch.float32
    return (
        q.new_empty(batch, time, head, value_width),
        q.new_empty(batch, head, key_width, value_width, dtype=torch.float32),
        q.new_empty(batch, head, chunks, rows, rows, dtype=torch.float32 if whole else torch.float16),
        q.new_empty((0,) if whole else (batch, head, chunks, 2, rows // 16, rows), dtype=torch.float32),
        q.new_empty((0,) if whole else (batch, head, chunks, 2), dtype=torch.int32),
        q.new_empty(v.shape if save else (0,)),
        q.new_empty((batch, head, chunks, value_width, key_width) if save else (0,)),
        q.new_empty((0,) if log_decay is None else (batch, head, chunks, tokens), dtype=torch.float32),
        q.new_empty((0,) if whole else (batch, head, chunks), dtype=torch.uint8),
    )


def _allocate_gradients(
    q: Tensor, k: Tensor, beta: Tensor, log_decay: Tensor | None, u: Tensor, has_initial: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    batch, _, head, width = q.shape
    return (
        q.new_empty(q.shape),
        q.new_empty(k.shape),
        q.new_empty(u.shape),
        beta.new_empty(beta.shape),
        q.new_empty((0,)) if log_decay is None else log_decay.new_empty(log_decay.shape),
        q.new_empty((batch, head, width, u.shape[-1]) if has_initial else (0,), dtype=torch.float32),
    )


def _launch(k: Tensor, v: Tensor) -> Launch:
    launch = LAUNCH[max(_block(k.shape[-1]), _block(v.shape[-1])), min(k.shape[2], 2)]
    if k.dtype == torch.float32:  # its tiles fill registers: narrower ones, from shared memory
        launch = replace(launch, keys=min(launch.keys, 32), chunks=4, gradient_stages=2, turn=False, rows=16)
    return launch if _architecture(k) >= 9 else replace(launch, rows=min(launch.rows, 32))


def _architecture(x: Tensor) -> int:
    """Major version; chunks of 64 rows pay with the warp group products that Hopper has, and spill without."""
    return torch.cuda.get_device_properties(x.device).major if x.is_cuda else 9


def _block(width: int) -> int:
    return max(16, 1 << (width - 1).bit_length())


def _chunk(k: Tensor, v: Tensor) -> tuple[int, int]:
    """Tokens per chunk, and steps per token rounded up to a power of two."""
    padded = 1 << (k.shape[2] - 1).bit_length()
    return _launch(k, v).rows // padded, padded


def _shape(q: Tensor, k: Tensor, v: Tensor) -> dict[str, int]:
    tokens, padded = _chunk(k, v)
    key_width, value_width = q.shape[-1], v.shape[-1]
    return {
        "H": q.shape[2],
        "N": k.shape[2],
        "K": key_width,
        "V": value_width,
        "BK": _block(key_width),
        "BV": _block(value_width),
        "TOKENS": tokens,
        "STEPS_PADDED": padded,
    }


def _smallest_beta(q: Tensor) -> float:
    """The smallest normal number of W's type, or what float32 values do not resolve."""
    return 2.0**-14 if q.dtype == torch.float16 else 1e-7


def _close(q: Tensor) -> tuple[bool, ...]:
    """Kernels for heads of other kinds, and for those that keep more digits, if narrow types make a difference."""
    return (False,) if q.dtype == torch.float32 else (False, True)


def _reread(q: Tensor) -> bool:
    return ASSEMBLY and q.element_size() == 2


def _stride(log_decay: Tensor | None) -> int:
    return 0 if log_decay is None else log_decay.stride(1)


def _processors(x: Tensor) -> int:
    return torch.cuda.get_device_properties(x.device).multi_processor_count if x.is_cuda else 1
