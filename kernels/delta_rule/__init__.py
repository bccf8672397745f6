"""The (gated) delta rule with one or more Householder steps per token: DeltaNet, Gated DeltaNet, DeltaProduct."""

from importlib.util import find_spec

import torch
from torch import Generator
from torch.nn.functional import logsigmoid, normalize

from tsseq.array_typing import Float, Tensor
from tsseq.kernels.delta_rule.chunked import chunked
from tsseq.kernels.delta_rule.reference import reference

__all__ = ["chunked", "delta_rule", "example_inputs", "reference"]

TRITON_INSTALLED = find_spec("triton") is not None


def delta_rule(
    query: Float[Tensor, "batch time head key"],
    key: Float[Tensor, "batch time step head key"],
    value: Float[Tensor, "batch time step head value"],
    beta: Float[Tensor, "batch time step head"],
    log_decay: Float[Tensor, "batch time head"] | None = None,
    initial_state: Float[Tensor, "batch head key value"] | None = None,
) -> tuple[Float[Tensor, "batch time head value"], Float[Tensor, "batch head key value"]]:
    """Read an associative memory S after each token has decayed and corrected it.

    For every token: S <- exp(log_decay) S once, then S <- S + beta k (v - S^T k)^T for each of its steps in turn;
    the output is S^T q. Nothing is scaled or normalised here: keys of norm at most 1 and beta in [0, 2] keep the
    state bounded (beta = 2 is a reflection). Kernels for narrow types on a GPU hold beta in float16, up to 255.

    Returns the outputs in query's dtype and the state after the last token in float32 (float64 for float64
    inputs). Gradients flow to every argument from both. DeltaProduct: arXiv 2502.10297; gate: arXiv 2412.06464.

    Raises:
        ValueError: if there is no token, or the shapes do not fit together.
    """
    _check_shapes(query, key, value, beta, log_decay, initial_state)
    inputs = (query, key, value, beta, log_decay, initial_state)
    needs_grad = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs)
    if query.is_cuda and TRITON_INSTALLED:
        from tsseq.kernels.delta_rule.custom_op import delta_rule_triton, supports

        if supports(query, key, value):
            return delta_rule_triton(*inputs, save=needs_grad)
    if query.shape[1] == 1 and not needs_grad:
        return reference(*inputs)
    return chunked(*inputs)


def _check_shapes(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    beta: Tensor,
    log_decay: Tensor | None,
    initial_state: Tensor | None,
) -> None:
    if query.ndim != 4 or key.ndim != 5 or value.ndim != 5 or query.shape[1] == 0 or key.shape[2] == 0:
        raise ValueError(
            "expected query [batch, time >= 1, head, key] with key and value [batch, time, step >= 1, head, width], "
            f"got {tuple(query.shape)}, {tuple(key.shape)} and {tuple(value.shape)}"
        )
    batch, time, head, width = query.shape
    step, value_width = key.shape[2], value.shape[-1]
    expected = {
        "key": (key, (batch, time, step, head, width)),
        "value": (value, (batch, time, step, head, value_width)),
        "beta": (beta, (batch, time, step, head)),
        "log_decay": (log_decay, (batch, time, head)),
        "initial_state": (initial_state, (batch, head, width, value_width)),
    }
    for name, (tensor, shape) in expected.items():
        if tensor is not None and tuple(tensor.shape) != shape:
            raise ValueError(f"expected {name} of shape {shape}, got {tuple(tensor.shape)}")


def example_inputs(generator: Generator, batch: int, length: int) -> dict[str, dict[str, Tensor]]:
    """Random, smooth and constant keys; one to four steps; no decay, mild decay, near-complete decay; resets."""
    return {
        "one step": _example(generator, batch, length, step=1),
        "two steps, no decay": _example(generator, batch, length, step=2, decay=None),
        "three steps, smooth keys": _example(generator, batch, length, step=3, keys="smooth"),
        "four steps, strong decay": _example(generator, batch, length, step=4, decay=8.0),
        "constant keys, reflections": _example(generator, batch, length, step=1, keys="constant", beta=2.0),
        "key wider than value": _example(generator, batch, length, step=1, key_width=12, value_width=5),
    }


def _example(
    generator: Generator,
    batch: int,
    length: int,
    *,
    step: int,
    head: int = 2,
    key_width: int = 8,
    value_width: int = 8,
    keys: str = "random",
    beta: float | None = None,
    decay: float | None = 0.1,
) -> dict[str, Tensor]:
    """`keys` is random, smooth (a slow path) or constant; `beta` None draws from [0, 2]; `decay` is its mean rate."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=generator.device)

    key = normal(batch, length, step, head, key_width)
    if keys == "smooth":
        key = normal(batch, 1, 1, head, key_width) + 0.05 * key.flatten(1, 2).cumsum(1).view_as(key)
    elif keys == "constant":
        key = normal(batch, 1, 1, head, key_width) + 0.01 * key
    inputs = {
        "query": normal(batch, length, head, key_width) / key_width**0.5,
        "key": normalize(key, dim=-1),
        "value": normal(batch, length, step, head, value_width),
        "beta": 2 * torch.sigmoid(normal(batch, length, step, head)),
        "initial_state": normal(batch, head, key_width, value_width),
    }
    if beta is not None:
        inputs["beta"] = torch.full_like(inputs["beta"], beta)
    if decay is not None:
        inputs["log_decay"] = decay * logsigmoid(normal(batch, length, head))
    return inputs
