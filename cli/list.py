"""`tsseq list`: every name in every registry."""

from __future__ import annotations

from typing import Literal

Registry = Literal["checkpoints", "series", "datasets", "mixers", "ops", "priors", "mixtures", "configurations"]


def show(*, only: Registry | None = None) -> None:
    """Name everything that tsseq knows by name: checkpoints, bundled series, data sets, mixers, ops, priors.

    Examples:
      tsseq list
      tsseq list --only configurations

    Args:
        only: one registry, one name a line, for scripts; configurations are those of GIFT-Eval
    """
    if only is not None:
        print("\n".join(names()[only]))
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_header=False)
    table.add_column(style="bold")
    table.add_column()
    for registry, members in names().items():
        listed = f"{len(members)} of GIFT-Eval" if registry == "configurations" else ", ".join(members) or "none"
        table.add_row(registry, listed)
    Console().print(table)


def names() -> dict[str, list[str]]:
    """Registry -> names in it."""
    from tsseq.checkpoint import bundled_names
    from tsseq.datasets import DATASETS, bundled
    from tsseq.datasets.gift_eval import CONFIGURATIONS
    from tsseq.kernels import OPS
    from tsseq.mixers import MIXERS
    from tsseq.synthetic import PRIORS
    from tsseq.synthetic.mixture import PRESETS

    return {
        "checkpoints": bundled_names(),
        "series": bundled.names(),
        "datasets": [*DATASETS],
        "mixers": [*MIXERS],
        "ops": [*OPS],
        "priors": [*PRIORS],
        "mixtures": [*PRESETS],
        "configurations": [*CONFIGURATIONS],
    }
