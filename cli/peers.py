"""Public kernels that `tsseq benchmark --peers` times beside ours, where they are installed.

An adapter takes the inputs of our op and returns the peer's function with the inputs in the peer's own layout, so that
no conversion is timed. To add one: a function here and a line in PEERS.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from torch import Tensor

Call: TypeAlias = tuple[Callable[..., Any], dict[str, Any]]
Adapter: TypeAlias = Callable[[dict[str, Any]], Call]


def fla_delta_rule(inputs: dict[str, Any]) -> Call:
    from fla.ops.gated_delta_rule import chunk_gated_delta_rule

    return chunk_gated_delta_rule, {
        "q": inputs["query"],
        "k": inputs["key"][:, :, 0].contiguous(),
        "v": inputs["value"][:, :, 0].contiguous(),
        "g": inputs["log_decay"],
        "beta": inputs["beta"][:, :, 0].contiguous(),
        "scale": 1.0,
    }


def fla_delta_product(inputs: dict[str, Any]) -> Call:
    from fla.ops.gated_delta_product import chunk_gated_delta_product

    return chunk_gated_delta_product, {
        "q": inputs["query"],
        "k": inputs["key"].flatten(1, 2),
        "v": inputs["value"].flatten(1, 2),
        "g": inputs["log_decay"],
        "beta": inputs["beta"].flatten(1, 2),
        "num_householder": inputs["key"].shape[2],
        "scale": 1.0,
    }


def fla_simple_gla(inputs: dict[str, Any]) -> Call:
    from fla.ops.simple_gla import chunk_simple_gla

    return chunk_simple_gla, _qkv(inputs) | {"g": inputs["log_decay"]}


def fla_gla(inputs: dict[str, Any]) -> Call:
    from fla.ops.gla import chunk_gla

    return chunk_gla, _qkv(inputs) | {"g": inputs["log_decay"]}


def fla_hgrn(inputs: dict[str, Any]) -> Call:
    from fla.ops.hgrn import chunk_hgrn

    return chunk_hgrn, {"x": inputs["inputs"], "g": inputs["decay"].float().log().to(inputs["inputs"].dtype)}


def accelerated_scan(inputs: dict[str, Any]) -> Call:
    if inputs["inputs"].is_complex():
        from accelerated_scan.complex import scan
    else:
        from accelerated_scan.scalar import scan
    tokens = _channels_first(inputs["inputs"])
    forget = inputs["decay"]
    forget = _channels_first(forget) if forget.ndim == 3 else forget[:, None].expand(tokens.shape).contiguous()
    return scan, {"forget": forget, "inputs": tokens}


def mlstm_kernels(inputs: dict[str, Any]) -> Call:
    import torch
    from mlstm_kernels.torch.chunkwise.triton_xl_chunk import mlstm_chunkwise__xl_chunk

    def run(**arguments: Any) -> Any:
        return mlstm_chunkwise__xl_chunk(**arguments, autocast_kernel_dtype=torch.bfloat16)

    return run, _heads_first(inputs)


def mlstm_kernels_sigmoid(inputs: dict[str, Any]) -> Call:
    import torch
    from mlstm_kernels.torch.chunkwise.triton_xl_chunk_siging import mlstm_siging_chunkwise__xl_chunk

    def run(**arguments: Any) -> Any:
        return mlstm_siging_chunkwise__xl_chunk(**arguments, normalize=False, autocast_kernel_dtype=torch.bfloat16)

    return run, _heads_first(inputs)


def flashrnn_slstm(inputs: dict[str, Any]) -> Call:
    import torch
    from flashrnn import flashrnn

    gates = torch.stack([inputs[name] for name in ("input_gate", "forget_gate", "cell_input", "output_gate")], dim=2)
    recurrent = inputs["recurrent"].to(gates.dtype)

    def run(Wx: Tensor, R: Tensor, b: Tensor) -> Any:
        return flashrnn(Wx, R, b, function="slstm", backend="triton_fused", dtype="bfloat16")[0][0]

    return run, {"Wx": gates, "R": recurrent, "b": torch.zeros_like(recurrent[..., 0])}


def causal_attention(inputs: dict[str, Any]) -> Call:
    """Not the same function: what a Transformer would spend on the same heads."""
    from torch.nn.functional import scaled_dot_product_attention

    names = ("query", "key", "value")
    heads = {name: inputs[name].transpose(1, 2).contiguous() for name in names}
    return lambda **qkv: scaled_dot_product_attention(**qkv, is_causal=True), heads


def fla_gated_norm(inputs: dict[str, Any]) -> Call:
    from fla.modules.norm.fused_norm_gate import rms_norm_gated

    arguments = {"x": inputs["x"], "g": inputs["gate"], "weight": inputs["weight"][0].contiguous()}
    return lambda **heads: rms_norm_gated(**heads, bias=None, activation="swish"), arguments


def _qkv(inputs: dict[str, Any]) -> dict[str, Any]:
    return {"q": inputs["query"], "k": inputs["key"], "v": inputs["value"]}


def _heads_first(inputs: dict[str, Any]) -> dict[str, Any]:
    """[batch, head, time, ...]; the peer takes the forget gate before its logarithm."""
    import torch

    arguments = {name: x.transpose(1, 2).contiguous() for name, x in _qkv(inputs).items()}
    forget = inputs["log_decay"] - torch.log1p(-inputs["log_decay"].exp())
    return arguments | {
        "i": inputs["input_gate"].transpose(1, 2).contiguous(),
        "f": forget.transpose(1, 2).contiguous(),
    }


def _channels_first(x: Tensor) -> Tensor:
    return x.transpose(1, 2).contiguous()


PEERS: dict[tuple[str, str], dict[str, Adapter]] = {
    ("delta_rule", "1 step"): {"fla gated delta rule": fla_delta_rule},
    ("delta_rule", "2 steps"): {"fla gated delta product": fla_delta_product},
    ("delta_rule", "4 steps"): {"fla gated delta product": fla_delta_product},
    ("diagonal_scan", "real, gated"): {"fla HGRN": fla_hgrn, "accelerated-scan": accelerated_scan},
    ("diagonal_scan", "complex, constant"): {"accelerated-scan": accelerated_scan},
    ("gated_norm", "SiLU"): {"fla rms_norm_gated": fla_gated_norm},
    ("linear_attention", "mLSTM"): {"mlstm_kernels": mlstm_kernels, "SDPA": causal_attention},
    ("linear_attention", "sigmoid gate"): {"mlstm_kernels": mlstm_kernels_sigmoid},
    ("linear_attention", "decay per head"): {"fla simple GLA": fla_simple_gla},
    ("linear_attention", "decay per channel"): {"fla GLA": fla_gla},
    ("slstm", "cell"): {"flashrnn": flashrnn_slstm},
}
"""(op, case of its benchmark inputs) -> peers by name."""
