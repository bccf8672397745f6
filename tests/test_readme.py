"""Every Python snippet of the README runs as it is written, and does what the words beside it say."""

import re
from pathlib import Path

import pytest

README = (Path(__file__).resolve().parent.parent / "README.md").read_text()
SNIPPETS = re.findall(r"^```python\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
NEEDS = {"sktime": "sktime", "TsseqForecaster": "sktime", "gluonts": "gluonts"}


def run(snippet, tmp_path, monkeypatch):
    for word, package in NEEDS.items():
        if word in snippet:
            pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(compile(snippet, "README.md", "exec"), names)
    return names


def one(word):
    (snippet,) = (snippet for snippet in SNIPPETS if word in snippet)
    return snippet


def test_table(tmp_path, monkeypatch):
    table = run(one("tsseq.forecast("), tmp_path, monkeypatch)["table"]
    assert len(table) == 14 and list(table.columns[2:]) == ["mean", *(f"0.{k}" for k in range(1, 10))]


def test_tensors(tmp_path, monkeypatch):
    assert run(one("tsseq.load("), tmp_path, monkeypatch)["forecast"].quantiles.shape == (2, 48, 3)


def test_stream(tmp_path, monkeypatch):
    stream = run(one("tsseq.load(") + one("model.stream("), tmp_path, monkeypatch)["stream"]
    assert stream.count == 5010


def test_sktime_forecaster(tmp_path, monkeypatch):
    forecaster = run(one("TsseqForecaster"), tmp_path, monkeypatch)["forecaster"]
    assert forecaster.predict_quantiles(alpha=[0.1, 0.5, 0.9]).shape == (3, 3)


@pytest.mark.slow
def test_sktime_classifier(tmp_path, monkeypatch):
    assert run(one("TsseqClassifier"), tmp_path, monkeypatch)["accuracy"] > 0.9


def test_gluonts_predictor(tmp_path, monkeypatch):
    forecasts = run(one("TsseqPredictor"), tmp_path, monkeypatch)["forecasts"]
    assert [forecast.quantile(0.9).shape for forecast in forecasts] == [(12,)]


def test_every_snippet_has_a_test():
    words = ("tsseq.forecast(", "tsseq.load(", "model.stream(", "TsseqForecaster", "TsseqClassifier", "TsseqPredictor")
    assert sorted(SNIPPETS) == sorted(one(word) for word in words)
