"""`tsseq evaluate state-tracking`: train small stacks of mixers on formal languages and groups, and score them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tsseq.cli.state_tracking_models import GROUPS, LANGUAGES, has_published, model, published, rows, training_of
from tsseq.cli.state_tracking_runs import Run, finish

if TYPE_CHECKING:
    import pandas as pd

    from tsseq.backbone import BackboneConfig
    from tsseq.state_tracker import TrackerTraining

RESULTS = "state_tracking.csv"
TABLES: tuple[dict[str, Any], dict[str, Any]] = (
    {"steps": 2000, "start_length": 4, "train_length": (3, 40), "test_length": (40, 256)},
    {"steps": 6000, "start_length": 2, "train_length": (1, 20), "test_length": (20, 20), "label_smoothing": 0.0},
)
"""Training for the tables of languages and of groups."""


def state_tracking(
    *,
    task: list[str] | None = None,
    mixer: list[str] | None = None,
    options: dict[str, Any] | None = None,
    width: int = 64,
    layers: int | None = None,
    mlp_width: int = 0,
    train_length: list[int] | None = None,
    test_length: list[int] | None = None,
    seeds: list[int] | None = None,
    steps: int | None = None,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    weight_decay: float | None = None,
    penalty: float | None = None,
    label_smoothing: float | None = None,
    start_length: int | None = None,
    every_position: bool = True,
    test_words: int = 1024,
    test_every: int = 250,
    device: str | None = None,
    workers: int = 1,
    out: Path | None = None,
) -> None:
    """Train small models on words that a finite machine reads, and score them on longer ones.

    A word's label is the state of the machine: the parity of its ones, the product of its permutations. A recurrence
    gets it right at any length only if its state can move as the machine's does. Printed is the best accuracy that
    each model reached on the test words while it trained (mean and standard deviation over the seeds, in percent),
    beside the published one where there is one. With --out each finished run is a line of state_tracking.csv, and the
    same command continues after a kill. Options that are not given are those of the table, model by model.

    Examples:
      tsseq evaluate state-tracking --seeds 0 1 2 --workers 16 --device cpu --out results/languages
      tsseq evaluate state-tracking --task a5 --out results/a5
      tsseq evaluate state-tracking --task parity --mixer "delta_net[-1,1]" delta_net

    Args:
        task: parity, even_pairs, cycle_navigation, modular_arithmetic, modular_arithmetic_brackets, s3, s4, a5, s5;
            the four of the published table if not given
        mixer: sequence mixers by name, or models of the table; all models of the table if not given
        options: keyword arguments of the mixer, as JSON; for mixers by name
        width: features per position; for mixers by name
        layers: residual blocks; 2 for languages and 1 for groups if not given
        mlp_width: hidden features of the perceptron in each block; 0 leaves it out
        train_length: shortest and longest word in training; 3 40 for languages and 1 20 for groups if not given
        test_length: shortest and longest word in the test; 40 256 for languages and 20 20 for groups if not given
        seeds: one run for each; 0 if not given
        steps: optimiser steps (the papers take 100000); 2000 for languages and 6000 for groups if not given
        batch_size: words per step; 64 if not given
        learning_rate: peak learning rate; 5e-3 for mixers by name
        weight_decay: decoupled decay of all weights but embeddings; 0.01 for mixers by name
        penalty: weight of what the mixers' papers add to the loss; 0 if not given
        label_smoothing: share of each label spread over all; 0.1 for languages and 0 for groups if not given
        start_length: longest word at first; it grows as they are learnt. 4 for languages and 2 for groups if not given
        every_position: train on the state after every token, which takes far fewer steps than the papers' last one
        test_words: words in the test
        test_every: steps between tests
        device: torch device such as cpu or cuda; a GPU if there is one
        workers: runs at the same time, each in a process with one CPU thread if there are several
        out: folder of the results; made if absent
    """
    import torch

    from tsseq.cli.output import ensure_folder
    from tsseq.datasets import state_tracking as tasks
    from tsseq.device import checked
    from tsseq.state_tracker import TrackerTraining

    given = {
        "steps": steps,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "weight_decay": weight_decay,
        "penalty": penalty,
        "label_smoothing": label_smoothing,
        "start_length": start_length,
        "train_length": _bounds("train_length", train_length),
        "test_length": _bounds("test_length", test_length),
    }
    if workers < 1:
        raise ValueError(f"expected at least 1 worker, got {workers}")
    asked = {name: value for name, value in given.items() if value is not None}
    models: list[tuple[str, str, BackboneConfig, TrackerTraining]] = []
    for one in LANGUAGES if task is None else task:
        tasks.load(one)
        words = {"every_position": every_position, "test_words": test_words, "test_every": test_every}
        base = TrackerTraining(**(TABLES[one in GROUPS] | words))
        depth = (1 if one in GROUPS else 2) if layers is None else layers
        for name in list(rows(one)) if mixer is None else mixer:
            config, own = model(one, name, width, depth, mlp_width, options or {})
            models.append((one, name, config, training_of(base, own, asked)))
    path = None if out is None else ensure_folder(out) / RESULTS
    place = checked(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    # Every model with the first seed before any with the second: a table is there early.
    runs = [Run(*one, seed, str(place)) for seed in ([0] if seeds is None else seeds) for one in models]
    _print(finish(runs, workers, path), list(dict.fromkeys(run.task for run in runs)))


def _bounds(name: str, given: list[int] | None) -> tuple[int, int] | None:
    if given is None:
        return None
    if len(given) != 2:
        raise ValueError(f"expected two numbers for {name}, got {' '.join(map(str, given))}")
    return given[0], given[1]


def _print(results: pd.DataFrame, wanted: list[str]) -> None:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    from tsseq.cli.output import results_console

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("best accuracy, %")
    for task in wanted:
        table.add_column(task, justify="right")
        if has_published(task):
            table.add_column("published", justify="right", style="dim")
    for name in results["model"].unique().tolist():
        runs, cells = results[results["model"] == name], []
        for task in wanted:
            best = 100 * runs.loc[runs["task"] == task, "best"]
            spread = f" ± {best.std():.1f}" if len(best) > 1 else ""
            cells.append(f"{best.mean():.1f}{spread}" if len(best) else "")
            if has_published(task):
                figure = published(task, name)
                cells.append("" if figure is None else f"{figure:.1f}")
        table.add_row(escape(name), *cells)
    results_console().print(table)
