"""What `tsseq benchmark` times: inputs of each op as a layer of `head` heads of width `width` would give them.

Every function yields named keyword arguments, one set at a time because they are large. Values are in `dtype`,
gates, decays and weights in float32; an op that is specified in float32 ignores `dtype`.
"""

from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

Inputs: TypeAlias = Iterator[tuple[str, dict[str, Any]]]
BenchmarkInputs: TypeAlias = Callable[[Generator, int, int, int, int, torch.dtype], Inputs]


def _normal(generator: Generator, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=generator, device=generator.device).to(dtype)


def block_scan(generator: Generator, batch: int, length: int, head: int, width: int, dtype: torch.dtype) -> Inputs:
    blocks = -(-head * width // 4)
    step = 0.1 * _normal(generator, batch, length, blocks, 4, 4)
    transitions = torch.eye(4, device=generator.device) * 0.95 + step
    yield "blocks of 4", {"transitions": transitions, "inputs": _normal(generator, batch, length, blocks, 4)}


def controlled_block_scan(
    generator: Generator, batch: int, length: int, head: int, width: int, dtype: torch.dtype
) -> Inputs:
    omega, blocks = 16, -(-head * width // 4)
    yield (
        f"blocks of 4, {omega} increments",
        {
            "increments": _normal(generator, batch, length, omega) / 40,
            "weights": _normal(generator, omega, blocks, 4, 4) / 2,
            "initial_state": _normal(generator, batch, blocks, 4),
        },
    )


def delta_rule(generator: Generator, batch: int, length: int, head: int, width: int, dtype: torch.dtype) -> Inputs:
    for step in (1, 2, 4):
        keys = F.normalize(_normal(generator, batch, length, step, head, width), dim=-1)
        yield (
            f"{step} step" + "s" * (step > 1),
            {
                "query": F.normalize(_normal(generator, batch, length, head, width), dim=-1).to(dtype),
                "key": keys.to(dtype),
                "value": _normal(generator, batch, length, step, head, width, dtype=dtype),
                "beta": 2 * torch.sigmoid(_normal(generator, batch, length, step, head)),
                "log_decay": F.logsigmoid(3 + _normal(generator, batch, length, head)),
            },
        )


def diagonal_scan(generator: Generator, batch: int, length: int, head: int, width: int, dtype: torch.dtype) -> Inputs:
    channels = head * width
    decay = torch.sigmoid(2 + _normal(generator, batch, length, channels))
    yield (
        "real, gated",
        {"decay": decay.to(dtype), "inputs": _normal(generator, batch, length, channels, dtype=dtype)},
    )
    modulus = 0.9 + 0.0999 * torch.rand(channels, generator=generator, device=generator.device)
    phase = 6.28 * torch.rand(channels, generator=generator, device=generator.device)
    parts = _normal(generator, batch, length, channels, 2)
    yield "complex, constant", {"decay": torch.polar(modulus, phase), "inputs": torch.view_as_complex(parts)}


def gated_norm(generator: Generator, batch: int, length: int, head: int, width: int, dtype: torch.dtype) -> Inputs:
    x, gate = (_normal(generator, batch, length, head, width, dtype=dtype) for _ in range(2))
    yield "SiLU", {"x": x, "gate": gate, "weight": _normal(generator, head, width)}


def hadamard_scan(generator: Generator, batch: int, length: int, head: int, width: int, dtype: torch.dtype) -> Inputs:
    channels = head * width
    diagonal = 0.05 * torch.tanh(_normal(generator, batch, length, channels))
    yield f"width {channels}", {"diagonal": diagonal, "inputs": _normal(generator, batch, length, channels)}


def linear_attention(
    generator: Generator, batch: int, length: int, head: int, width: int, dtype: torch.dtype
) -> Inputs:
    shape = (batch, length, head, width)
    qkv = {name: _normal(generator, *shape, dtype=dtype) for name in ("query", "key", "value")}
    decay = F.logsigmoid(3 + _normal(generator, *shape[:3]))
    gate = _normal(generator, *shape[:3]) - 1
    yield "mLSTM", {**qkv, "log_decay": decay, "input_gate": gate, "normalize": True}
    yield "sigmoid gate", {**qkv, "log_decay": decay, "input_gate": F.logsigmoid(gate)}
    yield "decay per head", {**qkv, "log_decay": decay}
    yield "decay per channel", {**qkv, "log_decay": F.logsigmoid(3 + _normal(generator, *shape)).to(dtype)}


def selective_scan(generator: Generator, batch: int, length: int, head: int, width: int, dtype: torch.dtype) -> Inputs:
    channels, state = head * width, 16
    maps = {name: _normal(generator, batch, length, state, dtype=dtype) for name in ("B", "C")}
    yield (
        f"{state} states",
        {
            "x": _normal(generator, batch, length, channels, dtype=dtype),
            "delta": F.softplus(_normal(generator, batch, length, channels) - 2).to(dtype),
            "A": -torch.arange(1.0, state + 1, device=generator.device).expand(channels, -1),
            **maps,
            "D": torch.ones(channels, device=generator.device),
        },
    )


def short_convolution(
    generator: Generator, batch: int, length: int, head: int, width: int, dtype: torch.dtype
) -> Inputs:
    channels = head * width
    x = _normal(generator, batch, length, channels, dtype=dtype)
    for taps in (4, 32):
        weight = _normal(generator, channels, taps) / taps**0.5
        yield f"{taps} taps", {"x": x, "weight": weight}
        yield f"{taps} taps, unit heads", {"x": x, "weight": weight, "head_dim": width}


def slstm(generator: Generator, batch: int, length: int, head: int, width: int, dtype: torch.dtype) -> Inputs:
    shape = (batch, length, head, width)
    names = ("input_gate", "forget_gate", "cell_input", "output_gate")
    gates = {name: _normal(generator, *shape, dtype=dtype) for name in names}
    gates["forget_gate"] = gates["forget_gate"] + 3
    recurrent = 0.3 * _normal(generator, 4, head, width, width) / width**0.5
    yield "cell", {**gates, "recurrent": recurrent}
