"""Linear vector fields h -> A^i h, one per control channel, with the structures of SLiCE, and their flows.

Each field holds its generators A^i in factored form and knows how to carry a state along a sequence of
(log-signature) increments λ_t: h_t = Φ_t h_{t−1} + b_t with Φ_t = I + Σ_i λ_ti A^i + Σ_{i<j} λ_tij [A]_ij ("euler") or
the matrix exponential of that sum without I ("exponential"). [A]_ij = A^j A^i − A^i A^j is the bracket of a window.
"""

from abc import ABC, abstractmethod

import torch
from torch import nn

from tsseq.array_typing import Float, Tensor
from tsseq.kernels.block_scan import block_scan, controlled_block_scan, diagonal_dense_scan, hadamard_scan
from tsseq.kernels.diagonal_scan import diagonal_scan
from tsseq.mixers.base import at_least_float32


class LinearVectorField(nn.Module, ABC):
    """`channels` generators of size `states` × `states`."""

    def __init__(self, channels: int, states: int, exponential: bool, depth: int) -> None:
        super().__init__()
        self.channels, self.states, self.exponential, self.depth = channels, states, exponential, depth

    @abstractmethod
    def generators(self) -> Float[Tensor, "channel state state"]:
        """All A^i as full matrices."""

    def normalize(self, states: Float[Tensor, "*batch state"]) -> Float[Tensor, "*batch state"]:
        """The states over the root mean square of those that mix with each other, here all of them.

        Parts that never mix grow at rates of their own, and a norm over all of them would show the fastest alone.
        """
        return _over_rms(states)

    def scan(
        self,
        increments: Float[Tensor, "batch time channel"],
        inputs: Float[Tensor, "batch time state"] | None,
        initial_state: Float[Tensor, "batch state"],
    ) -> tuple[Float[Tensor, "batch time state"], Float[Tensor, "batch state"]]:
        """States after every increment, and the last one."""
        return self._scan_blocks(self.generators()[:, None], increments, inputs, initial_state)

    def _scan_blocks(
        self, blocks: Tensor, increments: Tensor, inputs: Tensor | None, initial_state: Tensor
    ) -> tuple[Tensor, Tensor]:
        blocks, shape = at_least_float32(blocks), blocks.shape[1:3]
        blocks = torch.cat([blocks, brackets(blocks)]) if self.depth == 2 else blocks
        inputs = None if inputs is None else inputs.unflatten(-1, shape)
        if self.exponential:
            transitions = torch.matrix_exp(torch.einsum("bti,iknm->btknm", increments, blocks))
            states, last = block_scan(transitions, inputs, initial_state.unflatten(-1, shape))
        else:
            states, last = controlled_block_scan(increments, blocks, inputs, initial_state.unflatten(-1, shape))
        return states.flatten(2), last.flatten(1)


def _over_rms(states: Tensor) -> Tensor:
    # Nothing bounds products of transitions, and squares overflow long before the states do.
    size = states.detach().abs().amax(-1, keepdim=True).clamp(min=1.0)
    scaled = states / size
    # The offset keeps a slope at single entries (h / |h| has none), so that decay costs something before it is total.
    return scaled * torch.rsqrt(scaled.square().mean(-1, keepdim=True) + (0.1 / size).square())


def brackets(blocks: Float[Tensor, "channel block size size"]) -> Float[Tensor, "pair block size size"]:
    """A^j A^i − A^i A^j for i < j: the vector field that follows channel i and then j beyond their sum."""
    first, second = torch.triu_indices(blocks.shape[0], blocks.shape[0], offset=1, device=blocks.device)
    i, j = blocks[first], blocks[second]
    return j @ i - i @ j


