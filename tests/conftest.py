"""Fixtures and path order shared by all tests."""

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

ROOT = str(Path(__file__).resolve().parent.parent)
# Our folders `datasets`, `kernels` and `cli` must not shadow Hugging Face's packages of those names.
if any(p in ("", ROOT) for p in sys.path):
    sys.path[:] = [p for p in sys.path if p not in ("", ROOT)] + [ROOT]


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


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
