"""`tsseq evaluate inference`: settings of the forecast compared on synthetic and on real series."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from tsseq.cli.__main__ import main
from tsseq.cli.evaluate_inference import SETTINGS, read_setting
from tsseq.datasets.scoring import total_errors
from tsseq.datasets.series import Series, write_parquet
from tsseq.datasets.validation import from_folder, from_prior
from tsseq.datasets.windows import Windows
from tsseq.inference import FAST, InferenceConfig
from tsseq.metrics import DECILES, coverage, error_sums, log_loss
from tsseq.seasonal_naive import SeasonalNaive

SYNTHETIC = ["--families", "power", "step", "--length", "200", "--horizons", "8", "24", "--series", "3"]


@pytest.fixture
def folder(tmp_path):
    """A quarterly file whose names tell horizons, a daily one, and one of no frequency."""
    rng = np.random.default_rng(0)

    def series(name, length, freq):
        return Series(name, rng.normal(size=length).astype(np.float32), "2000-01-01", freq)

    path = tmp_path / "mine"
    path.mkdir()
    quarters = [series("a|h=6", 40, "Q"), series("b|h=6", 60, "Q"), series("c|h=4", 40, "Q"), series("d|h=6", 10, "Q")]
    write_parquet(path / "sales.parquet", quarters)
    write_parquet(path / "visits.parquet", [series(f"v{i}", 700, "D") for i in range(2)])
    write_parquet(path / "odd.parquet", [series("x", 99, "mixed")])
    return path


def evaluate(*words):
    return main(["evaluate", "inference", *map(str, words)])


def test_synthetic_series(checkpoint, tmp_path, capsys):
    out = tmp_path / "scores.csv"
    settings = ["plain", "fast", 'two={"coarser": [2], "recent": [], "origins": 1}']
    assert evaluate("--checkpoint", checkpoint, *SYNTHETIC, "--settings", *settings, "--out", out) == 0
    said = capsys.readouterr().out
    assert "mean of synthetic" in said and "(3) two" in said and "power/24" in said
    table = pd.read_csv(out)
    assert [*zip(table["set"], table["horizon"], table["setting"], strict=True)] == [
        (family, horizon, setting)
        for family in ("power", "step")
        for horizon in (8, 24)
        for setting in ("plain", "fast", "two")
    ]
    assert (table["windows"] == 3).all() and table["coverage"].between(0, 1).all()
    assert json.loads(table["options"].iloc[2])["coarser"] == [2]
    power = table[table["set"] == "power"].pivot(index="horizon", columns="setting", values="log_loss")
    assert (power["plain"] != power["fast"]).all(), "the mirrored reading changes the forecast"
    assert power.loc[8, "two"] == power.loc[8, "plain"] and power.loc[24, "two"] != power.loc[24, "plain"]


def test_real_series_beside_synthetic_ones(checkpoint, folder, tmp_path, capsys):
    out = tmp_path / "scores.csv"
    words = ["--checkpoint", checkpoint, "--data", folder, "--settings", "default", "--out", out]
    assert evaluate(*words, "--families", "sde", "--length", "100", "--horizons", "5") == 0
    said = capsys.readouterr()
    assert "mean of mine" in said.out and "mean of synthetic" in said.out
    assert "odd.parquet is left out: unknown frequency 'mixed'" in said.err and said.err.count("\n") == 1
    sets = [*pd.read_csv(out)[["source", "set", "horizon"]].itertuples(index=False, name=None)]
    assert sets == [("mine", "sales", 5), ("mine", "visits", 5), ("synthetic", "sde", 5)]


def test_the_same_command_continues(checkpoint, tmp_path, monkeypatch, capsys):
    from tsseq.datasets import scoring

    out, whole = tmp_path / "resumed.csv", tmp_path / "whole.csv"
    words = ["--checkpoint", checkpoint, *SYNTHETIC, "--settings", "plain", "fast"]
    assert evaluate(*words, "--out", whole) == 0
    calls = []

    def killed_at_the_fifth(*arguments):
        calls.append(arguments)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return total_errors(*arguments)

    monkeypatch.setattr(scoring, "total_errors", killed_at_the_fifth)
    assert evaluate(*words, "--out", out) == 130
    assert len(pd.read_csv(out)) == 2
    assert evaluate(*words, "--out", out) == 0
    assert len(calls) == 5 + 6 * 2, "finished lines are not scored again"
    resumed, uninterrupted = (pd.read_csv(path).drop(columns="seconds") for path in (out, whole))
    pd.testing.assert_frame_equal(resumed, uninterrupted)
    assert evaluate(*words, "no-flip", "--seed", "1", "--out", out) == 0
    assert len(calls) == 5 + 6 * 2 + 4 * 2 and len(pd.read_csv(out)) == 12
    assert evaluate(*words, "--seed", "2", "--out", out) == 0
    assert len(pd.read_csv(out)) == 20, "other series are other lines"


def test_changes_are_relative_to_the_first_setting(checkpoint, tmp_path, capsys):
    out = tmp_path / "scores.csv"
    assert evaluate("--checkpoint", checkpoint, *SYNTHETIC, "--settings", "fast", "plain", "--out", out) == 0
    logs = pd.read_csv(out).pivot(index=["set", "horizon"], columns="setting", values="log_loss")
    expected = f"{np.expm1((logs['plain'] - logs['fast']).mean()):+.1%}"
    line = next(line for line in capsys.readouterr().out.splitlines() if "(2) plain" in line)
    assert expected in line


def test_refuses(checkpoint, folder, fails):
    argv = ["evaluate", "inference", "--checkpoint", checkpoint, "--out", fails.out / "scores.csv"]
    fails([*argv, "--settings", "slow"], "unknown setting 'slow': expected JSON, name=JSON or one of default, fast")
    fails([*argv, "--settings", "mine="], "unknown setting 'mine='")
    fails([*argv, "--settings", '{"flip": '], "expected JSON in the setting")
    fails([*argv, "--settings", "mine=[1]"], "expected a JSON object in the setting 'mine=[1]'")
    fails([*argv, "--settings", '{"flop": true}'], "Option 'flop' is not accepted")
    fails([*argv, "--settings", '{"flip": 3}'], "expected true or false for flip, got '3'")
    fails([*argv, "--settings", '{"coarser": [1]}'], "at least 2 in coarser")
    fails([*argv, "--settings", '{"temperature": 0}'], "a positive temperature")
    fails([*argv, "--families", "weathr"], "unknown family 'weathr': expected one of")
    fails([*argv, "--families", "sde", "--series", "0"], "at least 1, got 0")
    fails([*argv, "--families", "sde", "--horizons", "-3"], "at least 1, got -3")
    fails([*argv, "--data", folder / "visits.parquet"], "is not a folder")
    fails([*argv, "--data", fails.out], "expected *.parquet files")
    fails([*argv[:-1], fails.out / "scores.txt"], "expected a file called *.csv")


def test_settings_are_what_their_names_say():
    configs = {name: read_setting(name)[1] for name in SETTINGS}
    assert configs["default"] == InferenceConfig() and configs["fast"] == FAST
    assert configs["no-flip"] == replace(InferenceConfig(), flip=False)
    assert read_setting('{"recent": [512, 1024]}')[1] == InferenceConfig(recent=(512, 1024))


def test_a_folder_is_cut_as_its_names_and_frequencies_say(folder):
    with pytest.warns(UserWarning, match="odd.parquet is left out"):
        sets = from_folder(folder)
    assert [(one.name, one.horizon, one.seasonality, len(one.windows)) for one in sets] == [
        ("sales", 6, 4, 2),
        ("sales", 4, 4, 1),
        ("visits", 30, 1, 6),
    ]
    last = sets[2].windows
    assert [len(context) for context in last.contexts] == [610, 640, 670] * 2


def test_a_family_is_the_same_whatever_the_horizons():
    (short, long), (alone,) = (from_prior("power", 2, 100, h, seed=3) for h in ([8, 24], [24]))
    np.testing.assert_array_equal(long.windows.labels, alone.windows.labels)
    np.testing.assert_array_equal(short.windows.labels, long.windows.labels[:, :8])
    np.testing.assert_allclose(np.std(short.windows.contexts, axis=1), 1.0, rtol=1e-4)


def test_every_series_counts_alike_in_the_log_loss():
    rng = np.random.default_rng(0)
    label, quantiles = rng.normal(size=(3, 4)), np.sort(rng.normal(size=(3, 4, 9)), -1)
    size = np.array([1.0, 1e3, 1e-3])[:, None]
    alike = log_loss(error_sums(label, label, quantiles, np.ones(3)))
    sized = log_loss(error_sums(size * label, label, size[..., None] * quantiles, size[:, 0]))
    assert sized == pytest.approx(alike)
    worse = log_loss(error_sums(2 * label, label, 2 * quantiles, np.ones(3)))
    assert worse - alike == pytest.approx(np.log(2))
    assert np.isnan(log_loss(error_sums(label, label, quantiles, np.zeros(3))))


def test_coverage_counts_the_labels_between_the_outer_deciles():
    label = np.array([[0.0, 1.0, 5.0, np.nan]])
    quantiles = np.broadcast_to(np.array(DECILES), (1, 4, 9))
    assert coverage(error_sums(label, np.zeros((1, 4)), quantiles, np.ones(1))) == 0.0
    assert coverage(error_sums(label, np.zeros((1, 4)), 2 * quantiles - 0.5, np.ones(1))) == pytest.approx(2 / 3)


def test_naive_bands_cover_a_random_walk_eight_times_in_ten():
    walks = np.random.default_rng(0).normal(size=(400, 120)).cumsum(1).astype(np.float32)
    errors = total_errors(SeasonalNaive(), Windows(list(walks[:, :100]), walks[:, 100:]), 1, batch_size=64)
    assert coverage(errors) == pytest.approx(0.8, abs=0.03)