class BlockDiagonal(LinearVectorField):
    """Blocks of `size`; one block of all states is a dense matrix, blocks of 1 a diagonal one."""

    def __init__(
        self, channels: int, states: int, exponential: bool, depth: int, *, size: int, init_std: float
    ) -> None:
        super().__init__(channels, states, exponential, depth)
        if size < 1 or states % size:
            raise ValueError(f"states must be a multiple of the block size, got {states} and {size}")
        self.blocks = nn.Parameter(torch.randn(channels, states // size, size, size) * init_std / size**0.5)

    def generators(self) -> Float[Tensor, "channel state state"]:
        return torch.stack([torch.block_diag(*blocks) for blocks in self.blocks])

    def normalize(self, states: Float[Tensor, "*batch state"]) -> Float[Tensor, "*batch state"]:
        return _over_rms(states.unflatten(-1, self.blocks.shape[1:3])).flatten(-2)

    def scan(
        self,
        increments: Float[Tensor, "batch time channel"],
        inputs: Float[Tensor, "batch time state"] | None,
        initial_state: Float[Tensor, "batch state"],
    ) -> tuple[Float[Tensor, "batch time state"], Float[Tensor, "batch state"]]:
        return self._scan_blocks(self.blocks, increments, inputs, initial_state)


class DiagonalDense(LinearVectorField):
    """A diagonal of all but the last `size` states, and one dense block of those (size 0: diagonal throughout).

    Diagonal matrices commute, so brackets touch the dense block alone.
    """

    def __init__(
        self, channels: int, states: int, exponential: bool, depth: int, *, size: int, init_std: float
    ) -> None:
        super().__init__(channels, states, exponential, depth)
        if not 0 <= size < states:
            raise ValueError(f"the dense block must be smaller than the {states} states, got {size}")
        self.diagonal = nn.Parameter(torch.randn(channels, states - size) * init_std)
        self.block = nn.Parameter(torch.randn(channels, 1, size, size) * init_std / size**0.5) if size else None

    def generators(self) -> Float[Tensor, "channel state state"]:
        diagonal = torch.diag_embed(self.diagonal)
        if self.block is None:
            return diagonal
        return torch.stack([torch.block_diag(d, b) for d, b in zip(diagonal, self.block[:, 0], strict=True)])

    def normalize(self, states: Float[Tensor, "*batch state"]) -> Float[Tensor, "*batch state"]:
        entries = self.diagonal.shape[1]
        diagonal = _over_rms(states[..., :entries, None]).squeeze(-1)
        return torch.cat([diagonal, _over_rms(states[..., entries:])], dim=-1) if self.block is not None else diagonal

    def scan(
        self,
        increments: Float[Tensor, "batch time channel"],
        inputs: Float[Tensor, "batch time state"] | None,
        initial_state: Float[Tensor, "batch state"],
    ) -> tuple[Float[Tensor, "batch time state"], Float[Tensor, "batch state"]]:
        rates = increments[..., : self.channels] @ at_least_float32(self.diagonal)
        decay = rates.exp() if self.exponential else 1 + rates
        if self.block is None:
            return diagonal_scan(decay, torch.zeros_like(decay) if inputs is None else inputs, initial_state)
        block = at_least_float32(self.block)
        blocks = torch.cat([block, brackets(block)]) if self.depth == 2 else block
        flow = torch.einsum("bti,inm->btnm", increments, blocks[:, 0])
        dense = torch.matrix_exp(flow) if self.exponential else flow + torch.eye(flow.shape[-1]).to(flow)
        return diagonal_dense_scan(decay, dense, inputs, initial_state)


class DiagonalLowRank(LinearVectorField):
    """A^i = diag(d_i) + Σ_{j ≤ rank} u_ij v_ijᵀ, linear in the increments as in the paper."""

    def __init__(
        self, channels: int, states: int, exponential: bool, depth: int, *, rank: int, init_std: float
    ) -> None:
        super().__init__(channels, states, exponential, depth)
        if rank < 1:
            raise ValueError(f"rank must be at least 1, got {rank}")
        self.diagonal = nn.Parameter(torch.randn(channels, states) * init_std)
        self.left = nn.Parameter(torch.randn(channels, states, rank) * init_std / rank**0.5)
        self.right = nn.Parameter(torch.randn(channels, states, rank) * init_std / rank**0.5)

    def generators(self) -> Float[Tensor, "channel state state"]:
        return torch.diag_embed(self.diagonal) + self.left @ self.right.mT


class Sparse(LinearVectorField):
    """About states^(1 + exponent) entries of each A^i at fixed random places, the others zero."""

    mask: Tensor

    def __init__(
        self, channels: int, states: int, exponential: bool, depth: int, *, exponent: float, init_std: float
    ) -> None:
        super().__init__(channels, states, exponential, depth)
        if not 0 <= exponent <= 1:
            raise ValueError(f"exponent must lie in [0, 1], got {exponent}")
        shape = (channels, states, states)
        self.register_buffer("mask", (torch.rand(shape) < states ** (exponent - 1)).float())
        self.weights = nn.Parameter(torch.randn(shape) * init_std / states**0.5)

    def generators(self) -> Float[Tensor, "channel state state"]:
        return self.weights * self.mask


class WalshHadamard(LinearVectorField):
    """A^i = H diag(tanh(d_i)) with H the Sylvester–Hadamard matrix over √states, states a power of two.

    The tanh keeps each A^i at norm 1 at most, without which training diverges (paper, appendix).
    """

    def __init__(self, channels: int, states: int, exponential: bool, depth: int, *, init_std: float) -> None:
        super().__init__(channels, states, exponential, depth)
        if states.bit_count() != 1:
            raise ValueError(f"states must be a power of two, got {states}")
        self.diagonal = nn.Parameter(torch.randn(channels, states) * init_std)

    def generators(self) -> Float[Tensor, "channel state state"]:
        hadamard: Tensor = self.diagonal.new_ones(1, 1)
        while hadamard.shape[0] < self.states:
            hadamard = torch.kron(hadamard.new_tensor([[1.0, 1.0], [1.0, -1.0]]), hadamard) / 2**0.5
        return hadamard * torch.tanh(self.diagonal)[:, None]

    def scan(
        self,
        increments: Float[Tensor, "batch time channel"],
        inputs: Float[Tensor, "batch time state"] | None,
        initial_state: Float[Tensor, "batch state"],
    ) -> tuple[Float[Tensor, "batch time state"], Float[Tensor, "batch state"]]:
        if self.exponential or self.depth == 2:
            return super().scan(increments, inputs, initial_state)
        return hadamard_scan(increments @ torch.tanh(at_least_float32(self.diagonal)), inputs, initial_state)
