"""The command line: what it prints and writes, and one line for everything that can go wrong."""

import inspect
import json
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
import torch

from tsseq.backbone import BackboneConfig
from tsseq.cli import gift_eval as command
from tsseq.cli import output
from tsseq.cli.__main__ import COMMANDS, _load, main
from tsseq.cli.evaluate import TARGETS
from tsseq.cli.parser import make_parser, parse, read_docstring
from tsseq.datasets.series import Series, write_parquet
from tsseq.forecaster import Forecaster, ForecasterConfig


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A small forecaster with random weights, as a file."""
    torch.manual_seed(0)
    small = ForecasterConfig(patch_length=8, hidden_width=8, backbone=BackboneConfig(width=16, layers=1))
    return str(Forecaster(small).save_pretrained(tmp_path_factory.mktemp("model") / "small.safetensors"))


@pytest.fixture
def fails(capsys, tmp_path):
    """Run a command that must end in one line on stderr, status 2, and nothing written."""
    out = tmp_path / "out"
    out.mkdir()

    def check(argv, message):
        status = main(list(map(str, argv)))
        said = capsys.readouterr()
        assert status == 2
        assert said.err.startswith("tsseq: error: ") and said.err.count("\n") == 1, said.err
        assert message in said.err
        assert said.out == "" and "Traceback" not in said.err
        assert list(out.iterdir()) == []

    check.out = out
    return check


def test_help_is_quick_and_light():
    heavy = "torch numpy pandas jsonargparse rich matplotlib"
    code = (
        "import sys; from tsseq.cli.__main__ import main; main(['--help']);"
        f"print([m for m in '{heavy}'.split() if m in sys.modules])"
    )
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        seconds.append(time.perf_counter() - began)
    assert said.splitlines()[-1] == "[]"
    assert all(name in said for name in COMMANDS) and "tsseq forecast airline --horizon 24" in said
    assert min(seconds) < 1.0


def test_runs_as_a_module():
    said = subprocess.run([sys.executable, "-m", "tsseq.cli", "--version"], capture_output=True, text=True)
    assert said.returncode == 0 and said.stdout.startswith("tsseq 0.")
    said = subprocess.run([sys.executable, "-m", "tsseq.cli", "nonsense"], capture_output=True, text=True)
    assert said.returncode == 2 and said.stderr.count("\n") == 1


@pytest.mark.parametrize("name", [*(n for n in COMMANDS if n != "evaluate"), *(f"evaluate {n}" for n in TARGETS)])
def test_every_command_teaches(name, capsys):
    assert main([*name.split(), "--help"]) == 0
    said = capsys.readouterr().out
    assert f"Examples:\n  tsseq {name}" in said or f"{name} " in said.partition("Examples:")[2]
    function = _load({**COMMANDS, **{f"evaluate {n}": c for n, c in TARGETS.items()}}[name].place)
    _, _, help_of = read_docstring(function)
    assert set(help_of) == set(inspect.signature(function).parameters)


@pytest.mark.parametrize(
    "argv, message",
    [
        (["nonsense"], "unknown command 'nonsense': expected forecast"),
        (["forcast"], "did you mean 'forecast'?"),
        (["evaluate", "nonsense"], "unknown command 'nonsense': expected gift-eval"),
        (["forecast"], "required: source, horizon; see tsseq forecast --help"),
        (["forecast", "airline", "--horizon", "many"], "expected a whole number for horizon, got 'many'"),
        (["forecast", "airline", "--horizon", "3", "--colour", "red"], "unrecognized arguments: --colour red"),
        (["forecast", "airline", "--horizon", "3", "--quantiles", "low"], "quantiles"),
    ],
)
def test_wrong_calls(argv, message, fails):
    fails(argv, message)


def test_no_command_shows_the_commands(capsys):
    assert main([]) == 2
    assert "forecast the series in a file" in capsys.readouterr().out


def demo(source: str, other: str = "x", *, size: int, rate: float = 0.5, deep: bool = False, tags: list[str] = ()):
    """Say what this does.

    More about it.

    Examples:
      tsseq demo a --size 3

    Args:
        source: where from
        other: where else
        size: how big, at most 100%
        rate: how fast,
            told in two lines
        deep: whether deep
        tags: names
    """


def test_parser_from_a_function():
    got = parse("tsseq demo", demo, ["a", "--size", "3", "--deep", "--tags", "u", "v"])
    assert got == {"source": "a", "other": "x", "size": 3, "rate": 0.5, "deep": True, "tags": ["u", "v"]}
    assert parse("tsseq demo", demo, ["a", "b", "--size=3"])["other"] == "b"
    shown = make_parser("tsseq demo", demo).format_help()
    assert "usage: tsseq demo SOURCE OTHER [options]" in shown
    assert "how big, at most 100% (required)" in shown and "told in two lines (default: 0.5)" in shown
    assert shown.rstrip().endswith("Examples:\n  tsseq demo a --size 3")
    for bad in (["a"], ["--size", "3"], ["a", "--size", "x"], ["a", "--size", "3", "--tags"]):
        with pytest.raises(ValueError, match="see tsseq demo --help"):
            parse("tsseq demo", demo, bad)


def test_parser_takes_dashes_and_files(tmp_path):
    def tune(*, max_steps: int = 1):
        """Tune."""

    assert parse("tsseq tune", tune, ["--max-steps", "5"]) == {"max_steps": 5}
    (tmp_path / "options.yaml").write_text("max_steps: 7\n")
    assert parse("tsseq tune", tune, ["--config", str(tmp_path / "options.yaml")]) == {"max_steps": 7}


def test_forecast_writes_and_draws(checkpoint, tmp_path, capsys):
    csv, picture = tmp_path / "f.csv", tmp_path / "f.png"
    argv = f"forecast airline --horizon 30 --checkpoint {checkpoint} --out {csv} --plot {picture}"
    assert main(argv.split()) == 0
    said = capsys.readouterr().out
    assert "airline" in said and "1960-12-01" in said and "1963-06-01" in said and "median" in said
    assert "wrote" in said and str(picture) in said.replace("\n", "")
    table = pd.read_csv(csv, parse_dates=["timestamp"])
    assert list(table.columns) == ["item_id", "timestamp", "mean", *(f"0.{k}" for k in range(1, 10))]
    assert len(table) == 30 and table["timestamp"].iloc[0] == pd.Timestamp("1961-01-01")
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["f.csv", "f.png"]


def test_forecast_of_a_long_file_as_parquet(checkpoint, tmp_path, capsys):
    days = pd.date_range("2024-01-01", periods=40)
    table = pd.DataFrame({"shop": np.repeat(list("edcba"), 40), "day": [*days] * 5, "sold": np.arange(200.0)})
    table.to_csv(tmp_path / "long.csv", index=False)
    out = tmp_path / "f.parquet"
    argv = f"forecast {tmp_path}/long.csv --horizon 7 --checkpoint {checkpoint} --out {out} --quantiles 0.05 0.5 0.95"
    assert main(argv.split()) == 0
    assert "and 2 more series, 7 steps each" in capsys.readouterr().out
    result = pd.read_parquet(out)
    assert list(result.columns) == ["item_id", "timestamp", "mean", "0.05", "0.5", "0.95"]
    assert list(result["item_id"].unique()) == list("edcba")
    assert result["timestamp"].iloc[-1] == pd.Timestamp("2024-02-16")


def test_warnings_are_one_line(checkpoint, tmp_path, capsys):
    (tmp_path / "w.csv").write_text("date,x,note\n2024-01-01,1,a\n2024-01-02,2,b\n2024-01-03,3,c\n")
    assert main(f"forecast {tmp_path}/w.csv --horizon 2 --checkpoint {checkpoint}".split()) == 0
    assert capsys.readouterr().err == "tsseq: warning: columns not used: 'note'\n"


BAD_FILES = {
    "empty file": ("", [], "got an empty file"),
    "no numeric column": ("date,x\n2024-01-01,a\n2024-01-02,b\n", [], "expected a numeric column, got 'date', 'x'"),
    "text in a numeric column": (
        "date,x\n2024-01-01,1\n2024-01-02,oops\n2024-01-03,3\n",
        [],
        "expected numbers in column 'x', got 'oops' in row 2",
    ),
    "unsorted time stamps": (
        "date,x\n2024-01-01,1\n2024-01-03,2\n2024-01-02,3\n",
        [],
        "expected increasing time stamps, got 2024-01-02 00:00:00 after 2024-01-03 00:00:00 in row 3",
    ),
    "repeated time stamps": (
        "date,x\n2024-01-01,1\n2024-01-01,2\n",
        [],
        "expected increasing time stamps, got 2024-01-01 00:00:00 twice in row 2",
    ),
    "unknown frequency": (
        "date,x\n2024-01-01,1\n2024-01-02,2\n",
        ["--freq", "fortnight"],
        "unknown frequency 'fortnight'",
    ),
    "irregular time stamps": (
        "date,x\n2024-01-01,1\n2024-01-02,2\n2024-01-09,3\n",
        [],
        "expected evenly spaced time stamps or a freq",
    ),
    "all missing": ("date,x\n2024-01-01,\n2024-01-02,\n", [], "series 'x': expected at least one observed value"),
    "infinite values": ("date,x\n2024-01-01,1\n2024-01-02,-inf\n", [], "expected finite values, got -inf in row 2"),
    "grid beyond memory": (
        "date,x\n2024-01-01,1\n2024-06-01,2\n",
        ["--freq", "us"],
        "expected at most 50000000 steps of 'us'",
    ),
    "unknown column": ("date,x\n2024-01-01,1\n", ["--target_column", "y"], "expected a column 'y', got 'date', 'x'"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_files(case, checkpoint, fails, tmp_path):
    content, options, message = BAD_FILES[case]
    path = tmp_path / "bad.csv"
    path.write_text(content)
    out, plot = fails.out / "f.csv", fails.out / "f.png"
    argv = ["forecast", path, "--horizon", 3, "--checkpoint", checkpoint, "--out", out, "--plot", plot, *options]
    fails(argv, message)


@pytest.mark.parametrize("horizon", [0, -5])
def test_bad_horizon(horizon, checkpoint, fails):
    argv = ["forecast", "airline", f"--horizon={horizon}", "--checkpoint", checkpoint, "--out", fails.out / "f.csv"]
    fails(argv, f"expected a horizon of one step or more, got {horizon}")


def test_bad_quantiles(checkpoint, fails):
    argv = ["forecast", "airline", "--horizon", 3, "--checkpoint", checkpoint, "--quantiles", "0.5", "1.5"]
    fails(argv, "expected distinct quantile levels between 0 and 1, got [0.5, 1.5]")


@pytest.mark.parametrize("source", ["airlines", "nothing.csv"])
def test_unknown_source(source, checkpoint, fails):
    message = "neither a file nor a bundled series (those are airline" if source == "airlines" else "does not exist"
    fails(["forecast", source, "--horizon", 3, "--checkpoint", checkpoint], message)


def test_unknown_checkpoint(fails):
    argv = ["forecast", "airline", "--horizon", 3, "--out", fails.out / "f.csv", "--checkpoint"]
    fails([*argv, "colossal"], "no checkpoint 'colossal'")


@pytest.mark.parametrize("damage", ["truncated", "foreign", "text", "empty"])
def test_damaged_checkpoint(damage, checkpoint, fails, tmp_path):
    path = tmp_path / f"{damage}.safetensors"
    with open(checkpoint, "rb") as file:
        whole = file.read()
    if damage == "foreign":
        import safetensors.torch

        safetensors.torch.save_file({"weight": torch.zeros(2)}, path)
    else:
        path.write_bytes({"truncated": whole[: len(whole) // 2], "text": b"weights, honest", "empty": b""}[damage])
    argv = ["forecast", "airline", "--horizon", 3, "--checkpoint", path, "--out", fails.out / "f.csv"]
    fails(argv, f"{damage}.safetensors")


@pytest.mark.parametrize("option, name", [("--out", "f.csv"), ("--plot", "f.png")])
def test_output_folder_that_does_not_exist(option, name, fails, monkeypatch):
    monkeypatch.setattr("tsseq.table.resolve", lambda *_: pytest.fail("checked too late"))
    fails(["forecast", "airline", "--horizon", 3, option, fails.out / "none" / name], "does not exist")


def test_output_that_is_not_writable(fails, monkeypatch):
    monkeypatch.setattr("tsseq.table.resolve", lambda *_: pytest.fail("checked too late"))
    monkeypatch.setattr(output.os, "access", lambda *_: False)
    fails(["forecast", "airline", "--horizon", 3, "--out", fails.out / "f.csv"], "is not writable")
    fails(["evaluate", "gift-eval", "--out", fails.out], "is not writable")


def test_output_of_an_unknown_kind(fails):
    fails(["forecast", "airline", "--horizon", 3, "--out", fails.out / "f.xlsx"], "expected a file called *.csv")
    fails(["forecast", "airline", "--horizon", 3, "--plot", fails.out / "f.bmp"], "expected a file called *.png")


def test_nothing_half_written(checkpoint, fails, monkeypatch):
    def full_disk(table, path):
        path.write_text("item_id,timest")
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("tsseq.cli.forecast._write", full_disk)
    argv = ["forecast", "airline", "--horizon", 3, "--checkpoint", checkpoint, "--out", fails.out / "f.csv"]
    fails(argv, "No space left on device")


def test_more_than_memory_holds(checkpoint, fails):
    argv = ["forecast", "airline", "--horizon", 10**14, "--checkpoint", checkpoint, "--out", fails.out / "f.csv"]
    fails(argv, "not enough memory")


def test_our_own_mistakes_are_not_hidden(checkpoint, monkeypatch):
    def broken(*_):
        raise RuntimeError("a bug")

    monkeypatch.setattr("tsseq.table.forecast_panel", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        main(["forecast", "airline", "--horizon", "3", "--checkpoint", checkpoint])


def test_interrupted(monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("tsseq.cli.forecast.read_source", interrupted)
    assert main(["forecast", "airline", "--horizon", "3"]) == 130
    assert capsys.readouterr().err == "tsseq: interrupted\n"


@pytest.fixture
def benchmark(tmp_path):
    """Three small configurations in the parquet layout, with two published models beside them."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "gift_eval"
    folder.mkdir()
    names = {"hospital/M/short": 84, "us_births/M/short": 60, "saugeen/D/short": 200}
    for name, length in names.items():
        dataset, freq, _ = name.split("/")
        series = [Series(f"s{i}", rng.normal(size=length).astype(np.float32), "2000-01-31", freq) for i in range(3)]
        write_parquet(folder / f"{dataset}__{freq}.parquet", series)
    rows = [(m, n, 1.0 if m == "seasonal_naive" else 0.7, 0.5) for m in ("seasonal_naive", "rival") for n in names]
    pd.DataFrame(rows, columns=["model", "dataset", "MASE", "CRPS"]).to_csv(folder / "published.csv", index=False)
    return folder


