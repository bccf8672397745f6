"""Where commands write: checked before any work, written whole or not at all."""

import os
from pathlib import Path


def ensure_folder(path: Path) -> Path:
    """The folder `path`, made if its parent exists; ValueError where it cannot be written."""
    path = Path(path).expanduser()
    if path.exists() and not path.is_dir():
        raise ValueError(f"{path} is a file; expected a folder")
    if (
        not path.exists()
        and not path.absolute().parent.is_dir()
        and not path.absolute().parent.parent.is_dir()
    ):
        raise ValueError(f"the folder {path.absolute().parent} does not exist")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"cannot make the folder {path}: {error.strerror}") from error
    if not os.access(path, os.W_OK):
        raise ValueError(f"the folder {path} is not writable")
    return path
