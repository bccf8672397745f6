"""The gluonts predictor: its values, gluonts' own evaluation, serialisation, errors."""

import dataclasses
import logging

import numpy as np
import pandas as pd
import pytest
import torch

pytest.importorskip("gluonts")

from gluonts.dataset.common import ListDataset
from gluonts.dataset.pandas import PandasDataset
from gluonts.dataset.split import split
from gluonts.ev.metrics import MASE, MSE, MeanWeightedSumQuantileLoss
from gluonts.exceptions import GluonTSDataError
from gluonts.model import evaluate_model
from gluonts.model.forecast import QuantileForecast
from gluonts.model.predictor import Predictor as GluonPredictor

from tsseq.adapters.gluonts import TsseqEstimator, TsseqPredictor
from tsseq.backbone import BackboneConfig
from tsseq.covariates import forecast_with_covariates
from tsseq.datasets import bundled
from tsseq.forecaster import DECILES, Forecaster, ForecasterConfig
from tsseq.inference import InferenceConfig, Predictor
from tsseq.metrics import error_sums, scores, seasonal_error


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(1)
    backbone = BackboneConfig(mixers=("lru",), width=16, layers=1, mlp_width=16)
    return Forecaster(ForecasterConfig(patch_length=8, hidden_width=16, max_context=64, backbone=backbone)).eval()


@pytest.fixture
def dataset():
    """Three real monthly series of different lengths, one with missing values."""
    airline, nottingham = (bundled.load(name).values[0] for name in ("airline", "nottingham"))
    holes = np.where(np.arange(len(nottingham)) % 7 == 0, np.nan, nottingham)
    rows = [("airline", airline), ("nottingham", nottingham), ("holes", holes[:90])]
    return ListDataset([{"item_id": n, "start": "1949-01", "target": v} for n, v in rows], freq="M")


def test_values_are_those_of_the_network(model, dataset):
    forecasts = list(TsseqPredictor(12, model, device="cpu").predict(dataset))
    expected = Predictor(model).forecast([entry["target"] for entry in dataset], 12)
    for row, (entry, forecast) in enumerate(zip(dataset, forecasts, strict=True)):
        assert isinstance(forecast, QuantileForecast)
        assert forecast.item_id == entry["item_id"]
        assert forecast.start_date == entry["start"] + len(entry["target"])
        assert forecast.forecast_keys == [*map(str, DECILES), "mean"]
        for k, level in enumerate(DECILES):
            np.testing.assert_array_equal(forecast.quantile(level), expected.quantiles[row, :, k])
        np.testing.assert_array_equal(forecast.mean, expected.mean[row])


def test_batches_do_not_change_forecasts(model, dataset):
    predictor = TsseqPredictor(5, model, device="cpu")
    whole = list(predictor.predict(dataset))
    for one in (predictor.predict(dataset, batch_size=1), TsseqPredictor(5, model, batch_size=2).predict(dataset)):
        for a, b in zip(whole, one, strict=True):
            np.testing.assert_allclose(a.forecast_array, b.forecast_array, rtol=1e-5)


def test_a_thousand_entries_are_one_call(model):
    calls = []
    entries = [{"start": pd.Period("2020", "D"), "target": np.arange(40.0) + i} for i in range(1000)]
    predictor = TsseqPredictor(3, model, flip=False)
    with torch.inference_mode():
        predictor.forecaster.backbone.register_forward_hook(lambda module, inputs, output: calls.append(len(inputs[0])))
        assert len(list(predictor.predict(entries))) == 1000
    predictor.forecaster.backbone._forward_hooks.clear()
    assert sum(calls) == 1000 and len(calls) == 2  # the network itself reads 512 at a time


def test_multivariate_targets(model):
    target = np.random.default_rng(0).normal(size=(3, 50)).cumsum(1).astype(np.float32)
    data = ListDataset([{"start": "2020", "target": target}], freq="D", one_dim_target=False)
    (forecast,) = TsseqPredictor(4, model).predict(data)
    expected = Predictor(model).forecast(target, 4)
    assert forecast.forecast_array.shape == (10, 4, 3)
    np.testing.assert_array_equal(forecast.quantile(0.9), expected.quantiles[:, :, 8].T)
    windows = split(data, offset=-4)[1].generate_instances(4)
    table = evaluate_model(TsseqPredictor(4, model), test_data=windows, metrics=[MSE()], axis=None)
    assert table.shape == (1, 1) and np.isfinite(table).all(axis=None)


