"""Compile the delta rule's kernels as they would be launched, without a GPU: `python tests/compile_delta_rule.py`.

Prints registers per thread, bytes of stack (spills) and of shared memory; fails where a kernel does not compile or
does not fit the shared memory of its architecture.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path
from unittest.mock import patch

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

sys.path.append(str(Path(__file__).resolve().parent.parent))
from tsseq.kernels import delta_rule  # noqa: E402
from tsseq.kernels.delta_rule import custom_op  # noqa: E402

SHARED_BYTES = {80: 166_912, 90: 232_448}
LAUNCHES = ((64, 1, torch.bfloat16, (80, 90)), (128, 4, torch.bfloat16, (90,)), (32, 2, torch.float32, (80, 90)))
TYPES = {torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32"}


class Recorder:
    """Stands for a kernel and keeps what it is launched with."""

    def __init__(self, kernel) -> None:
        self.kernel = kernel

    def __getitem__(self, grid: tuple[int, ...]):
        return self

    def __call__(self, *arguments, **options) -> None:
        self.arguments, self.options = arguments, options

    def compile(self, architecture: int) -> str:
        names = self.kernel.arg_names
        options = dict(self.options)
        launch = {name: options.pop(name) for name in ("num_warps", "maxnreg") if name in options}
        signature = dict.fromkeys(names, "constexpr")
        for name, x in zip(names, self.arguments, strict=False):
            signature[name] = TYPES[x.dtype] if isinstance(x, Tensor) else "i32"
        aligned = {(i,): [["tt.divisibility", 16]] for i, x in enumerate(self.arguments) if isinstance(x, Tensor)}
        constants = {(names.index(name),): x for name, x in options.items()}
        source = ASTSource(fn=self.kernel, signature=signature, constexprs=constants, attrs=aligned)
        compiled = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=launch)
        assert compiled.metadata.shared <= SHARED_BYTES[architecture], compiled.metadata.shared
        return f"{_usage(compiled.asm['cubin'])}, {compiled.metadata.shared} bytes of shared memory"


def _usage(cubin: bytes) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", file.name]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    registers, stack = re.search(r"REG:(\d+) STACK:(\d+)", text).groups()
    return f"{registers} registers, {stack} bytes of stack"


def main() -> None:
    names = ("solve_kernel", "forward_kernel", "adjoint_kernel", "gradient_kernel")
    for width, step, dtype, architectures in LAUNCHES:
        example = delta_rule._example(torch.Generator(), 1, 1, step=step, key_width=width, value_width=width)
        inputs = {name: x.to(dtype) if name != "initial_state" else x for name, x in example.items()}
        inputs = {name: x.requires_grad_() for name, x in inputs.items()}
        for architecture in architectures:
            recorders = {name: Recorder(getattr(custom_op, name)) for name in names}
            major = architecture // 10
            with patch.multiple(custom_op, _architecture=lambda x, major=major: major, **recorders):
                output, state = custom_op.delta_rule_triton(**inputs, save=True)
                (output.sum() + state.sum()).backward()
            for name, recorder in recorders.items():
                label = f"sm_{architecture} {str(dtype)[6:]}, width {width}, {step} steps, {name}"
                print(f"{label}: {recorder.compile(architecture)}", flush=True)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as cache:
        triton.knobs.cache.dir = cache
        main()
