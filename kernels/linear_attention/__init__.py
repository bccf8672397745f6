"""Linear attention: a matrix memory that decays, gains an outer product, and is read by a query.

S_t = exp(f_t) S_{t-1} + exp(i_t) k_t v_t^T,  o_t = scale * S_t^T q_t, the decay a number per head (Mamba-2,
retention, mLSTM) or per key channel (GLA, HGRN2). With `normalize` it is the mLSTM: the input gate is exponential,
so the memory is held divided by exp(m_t), m_t = max(f_t + m_{t-1}, i_t), beside the normaliser n_t, and
h_t = scale S_t^T q_t / max(|scale n_t^T q_t|, exp(-m_t)), which does not depend on m. arXiv 2405.04517, 2312.06635,
2405.21060.
"""

from importlib.util import find_spec
from typing import Any

import torch
from torch import Generator
from torch.nn import functional as F

from tsseq.array_typing import Float, State, Tensor
from tsseq.kernels.linear_attention.chunked import chunked
from tsseq.kernels.linear_attention.reference import reference

__all__ = ["chunked", "example_inputs", "linear_attention", "reference"]

TRITON_INSTALLED = find_spec("triton") is not None


def linear_attention(
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
    """Read a decaying sum of outer products; returns the read-outs and the state after the last position.

    `log_decay` is [batch, time, head] or [batch, time, head, key], at most zero (None: no decay). `input_gate` is
    the logarithm of what multiplies the new outer product (None: zero): the raw pre-activation of the exponential
    gate, or `logsigmoid` of it for the sigmoid gate. `scale` multiplies the query (None: key ** -0.5); the papers
    that scale the key instead have the same output. The state is (memory [batch, head, key, value],) and, with
    `normalize`, (memory, normaliser [batch, head, key], maximum [batch, head]), in float32; None is an empty memory
    with maximum minus infinity.

    Raises ValueError if there is no position, the shapes disagree, or `normalize` is asked for with a decay per
    channel.
    """
    _check(query, key, value, log_decay, input_gate, initial_state, normalize)
    if query.is_cuda and TRITON_INSTALLED and query.dtype != torch.float64:
        from tsseq.kernels.linear_attention.custom_op import fused

        return fused(query, key, value, log_decay, input_gate, initial_state, normalize=normalize, scale=scale)
    return chunked(query, key, value, log_decay, input_gate, initial_state, normalize=normalize, scale=scale)


def _check(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    log_decay: Tensor | None,
    input_gate: Tensor | None,
    state: State | None,
    normalize: bool,
) -> None:
    fit = query.ndim == value.ndim == 4 and key.shape == query.shape and value.shape[:3] == key.shape[:3]
    if not fit or key.shape[1] == 0:
        shapes = ", ".join(str(tuple(x.shape)) for x in (query, key, value))
        raise ValueError(f"expected query, key and value as [batch, time >= 1, head, width], got {shapes}")
    batch, time, head, width = key.shape
    gate, vector = (batch, time, head), (batch, time, head, width)
    if log_decay is not None and log_decay.shape not in (gate, vector):
        raise ValueError(f"expected log_decay of shape {gate} or {vector}, got {tuple(log_decay.shape)}")
    if input_gate is not None and input_gate.shape != gate:
        raise ValueError(f"expected input_gate of shape {gate}, got {tuple(input_gate.shape)}")
    if normalize and log_decay is not None and log_decay.ndim == 4:
        raise ValueError("expected a decay per head with normalize=True, got one per key channel")
    if state is not None:
        memory = (batch, head, width, value.shape[-1])
        expected = [memory, (batch, head, width), (batch, head)] if normalize else [memory]
        got = [tuple(x.shape) for x in state]
        if got != expected:
            raise ValueError(f"expected an initial_state of shapes {expected}, got {got}")


def example_inputs(generator: Generator, batch: int, length: int) -> dict[str, dict[str, Any]]:
    """No decay, decay per head and per channel, near zero and near one; gates with and without a normaliser.

    Wide gates come with positive queries and keys, whose denominators do not cancel.
    """

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=generator.device)

    head, width, wide = 2, 16, 32
    qkv = {
        "query": normal(batch, length, head, width),
        "key": normal(batch, length, head, width),
        "value": normal(batch, length, head, wide),
    }
    memory, normalizer = normal(batch, head, width, wide), normal(batch, head, width)
    gate, vector = normal(batch, length, head), normal(batch, length, head, width)
    forget, maximum = F.logsigmoid(3 + normal(batch, length, head)), normal(batch, head)
    return {
        "plain": qkv,
        "decay per head": {**qkv, "log_decay": forget, "initial_state": (memory,)},
        "decay near zero and one": {**qkv, "log_decay": -(10 * gate).exp(), "initial_state": (memory,)},
        "sigmoid gate": {**qkv, "log_decay": forget, "input_gate": F.logsigmoid(gate), "initial_state": (memory,)},
        "decay per channel": {**qkv, "log_decay": F.logsigmoid(vector), "initial_state": (memory,)},
        "channels near zero and one": {**qkv, "log_decay": -(5 * vector).exp(), "initial_state": (memory,)},
        "exponential gate": {
            **qkv, "log_decay": forget, "input_gate": gate - 1, "initial_state": (memory, normalizer, maximum),
            "normalize": True,
        },
        "wide exponential gate": {
            "query": qkv["query"].abs(), "key": qkv["key"].abs(), "value": qkv["value"], "normalize": True,
            "log_decay": F.logsigmoid(5 * gate), "input_gate": 10 * normal(batch, length, head),
        },
    }  # fmt: skip
