"""The checkpoint that ships: its promises, its quality on bundled series, and its exact numbers."""

import json
from pathlib import Path
from time import perf_counter

import numpy as np
import pytest
import torch

import tsseq
from tsseq.backbone import count_parameters
from tsseq.checkpoint import BUNDLED
from tsseq.datasets import bundled
from tsseq.inference import Predictor
from tsseq.testing import check_forecaster, hostile_series

GOLDEN = Path(__file__).parent / "golden" / "base.json"


@pytest.fixture(scope="module")
def base():
    return tsseq.load("base")


def golden_contexts():
    t = torch.arange(300, dtype=torch.float64)
    wave = torch.sin(2 * torch.pi * t / 24) + 0.01 * t
    steps = torch.where(t % 50 < 25, 3.0, -1.0) + 0.2 * torch.cos(t * t)
    holes = torch.where(t % 7 == 0, torch.nan, wave)
    return [wave, steps[:100], holes[:65], 1e6 + 1e3 * wave[:40]]


def test_size(base):
    assert (BUNDLED / "base.safetensors").stat().st_size <= 16_000_000
    assert count_parameters(base) <= 8_000_000


def test_loads_in_under_a_second():
    start = perf_counter()
    tsseq.load("base")
    assert perf_counter() - start < 1.0


def test_contract(base):
    check_forecaster(base)


def test_golden_predictions(base):
    """Recorded in float64: no change of the forward pass lands unseen. `python tests/test_base.py` records anew."""
    expected = json.loads(GOLDEN.read_text())
    for context, values in zip(golden_contexts(), expected, strict=True):
        quantiles = base.forecast(context, 40).quantiles[0, ::13]
        want = torch.tensor(values, dtype=torch.float64)
        spread = (want.max() - want.min()).item()
        torch.testing.assert_close(quantiles, want, rtol=0, atol=2e-3 * spread)


@pytest.mark.parametrize(("name", "horizon"), [("airline", 24), ("nottingham", 24)])
def test_beats_seasonal_naive_on_bundled_monthly_series(base, name, horizon):
    series = np.asarray(bundled.load(name).values[0], dtype=np.float64)
    history, future = series[:-horizon], series[-horizon:]
    median = Predictor(base).forecast(history, horizon, (0.5,)).quantiles[0, :, 0].numpy()
    naive = np.resize(history[-12:], horizon)
    assert np.abs(median - future).mean() < np.abs(naive - future).mean()


def test_sound_on_what_nobody_trained_for(base):
    for name, series in hostile_series().items():
        quantiles = base.forecast(series, 3000).quantiles
        assert quantiles.isfinite().all() or name == "all missing"
    long = torch.sin(torch.arange(100_000) / 9.0)
    assert base.forecast(long, 10).quantiles.isfinite().all()


if __name__ == "__main__":
    model = tsseq.load("base").double()
    GOLDEN.write_text(json.dumps([model.forecast(x, 40).quantiles[0, ::13].tolist() for x in golden_contexts()]))
