"""`tsseq evaluate inference`: compare ways to forecast with one checkpoint on series held out for the purpose."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console
    from rich.table import Table

    from tsseq.datasets.validation import ValidationSet
    from tsseq.inference import InferenceConfig, Predictor

SETTINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "fast": {"flip": False, "coarser": [], "recent": [], "recent_short": [], "phases": []},
    "plain": {"coarser": [], "recent": [], "recent_short": [], "phases": []},
    "no-flip": {"flip": False},
    "no-coarser": {"coarser": []},
    "no-recent": {"recent": [], "recent_short": []},
    "no-phases": {"phases": []},
    "coarser-3": {"coarser": [3]},
    "coarser-2-4": {"coarser": [2, 4]},
}
KEY = ["source", "set", "horizon", "data", "weights", "options"]
COVERAGE = (0.76, 0.84)
HORIZONS = (96, 480)


def inference(
    *,
    checkpoint: str = "base",
    data: Path | None = None,
    families: list[str] | None = None,
    settings: list[str] | None = None,
    series: int = 4,
    length: int = 9000,
    horizons: list[int] | None = None,
    seed: int = 1,
    device: str | None = None,
    out: Path | None = None,
) -> None:
    """Compare settings of the forecast, such as mirrored and coarser readings, on series held out for it.

    The series are synthetic, of every family that `tsseq` learns from, or real ones in a folder of parquet files
    with columns item_id, start, freq and target. An item_id that ends in |h=18 asks for 18 steps.

    A setting is one of default, fast, plain (mirrored, read once), no-flip, no-coarser, no-recent, no-phases,
    coarser-3 and coarser-2-4, or JSON with fields of `tsseq.inference.InferenceConfig`, also as name=JSON. Changes
    of the quantile loss are relative to the first setting, every window counting alike; MASE and CRPS are relative
    to Seasonal Naive, which for synthetic series repeats the last value. The nine settings take 20 minutes or so on
    a CPU. With --out the same command continues after a kill, and one with more settings keeps what is there.

    Examples:
      tsseq evaluate inference --out synthetic.csv
      tsseq evaluate inference --data path/to/series --settings default fast
      tsseq evaluate inference --families power sde --settings plain '{"coarser": [2]}' 'cool={"temperature": 0.05}'

    Args:
        checkpoint: name of a bundled checkpoint, a .safetensors file or its folder
        data: folder of real series; their last windows are forecast
        families: synthetic families; all of the mixture if neither they nor data are given
        settings: what to compare, the first being the yardstick; the nine above if not given
        series: synthetic series of each family
        length: values of history of each synthetic series
        horizons: steps to forecast; 96 480 if not given, and on real series what suits their frequency
        seed: seed of the synthetic series
        device: torch device such as cpu, cuda or mps
        out: CSV file of the scores, one line for each set and setting
    """
    from tsseq.cli.output import ensure_file
    from tsseq.datasets.validation import from_folder, from_prior
    from tsseq.inference import Predictor
    from tsseq.synthetic.mixture import TSSEQ
    from tsseq.table import resolve

    path = None if out is None else ensure_file(out, (".csv",))
    configs = dict(map(read_setting, settings or SETTINGS))
    steps = None if horizons is None else [*dict.fromkeys(horizons)]
    sets = [] if data is None else from_folder(_folder(data), steps)
    for family in dict.fromkeys(families or ([] if sets else TSSEQ)):
        sets += from_prior(family, series, length, steps or HORIZONS, seed)
    network = resolve(checkpoint, device)
    assert isinstance(network, Predictor)
    predictors = {name: Predictor(network.forecaster, config) for name, config in configs.items()}
    _report(_score_all(predictors, sets, path), list(configs))


def read_setting(word: str) -> tuple[str, InferenceConfig]:
    """The name and the options behind a word of --settings. Raises ValueError if there are none."""
    name, _, text = word.partition("=") if not word.startswith("{") else (word, "", word)
    if not text and name not in SETTINGS:
        raise ValueError(f"unknown setting {word!r}: expected JSON, name=JSON or one of {', '.join(SETTINGS)}")
    try:
        options = json.loads(text) if text else SETTINGS[name]
    except json.JSONDecodeError as error:
        raise ValueError(f"expected JSON in the setting {word!r}: {error}") from error
    return name, _config(word, options)


def _config(word: str, options: Any) -> InferenceConfig:
    import argparse

    import jsonargparse

    from tsseq.cli.parser import one_line
    from tsseq.inference import InferenceConfig

    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(InferenceConfig)
    if not isinstance(options, dict):
        raise ValueError(f"expected a JSON object in the setting {word!r}")
    try:
        return InferenceConfig(**parser.parse_object(options).as_dict())
    except argparse.ArgumentError as error:
        raise ValueError(f"in the setting {word!r}: {one_line(str(error))}") from error


def _folder(data: Path) -> Path:
    if not data.is_dir():
        raise ValueError(f"expected a folder of series, got {str(data)!r}, which is not a folder")
    return data


def _score_all(predictors: dict[str, Predictor], sets: list[ValidationSet], path: Path | None) -> pd.DataFrame:
    """Scores of every set with every setting, set by set; those in the file at `path` are not computed again."""
    import pandas as pd

    from tsseq.cli.gift_eval import digest
    from tsseq.cli.progress import progress_bar
    from tsseq.files import writing

    done = pd.DataFrame(columns=KEY)
    if path is not None and path.exists():
        done = pd.read_csv(path, dtype={"data": str, "weights": str})
    weights = digest(next(iter(predictors.values())))[:12]
    rows = []
    with progress_bar() as progress:
        task = progress.add_task("", total=sum(len(one.windows) for one in sets) * len(predictors))
        for one in sets:
            for name, predictor in predictors.items():
                progress.update(task, description=f"{_label(one.name, one.horizon)}, {name}")
                key = _key(one, predictor, weights)
                found = done.loc[(done[KEY] == pd.Series(key)).all(axis=1)].to_dict("records")
                rows.append((found[-1] if found else key | _score(predictor, one)) | {"setting": name})
                progress.advance(task, len(one.windows))
                if path is not None and not found:
                    done = pd.concat([done, pd.DataFrame(rows[-1:])] if len(done) else [pd.DataFrame(rows[-1:])])
                    with writing(path) as partial:
                        done.to_csv(partial, index=False)
    return pd.DataFrame(rows)


def _key(one: ValidationSet, predictor: Predictor, weights: str) -> dict[str, Any]:
    from dataclasses import asdict

    data = hashlib.sha256(b"".join(values.tobytes() for values in (*one.windows.contexts, one.windows.labels)))
    options = json.dumps(asdict(predictor.config))
    return dict(zip(KEY, (one.source, one.name, one.horizon, data.hexdigest()[:12], weights, options), strict=True))


def _score(predictor: Predictor, one: ValidationSet) -> dict[str, float]:
    from time import perf_counter

    from tsseq.datasets.scoring import total_errors
    from tsseq.metrics import CRPS, MASE, coverage, log_loss, scores
    from tsseq.seasonal_naive import SeasonalNaive

    began = perf_counter()
    errors = total_errors(predictor, one.windows, one.seasonality)
    seconds = perf_counter() - began
    ours, naive = scores(errors), scores(total_errors(SeasonalNaive(one.seasonality), one.windows, one.seasonality))
    return {
        "windows": len(one.windows),
        "mase": ours[MASE],
        "crps": ours[CRPS],
        "mase_ratio": ours[MASE] / (naive[MASE] or float("nan")),
        "crps_ratio": ours[CRPS] / (naive[CRPS] or float("nan")),
        "log_loss": log_loss(errors),
        "coverage": coverage(errors),
        "seconds": seconds,
    }


def _report(rows: pd.DataFrame, settings: list[str]) -> None:
    from tsseq.cli.output import results_console

    console = results_console()
    rows["label"] = [_label(name, horizon) for name, horizon in zip(rows["set"], rows["horizon"], strict=True)]
    for source, part in rows.groupby("source", sort=False):
        logs = part.pivot(index="label", columns="setting", values="log_loss").loc[part["label"].unique(), settings]
        changes = logs.sub(logs[settings[0]], axis=0)
        _print_sets(console, part[part["setting"] == settings[0]], changes)
        _print_settings(console, str(source), part, changes)


def _label(name: str, horizon: int) -> str:
    return f"{name}/{horizon}"


def _print_sets(console: Console, first: pd.DataFrame, changes: pd.DataFrame) -> None:
    """Scores of the first setting by set, and what the others change; settings are numbered as in the summary."""
    from rich.markup import escape

    table = _table("set", "n", "MASE", "CRPS", "80%", *(f"({i})" for i in range(2, changes.shape[1] + 1)))
    for row in first.to_dict("records"):
        scores = (f"{row['mase_ratio']:.3f}", f"{row['crps_ratio']:.3f}", f"{row['coverage']:.0%}")
        others = changes.loc[row["label"]].iloc[1:]
        table.add_row(escape(row["label"]), str(row["windows"]), *scores, *map(_change, others))
    console.print(table)


def _print_settings(console: Console, source: str, rows: pd.DataFrame, changes: pd.DataFrame) -> None:
    from rich.markup import escape

    from tsseq.metrics import geometric_mean

    table = _table(f"mean of {escape(source)}", "MASE", "CRPS", "80%", "loss", "worst set", "seconds")
    for number, (name, change) in enumerate(changes.items(), 1):
        part = rows[rows["setting"] == name]
        means = [f"{geometric_mean(part[column].dropna()):.3f}" for column in ("mase_ratio", "crps_ratio")]
        worst = f"{_change(change.max())} {escape(str(change.idxmax()))}" if number > 1 else ""
        cells = (*means, _covers(part["coverage"].mean()), _change(change.mean()) if number > 1 else "", worst)
        table.add_row(escape(f"({number}) {name}"), *cells, f"{part['seconds'].sum():.1f}")
    console.print(table)


def _table(first: str, *columns: str) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column(first)
    for column in columns:
        table.add_column(column, justify="left" if column == "worst set" else "right")
    return table


def _change(log_ratio: float) -> str:
    from math import expm1

    colour = "green" if log_ratio < -0.0005 else "red" if log_ratio > 0.0005 else "dim"
    return f"[{colour}]{expm1(log_ratio):+.1%}[/]"


def _covers(share: float) -> str:
    low, high = COVERAGE
    return f"[{'green' if low <= share <= high else 'red'}]{share:.1%}[/]"