def evaluate(benchmark, out, checkpoint, *more):
    argv = ["evaluate", "gift-eval", "--data", benchmark, "--out", out, "--checkpoint", checkpoint, *more]
    return main(list(map(str, argv)))


def test_evaluate_writes_what_the_leaderboard_takes(benchmark, checkpoint, tmp_path, capsys):
    out = tmp_path / "results"
    assert evaluate(benchmark, out, checkpoint) == 0
    said = capsys.readouterr().out
    assert "geometric mean of 3" in said and "rival" in said and "94 of the leaderboard's 97" in said.replace("\n", "")
    table = pd.read_csv(out / "all_results.csv")
    assert list(table.columns) == [
        "dataset",
        "model",
        *(
            f"eval_metrics/{c}"
            for c in (
                "MSE[mean]",
                "MSE[0.5]",
                "MAE[0.5]",
                "MASE[0.5]",
                "MAPE[0.5]",
                "sMAPE[0.5]",
                "MSIS",
                "RMSE[mean]",
                "NRMSE[mean]",
                "ND[0.5]",
                "mean_weighted_sum_quantile_loss",
            )
        ),
        "domain",
        "num_variates",
    ]
    assert set(table["dataset"]) == {"hospital/M/short", "us_births/M/short", "saugeen/D/short"}
    assert (table["model"] == "tsseq-small").all() and np.isfinite(table.iloc[:, 2:13].to_numpy()).all()
    config = json.loads((out / "config.json").read_text())
    assert config["model"] == "tsseq-small" and config["model_type"] == "zero-shot"
    assert config["testdata_leakage"] == "No"
    naive = pd.read_csv(out / "seasonal_naive.csv")
    ratios = command.read_ratios(out)
    column = "eval_metrics/MASE[0.5]"
    expected = table.set_index("dataset")[column] / naive.set_index("dataset")[column]
    pd.testing.assert_series_equal(ratios["mase_ratio"], expected, check_names=False)
    assert (out / "ratios.png").read_bytes().startswith(b"\x89PNG")
    assert not [p for p in out.iterdir() if "partial" in p.name]


