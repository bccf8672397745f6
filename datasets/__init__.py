"""Real series and benchmarks by name, and the endless streams of synthetic ones that training reads.

To add a source: a file beside this one with a `load`, and a line here.
"""

from collections.abc import Callable
from typing import Any

from tsseq.datasets import bundled, csv, gift_eval
from tsseq.datasets.ltsf import load as load_ltsf
from tsseq.datasets.state_tracking import load as load_state_tracking
from tsseq.datasets.uea import load as load_uea

DATASETS: dict[str, Callable[..., Any]] = {
    "bundled": bundled.load,
    "csv": csv.load,
    "gift_eval": gift_eval.load,
    "ltsf": load_ltsf,
    "state_tracking": load_state_tracking,
    "uea": load_uea,
}

__all__ = ["DATASETS"]
