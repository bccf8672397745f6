"""Where commands write: checked before any work, written whole or not at all."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

NARROWEST = 80
"""Characters in a line of results."""


def ensure_folder(path: Path) -> Path:
    """The folder `path`, made if its parent exists; ValueError where it cannot be written."""
    path = Path(path).expanduser()
    if path.exists() and not path.is_dir():
        raise ValueError(f"{path} is a file; expected a folder")
    if not path.exists() and not path.absolute().parent.is_dir() and not path.absolute().parent.parent.is_dir():
        raise ValueError(f"the folder {path.absolute().parent} does not exist")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"cannot make the folder {path}: {error.strerror}") from error
    if not os.access(path, os.W_OK):
        raise ValueError(f"the folder {path} is not writable")
    return path


def ensure_file(path: Path, suffixes: Sequence[str]) -> Path:
    """The file `path`, which need not exist; ValueError where it cannot be written or has another suffix."""
    path = Path(path).expanduser()
    if path.suffix not in suffixes:
        raise ValueError(f"expected a file called *{', *'.join(suffixes)}, got {path}")
    if path.suffix == ".parquet":
        _ensure_package("pyarrow", "parquet")
    folder = path.absolute().parent
    if not folder.is_dir():
        raise ValueError(f"the folder {folder} does not exist")
    if path.is_dir() or not os.access(path if path.exists() else folder, os.W_OK):
        raise ValueError(f"{path} is not writable")
    return path


def ensure_picture(path: Path, suffixes: Sequence[str] = (".png", ".svg", ".pdf")) -> Path:
    """As `ensure_file`, where matplotlib is to draw."""
    _ensure_package("matplotlib", "plot")
    return ensure_file(path, suffixes)


def _ensure_package(name: str, extra: str) -> None:
    if importlib.util.find_spec(name) is None:
        raise ValueError(f"this needs {name}: install tsseq[{extra}]")


def results_console() -> Console:
    """Where tables are printed: never narrower than `NARROWEST`, as figures in them would be cut, and with what an
    encoding lacks (a file's on Windows) replaced, as all would be lost."""
    import sys
    from io import TextIOWrapper

    from rich.console import Console

    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    console = Console()
    console.width = max(console.width, NARROWEST)
    return console


def print_written(console: Console, *paths: Path, more: str = "") -> None:
    """Say where results lie, each path on a line that a reader can copy; `more` follows the last."""
    from rich.text import Text

    for path in paths:
        line = Text.assemble("wrote ", (str(path), "bold"), more if path is paths[-1] else "")
        console.print(line, soft_wrap=True, highlight=False)