def test_evaluate_resumes_after_a_kill(benchmark, checkpoint, tmp_path, monkeypatch):
    from tsseq.datasets import gift_eval

    out, whole = tmp_path / "resumed", tmp_path / "whole"
    assert evaluate(benchmark, whole, checkpoint) == 0
    true_run, scored = gift_eval.run, []

    def killed_at_the_third(forecaster, root, names, *rest):
        if len(scored) == 2:
            raise KeyboardInterrupt
        scored.append(names[0])
        return true_run(forecaster, root, names, *rest)

    monkeypatch.setattr(gift_eval, "run", killed_at_the_third)
    assert evaluate(benchmark, out, checkpoint) == 130
    assert len(pd.read_csv(out / "all_results.csv")) == 2
    first = list(scored)
    scored[:] = ["done before"]
    assert evaluate(benchmark, out, checkpoint) == 0
    assert len(scored) == 2 and scored[1] not in first, "finished configurations are not scored again"
    for file in ("all_results.csv", "seasonal_naive.csv"):
        assert (out / file).read_bytes() == (whole / file).read_bytes()


def test_evaluate_some_configurations(benchmark, checkpoint, tmp_path):
    out = tmp_path / "some"
    assert evaluate(benchmark, out, checkpoint, "--configurations", "saugeen/D/short", "us_births/M/short") == 0
    assert list(pd.read_csv(out / "all_results.csv")["dataset"]) == ["saugeen/D/short", "us_births/M/short"]
    out = tmp_path / "fast"
    assert evaluate(benchmark, out, checkpoint, "--fast") == 0
    assert list(pd.read_csv(out / "all_results.csv")["dataset"]) == ["hospital/M/short"]


