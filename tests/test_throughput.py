"""What the adapters cost beside the network: a thousand series with the base, through each of them."""

import time

import numpy as np
import pandas as pd
import pytest

import tsseq
from tsseq.forecaster import Forecaster
from tsseq.inference import FAST, Predictor

SERIES, LENGTH, HORIZON = 1000, 48, 24
MOST = 1.2
"""Times the seconds that the network takes in the same call: so a busy machine slows both."""
ROUNDS = 2


def watch(monkeypatch):
    """A list to which each pass of the network adds its seconds and what it was given: series, values, steps ahead."""
    passes = []
    forecast = Forecaster.forecast

    def timed(forecaster, context, horizon, *levels):
        started = time.perf_counter()
        result = forecast(forecaster, context, horizon, *levels)
        passes.append((time.perf_counter() - started, (len(context), sum(map(len, context)), horizon)))
        return result

    monkeypatch.setattr(Forecaster, "forecast", timed)
    return passes


@pytest.mark.slow
def test_a_thousand_series_through_each_adapter(monkeypatch):
    pytest.importorskip("sktime")
    pytest.importorskip("gluonts")
    from tsseq.adapters.gluonts import TsseqPredictor
    from tsseq.adapters.sktime import TsseqForecaster

    values = np.random.default_rng(0).normal(size=(SERIES, LENGTH)).cumsum(1)
    days = pd.date_range("2025-01-01", periods=LENGTH)
    index = pd.MultiIndex.from_product([[f"s{i:04}" for i in range(SERIES)], days], names=["series", "day"])
    panel = pd.DataFrame({"value": values.ravel()}, index)
    entries = [{"start": pd.Period("2025-01-01", "D"), "target": row} for row in values]
    model = tsseq.load("base")
    bare = Predictor(model, FAST)
    options = {name: getattr(FAST, name) for name in ("flip", "coarser", "recent", "phases")} | {"device": "cpu"}
    forecaster = TsseqForecaster(**options).fit(panel, fh=range(1, HORIZON + 1))
    predictor = TsseqPredictor(HORIZON, model, **options)
    tasks = {
        "bare": lambda: bare.forecast(list(values), HORIZON),
        "sktime": lambda: forecaster.predict_quantiles(alpha=[0.1, 0.5, 0.9]),
        "gluonts": lambda: list(predictor.predict(entries)),
        "table": lambda: tsseq.forecast(panel, HORIZON, model=bare),
    }
    passes = watch(monkeypatch)
    ratios = {name: [] for name in tasks}
    for _ in range(ROUNDS):
        for name, task in tasks.items():
            passes.clear()
            started = time.perf_counter()
            task()
            seconds = time.perf_counter() - started
            assert [work for _, work in passes] == [(SERIES, SERIES * LENGTH, HORIZON)], name
            ratios[name].append(seconds / passes[0][0])
    assert max(min(each) for each in ratios.values()) < MOST, ratios
