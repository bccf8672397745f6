"""Compile the scans' kernels as they would be launched, without a GPU: `python tests/compile_scans.py`.

Prints registers per thread, bytes of stack (spills) and of shared memory; fails where a kernel does not compile or
does not fit the shared memory of its architecture.
"""

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from unittest.mock import patch

import torch
import triton
from compile_kernels import Recorder
from torch import Tensor

sys.path.append(str(Path(__file__).resolve().parent.parent))
from tsseq.kernels.block_scan import triton as block_scan  # noqa: E402
from tsseq.kernels.block_scan import triton_controlled, triton_hadamard  # noqa: E402
from tsseq.kernels.diagonal_scan import triton as diagonal_scan  # noqa: E402
from tsseq.kernels.slstm import triton as slstm  # noqa: E402


def _leaf(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.ones(shape, dtype=dtype).requires_grad_()


def _diagonal(dtype: torch.dtype, constant: bool) -> None:
    decay = _leaf(256, dtype=dtype) if constant else _leaf(1, 64, 256, dtype=dtype)
    diagonal_scan.fused(decay, _leaf(1, 64, 256, dtype=dtype))[0].sum().abs().backward()


def _blocks(block: int, size: int, dtype: torch.dtype) -> None:
    block_scan.fused(_leaf(1, 2, block, size, size, dtype=dtype), _leaf(1, 2, block, size, dtype=dtype))[
        0
    ].sum().backward()


def _controlled(omega: int) -> None:
    triton_controlled.controlled(_leaf(1, 2, omega), _leaf(omega, 64, 4, 4))[0].sum().backward()


def _hadamard() -> None:
    triton_hadamard.hadamard(_leaf(1, 2, 256))[0].sum().backward()


def _cell(dtype: torch.dtype) -> None:
    gates = [_leaf(8, 2, 4, 64, dtype=dtype) for _ in range(4)]
    slstm.fused(*gates, _leaf(4, 4, 64, 64, dtype=dtype))[0].sum().backward()


CASES: dict[str, tuple[ModuleType, Callable[[], None], tuple[int, ...]]] = {
    "diagonal scan bfloat16": (diagonal_scan, lambda: _diagonal(torch.bfloat16, False), (80, 90)),
    "diagonal scan complex64, constant": (diagonal_scan, lambda: _diagonal(torch.complex64, True), (90,)),
    "block scan float32, blocks of 4": (block_scan, lambda: _blocks(64, 4, torch.float32), (80, 90)),
    "block scan bfloat16, blocks of 16": (block_scan, lambda: _blocks(16, 16, torch.bfloat16), (90,)),
    "block scan float32, one block of 128": (block_scan, lambda: _blocks(1, 128, torch.float32), (90,)),
    "block scan of 16 increments": (triton_controlled, lambda: _controlled(16), (80, 90)),
    "Hadamard scan float32": (triton_hadamard, _hadamard, (90,)),
    "sLSTM bfloat16": (slstm, lambda: _cell(torch.bfloat16), (80, 90)),
    "sLSTM float32": (slstm, lambda: _cell(torch.float32), (90,)),
}


def main() -> None:
    for label, (module, run, architectures) in CASES.items():
        kernels = ("_forward", "_backward", "_adjoint", "_increment_gradients", "_weight_gradients")
        recorders = {name: Recorder(getattr(module, name)) for name in kernels if hasattr(module, name)}
        with patch.multiple(module, **recorders):
            run()
        for architecture in architectures:
            for name, recorder in recorders.items():
                print(f"sm_{architecture} {label}, {name[1:]}: {recorder.compile(architecture)}", flush=True)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as cache:
        triton.knobs.cache.dir = cache
        main()
