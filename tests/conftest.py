"""Fixtures and path order shared by all tests."""

import contextlib
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

# Read when torch is first imported: workers of `pytest -n` with a pool of threads each would wait for one another.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch  # noqa: E402

# Read when Triton is first imported: without a GPU its kernels run in the interpreter.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


def interpret_bfloat16() -> None:
    """Teach Triton's interpreter bfloat16: rounded to nearest even, and products of it summed in float32.

    By itself it keeps the upper halves of float32 numbers as integers, cuts off where a GPU rounds, and cannot
    multiply matrices of them.
    """
    import numpy as np
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    def widened(data: np.ndarray) -> np.ndarray:
        return (data.astype(np.uint32) << 16).view(np.float32)

    def narrowed(data: np.ndarray) -> np.ndarray:
        bits = np.ascontiguousarray(data, dtype=np.float32).view(np.uint32)
        return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)

    def cast(self, x, dtype):
        source, target = x.dtype.scalar, dtype.scalar
        if source == target or tl.bfloat16 not in (source, target):
            return plain_cast(self, x, dtype)
        if source == tl.bfloat16:
            x = TensorHandle(widened(x.data), tl.float32)
            return x if target == tl.float32 else plain_cast(self, x, dtype)
        return TensorHandle(narrowed(x.data), target)

    def dot(self, a, b, total, *_):
        a, b = (widened(x.data) if x.dtype.scalar == tl.bfloat16 else x.data for x in (a, b))
        return TensorHandle(np.matmul(a, b, dtype=total.data.dtype) + total.data, total.dtype.scalar)

    plain_cast = InterpreterBuilder.cast_impl
    InterpreterBuilder.cast_impl, InterpreterBuilder.create_dot = cast, dot


if os.environ.get("TRITON_INTERPRET") == "1":
    with contextlib.suppress(ModuleNotFoundError):
        interpret_bfloat16()

ROOT = str(Path(__file__).resolve().parent.parent)
# Our folders `datasets`, `kernels` and `cli` must not shadow Hugging Face's packages of those names.
if any(p in ("", ROOT) for p in sys.path):
    sys.path[:] = [p for p in sys.path if p not in ("", ROOT)] + [ROOT]


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture
def readings() -> dict[str, object]:
    """A value for each option of a forecast that adapters take, other than the default."""
    return {
        "flip": False,
        "nonnegative": False,
        "coarser": (2,),
        "recent": (99,),
        "recent_short": (98,),
        "phases": (7,),
        "spread": 1.5,
    }


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small network with random weights, as a file: wrong forecasts, but each its own."""
    from tsseq.backbone import BackboneConfig
    from tsseq.forecaster import Forecaster, ForecasterConfig

    torch.manual_seed(1)
    backbone = BackboneConfig(width=16, layers=1, mlp_width=16)
    config = ForecasterConfig(patch_length=8, hidden_width=16, max_context=64, backbone=backbone)
    return str(Forecaster(config).save_pretrained(tmp_path_factory.mktemp("model") / "small.safetensors"))


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[[list[object], str], None]:
    """Run a command that must end in one line on stderr, status 2, and nothing written in its folder `out`."""
    from tsseq.cli.__main__ import main

    out = tmp_path / "out"
    out.mkdir()

    def check(argv: list[object], message: str) -> None:
        status = main(list(map(str, argv)))
        said = capsys.readouterr()
        assert status == 2
        assert said.err.startswith("tsseq: error: ") and said.err.count("\n") == 1, said.err
        assert message in said.err
        assert said.out == "" and "Traceback" not in said.err
        assert list(out.iterdir()) == []

    check.out = out
    return check
