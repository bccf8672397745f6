"""`tsseq evaluate uea`: the accuracy of a classifier on the UEA archive of multivariate series."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import pandas as pd

    from tsseq.datasets.uea import LabelledSeries
    from tsseq.ensemble import Recipe

RESULTS, RUN = "uea.csv", "run.json"
KEY = ["dataset", "protocol", "seed"]


def uea(
    *,
    data: Path,
    out: Path,
    names: list[str] | None = None,
    protocol: Literal["archive", "log-ncde"] = "archive",
    seeds: list[int] | None = None,
    mixer: str = "lru",
    width: int = 64,
    layers: int = 2,
    positions: int | None = None,
    members: int = 3,
    options: dict[str, Any] | None = None,
    max_epochs: int = 60,
    max_steps: int = 3000,
    batch_size: int = 16,
    learning_rate: float = 2e-3,
    patience: int = 20,
    device: str = "auto",
) -> None:
    """Train and test a classifier on sets of the UEA archive, and write the accuracies to OUT/uea.csv.

    Protocol "archive" trains on the archive's training split and tests on its test split. "log-ncde" merges the two,
    drops exact duplicates and cuts what is left into 70/15/15 per cent by each of five seeds, as the papers on
    Log-NCDE, SLiCE and LinOSS do; the 15 per cent in the middle decide when training stops. Each run is written when
    it is done: the same command continues after a kill.

    Examples:
      tsseq evaluate uea --data path/to/uea --out results/uea
      tsseq evaluate uea --data path/to/uea --out results/heartbeat --names Heartbeat --protocol log-ncde --mixer slice

    Args:
        data: folder with <name>.npz files, or <name>_TRAIN.ts and <name>_TEST.ts as the archive has them
        out: folder of the results; made if absent
        names: sets to run; all in the folder if not given
        protocol: archive or log-ncde
        seeds: seeds of weights, batches and, for log-ncde, splits; 0, or the five of the papers, if not given
        mixer: sequence mixer, or several joined by commas and cycled over the layers
        width: features per position
        layers: residual blocks
        positions: longest sequence that the mixer reads, longer series being cut into patches; 50 if not given, but
            patches of 8 steps, or longer ones that make 400 positions, for series of more than 400 steps
        members: networks whose probabilities are averaged
        options: keyword arguments of the mixer, as JSON; if not given, none but for the lru, whose modes start slow
        max_epochs: passes over the training set
        max_steps: most optimiser steps of each network
        batch_size: series per step
        learning_rate: peak learning rate
        patience: epochs without a lower loss on held-out series that end the training
        device: auto, cpu, cuda or mps
    """
    from tsseq.classifier_training import ClassifierTrainingConfig
    from tsseq.cli.output import ensure_folder
    from tsseq.datasets import uea as archive
    from tsseq.ensemble import Recipe

    mixers = tuple(mixer.split(","))
    training = ClassifierTrainingConfig(
        max_epochs=max_epochs,
        min_steps=min(ClassifierTrainingConfig.min_steps, max_steps),
        max_steps=max_steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        patience=patience,
    )
    recipe = Recipe(mixers, width, layers, positions, members, Recipe.options_for(mixers, options), training)
    recipe.network(1, 1, 2)  # a wrong mixer or option fails before any work
    present = archive.names(data)
    unknown = sorted(set(names or []) - set(present))
    if unknown or not present:
        raise ValueError(f"expected sets of the UEA archive in {data}, found {', '.join(present) or 'none'}")
    folder = ensure_folder(out)
    _claim(folder, recipe)
    chosen = list(archive.SEEDS if protocol == "log-ncde" else (0,)) if seeds is None else seeds
    _run(data, folder, list(dict.fromkeys(names or present)), protocol, chosen, recipe, device)


def _claim(folder: Path, recipe: Recipe) -> None:
    """Results of two recipes must not mix in one folder."""
    identity = json.loads(json.dumps(dataclasses.asdict(recipe)))
    if (folder / RESULTS).exists():
        there = json.loads((folder / RUN).read_text()) if (folder / RUN).exists() else None
        if there != identity:
            raise ValueError(f"{folder} holds results of another classifier; choose another folder")
    (folder / RUN).write_text(json.dumps(identity, indent=2) + "\n")


def _run(
    data: Path, folder: Path, names: list[str], protocol: str, seeds: list[int], recipe: Recipe, device: str
) -> None:
    from tsseq.cli.output import results_console
    from tsseq.datasets import uea as archive

    console = results_console()
    for name in names:
        parts = None
        for seed in seeds:
            done = _read(folder)
            if ((done[KEY] == [name, protocol, seed]).all(axis=1)).any():
                continue
            parts = parts or archive.load(data, name)
            row = evaluate_split(*parts, protocol, seed, recipe, device)
            _append(folder, {"dataset": name, "protocol": protocol, "seed": seed, **row})
            line = f"{name:28} seed {seed:5d}   accuracy {row['accuracy']:.4f}   {row['seconds']:.0f} s"
            console.print(line, highlight=False)
    _report(console, folder, names, protocol, seeds)


def evaluate_split(
    train: LabelledSeries, test: LabelledSeries, protocol: str, seed: int, recipe: Recipe, device: str
) -> dict[str, Any]:
    """One training and test: the sizes of the parts, the accuracy, and the seconds it took."""
    from tsseq.datasets import uea as archive
    from tsseq.device import resolve_device
    from tsseq.ensemble import train as fit

    started, held_out = time.perf_counter(), None
    if protocol == "log-ncde":
        train, validation, test = archive.resplit(train, test, seed)
        held_out = (_cases(validation), validation.labels)
    where = resolve_device(device)
    classes = len(train.classes)
    ensemble = fit(_cases(train), train.labels, classes, recipe, held_out=held_out, seed=seed, device=str(where))
    found = ensemble.probabilities(_cases(test), where).argmax(1)
    return {
        "train": len(train),
        "validation": 0 if held_out is None else len(held_out[1]),
        "test": len(test),
        "accuracy": float((found == test.labels).mean()),
        "seconds": time.perf_counter() - started,
    }


def _cases(series: LabelledSeries) -> Any:
    """Case × time × channel."""
    return series.values.transpose(0, 2, 1)


def _read(folder: Path) -> pd.DataFrame:
    import pandas as pd

    path = folder / RESULTS
    return pd.read_csv(path) if path.exists() else pd.DataFrame(columns=KEY)


def _append(folder: Path, row: dict[str, Any]) -> None:
    import pandas as pd

    from tsseq.files import writing

    before = _read(folder)
    after = pd.concat([before, pd.DataFrame([row])]) if len(before) else pd.DataFrame([row])
    with writing(folder / RESULTS) as partial:
        after.to_csv(partial, index=False)


def _report(console: Any, folder: Path, names: list[str], protocol: str, seeds: list[int]) -> None:
    from rich import box
    from rich.table import Table

    from tsseq.cli.output import print_written

    done = _read(folder)
    done = done[done["dataset"].isin(names) & (done["protocol"] == protocol) & done["seed"].isin(seeds)]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("dataset", "train", "test", "runs", "accuracy", "deviation", "seconds"):
        table.add_column(column, justify="left" if column == "dataset" else "right")
    for name, rows in done.groupby("dataset"):
        spread = f"{rows['accuracy'].std():.4f}" if len(rows) > 1 else ""
        sizes = [str(int(rows[column].iloc[0])) for column in ("train", "test")]
        mean = f"{rows['accuracy'].mean():.4f}"
        table.add_row(str(name), *sizes, str(len(rows)), mean, spread, f"{rows['seconds'].mean():.0f}")
    table.add_section()
    overall = done.groupby("dataset")["accuracy"].mean().mean()
    table.add_row("[bold]mean[/]", "", "", "", f"[bold]{overall:.4f}[/]", "", "")
    console.print(table)
    print_written(console, folder / RESULTS)
