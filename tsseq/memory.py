"""Refuses what will not fit in memory before it is begun: many systems end the process without a word instead."""

import math
import os
from pathlib import Path

SMALL = 2**20
MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")


def require(needed: int, what: str) -> None:
    """Raise ValueError, naming `what`, unless about `needed` bytes are free; needs below 1 MiB pass unseen."""
    if needed < SMALL:
        return
    free = available()
    if needed > free:
        raise ValueError(f"not enough memory for {what}: it takes about {_shown(needed)}, and {_shown(free)} are free")


def available() -> float:
    """Bytes that are free on this machine and below its container's limit; infinite where neither is known."""
    return min(_machine(), _container())


def _machine() -> float:
    try:
        fields = dict(line.split(":") for line in MEMINFO.read_text().splitlines())
        return 1024 * int(fields["MemAvailable"].split()[0])
    except (OSError, KeyError, ValueError):
        pass
    try:  # no telling how much is in use: all of it is the bound
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return math.inf


def _container() -> float:
    """What cgroup version 2 allows; files that the kernel keeps in memory are given back when it runs short."""
    try:
        limit, used = (int((CGROUP / name).read_text()) for name in ("memory.max", "memory.current"))
        kept = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
        return max(limit - used + int(kept["inactive_file"]), 0)
    except (OSError, KeyError, ValueError):  # no cgroup, or no limit ("max")
        return math.inf


def _shown(size: float) -> str:
    size = min(size, 2**100) / 2**20  # an int beyond that may be beyond any float
    for unit in ("MiB", "GiB", "TiB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1024
    return f"{size:.3g} PiB"
