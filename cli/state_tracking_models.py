"""The models of `tsseq evaluate state-tracking`: how each is built and trained, and what was published for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tsseq.backbone import BackboneConfig
    from tsseq.state_tracker import TrackerTraining

LANGUAGES = ("cycle_navigation", "even_pairs", "modular_arithmetic", "parity")
GROUPS = ("s3", "s4", "a5", "s5")


@dataclass(frozen=True)
class Row:
    """A model, what differs in its training, and its published accuracies on `LANGUAGES` in percent.

    Small models are not only faster here: they leave fewer ways to fit short words without tracking the state. The
    published ones (arXiv 2505.17761, camera-ready) are 32 to 512 wide and took 100000 steps.
    """

    mixers: tuple[str, ...]
    published: tuple[float, float, float, float] | None = None
    width: int = 64
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)


def _delta(gated: bool, negative: bool, steps: int, *published: float) -> Row:
    # Without the short convolution, as in the word problems of DeltaProduct.
    options = {"gated": gated, "negative_eigenvalues": negative, "steps": steps, "kernel": 1}
    a, b, c, d = published
    training = {"learning_rate": 1e-2}
    return Row(("gated_delta_product",), (a, b, c, d), 32, {"gated_delta_product": options}, training)


def _slice(
    structure: str, published: tuple[float, float, float, float] | None, training: Mapping[str, Any], **options: float
) -> Row:
    return Row(("slice",), published, 64, {"slice": {"structure": structure, **options}}, training)


# Diagonal and diagonal-dense transitions learn less from words that grow.
_ALL_LENGTHS: Mapping[str, Any] = {"weight_decay": 0.1, "start_length": None, "steps": 2500}

LANGUAGE_ROWS: dict[str, Row] = {
    "lstm": Row(("lstm",), (100.0, 100.0, 99.9, 100.0)),
    "slstm": Row(("slstm",), (32.5, 100.0, 27.7, 100.0)),
    "xlstm[1:1]": Row(("mlstm", "slstm"), (53.5, 99.0, 29.3, 100.0), 32, training={"learning_rate": 1e-2}),
    "mlstm": Row(("mlstm",), (52.4, 99.9, 28.8, 53.0), 32, training={"learning_rate": 1e-2}),
    "lru": Row(("lru",)),
    "delta_net": _delta(False, False, 1, 49.8, 100.0, 42.2, 57.8),
    "delta_net[-1,1]": _delta(False, True, 1, 46.7, 100.0, 66.4, 97.7),
    "gated_delta_net": _delta(True, False, 1, 53.8, 100.0, 42.8, 56.5),
    "gated_delta_product[-1,1]": _delta(True, True, 2, 46.3, 100.0, 78.4, 98.0),
    "mamba": Row(("mamba",), (48.4, 100.0, 33.1, 54.2), 32),
    "s4d": Row(("s4d",), (23.7, 68.7, 21.7, 51.2)),
    "slice[diagonal]": _slice("diagonal", (69.5, 100.0, 20.9, 100.0), _ALL_LENGTHS),
    "slice[walsh_hadamard]": _slice("walsh_hadamard", (69.7, 93.1, 23.8, 71.4), {}, states=128),
    "slice[block_diagonal]": _slice("block_diagonal", (99.8, 85.9, 54.0, 95.3), {}, states=32, block=4),
    "slice[diagonal_dense]": _slice("diagonal_dense", (73.3, 84.8, 98.4, 83.8), _ALL_LENGTHS, states=32, block=16),
    "slice[dplr]": _slice("dplr", (81.1, 100.0, 68.3, 91.0), {}, states=32, rank=4),
}
GROUP_ROWS: dict[str, Row] = {
    "slice[dense]": _slice("dense", None, {}, states=32),
    "slice[block_diagonal]": _slice("block_diagonal", None, {}, states=128, block=4),
    "slice[dplr]": _slice("dplr", None, {}, states=32, rank=4),
    "slice[walsh_hadamard]": _slice(
        "walsh_hadamard", None, {"learning_rate": 1e-2, "steps": 40000}, states=1024, scale=0.25
    ),
    "slice[diagonal]": _slice("diagonal", None, {}, states=128),
    "mamba": Row(("mamba",)),
}


# From accuracies scaled to 0 at chance and 1 (arXiv 2411.12537, four heads, 100000 steps).
BRACKETS = {"slstm": 0.173, "mlstm": 0.034, "delta_net": 0.137, "delta_net[-1,1]": 0.200, "mamba": 0.092}


def has_published(task: str) -> bool:
    """Is there a published table with this task?"""
    return task in LANGUAGES or task == "modular_arithmetic_brackets"


def published(task: str, name: str) -> float | None:
    """A model's published accuracy in percent, if it has one."""
    if task == "modular_arithmetic_brackets":
        return 20 + 80 * BRACKETS[name] if name in BRACKETS else None
    row = rows(task).get(name)
    return row.published[LANGUAGES.index(task)] if row and row.published and task in LANGUAGES else None


def rows(task: str) -> dict[str, Row]:
    """The models that a task's table shows."""
    return GROUP_ROWS if task in GROUPS else LANGUAGE_ROWS


def model(
    task: str, name: str, width: int, layers: int, mlp_width: int, options: Mapping[str, Any]
) -> tuple[BackboneConfig, Mapping[str, Any]]:
    """Configuration and training options of a row, or of a mixer by name.

    Raises ValueError if there is no such model.
    """
    from tsseq.backbone import BackboneConfig
    from tsseq.mixers import MIXERS

    known = rows(task)
    if name in known and not (name in MIXERS and options):
        row = known[name]
        return BackboneConfig(row.mixers, row.width, layers, mlp_width, options=row.options), row.training
    if name not in MIXERS:
        raise ValueError(f"expected a mixer or model among {', '.join([*MIXERS, *known])}; got {name!r}")
    return BackboneConfig((name,), width, layers, mlp_width, options={name: options}), {}


def training_of(base: TrackerTraining, own: Mapping[str, Any], given: Mapping[str, Any]) -> TrackerTraining:
    """`base` with what a model takes and then what was asked for; words start no shorter than training allows."""
    settings = {**own, **given}
    start = settings.get("start_length", base.start_length)
    if start is not None:
        settings["start_length"] = max(start, settings.get("train_length", base.train_length)[0])
    return replace(base, **settings)