def test_evaluate_model_equals_our_own_metrics(model, dataset):
    _, template = split(dataset, offset=-24)
    data = template.generate_instances(prediction_length=12, windows=2)
    predictor = TsseqPredictor(12, model)
    metrics = [MASE(), MSE(forecast_type="mean"), MeanWeightedSumQuantileLoss(DECILES)]
    arguments = dict(metrics=metrics, axis=None, mask_invalid_label=True, allow_nan_forecast=False, seasonality=12)
    table = evaluate_model(predictor, test_data=data, batch_size=4, **arguments)
    contexts = [entry["target"] for entry in data.input]
    labels = np.stack([entry["target"] for entry in data.label])
    forecast = Predictor(model).forecast(contexts, 12)
    units = [seasonal_error(context, 12) for context in contexts]
    expected = scores(error_sums(labels, forecast.mean, forecast.quantiles, units))
    for name in ("MASE[0.5]", "mean_weighted_sum_quantile_loss", "MSE[mean]"):
        np.testing.assert_allclose(table[name].iloc[0], expected[name], rtol=1e-5)


def test_pandas_datasets(model):
    airline = bundled.load("airline").values[0]
    frame = pd.DataFrame({"target": airline}, index=pd.period_range("1949-01", periods=len(airline), freq="M"))
    (forecast,) = TsseqPredictor(6, model).predict(PandasDataset({"airline": frame}))
    assert forecast.item_id == "airline" and str(forecast.index[0]) == "1961-01"


def test_covariates_are_used_as_the_arrays_are(model, caplog):
    rng = np.random.default_rng(0)
    promotion = (np.arange(70) % 5 == 0) * 1.0
    noise = rng.normal(size=(3, 70))
    targets = [10 * promotion[:60] + noise[0, :60], 10 * promotion[30:60] + noise[1, :30], noise[2, :60]]
    start = pd.Period("2020", "D")
    entries = [
        {
            "start": start,
            "target": targets[0],
            "feat_dynamic_real": promotion[None],
            "past_feat_dynamic_real": noise[:1, :60],
        },
        {
            "start": start,
            "target": targets[1],
            "feat_dynamic_real": promotion[None, 30:],
            "past_feat_dynamic_real": noise[1:2, :30],
        },
        {"start": start, "target": targets[2], "feat_static_cat": np.array([1])},
    ]
    with caplog.at_level(logging.WARNING):
        forecasts = list(TsseqPredictor(10, model).predict(entries))
    assert "ignored: feat_static_cat" in caplog.text
    pad = np.full(30, np.nan)
    context = np.stack([targets[0], np.append(pad, targets[1])])
    known = np.stack([promotion[:60], np.append(pad, promotion[30:60])])
    past = np.stack([known, np.stack([noise[0, :60], np.append(pad, noise[1, :30])])], axis=-1)
    future = np.stack([np.stack([promotion[60:]] * 2), np.full((2, 10), np.nan)], axis=-1)
    direct = forecast_with_covariates(
        Predictor(model, InferenceConfig(nonnegative=False)), context, past, future, DECILES, nonnegative=True
    )
    for row in range(2):
        np.testing.assert_allclose(forecasts[row].forecast_array[:9], direct.quantiles[row].T, rtol=1e-5)
        np.testing.assert_allclose(forecasts[row].mean, direct.mean[row], rtol=1e-5)
    assert "none" not in direct.chosen
    plain = list(TsseqPredictor(10, model, covariates=False).predict(entries))
    np.testing.assert_allclose(plain[2].forecast_array, forecasts[2].forecast_array, rtol=1e-5)
    assert not np.allclose(plain[0].forecast_array, forecasts[0].forecast_array)
    short = [{"start": start, "target": targets[0], "feat_dynamic_real": promotion[None, :50]}]
    with pytest.raises(GluonTSDataError, match="at least as long as the target"):
        list(TsseqPredictor(10, model).predict(short))


def test_other_levels_and_lead_time(model, dataset):
    plain = next(iter(TsseqPredictor(9, model, quantile_levels=(0.05, 0.5)).predict(dataset)))
    led = next(iter(TsseqPredictor(6, model, quantile_levels=(0.05, 0.5), lead_time=3).predict(dataset)))
    np.testing.assert_array_equal(led.forecast_array, plain.forecast_array[:, 3:])
    assert led.start_date == plain.start_date + 3


def test_every_reading_is_passed_on_and_kept(tmp_path, model, readings):
    assert TsseqPredictor(3, model).inference == InferenceConfig()
    assert readings.keys() == {x.name for x in dataclasses.fields(InferenceConfig)} - {"origins", "temperature"}
    for name, value in readings.items():
        predictor = TsseqPredictor(3, model, **{name: value})
        assert predictor.inference == dataclasses.replace(InferenceConfig(), **{name: value}) != InferenceConfig()
    TsseqPredictor(3, model, **readings).serialize(tmp_path)
    assert GluonPredictor.deserialize(tmp_path).inference == InferenceConfig(**readings)


