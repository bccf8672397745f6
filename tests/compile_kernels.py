"""How the scripts beside this file compile kernels as they would be launched, without a GPU."""

import re
import subprocess
import tempfile

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

SHARED_BYTES = {80: 166_912, 90: 232_448}
TYPES = {
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.float32: "*fp32",
    torch.int32: "*i32",
    torch.int64: "*i64",
    torch.uint8: "*u8",
}


class Recorder:
    """Stands for a kernel and keeps what it is first launched with."""

    def __init__(self, kernel) -> None:
        self.kernel, self.launch = kernel, None

    def __getitem__(self, grid: tuple[int, ...]):
        return self

    def __call__(self, *arguments, **options) -> None:
        self.launch = self.launch or (arguments, options)

    def compile(self, architecture: int) -> str:
        """Registers per thread, bytes of stack (spills) and of shared memory, which must fit the architecture."""
        arguments, options = self.launch
        names = self.kernel.arg_names
        launch = {name: x for name, x in options.items() if name not in names}
        given = dict(zip(names, arguments, strict=False)) | {n: x for n, x in options.items() if n in names}
        signature, constants, aligned = {}, {}, {}
        for i, name in enumerate(names):
            x = given[name]
            run_time = not self.kernel.params[i].is_constexpr and x is not None
            signature[name] = "constexpr" if not run_time else TYPES[x.dtype] if isinstance(x, Tensor) else "i32"
            if not run_time:
                constants[(i,)] = x
            elif isinstance(x, Tensor):
                aligned[(i,)] = [["tt.divisibility", 16]]
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
