"""`tsseq evaluate gift-eval`: the files that the leaderboard takes, written whole, continued after a kill."""

import json

import numpy as np
import pandas as pd
import pytest

from tsseq.cli import gift_eval as command
from tsseq.cli.__main__ import main
from tsseq.datasets.series import Series, write_parquet


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
    out = tmp_path / "quick"
    assert evaluate(benchmark, out, checkpoint, "--quick") == 0
    assert list(pd.read_csv(out / "all_results.csv")["dataset"]) == ["hospital/M/short"]


def test_evaluate_refuses(benchmark, checkpoint, fails, tmp_path):
    argv = ["evaluate", "gift-eval", "--checkpoint", checkpoint, "--out", fails.out, "--data"]
    fails([*argv, tmp_path / "nowhere"], "is not a folder")
    fails([*argv, benchmark, "--configurations", "ett1/H"], "no GIFT-Eval configuration 'ett1/H'")
    fails([*argv, benchmark, "--configurations", "ett1/H/short"], "no data for ett1/H/short")
    fails([*argv, fails.out], "none of its 97 configurations")


def test_evaluate_does_not_mix_models(benchmark, checkpoint, tmp_path, capsys):
    out = tmp_path / "results"
    assert evaluate(benchmark, out, checkpoint, "--quick") == 0
    before = (out / "all_results.csv").read_bytes()
    capsys.readouterr()
    assert evaluate(benchmark, out, checkpoint, "--model", "another") == 2
    assert "holds results of tsseq-small" in capsys.readouterr().err
    assert (out / "all_results.csv").read_bytes() == before
