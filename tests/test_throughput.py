"""What the adapters cost beside the network: a thousand series with the base, through each of them."""

import time

import numpy as np
import pandas as pd
import pytest

import tsseq
from tsseq.inference import FAST, Predictor

SERIES, LENGTH, HORIZON = 1000, 48, 24
MOST = 1.3
"""Times the bare forecaster's seconds. 1.2 is promised, and kept on a quiet machine; the rest is for a busy one."""


def fastest(tasks, rounds=3):
    """Seconds of each task at its best, the tasks taking turns."""
    seconds = {name: [] for name in tasks}
    for _ in range(rounds):
        for name, task in tasks.items():
            started = time.perf_counter()
            task()
            seconds[name].append(time.perf_counter() - started)
    return {name: min(each) for name, each in seconds.items()}


@pytest.mark.slow
def test_a_thousand_series_through_each_adapter():
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
    seconds = fastest(
        {
            "bare": lambda: bare.forecast(list(values), HORIZON),
            "sktime": lambda: forecaster.predict_quantiles(alpha=[0.1, 0.5, 0.9]),
            "gluonts": lambda: list(predictor.predict(entries)),
            "table": lambda: tsseq.forecast(panel, HORIZON, model=bare),
        }
    )
    ratios = {name: each / seconds["bare"] for name, each in seconds.items()}
    assert max(ratios.values()) < MOST, ratios