def test_evaluate_refuses(benchmark, checkpoint, fails, tmp_path):
    argv = ["evaluate", "gift-eval", "--checkpoint", checkpoint, "--out", fails.out, "--data"]
    fails([*argv, tmp_path / "nowhere"], "is not a folder")
    fails([*argv, benchmark, "--configurations", "ett1/H"], "no GIFT-Eval configuration 'ett1/H'")
    fails([*argv, benchmark, "--configurations", "ett1/H/short"], "no data for ett1/H/short")
    fails([*argv, fails.out], "none of its 97 configurations")


def test_evaluate_does_not_mix_models(benchmark, checkpoint, tmp_path, capsys):
    out = tmp_path / "results"
    assert evaluate(benchmark, out, checkpoint, "--fast") == 0
    before = (out / "all_results.csv").read_bytes()
    capsys.readouterr()
    assert evaluate(benchmark, out, checkpoint, "--model", "another") == 2
    assert "holds results of tsseq-small" in capsys.readouterr().err
    assert (out / "all_results.csv").read_bytes() == before


def test_list_names_everything(capsys):
    from tsseq.mixers import MIXERS

    assert main(["list", "--only", "mixers"]) == 0
    assert capsys.readouterr().out.split() == list(MIXERS)
    assert main(["list"]) == 0
    assert "airline" in capsys.readouterr().out
    assert main(["list", "--only", "configurations"]) == 0
    assert len(capsys.readouterr().out.split()) == 97
