"""`tsseq evaluate state-tracking`: train small stacks of mixers on formal languages and groups, and score them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

    from tsseq.backbone import BackboneConfig
    from tsseq.state_tracker import TrackerTraining

RESULTS = "state_tracking.csv"
LANGUAGES = ("cycle_navigation", "even_pairs", "modular_arithmetic", "parity")


@dataclass(frozen=True)
class Row:
    """A model of the published table: accuracies on `LANGUAGES` in percent (arXiv 2505.17761, camera-ready)."""

    mixers: tuple[str, ...]
    published: tuple[float, float, float, float]
    width: int = 128
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def _delta(gated: bool, negative: bool, steps: int, *published: float) -> Row:
    # Without the short convolution, as in the word problems of DeltaProduct.
    options = {"gated": gated, "negative_eigenvalues": negative, "steps": steps, "kernel": 1}
    a, b, c, d = published
    return Row(("gated_delta_product",), (a, b, c, d), options={"gated_delta_product": options})


def _slice(structure: str, width: int, published: tuple[float, float, float, float], **options: int) -> Row:
    return Row(("slice",), published, width, {"slice": {"structure": structure, **options}})


ROWS: dict[str, Row] = {
    "lstm": Row(("lstm",), (100.0, 100.0, 99.9, 100.0)),
    "slstm": Row(("slstm",), (32.5, 100.0, 27.7, 100.0)),
    "xlstm[1:1]": Row(("mlstm", "slstm"), (53.5, 99.0, 29.3, 100.0)),
    "mlstm": Row(("mlstm",), (52.4, 99.9, 28.8, 53.0)),
    "delta_net": _delta(False, False, 1, 49.8, 100.0, 42.2, 57.8),
    "delta_net[-1,1]": _delta(False, True, 1, 46.7, 100.0, 66.4, 97.7),
    "gated_delta_net": _delta(True, False, 1, 53.8, 100.0, 42.8, 56.5),
    "gated_delta_product[-1,1]": _delta(True, True, 2, 46.3, 100.0, 78.4, 98.0),
    "mamba": Row(("mamba",), (48.4, 100.0, 33.1, 54.2)),
    "s4d": Row(("s4d",), (23.7, 68.7, 21.7, 51.2)),
    "slice[diagonal]": _slice("diagonal", 128, (69.5, 100.0, 20.9, 100.0)),
    "slice[walsh_hadamard]": _slice("walsh_hadamard", 128, (69.7, 93.1, 23.8, 71.4)),
    "slice[block_diagonal]": _slice("block_diagonal", 128, (99.8, 85.9, 54.0, 95.3), block=4),
    "slice[diagonal_dense]": _slice("diagonal_dense", 272, (73.3, 84.8, 98.4, 83.8), block=16),
    "slice[dplr]": _slice("dplr", 57, (81.1, 100.0, 68.3, 91.0), rank=4),
}


def state_tracking(
    *,
    task: list[str] | None = None,
    mixer: list[str] | None = None,
    options: dict[str, Any] | None = None,
    width: int = 128,
    layers: int = 2,
    mlp_width: int = 128,
    train_length: list[int] | None = None,
    test_length: list[int] | None = None,
    seeds: list[int] | None = None,
    steps: int = 5000,
    batch_size: int = 256,
    learning_rate: float = 2e-3,
    weight_decay: float = 0.01,
    penalty: float = 0.0,
    every_position: bool = False,
    test_words: int = 8192,
    test_every: int = 500,
    device: str | None = None,
    out: Path | None = None,
) -> None:
    """Train small models on words that a finite machine reads, and score them on longer ones.

    A word's label is the state of the machine: the parity of its ones, the product of its permutations. A recurrence
    gets it right at any length only if its state can move as the machine's does. Printed is the best accuracy that
    each model reached on the test words while it trained (mean and standard deviation over the seeds, in percent),
    beside the published one where there is one. With --out each finished run is a line of state_tracking.csv, and the
    same command continues after a kill.

    Examples:
      tsseq evaluate state-tracking --task parity --mixer "delta_net[-1,1]" delta_net
      tsseq evaluate state-tracking --steps 20000 --seeds 0 1 2 3 4 --out results/languages
      tsseq evaluate state-tracking --task a5 --mixer slice --layers 1 --train_length 2 20 --test_length 20 20

    Args:
        task: parity, even_pairs, cycle_navigation, modular_arithmetic, modular_arithmetic_brackets, s3, s4, a5, s5;
            the four of the published table if not given
        mixer: sequence mixers by name, or models of the published table; all models of the table if not given
        options: keyword arguments of the mixer, as JSON; for mixers by name
        width: features per position; for mixers by name
        layers: residual blocks
        mlp_width: hidden features of the perceptron in each block; 0 leaves it out
        train_length: shortest and longest word in training; 3 40 if not given
        test_length: shortest and longest word in the test; 40 256 if not given
        seeds: one run for each; 0 if not given
        steps: optimiser steps (the papers take 100000)
        batch_size: words per step
        learning_rate: peak learning rate
        weight_decay: decoupled decay of all weights but embeddings
        penalty: weight of what the mixers' papers add to the loss
        every_position: train on the state after every token, which takes far fewer steps than the papers' last one
        test_words: words in the test
        test_every: steps between tests
        device: torch device such as cpu or cuda; a GPU if there is one
        out: folder of the results; made if absent
    """
    import torch

    from tsseq.cli.output import ensure_folder
    from tsseq.datasets import state_tracking as tasks
    from tsseq.state_tracker import TrackerTraining

    training = TrackerTraining(
        steps=steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        penalty=penalty,
        every_position=every_position,
        train_length=_bounds("train_length", train_length, (3, 40)),
        test_length=_bounds("test_length", test_length, (40, 256)),
        test_words=test_words,
        test_every=test_every,
    )
    names = list(ROWS) if mixer is None else mixer
    models = {name: _model(name, width, layers, mlp_width, options or {}) for name in names}
    wanted = list(LANGUAGES) if task is None else task
    for name in wanted:
        tasks.load(name)
    path = None if out is None else ensure_folder(out) / RESULTS
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    _print(_run(models, wanted, [0] if seeds is None else seeds, training, device, path), wanted)


def _bounds(name: str, given: list[int] | None, default: tuple[int, int]) -> tuple[int, int]:
    if given is None:
        return default
    if len(given) != 2:
        raise ValueError(f"expected two numbers for {name}, got {' '.join(map(str, given))}")
    return given[0], given[1]


def _model(name: str, width: int, layers: int, mlp_width: int, options: dict[str, Any]) -> BackboneConfig:
    from tsseq.backbone import BackboneConfig
    from tsseq.mixers import MIXERS

    if name in ROWS and not (name in MIXERS and options):
        row = ROWS[name]
        return BackboneConfig(row.mixers, row.width, layers, mlp_width, options=row.options)
    if name not in MIXERS:
        raise ValueError(f"expected a mixer or model among {', '.join([*MIXERS, *ROWS])}; got {name!r}")
    return BackboneConfig((name,), width, layers, mlp_width, options={name: options})


def _run(
    models: Mapping[str, BackboneConfig],
    wanted: Iterable[str],
    seeds: Iterable[int],
    training: TrackerTraining,
    device: str,
    path: Path | None,
) -> pd.DataFrame:
    """One row per run; those in `path` already are not run again."""
    import pandas as pd

    from tsseq.cli.output import writing

    before = pd.read_csv(path) if path is not None and path.exists() else pd.DataFrame()
    rows: list[dict[str, Any]] = []
    for task, (name, config), seed in product(wanted, models.items(), seeds):
        run = {
            "task": task,
            "model": name,
            "layers": config.layers,
            "seed": seed,
            "trained_on": "{}-{}".format(*training.train_length),
            "tested_on": "{}-{}".format(*training.test_length),
            "budget": training.steps,
            "every_position": training.every_position,
        }
        found = before.loc[(before[[*run]] == pd.Series(run)).all(axis=1)] if len(before) else before
        if len(found):
            rows.append({str(key): value for key, value in found.iloc[0].items()})
            continue
        rows.append(run | _train(task, name, config, training, seed, device))
        if path is not None:
            before = pd.concat([before, pd.DataFrame(rows[-1:])], ignore_index=True)
            with writing(path) as partial:
                before.to_csv(partial, index=False)
    return pd.DataFrame(rows)


def _train(
    task: str, name: str, config: BackboneConfig, training: TrackerTraining, seed: int, device: str
) -> dict[str, Any]:
    from rich.console import Console

    from tsseq.datasets import state_tracking as tasks
    from tsseq.state_tracker import train_tracker

    console, title = Console(stderr=True), f"{task:28} {name:26} seed {seed}"
    with console.status(title) as status:
        scores = train_tracker(
            tasks.load(task),
            config,
            training,
            seed=seed,
            device=device,
            report=lambda score: status.update(f"{title}  {100 * score.accuracy:6.2f} % at step {score.step}"),
        )
    best = max(score.accuracy for score in scores)
    console.print(f"{title}  {100 * best:6.2f} % in {scores[-1].step} steps", soft_wrap=True)
    return {"steps": scores[-1].step, "best": best, "last": scores[-1].accuracy}


def _print(results: pd.DataFrame, wanted: list[str]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("best accuracy, %")
    for task in wanted:
        table.add_column(task, justify="right")
        if task in LANGUAGES:
            table.add_column("published", justify="right", style="dim")
    for name in results["model"].unique().tolist():
        runs, cells = results[results["model"] == name], []
        for task in wanted:
            best = 100 * runs.loc[runs["task"] == task, "best"]
            spread = f" ± {best.std():.1f}" if len(best) > 1 else ""
            cells.append(f"{best.mean():.1f}{spread}" if len(best) else "")
            if task in LANGUAGES:
                cells.append(f"{ROWS[name].published[LANGUAGES.index(task)]:.1f}" if name in ROWS else "")
        table.add_row(name, *cells)
    Console().print(table)
