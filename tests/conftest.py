"""Fixtures and path order shared by all tests."""

import sys
from pathlib import Path

import pytest
import torch

ROOT = str(Path(__file__).resolve().parent.parent)
# Our folders `datasets`, `kernels` and `cli` must not shadow Hugging Face's packages of those names.
if any(p in ("", ROOT) for p in sys.path):
    sys.path[:] = [p for p in sys.path if p not in ("", ROOT)] + [ROOT]


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)
