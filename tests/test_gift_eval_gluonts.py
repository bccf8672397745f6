"""Our scores on GIFT-Eval against gluonts' evaluation of the gluonts predictor, as the benchmark's notebook runs it."""

import os

import numpy as np
import pytest
import torch

pytest.importorskip("gluonts")
pytest.importorskip("pyarrow")

from gluonts.dataset.common import ListDataset
from gluonts.dataset.split import split
from gluonts.ev.metrics import MAE, MAPE, MASE, MSE, MSIS, ND, NRMSE, RMSE, SMAPE, MeanWeightedSumQuantileLoss
from gluonts.model import evaluate_model
from gluonts.time_feature import get_seasonality

from tsseq.adapters.gluonts import TsseqPredictor
from tsseq.backbone import BackboneConfig
from tsseq.datasets import bundled, gift_eval
from tsseq.datasets.series import Series, write_parquet
from tsseq.forecaster import DECILES, Forecaster, ForecasterConfig
from tsseq.inference import Predictor

METRICS = [
    MSE(forecast_type="mean"),
    MSE(forecast_type=0.5),
    MAE(),
    MASE(),
    MAPE(),
    SMAPE(),
    MSIS(),
    RMSE(),
    NRMSE(),
    ND(),
    MeanWeightedSumQuantileLoss(quantile_levels=DECILES),
]
REAL = ("us_births/M/short", "ett2/W/short", "hospital/M/short")


@pytest.fixture(scope="module")
def predictor():
    torch.manual_seed(0)
    backbone = BackboneConfig(mixers=("lru",), width=16, layers=1, mlp_width=16)
    return Predictor(Forecaster(ForecasterConfig(patch_length=8, hidden_width=16, backbone=backbone)).eval())


def compare(folder, name, predictor):
    (ours,) = gift_eval.run(predictor, folder, [name])
    configuration, series = gift_eval.named(name), gift_eval.load(folder, name)
    entries = [
        {"item_id": f"{one.item_id}_{k}", "start": one.start, "target": row}
        for one in series
        for k, row in enumerate(one.channels())
    ]
    data = ListDataset(entries, freq=configuration.freq)
    horizon = configuration.horizon
    windows = gift_eval.window_count(configuration, min(len(entry["target"]) for entry in data))
    test_data = split(data, offset=-horizon * windows)[1].generate_instances(horizon, windows=windows, distance=horizon)
    table = evaluate_model(
        TsseqPredictor(horizon, predictor.forecaster, device="cpu"),
        test_data=test_data,
        metrics=METRICS,
        batch_size=1024,
        axis=None,
        mask_invalid_label=True,
        allow_nan_forecast=False,
        seasonality=get_seasonality(configuration.freq),
    )
    assert len(ours.scores) == len(METRICS)
    theirs = [table[metric].iloc[0] for metric in ours.scores]
    np.testing.assert_allclose(list(ours.scores.values()), theirs, rtol=1e-6)


def test_bundled_series_in_the_benchmarks_layout(tmp_path, predictor):
    airline, nottingham = (bundled.load(name).values[0].astype(np.float32) for name in ("airline", "nottingham"))
    holes = np.where(np.arange(len(nottingham)) % 11 == 0, np.float32(np.nan), nottingham)
    pair = np.stack([airline[-100:], nottingham[-100:]])
    write_parquet(
        tmp_path / "hospital__M.parquet",
        [Series("a", airline, "1949-01-31", "M"), Series("n", holes, "1920-01-31", "M")],
    )
    write_parquet(tmp_path / "ett1__W.parquet", [Series("pair", pair, "2001-01-07", "W-SUN")])
    write_parquet(tmp_path / "us_births__D.parquet", [Series("a", airline, "2001-01-07", "D")])
    for name in ("hospital/M/short", "ett1/W/short", "us_births/D/short"):
        compare(tmp_path, name, predictor)


@pytest.mark.skipif("TSSEQ_GIFT_EVAL" not in os.environ, reason="TSSEQ_GIFT_EVAL names no folder")
@pytest.mark.parametrize("name", REAL)
def test_real_configurations(name, predictor):
    compare(os.environ["TSSEQ_GIFT_EVAL"], name, predictor)
