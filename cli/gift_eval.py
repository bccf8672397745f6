"""`tsseq evaluate gift-eval`: score a checkpoint on GIFT-Eval, as its leaderboard does."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console

    from tsseq.datasets.gift_eval import Result
    from tsseq.table import Model

RESULTS, NAIVE, CONFIG, RUN, PICTURE = (
    "all_results.csv",
    "seasonal_naive.csv",
    "config.json",
    "run.json",
    "ratios.png",
)


def gift_eval(
    *,
    out: Path,
    data: Path | None = None,
    checkpoint: str = "base",
    fast: bool = False,
    quick: bool = False,
    configurations: list[str] | None = None,
    device: str | None = None,
    batch_size: int = 4096,
    model: str | None = None,
    model_type: Literal["zero-shot", "pretrained", "fine-tuned"] = "zero-shot",
    model_link: str = "",
    code_link: str = "",
    org: str = "",
) -> None:
    """Score a checkpoint on GIFT-Eval and write what the leaderboard accepts.

    The folder OUT gets all_results.csv and config.json for the leaderboard, seasonal_naive.csv with the same
    scores of Seasonal Naive on the same windows, and ratios.png. Every configuration is written when it is done:
    the same command continues after a kill. Printed are the ratios to Seasonal Naive and their geometric means,
    which are the leaderboard's aggregate once all 97 configurations are there.

    Examples:
      tsseq evaluate gift-eval --data path/to/gift_eval --out results/base
      tsseq evaluate gift-eval --data path/to/gift_eval --out results/mine --checkpoint runs/mine --quick
      GIFT_EVAL=path/to/gift_eval tsseq evaluate gift-eval --out results --configurations ett1/H/short us_births/D/short

    Args:
        out: folder of the results; made if absent
        data: folder of the data, in the official layout or as <dataset>__<freq>.parquet; $GIFT_EVAL if not given
        checkpoint: name of a bundled checkpoint, a .safetensors file or its folder
        fast: one pass of the network, without the mirrored and the coarser readings
        quick: only six configurations, for a quick look
        configurations: only these, such as ett1/15T/medium; all whose data are there if not given
        device: torch device such as cpu, cuda or mps
        batch_size: most windows in one call
        model: name of the model in the results; tsseq and the checkpoint's name if not given
        model_type: kind of model for config.json
        model_link: where the weights are, for config.json
        code_link: where the code is, for config.json
        org: whose model it is, for config.json
    """
    from tsseq.cli.output import ensure_folder
    from tsseq.datasets import gift_eval as benchmark
    from tsseq.table import resolve

    folder = ensure_folder(out)
    root = benchmark.root(data)
    wanted = _wanted(benchmark.available(root), quick, configurations)
    for one in wanted:
        benchmark.locate(root, one)
    predictor = resolve(checkpoint, device, fast=fast)
    name = model or f"tsseq-{Path(checkpoint).stem}"
    _claim(folder, predictor, name)
    _write_json(
        folder / CONFIG,
        {
            "model": name,
            "model_type": model_type,
            "model_dtype": "float32",
            "model_link": model_link,
            "code_link": code_link,
            "org": org,
            "testdata_leakage": "No",
            "replication_code_available": "Yes",
        },
    )
    _run(predictor, root, wanted, folder, name, batch_size)
    _report(folder, wanted, root, name)


def _wanted(available: list[str], quick: bool, configurations: list[str] | None) -> list[str]:
    from tsseq.datasets.gift_eval import QUICK

    if configurations is not None:
        return list(dict.fromkeys(configurations))
    wanted = [name for name in available if name in QUICK] if quick else available
    if not wanted:
        raise ValueError("expected GIFT-Eval data in the folder, found none of its 97 configurations")
    return wanted


def _claim(folder: Path, predictor: Model, name: str) -> None:
    """Results of two models must not mix in one folder."""
    identity = {"model": name, "weights": digest(predictor), "inference": repr(getattr(predictor, "config", None))}
    if (folder / RESULTS).exists():
        there = json.loads((folder / RUN).read_text()) if (folder / RUN).exists() else {}
        if there != identity:
            raise ValueError(
                f"{folder} holds results of {there.get('model', 'an unknown model')} with other weights, "
                "options or name; choose another folder"
            )
    _write_json(folder / RUN, identity)


def digest(predictor: Any) -> str:
    """A fingerprint of the weights behind a predictor."""
    network = getattr(predictor, "forecaster", None)
    sha = hashlib.sha256()
    for key, weight in network.state_dict().items() if network is not None else ():
        sha.update(key.encode() + weight.cpu().contiguous().numpy().tobytes())
    return sha.hexdigest()


def _run(predictor: Model, root: Path, wanted: list[str], folder: Path, name: str, batch_size: int) -> None:
    from tsseq.cli.progress import progress_bar
    from tsseq.datasets import gift_eval as benchmark

    pending = [one for one in wanted if one not in _finished(folder)]
    with progress_bar() as progress:
        task = progress.add_task("", total=len(wanted), completed=len(wanted) - len(pending))
        for one in pending:
            progress.update(task, description=one)
            for result in benchmark.run(predictor, root, [one], batch_size):
                _append(folder, result, name)
            progress.advance(task)


def _finished(folder: Path) -> set[str]:
    import pandas as pd

    files = [folder / RESULTS, folder / NAIVE]
    if not all(file.exists() for file in files):
        return set()
    ours, naive = (set(pd.read_csv(file)["dataset"]) for file in files)
    return ours & naive


def _append(folder: Path, result: Result, name: str) -> None:
    from dataclasses import replace

    from tsseq.datasets.gift_eval import leaderboard

    naive = replace(result, scores=result.seasonal_naive)
    _append_row(folder / NAIVE, leaderboard([naive], "seasonal_naive"))
    _append_row(folder / RESULTS, leaderboard([result], name))


def _append_row(path: Path, row: pd.DataFrame) -> None:
    import pandas as pd

    from tsseq.files import writing

    if path.exists():
        before = pd.read_csv(path)
        row = pd.concat([before[before["dataset"] != row["dataset"].iloc[0]], row])
    with writing(path) as partial:
        row.to_csv(partial, index=False)


def _write_json(path: Path, values: dict[str, Any]) -> None:
    from tsseq.files import writing

    with writing(path) as partial:
        partial.write_text(json.dumps(values, indent=2) + "\n")


def _report(folder: Path, wanted: list[str], root: Path, name: str) -> None:
    from tsseq.cli.output import print_written, results_console
    from tsseq.datasets import gift_eval as benchmark

    console = results_console()
    ratios = read_ratios(folder).loc[wanted]
    published = benchmark.published_ratios(root)
    _print_ratios(console, ratios)
    _print_groups(console, ratios)
    if published is not None:
        _print_models(console, ratios, published, name)
    try:
        from tsseq.files import writing
        from tsseq.plotting import plot_ratios

        with writing(folder / PICTURE) as partial:
            plot_ratios(ratios, published, name, partial)
    except ModuleNotFoundError:
        console.print("[dim]no picture without matplotlib: install tsseq\\[plot][/]")
    missing = len(benchmark.CONFIGURATIONS) - len(ratios)
    share = f"; {missing} of the leaderboard's 97 configurations are not in it" if missing else ""
    print_written(console, folder / RESULTS, more=share)


def read_ratios(folder: Path) -> pd.DataFrame:
    """Scores by configuration in a folder of results: MASE, CRPS, their ratios to Seasonal Naive, and groups."""
    import pandas as pd

    from tsseq.datasets.gift_eval import CONFIGURATIONS
    from tsseq.metrics import CRPS, MASE

    ours, naive = (pd.read_csv(folder / file).set_index("dataset") for file in (RESULTS, NAIVE))
    naive = naive.loc[ours.index]
    table = pd.DataFrame(index=ours.index)
    for short, column in (("mase", f"eval_metrics/{MASE}"), ("crps", f"eval_metrics/{CRPS}")):
        table[short] = ours[column]
        table[f"{short}_ratio"] = ours[column] / naive[column]
    table["term"] = [CONFIGURATIONS[one].term for one in table.index]
    table["frequency"] = [CONFIGURATIONS[one].freq for one in table.index]
    table["domain"] = [CONFIGURATIONS[one].domain for one in table.index]
    return table


def _print_ratios(console: Console, ratios: pd.DataFrame) -> None:
    from rich import box
    from rich.table import Table

    from tsseq.metrics import geometric_mean

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("configuration")
    for column in ("MASE", "CRPS", "MASE / naive", "CRPS / naive"):
        table.add_column(column, justify="right")
    for one, row in ratios.iterrows():
        cells = [_coloured(row["mase_ratio"]), _coloured(row["crps_ratio"])]
        table.add_row(str(one), f"{row['mase']:.4g}", f"{row['crps']:.4g}", *cells)
    table.add_section()
    means = [f"[bold]{geometric_mean(ratios[column]):.4f}[/]" for column in ("mase_ratio", "crps_ratio")]
    table.add_row(f"[bold]geometric mean of {len(ratios)}[/]", "", "", *means)
    console.print(table)


def _coloured(ratio: float) -> str:
    return f"[{'green' if ratio < 1 else 'red'}]{ratio:.4f}[/]"


def _print_groups(console: Console, ratios: pd.DataFrame) -> None:
    from rich import box
    from rich.columns import Columns
    from rich.table import Table

    from tsseq.metrics import geometric_mean

    tables = []
    for group in ("term", "frequency", "domain"):
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        table.add_column(group)
        for column in ("n", "MASE", "CRPS"):
            table.add_column(column, justify="right")
        for value, rows in ratios.groupby(group, sort=False):
            means = [f"{geometric_mean(rows[column]):.3f}" for column in ("mase_ratio", "crps_ratio")]
            table.add_row(str(value), str(len(rows)), *means)
        tables.append(table)
    console.print(Columns(tables, padding=(0, 4)))


def _print_models(console: Console, ratios: pd.DataFrame, published: pd.DataFrame, name: str) -> None:
    """Published models on the same configurations, best CRPS first."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    from tsseq.metrics import geometric_mean

    same = published[published["dataset"].isin(ratios.index)]
    means = {str(model): rows for model, rows in same.groupby("model") if len(rows) == len(ratios)}
    if not means:
        return
    scores = {m: (geometric_mean(r["crps_ratio"]), geometric_mean(r["mase_ratio"])) for m, r in means.items()}
    scores[name] = (geometric_mean(ratios["crps_ratio"]), geometric_mean(ratios["mase_ratio"]))
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("model on these configurations")
    for column in ("MASE / naive", "CRPS / naive"):
        table.add_column(column, justify="right")
    for model, (crps, mase) in sorted(scores.items(), key=lambda item: item[1]):
        table.add_row(escape(model), f"{mase:.3f}", f"{crps:.3f}", style="bold green" if model == name else None)
    console.print(table)
