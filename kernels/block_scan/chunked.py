"""Recurrences with small dense blocks, or a Walsh-Hadamard matrix, in plain torch: any device, memory linear in time.

Few small blocks: time is cut into chunks that advance together, first with the product of their matrices, to
carry the state from chunk to chunk, then with the right state. Many or large ones fill a step by themselves.
Gradients are hand-written: the same recurrence with transposed matrices, backwards in time.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.autograd import Function
from torch.utils.checkpoint import checkpoint

from tsseq.array_typing import Float, Tensor
from tsseq.kernels.gradients import in_own_precision

NUMBERS_PER_STEP = 16384
"""Matrix entries that make one step worth starting on a CPU."""

LARGEST_DENSE_HADAMARD = 256
"""Up to here one product with the whole matrix costs less than starting two with its factors."""

NUMBERS_PER_SLICE, SHORTEST_SLICE = 2**24, 16
"""Matrix entries in memory at once when they are formed from increments, but at least so many positions."""


def block_scan(
    transitions: Float[Tensor, "batch time block size size"],
    inputs: Float[Tensor, "batch time block size"] | None = None,
    initial_state: Float[Tensor, "batch block size"] | None = None,
) -> tuple[Float[Tensor, "batch time block size"], Float[Tensor, "batch block size"]]:
    """See `tsseq.kernels.block_scan.block_scan`."""
    dtype = torch.promote_types(transitions.dtype, torch.float32)
    matrices = transitions.to(dtype)
    b = None if inputs is None else inputs.to(dtype)
    state = matrices.new_zeros(matrices[:, 0, ..., 0].shape) if initial_state is None else initial_state.to(dtype)
    states: Tensor = _BlockScan.apply(matrices, b, state)  # type: ignore[no-untyped-call]
    return states.to(transitions.dtype), states[:, -1]


def controlled_block_scan(
    increments: Float[Tensor, "batch time omega"],
    weights: Float[Tensor, "omega block size size"],
    inputs: Float[Tensor, "batch time block size"] | None = None,
    initial_state: Float[Tensor, "batch block size"] | None = None,
) -> tuple[Float[Tensor, "batch time block size"], Float[Tensor, "batch block size"]]:
    """See `tsseq.kernels.block_scan.controlled_block_scan`."""
    return in_slices(block_scan, increments, weights, inputs, initial_state)


def in_slices(
    scan: Callable[..., tuple[Tensor, Tensor]],
    increments: Tensor,
    weights: Tensor,
    inputs: Tensor | None,
    initial_state: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """`scan` over matrices formed for a few positions at a time, and formed again for the gradient."""
    dtype = torch.promote_types(increments.dtype, torch.float32)
    batch, time, _ = increments.shape
    omega, block, size, _ = weights.shape
    w = weights.to(dtype).flatten(1)
    identity = torch.eye(size, dtype=dtype, device=w.device)

    def advance(delta: Tensor, b: Tensor | None, state: Tensor) -> tuple[Tensor, Tensor]:
        return scan((delta @ w).unflatten(-1, (block, size, size)) + identity, b, state)

    state = w.new_zeros(batch, block, size) if initial_state is None else initial_state.to(dtype)
    length = max(SHORTEST_SLICE, NUMBERS_PER_SLICE // max(1, batch * w.shape[1]))
    pieces = []
    for t in range(0, time, length):
        now = slice(t, t + length)
        b = None if inputs is None else inputs[:, now].to(dtype)
        delta = increments[:, now].to(dtype)
        piece, state = checkpoint(advance, delta, b, state, use_reentrant=False, preserve_rng_state=False)
        pieces.append(piece)
    return torch.cat(pieces, dim=1).to(increments.dtype), state


def hadamard_scan(
    diagonal: Float[Tensor, "batch time state"],
    inputs: Float[Tensor, "batch time state"] | None = None,
    initial_state: Float[Tensor, "batch state"] | None = None,
) -> tuple[Float[Tensor, "batch time state"], Float[Tensor, "batch state"]]:
    """See `tsseq.kernels.block_scan.hadamard_scan`; a product of two transitions has no structure: no chunks."""
    dtype = torch.promote_types(diagonal.dtype, torch.float32)
    b = None if inputs is None else inputs.to(dtype)
    a = diagonal.to(dtype)
    state = torch.zeros_like(a[:, 0]) if initial_state is None else initial_state.to(dtype)
    states: Tensor = _HadamardScan.apply(a, b, state)  # type: ignore[no-untyped-call]
    return states.to(diagonal.dtype), states[:, -1]


class _BlockScan(Function):
    @staticmethod
    @in_own_precision
    def forward(ctx: Any, matrices: Tensor, b: Tensor | None, state: Tensor) -> Tensor:
        states = _scan_blocks(matrices, b, state)
        ctx.has_inputs = b is not None
        ctx.save_for_backward(matrices, state, states)
        return states

    @staticmethod
    @in_own_precision
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        matrices, state, states = ctx.saved_tensors
        # Backwards in time the gradient of position t arrives through the transposed matrix of position t + 1.
        backwards = matrices.flip(1).mT
        matrix_after = torch.cat([torch.zeros_like(backwards[:, :1]), backwards[:, :-1]], dim=1)
        zero = torch.zeros_like(state)
        g: Tensor = _BlockScan.apply(matrix_after, gradient.flip(1), zero).flip(1)  # type: ignore[no-untyped-call]
        before = torch.cat([state.unsqueeze(1), states[:, :-1]], dim=1)
        d_state = (matrices[:, 0].mT @ g[:, 0].unsqueeze(-1)).squeeze(-1)
        return g.unsqueeze(-1) * before.unsqueeze(-2), g if ctx.has_inputs else None, d_state


def _scan_blocks(matrices: Tensor, b: Tensor | None, state: Tensor) -> Tensor:
    """All states [batch, time, block, size]: equal chunks together, then the remainder."""
    batch, time, block, size, _ = matrices.shape
    numbers = max(1, batch * block * size * size)
    chunks = max(1, min(math.isqrt(time), NUMBERS_PER_STEP // numbers))
    length = time // chunks
    cut = chunks * length
    states = matrices.new_empty(batch, time, block, size)
    split = [None if x is None else x[:, :cut].unflatten(1, (chunks, length)) for x in (matrices, b)]
    assert split[0] is not None
    state = _advance(split[0], split[1], _enter_chunks(split[0], split[1], state), states[:, :cut])
    if cut < time:
        rest = None if b is None else b[:, None, cut:]
        _advance(matrices[:, None, cut:], rest, state.unsqueeze(1), states[:, cut:])
    return states


def _enter_chunks(matrices: Tensor, b: Tensor | None, state: Tensor) -> Tensor:
    """The state before each chunk, [batch, chunk, block, size]."""
    chunks, length, block, size = matrices.shape[1:5]
    if chunks == 1:
        return state.unsqueeze(1)
    # Each chunk but the last maps an entering state to product @ state + offset; both advance as one matrix.
    flow = torch.eye(size, size + 1, dtype=state.dtype, device=state.device)
    flow = flow.expand(state.shape[0], chunks - 1, block, size, size + 1)
    for t in range(length):
        flow = matrices[:, :-1, t] @ flow
        if b is not None:
            flow[..., -1] += b[:, :-1, t]
    entering = [state]
    for chunk in range(chunks - 1):
        product, offset = flow[:, chunk, ..., :-1], flow[:, chunk, ..., -1]
        entering.append((product @ entering[-1].unsqueeze(-1)).squeeze(-1) + offset)
    return torch.stack(entering, dim=1)


def _advance(matrices: Tensor, b: Tensor | None, state: Tensor, states: Tensor) -> Tensor:
    """Fill `states` from the state before each chunk; returns the last state of the last chunk."""
    chunks, length = matrices.shape[1:3]
    out = states.unflatten(1, (chunks, length))
    h = state.unsqueeze(-1)
    for t in range(length):
        h = matrices[:, :, t] @ h
        if b is not None:
            h += b[:, :, t].unsqueeze(-1)
        out[:, :, t] = h.squeeze(-1)
    return h[:, -1].squeeze(-1)


class _HadamardScan(Function):
    @staticmethod
    @in_own_precision
    def forward(ctx: Any, a: Tensor, b: Tensor | None, state: Tensor) -> Tensor:
        states = torch.empty_like(a, memory_format=torch.contiguous_format)
        factors = _hadamard_products(a)
        bases = [None] * a.shape[1] if b is None else b.unbind(1)
        h = state
        for a_t, b_t, out in zip(a.unbind(1), bases, states.unbind(1), strict=True):
            h = _add_transform(h if b_t is None else h + b_t, a_t * h, factors, out)
        ctx.has_inputs = b is not None
        ctx.save_for_backward(a, state, states)
        return states

    @staticmethod
    @in_own_precision
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        a, state, states = ctx.saved_tensors
        factors = _hadamard_products(a)
        before = torch.cat([state.unsqueeze(1), states[:, :-1]], dim=1)
        if torch.is_grad_enabled():
            # H times the adjoint obeys the recurrence itself, backwards in time: that has gradients.
            backwards = a.flip(1)
            a_after = torch.cat([torch.zeros_like(backwards[:, :1]), backwards[:, :-1]], dim=1)
            inputs, zero = _transformed(gradient, factors).flip(1), torch.zeros_like(state)
            transformed: Tensor = _HadamardScan.apply(a_after, inputs, zero).flip(1)  # type: ignore[no-untyped-call]
            g = _transformed(transformed, factors)
            return before * transformed, g if ctx.has_inputs else None, g[:, 0] + a[:, 0] * transformed[:, 0]
        g, transformed = torch.empty_like(states), torch.empty_like(states)
        carried = torch.zeros_like(state)
        columns = (x.unbind(1)[::-1] for x in (a, gradient, g, transformed))
        for a_t, gradient_t, g_t, out in zip(*columns, strict=True):
            torch.add(gradient_t, carried, out=g_t)
            carried = torch.addcmul(g_t, a_t, _transform(g_t, factors, out))
        return before * transformed, g if ctx.has_inputs else None, carried


def hadamard_factors(width: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Two normalised Sylvester matrices whose Kronecker product is the one of `width`, a power of two."""
    exponent = width.bit_length() - 1
    return _sylvester(exponent // 2, like), _sylvester(exponent - exponent // 2, like)


def _sylvester(exponent: int, like: Tensor) -> Tensor:
    matrix: Tensor = like.new_ones(1, 1)
    for _ in range(exponent):
        matrix = torch.kron(matrix.new_tensor([[1.0, 1.0], [1.0, -1.0]]), matrix)
    return matrix / 2 ** (exponent / 2)


def _hadamard_products(like: Tensor) -> tuple[Tensor, ...]:
    """The normalised matrix of `like`'s width, or its two factors where it is large."""
    width = like.shape[-1]
    if width <= LARGEST_DENSE_HADAMARD:
        return (_sylvester(width.bit_length() - 1, like),)
    return hadamard_factors(width, like)


def _transform(x: Tensor, factors: tuple[Tensor, ...], out: Tensor) -> Tensor:
    """H x along the last axis of a matrix, into `out`."""
    if len(factors) == 1:
        return torch.mm(x, factors[0], out=out)
    return out.copy_(_transformed(x, factors))


def _transformed(x: Tensor, factors: tuple[Tensor, ...]) -> Tensor:
    """H x along the last axis; H, or H = left (x) right, is symmetric."""
    if len(factors) == 1:
        return x @ factors[0]
    left, right = factors
    transformed: Tensor = (left @ x.unflatten(-1, (left.shape[0], right.shape[0])) @ right).flatten(-2)
    return transformed


def _add_transform(base: Tensor, x: Tensor, factors: tuple[Tensor, ...], out: Tensor) -> Tensor:
    if len(factors) == 1:
        return torch.addmm(base, x, factors[0], out=out)
    return _transform(x, factors, out).add_(base)