def test_serialises_whole(tmp_path, model, dataset):
    predictor = TsseqPredictor(6, model, quantile_levels=(0.2, 0.5), flip=False)
    predictor.serialize(tmp_path)
    other = GluonPredictor.deserialize(tmp_path)
    for a, b in zip(predictor.predict(dataset), other.predict(dataset), strict=True):
        np.testing.assert_array_equal(a.forecast_array, b.forecast_array)
        assert a.forecast_keys == b.forecast_keys


def test_numbers_of_any_kind(tmp_path, model):
    wide = TsseqPredictor(
        np.int64(3), model, batch_size=np.int64(2), coarser=np.array([3]), quantile_levels=np.array([0.5])
    )
    wide.serialize(tmp_path)
    entries = [{"start": pd.Period("2020", "D"), "target": [1, None, 3, 4]}]
    (forecast,) = GluonPredictor.deserialize(tmp_path).predict(entries)
    entries = [{"start": pd.Period("2020", "D"), "target": np.array([1, np.nan, 3, 4])}]
    (expected,) = TsseqPredictor(3, model, coarser=(3,), quantile_levels=(0.5,)).predict(entries)
    np.testing.assert_array_equal(forecast.forecast_array, expected.forecast_array)


def test_nothing_observed_is_zero(model, caplog):
    entries = [{"item_id": "void", "start": pd.Period("2020", "D"), "target": np.full(5, np.nan)}]
    with caplog.at_level(logging.WARNING):
        (forecast,) = TsseqPredictor(2, model).predict(entries)
    assert (forecast.forecast_array == 0).all() and "void" in caplog.text


def test_the_estimator_fine_tunes_and_trains(model, caplog):
    t = np.arange(120)
    rows = [10.0 * i + (t + i) % 6 for i in range(4)]
    data = ListDataset([{"start": "2020", "target": row} for row in rows], freq="D")
    truth = np.stack([10.0 * i + (np.arange(120, 126) + i) % 6 for i in range(4)])

    def error(predictor):
        return np.abs(np.stack([forecast.quantile(0.5) for forecast in predictor.predict(data)]) - truth).mean()

    settings = {"max_steps": 60, "learning_rate": 5e-3, "device": "cpu", "flip": False}
    with caplog.at_level(logging.INFO, logger="tsseq"):
        tuned = TsseqEstimator(6, model, **settings).train(data)
    assert "improved" in caplog.text and isinstance(tuned, TsseqPredictor) and not tuned.inference.flip
    assert error(tuned) < 0.5 * error(TsseqPredictor(6, model))
    new = TsseqEstimator(6, None, mixer="min_gru", width=16, layers=1, **settings).train(data)
    assert new.forecaster.config.backbone.mixers == ("min_gru",) and error(new) < error(TsseqPredictor(6, model))
    with pytest.raises(GluonTSDataError, match="three values"):
        TsseqEstimator(6, model).train(ListDataset([{"start": "2020", "target": [1.0]}], freq="D"))
    with pytest.raises(ValueError, match="expected mixers among"):
        TsseqEstimator(6, None, mixer="transformer")


def test_the_estimator_says_what_is_wrong_before_it_trains(model):
    for settings, message in (
        ({"quantile_levels": (1.5,)}, "quantile levels"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"max_steps": 0}, "max_steps"),
        ({"spread": 0.0}, "spread"),
    ):
        with pytest.raises(ValueError, match=message):
            TsseqEstimator(6, model, **settings)
    with pytest.raises(ValueError, match="prediction_length"):
        TsseqEstimator(-1, model)
    with pytest.raises(TypeError, match="nonsense"):
        TsseqEstimator(6, model, nonsense=1)


def test_bad_input_says_what_to_do(model):
    predictor, start = TsseqPredictor(2, model), pd.Period("2020", "D")
    for entry, message in (
        ({"start": start}, "start and target"),
        ({"start": pd.Timestamp("2020"), "target": np.ones(3)}, "pandas Period"),
        ({"start": start, "target": np.ones(0)}, r"shape \(time,\)"),
        ({"start": start, "target": np.array([1.0, np.inf])}, "NaN for missing"),
        ({"start": start, "target": ["a", "b"]}, "target of numbers"),
    ):
        with pytest.raises(GluonTSDataError, match=message):
            list(predictor.predict([entry]))
    with pytest.raises(ValueError, match="prediction_length"):
        TsseqPredictor(0, model)
    with pytest.raises(ValueError, match="levels"):
        TsseqPredictor(2, model, quantile_levels=(0.5, 1.0))
    with pytest.raises(ValueError, match="no checkpoint"):
        TsseqPredictor(2, "absent")
