"""The sLSTM cell of xLSTM: exponential gates, a normaliser, and recurrent weights within each head."""

from importlib.util import find_spec

import torch
from torch import Generator

from tsseq.array_typing import Float, Tensor
from tsseq.kernels.slstm.chunked import chunked
from tsseq.kernels.slstm.reference import reference

__all__ = ["chunked", "example_inputs", "reference", "slstm"]

TRITON_INSTALLED = find_spec("triton") is not None
LARGEST_FUSED_KEY = 64


def slstm(
    input_gate: Float[Tensor, "batch time head key"],
    forget_gate: Float[Tensor, "batch time head key"],
    cell_input: Float[Tensor, "batch time head key"],
    output_gate: Float[Tensor, "batch time head key"],
    recurrent: Float[Tensor, "gate head key key"],
    initial_state: Float[Tensor, "batch part head key"] | None = None,
) -> tuple[Float[Tensor, "batch time head key"], Float[Tensor, "batch part head key"]]:
    """Run the cell over a sequence. The four gates are pre-activations without their recurrent part.

    With R the four matrices of `recurrent` (input, forget, cell, output) and ~ the sum of a gate and R h_{t-1}:
    m_t = max(log sigmoid(f~) + m_{t-1}, i~), i' = exp(i~ - m_t), f' = exp(log sigmoid(f~) + m_{t-1} - m_t),
    c_t = f' c_{t-1} + i' tanh(z~), n_t = f' n_{t-1} + i', h_t = sigmoid(o~) c_t / n_t.

    Returns h in the dtype of `cell_input` and the last (c, n, m, h), stacked on axis 1, in float32 (float64 for
    float64 inputs). Only c / n and m + log n matter to what follows, so it comes back scaled to n = 1.
    `initial_state` None means c = n = h = 0 and m = -inf. Gradients flow to every argument from both.
    xLSTM: Beck et al., arXiv 2405.04517.

    Raises ValueError if there is no position or the shapes disagree.
    """
    _check(input_gate, forget_gate, cell_input, output_gate, recurrent, initial_state)
    fusible = cell_input.dtype != torch.float64 and cell_input.shape[-1] <= LARGEST_FUSED_KEY
    if cell_input.is_cuda and TRITON_INSTALLED and fusible:
        from tsseq.kernels.slstm.triton import fused

        return fused(input_gate, forget_gate, cell_input, output_gate, recurrent, initial_state)
    return chunked(input_gate, forget_gate, cell_input, output_gate, recurrent, initial_state)


def _check(i: Tensor, f: Tensor, z: Tensor, o: Tensor, recurrent: Tensor, initial_state: Tensor | None) -> None:
    if z.ndim != 4 or z.shape[1] == 0:
        raise ValueError(f"expected a cell_input [batch, time >= 1, head, key], got {tuple(z.shape)}")
    batch, _, head, key = z.shape
    expected = {
        "input_gate": (i, z.shape),
        "forget_gate": (f, z.shape),
        "output_gate": (o, z.shape),
        "recurrent": (recurrent, (4, head, key, key)),
        "initial_state": (initial_state, (batch, 4, head, key)),
    }
    for name, (tensor, shape) in expected.items():
        if tensor is not None and tensor.shape != shape:
            raise ValueError(f"expected {name} of shape {tuple(shape)}, got {tuple(tensor.shape)}")


def example_inputs(generator: Generator, batch: int, length: int) -> dict[str, dict[str, Tensor]]:
    """Random gates; gates far out on both sides; slow forgetting."""
    head, key = 2, 8

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=generator.device)

    def example(scale: float, recurrent: float, forget_bias: float = 0.0, state: bool = True) -> dict[str, Tensor]:
        names = ("input_gate", "forget_gate", "cell_input", "output_gate")
        inputs = {name: scale * normal(batch, length, head, key) for name in names}
        inputs["forget_gate"] += forget_bias
        inputs["recurrent"] = recurrent / key**0.5 * normal(4, head, key, key)
        if state:
            n = 1 + normal(batch, head, key).abs()
            c, m, h = (normal(batch, head, key) for _ in range(3))
            inputs["initial_state"] = torch.stack([n * torch.tanh(c), n, m, h], dim=1)
        return inputs

    return {
        "random": example(1.0, 0.5),
        "large gates": example(10.0, 0.3, state=False),
        "long memory": example(1.0, 0.3, forget_bias=5.0),
    }
