"""How the GPU kernels multiply matrices on tensor cores, which take no float32."""

import os

import torch

try:
    from triton.backends.nvidia.compiler import CUDAOptions

    _KNOWN = CUDAOptions.allowed_dot_input_precisions
except (ImportError, AttributeError):  # Triton for other machines
    _KNOWN = ()

FLOAT32 = "bf16x6" if "bf16x6" in _KNOWN and os.environ.get("TRITON_INTERPRET") != "1" else "tf32x3"
"""Three bfloat16 parts hold all 24 bits of a float32, two parts of tf32 only 22.

Over a thousand chunks of equal keys the two bits decide, as their loss is the same each time. The interpreter, where
float32 products are exact, and Triton before 3.5 know only the latter.
"""


def precision(dtype: torch.dtype) -> str:
    """Triton's `input_precision` for operands of `dtype`; narrower types than float32 ignore it."""
    return FLOAT32 if dtype == torch.float32 else "tf32"
