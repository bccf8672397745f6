"""Fixtures and path order shared by all tests."""

import os
import sys
from pathlib import Path

import pytest
import torch

# Read when Triton is first imported: without a GPU its kernels run in the interpreter.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

ROOT = str(Path(__file__).resolve().parent.parent)
# Our folders `datasets`, `kernels` and `cli` must not shadow Hugging Face's packages of those names.
if any(p in ("", ROOT) for p in sys.path):
    sys.path[:] = [p for p in sys.path if p not in ("", ROOT)] + [ROOT]


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)
