"""Compile the delta rule's kernels as they would be launched, without a GPU: `python tests/compile_delta_rule.py`.

Prints registers per thread, bytes of stack (spills) and of shared memory; fails where a kernel does not compile or
does not fit the shared memory of its architecture.
"""

import itertools
import sys
import tempfile
from pathlib import Path
from unittest.mock import patch

import torch
import triton
from compile_kernels import Recorder

sys.path.append(str(Path(__file__).resolve().parent.parent))
from tsseq.kernels import delta_rule  # noqa: E402
from tsseq.kernels.delta_rule import custom_op  # noqa: E402

NAMES = ("solve_kernel", "forward_kernel", "adjoint_kernel", "gradient_kernel", "refinement_kernel")
LAUNCHES = ((64, 1, torch.bfloat16, (80, 90)), (128, 4, torch.bfloat16, (90,)), (32, 2, torch.float32, (80, 90)))


def main() -> None:
    for width, step, dtype, architectures in LAUNCHES:
        example = delta_rule._example(torch.Generator(), 1, 1, step=step, key_width=width, value_width=width)
        inputs = {name: x.to(dtype) if name != "initial_state" else x for name, x in example.items()}
        inputs = {name: x.requires_grad_() for name, x in inputs.items()}
        for architecture, close in itertools.product(architectures, custom_op._close(inputs["query"])):
            recorders = {name: Recorder(getattr(custom_op, name)) for name in NAMES}
            found = {
                "_architecture": lambda x, major=architecture // 10: major,
                "_close": lambda q, c=close: (c,),
            }
            with patch.multiple(custom_op, **found, **recorders):
                output, state = custom_op.delta_rule_triton(**inputs, save=True)
                (output.sum() + state.sum()).backward()
            for name in NAMES[1:3] if close else NAMES[: 4 + (dtype != torch.float32)]:
                label = f"sm_{architecture} {str(dtype)[6:]}, width {width}, {step} steps, {name}"
                label += " of more digits" * close
                print(f"{label}: {recorders[name].compile(architecture)}", flush=True)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as cache:
        triton.knobs.cache.dir = cache
        main()
