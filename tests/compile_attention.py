"""Compile the kernels of four ops as they would be launched, without a GPU: `python tests/compile_attention.py`.

Prints registers per thread, bytes of stack (spills) and of shared memory; fails where a kernel does not compile or
does not fit the shared memory of its architecture.
"""

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import torch
import triton
from compile_kernels import Recorder
from torch import Tensor

sys.path.append(str(Path(__file__).resolve().parent.parent))
from tsseq.kernels.gated_norm import triton as gated_norm  # noqa: E402
from tsseq.kernels.linear_attention import channelwise, custom_op  # noqa: E402
from tsseq.kernels.selective_scan import triton as selective_scan  # noqa: E402
from tsseq.kernels.short_convolution import triton as short_convolution  # noqa: E402


def _leaf(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.ones(shape, dtype=dtype).requires_grad_()


def _convolution(kernel: int, dtype: torch.dtype) -> None:
    x, weight = _leaf(1, 32, 256, dtype=dtype), _leaf(256, kernel, dtype=torch.float32)
    short_convolution.fused(x, weight, head_dim=64)[0].sum().backward()


def _norm() -> None:
    x = _leaf(1, 32, 4, 64)
    gated_norm.fused(x, x, _leaf(4, 64, dtype=torch.float32)).sum().backward()


def _attention(width: int, dtype: torch.dtype, channelwise: bool = False) -> None:
    x, gate = _leaf(1, 32, 4, width, dtype=dtype), _leaf(1, 32, 4, dtype=torch.float32)
    if channelwise:
        custom_op.fused(x, x, x, _leaf(1, 32, 4, width))[0].sum().backward()
    else:
        custom_op.fused(x, x, x, gate, gate, normalize=True)[0].sum().backward()


def _selective() -> None:
    x, maps = _leaf(1, 32, 256), _leaf(1, 32, 16)
    selective_scan.fused(x, x, _leaf(256, 16, dtype=torch.float32), maps, maps)[0].sum().backward()


ATTENTION = (
    "prepare_kernel",
    "finish_kernel",
    "forward_kernel",
    "adjoint_kernel",
    "query_gradients_kernel",
    "key_gradients_kernel",
)
CHANNELWISE = ("channelwise_forward_kernel", "channelwise_backward_kernel")
BOTH, HOPPER = (80, 90), (90,)
LAUNCHES = (
    (
        "convolution, 4 taps",
        short_convolution,
        ("_forward", "_backward"),
        BOTH,
        lambda: _convolution(4, torch.bfloat16),
    ),
    (
        "convolution, 32 taps",
        short_convolution,
        ("_forward", "_filter_gradient"),
        HOPPER,
        lambda: _convolution(32, torch.bfloat16),
    ),
    ("gated norm", gated_norm, ("_forward", "_backward"), BOTH, _norm),
    ("mLSTM, width 64", custom_op, ATTENTION, BOTH, lambda: _attention(64, torch.bfloat16)),
    ("mLSTM, width 128", custom_op, (*ATTENTION[2:], "read_kernel"), HOPPER, lambda: _attention(128, torch.bfloat16)),
    ("mLSTM, width 32, float32", custom_op, ATTENTION[2:], HOPPER, lambda: _attention(32, torch.float32)),
    ("decay per channel", channelwise, CHANNELWISE, BOTH, lambda: _attention(64, torch.bfloat16, True)),
    ("selective scan", selective_scan, ("_forward", "_backward"), BOTH, _selective),
)


def _record(module, names: tuple[str, ...], run: Callable[[], None]) -> dict[str, Recorder]:
    """What each kernel of a module would be launched with; the module's other kernels are kept from running."""
    kernels = {n: Recorder(k) for n, k in vars(module).items() if isinstance(k, triton.JITFunction)}
    with patch.multiple(module, **{n: k for n, k in kernels.items() if k.kernel.arg_names[0] in FIRST_ARGUMENTS}):
        run()
    return {name: kernels[name] for name in names}


FIRST_ARGUMENTS = ("x", "q", "decay", "rows")
"""Of kernels that are launched, not called by others."""


def main() -> None:
    for label, module, names, architectures, run in LAUNCHES:
        for architecture in architectures:
            with patch.object(custom_op, "_is_ampere", lambda x, old=architecture < 90: old):
                recorders = _record(module, names, run)
            for name, recorder in recorders.items():
                print(f"sm_{architecture} {label}, {name}: {recorder.compile(architecture)}", flush=True)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as cache:
        triton.knobs.cache.dir = cache
        main()
