"""Where networks run: names of devices, checked before any work."""

from __future__ import annotations

import warnings
from typing import Any

import torch


def checked(name: str) -> torch.device:
    """The device called `name`; ValueError unless torch knows it and this machine has it."""
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).cpu()
    except Exception as error:  # every backend that is not there has an exception of its own for that
        raise ValueError(f"expected a device that this machine has, such as cpu or cuda, got {name!r}") from error
    return device


def resolve_device(name: str) -> torch.device:
    """`auto` is a GPU if there is one; a GPU that this machine lacks becomes the CPU, with a warning.

    Raises ValueError for another device that is not there.
    """
    if name == "auto":
        kind = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        return torch.device(kind)
    if name.partition(":")[0] == "cuda" and not torch.cuda.is_available():
        # A model fitted on a GPU must still load where there is none.
        warnings.warn(f"no CUDA device on this machine: {name!r} becomes the CPU", stacklevel=2)
        return torch.device("cpu")
    return checked(name)


def trainer_flags(name: str) -> dict[str, Any]:
    """`accelerator` and `devices` of Lightning's Trainer; `auto` is left to it."""
    if name == "auto":
        return {"accelerator": "auto", "devices": 1}
    device = checked(name)
    one = device.index is None or device.type == "cpu"
    return {"accelerator": device.type, "devices": 1 if one else [device.index]}
