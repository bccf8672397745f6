"""The sktime forecaster: values that sktime's own tests do not look at."""

import copy
import dataclasses
import pickle
import time

import numpy as np
import pandas as pd
import pytest
import torch

pytest.importorskip("sktime")

from sktime.datasets import load_airline
from sktime.forecasting.base import ForecastingHorizon
from sktime.forecasting.naive import NaiveForecaster
from sktime.performance_metrics.forecasting import MeanAbsoluteError
from sktime.transformations.series.difference import Differencer

from tsseq.adapters.shared_model import SharedModel
from tsseq.adapters.sktime import TsseqForecaster
from tsseq.backbone import Backbone
from tsseq.checkpoint import load
from tsseq.inference import InferenceConfig, Predictor


@pytest.fixture
def forecaster(checkpoint):
    return TsseqForecaster(checkpoint, device="cpu")


def bare(checkpoint, context, horizon, levels=(0.5,)):
    """Forecasts without sktime: series × horizon × level."""
    return Predictor(load(checkpoint)).forecast(context, horizon, levels).quantiles.numpy()


def panel(series=5, length=40, columns=2, start=0):
    rng = np.random.default_rng(0)
    index = pd.MultiIndex.from_product([[f"s{i}" for i in range(series)], range(start, start + length)])
    values = rng.normal(size=(series * length, columns)).cumsum(0)
    return pd.DataFrame(values, index.set_names(["shop", "day"]), [f"c{i}" for i in range(columns)])


def test_values_are_those_of_the_network(forecaster, checkpoint):
    y = load_airline()
    forecast = forecaster.fit(y).predict(fh=range(1, 25))
    np.testing.assert_allclose(forecast, bare(checkpoint, [y.to_numpy()], 24)[0, :, 0], rtol=1e-12)
    assert forecast.index.equals(pd.period_range("1961-01", periods=24, freq="M"))
    assert forecast.name == y.name


def test_every_reading_is_passed_on(readings):
    assert TsseqForecaster()._inference == InferenceConfig()
    for name, value in readings.items():
        changed = dataclasses.replace(InferenceConfig(), **{name: value})
        assert TsseqForecaster(**{name: value})._inference == changed != InferenceConfig()


@pytest.mark.parametrize("fh", [[2, 5], [5, 2, 11], [17], [100]])
def test_gapped_and_reordered_horizons(forecaster, fh):
    y = load_airline()
    whole = forecaster.fit(y).predict(fh=range(1, max(fh) + 1))
    some = forecaster.predict(fh=fh)
    pd.testing.assert_series_equal(some, whole.loc[some.index], rtol=1e-6)
    assert list(some.index) == [y.index[-1] + step for step in sorted(fh)]
    quantiles = forecaster.predict_quantiles(fh=fh, alpha=[0.3])
    longer = forecaster.predict_quantiles(range(1, 101), alpha=[0.3]).loc[some.index]
    np.testing.assert_allclose(quantiles, longer, rtol=1e-6)


def test_absolute_and_timedelta_horizons(forecaster):
    y = load_airline()
    expected = forecaster.fit(y).predict(fh=[3, 7])
    absolute = ForecastingHorizon(pd.PeriodIndex(["1961-07", "1961-03"], freq="M"), is_relative=False)
    pd.testing.assert_series_equal(forecaster.predict(fh=absolute), expected)
    daily = pd.Series(y.to_numpy(), pd.date_range("2020-01-01", periods=len(y), freq="D"))
    steps = pd.to_timedelta(["3D", "7D"])
    forecast = forecaster.fit(daily).predict(fh=ForecastingHorizon(steps, freq="D"))
    np.testing.assert_array_equal(forecast, expected)


def test_in_sample_raises_the_error_of_sktime(forecaster):
    with pytest.raises(NotImplementedError, match="in-sample"):
        forecaster.fit(load_airline()).predict(fh=[-2, 1])


def test_quantiles_are_kept(forecaster, checkpoint):
    y, alpha = load_airline(), [0.9, 0.05, 0.5, 0.995]
    quantiles = forecaster.fit(y).predict_quantiles(fh=[1, 4], alpha=alpha)
    assert list(quantiles.columns) == [("Number of airline passengers", a) for a in alpha]
    expected = bare(checkpoint, [y.to_numpy()], 4, tuple(sorted(alpha)))[0, [0, 3]]
    np.testing.assert_allclose(quantiles, expected[:, [2, 0, 1, 3]], rtol=1e-12)
    rising = quantiles.sort_index(axis=1).to_numpy()
    assert (np.diff(rising, axis=1) > 0).all()


def test_interval_is_made_of_quantiles(forecaster):
    forecaster.fit(load_airline())
    interval = forecaster.predict_interval(fh=[1, 2, 3], coverage=[0.8, 0.5])
    quantiles = forecaster.predict_quantiles(fh=[1, 2, 3], alpha=[0.1, 0.9, 0.25, 0.75])
    np.testing.assert_allclose(interval.to_numpy(), quantiles.to_numpy(), rtol=1e-12)
    median = forecaster.predict_quantiles(fh=[1, 2, 3], alpha=0.5)
    np.testing.assert_array_equal(median.to_numpy()[:, 0], forecaster.predict(fh=[1, 2, 3]))


def test_mean_is_another_point_forecast(checkpoint):
    y = load_airline()
    mean = TsseqForecaster(checkpoint, point="mean").fit(y).predict(fh=[1, 2])
    expected = Predictor(load(checkpoint)).forecast([y.to_numpy()], 2).mean[0]
    np.testing.assert_allclose(mean, expected, rtol=1e-12)


def test_a_panel_is_forecast_like_its_series_alone(forecaster):
    y = panel()
    together = forecaster.fit(y).predict(fh=[1, 9])
    quantiles = forecaster.predict_quantiles(fh=[1, 9], alpha=[0.2, 0.7])
    for name in y.index.levels[0]:
        for column in y.columns:
            alone = forecaster.clone().fit(y.loc[name, column])
            np.testing.assert_allclose(together.loc[name, column], alone.predict(fh=[1, 9]), rtol=1e-5, atol=1e-7)
            one = alone.predict_quantiles(fh=[1, 9], alpha=[0.2, 0.7])
            np.testing.assert_allclose(quantiles.loc[name, column], one.to_numpy(), rtol=1e-5, atol=1e-7)


def test_columns_keep_their_order_and_rows_their_names(forecaster):
    y = panel(columns=3)
    forecast = forecaster.fit(y[["c2", "c0", "c1"]]).predict(fh=[2, 1])
    assert list(forecast.columns) == ["c2", "c0", "c1"]
    assert forecast.index.names == ["shop", "day"]
    straight = forecaster.clone().fit(y).predict(fh=[1, 2])
    pd.testing.assert_frame_equal(forecast[["c0", "c1", "c2"]], straight)
    expected = forecaster.fh.get_expected_pred_idx(y, forecaster.cutoff)
    assert forecast.index.equals(expected)


def test_series_in_any_order_and_in_a_hierarchy(forecaster):
    """Forecasts come in the order of the series, as those of sktime: it pairs both by position."""
    y = panel(columns=1)
    mixed = pd.concat([y.loc[[name]] for name in ("s3", "s0", "s4", "s1", "s2")])
    expected = forecaster.fit(y).predict(fh=[1, 2])
    pd.testing.assert_frame_equal(forecaster.clone().fit(mixed).predict(fh=[1, 2]).sort_index(), expected)
    deep = pd.concat({"north": y, "all": mixed * 2}, names=["region"])
    both = forecaster.clone().fit(deep).predict(fh=[1, 2])
    np.testing.assert_allclose(both.loc["north"], expected, rtol=1e-6)
    for table in (mixed, deep):
        naive = NaiveForecaster().fit(table).predict(fh=[1, 2])
        assert forecaster.clone().fit(table).predict(fh=[1, 2]).index.equals(naive.index)


def test_transformers_and_metrics_meet_the_series_they_belong_to(forecaster):
    y = panel(columns=1)
    y["c0"] += 1000.0 * y.index.get_level_values(0).map({f"s{i}": i for i in range(5)}).to_numpy()
    mixed = pd.concat([y.loc[[name]] for name in ("s3", "s0", "s4", "s1", "s2")])
    past, ahead = (mixed[mixed.index.get_level_values(1).isin(days)] for days in (range(36), range(36, 40)))
    forecast = (Differencer() * forecaster.clone()).fit(past, fh=[1, 2, 3, 4]).predict()
    assert (forecast - ahead).abs().max(axis=None) < 100
    assert MeanAbsoluteError()(ahead, forecaster.fit(past, fh=[1, 2, 3, 4]).predict()) < 100


def test_series_that_end_early_are_forecast_at_the_common_times(forecaster, checkpoint):
    y = panel(series=2, columns=1)
    y = y.drop(index=[("s1", day) for day in range(35, 40)])
    forecast = forecaster.fit(y).predict(fh=[1, 3])
    padded = np.append(y.loc["s1", "c0"], [np.nan] * 5)
    np.testing.assert_allclose(forecast.loc["s1", "c0"], bare(checkpoint, [padded], 3)[0, [0, 2], 0], rtol=1e-6)
    assert list(forecast.loc["s1"].index) == [40, 42]


def test_missing_rows_are_missing_values(checkpoint):
    stamps = pd.date_range("2020-01-01", periods=50, freq="h")
    y = pd.Series(np.random.default_rng(0).normal(size=50).cumsum(), stamps)
    holes = y.copy()
    holes.iloc[[7, 20, 21]] = np.nan
    gapped = holes.dropna()
    expected = TsseqForecaster(checkpoint).fit(holes).predict(fh=[1, 4])
    forecast = TsseqForecaster(checkpoint, freq="H").fit(gapped).predict(fh=[1, 4])
    pd.testing.assert_series_equal(forecast, expected, check_freq=False)
    by_number = pd.Series(gapped.to_numpy(), (gapped.index - stamps[0]) // pd.Timedelta("1h"))
    forecast = TsseqForecaster(checkpoint).fit(by_number).predict(fh=[1, 4])
    np.testing.assert_array_equal(forecast, expected)
    with pytest.raises(ValueError, match="freq"):
        TsseqForecaster(checkpoint).fit(gapped)


INDICES = {
    "range": pd.RangeIndex(3, 43),
    "integers": pd.Index(range(-5, 35)),
    "months": pd.period_range("2000-01", periods=40, freq="M"),
    "two months": pd.period_range("2000-01", periods=40, freq="2M"),
    "month starts": pd.date_range("2000-01-01", periods=40, freq="MS"),
    "business days": pd.date_range("2000-01-03", periods=40, freq="B"),
    "weeks": pd.date_range("2000-01-03", periods=40, freq="W-MON"),
    "zone": pd.date_range("2000-03-20", periods=40, freq="D", tz="Europe/Berlin"),
    "hours in a zone": pd.date_range("2000-03-25", periods=40, freq="6h", tz="Europe/Berlin"),
    "no freq": pd.DatetimeIndex(pd.date_range("2000-01-01", periods=40, freq="QE"), freq=None),
    "mid-month": pd.date_range("2000-01-01", periods=40, freq="MS") + pd.Timedelta(days=14),
}


@pytest.mark.parametrize("kind", INDICES)
def test_every_index(forecaster, kind):
    index = INDICES[kind]
    values = np.random.default_rng(0).normal(size=40).cumsum()
    expected = forecaster.fit(pd.Series(values[:30])).predict(fh=[1, 3, 10])
    forecast = forecaster.clone().fit(pd.Series(values[:30], index[:30])).predict(fh=[1, 3, 10])
    np.testing.assert_array_equal(forecast, expected)
    assert list(forecast.index) == list(index[[30, 32, 39]])
    deep = pd.concat({"a": pd.DataFrame(values[:30], index[:30])})
    assert list(forecaster.clone().fit(deep).predict(fh=[1, 3, 10]).loc["a"].index) == list(index[[30, 32, 39]])


@pytest.mark.parametrize("update_params", [True, False])
def test_update_is_refit(forecaster, update_params):
    y = load_airline()
    whole = forecaster.clone().fit(y).predict_quantiles(fh=[1, 7], alpha=[0.1, 0.5])
    forecaster.fit(y[:100]).update(y[100:117], update_params=update_params).update(y[117:], update_params=update_params)
    pd.testing.assert_frame_equal(forecaster.predict_quantiles(fh=[1, 7], alpha=[0.1, 0.5]), whole)


def test_update_of_a_panel_with_overlap_gap_and_a_new_series(forecaster):
    y = panel(series=3, columns=1)
    late = y.drop(index=[("s2", day) for day in range(20, 23)])
    old = late.loc[["s0", "s2"]].query("day < 20")
    new = late.query("day >= 15 or shop == 's1'")
    forecaster.fit(old * 1.0).update(new)
    expected = forecaster.clone().fit(late)
    forecast = forecaster.predict(fh=[1, 2])
    pd.testing.assert_frame_equal(forecast.sort_index(), expected.predict(fh=[1, 2]))
    assert list(forecast.index.unique(0)) == ["s0", "s2", "s1"]


def stamped(freq, length=60):
    """A series of daily or other steps whose index does not carry its frequency."""
    stamps = pd.date_range("2024-01-01", periods=length, freq=freq)
    return pd.Series(10 + np.arange(length) % 5, pd.DatetimeIndex(stamps, freq=None), float)


@pytest.mark.parametrize("rows", [slice(None, 5), slice(None, 55), slice(None, 60, 3)])
def test_a_frequency_that_is_given_places_rows_and_forecasts(checkpoint, rows):
    """Whatever the rows look like: five business days in one week are five days, too."""
    y = stamped("B")[rows]
    forecast = TsseqForecaster(checkpoint, freq="B").fit(y).predict(fh=[1, 2, 3])
    ahead = pd.bdate_range(y.index[-1], periods=4)[1:]
    assert list(forecast.index) == list(ahead)
    grid = y.reindex(pd.bdate_range(y.index[0], y.index[-1])).to_numpy()
    np.testing.assert_allclose(forecast, bare(checkpoint, [grid], 3)[0, :, 0], rtol=1e-12)


@pytest.mark.parametrize("freq", [None, "B"])
@pytest.mark.parametrize("fh", [None, [1, 2]])
@pytest.mark.parametrize("rows", [[50], [50, 51], [50, 52], [50, 51, 52, 53, 54]])
def test_an_update_keeps_the_frequency(checkpoint, freq, fh, rows):
    y = stamped("B")
    forecaster = TsseqForecaster(checkpoint, freq=freq).fit(y[:50], fh=fh).update(y.iloc[rows])
    expected = TsseqForecaster(checkpoint, freq="B").fit(pd.concat([y[:50], y.iloc[rows]])).predict(fh=[1, 2])
    pd.testing.assert_series_equal(forecaster.predict(fh=[1, 2]), expected, check_freq=False)


def test_an_update_that_is_refused_changes_nothing(forecaster):
    y = pd.DataFrame({"a": stamped("D"), "b": stamped("D") * 2})
    expected = forecaster.fit(y[:50], fh=[1]).predict()
    between = y[50:].set_axis(y.index[50:] + pd.Timedelta(hours=7))
    for wrong, message in [
        (y[50:].rename(columns={"a": "c"}), "the columns of fit, 'a', 'b', got 'c', 'b'"),
        (y[50:][["a"]], "the columns of fit, 'a', 'b', got 'a'"),
        (y[50:] * np.inf, "infinite"),
        (between, "whole steps of 'D'"),
    ]:
        with pytest.raises(ValueError, match=message):
            forecaster.update(wrong)
        pd.testing.assert_frame_equal(forecaster.predict(), expected)


def test_the_name_of_a_single_series_may_change(forecaster):
    y = load_airline()
    expected = forecaster.fit(y[:110]).predict(fh=[1])
    updated = forecaster.clone().fit(y[:100]).update(y[100:110].rename(None)).predict(fh=[1])
    assert updated.tolist() == expected.tolist()


def test_missing_values(forecaster, checkpoint):
    y = load_airline().astype(float)
    y.iloc[:3] = y.iloc[50:60] = y.iloc[-2:] = np.nan
    forecast = forecaster.fit(y).predict(fh=[1, 2])
    np.testing.assert_allclose(forecast, bare(checkpoint, [y.to_numpy()], 2)[0, :, 0], rtol=1e-12)
    empty = panel(series=2, columns=1)
    empty.loc["s1"] = np.nan
    with pytest.warns(UserWarning, match="s1"):
        forecast = forecaster.clone().fit(empty).predict(fh=[1])
    assert forecast.loc["s1"].isna().all(axis=None) and forecast.loc["s0"].notna().all(axis=None)


def test_one_point_is_enough(forecaster):
    assert np.isfinite(forecaster.fit(pd.Series([3.0])).predict(fh=[1, 2])).all()
    one_day = pd.Series([3.0], pd.DatetimeIndex(["2020-01-01"]))
    with pytest.raises(ValueError, match="pass freq"):
        forecaster.clone().fit(one_day).predict(fh=[1])
    forecast = forecaster.clone().set_params(freq="D").fit(one_day).predict(fh=[1])
    assert forecast.index[0] == pd.Timestamp("2020-01-02")


def test_copies_share_the_weights(forecaster):
    y = load_airline()
    forecast = forecaster.fit(y).predict(fh=[1, 2])
    for other in (copy.deepcopy(forecaster), forecaster.clone().fit(y), pickle.loads(pickle.dumps(forecaster))):
        pd.testing.assert_series_equal(other.predict(fh=[1, 2]), forecast)
        assert other._shared.forecaster is forecaster._shared.forecaster
    small = pickle.dumps(forecaster.clone().fit(y[:2]))
    assert len(small) < 5000


def test_a_pickle_notices_another_checkpoint(tmp_path, checkpoint):
    path = tmp_path / "model.safetensors"
    model = load(checkpoint)
    saved = pickle.dumps(SharedModel.from_checkpoint(model.save_pretrained(path)))
    assert pickle.loads(saved).forecaster.config == model.config
    with torch.no_grad():
        model.head.skip.weight += 1
    model.save_pretrained(path)
    with pytest.raises(ValueError, match="fit again"):
        _ = pickle.loads(saved).forecaster
    path.unlink()
    with pytest.raises(ValueError, match="no checkpoint"):
        _ = pickle.loads(saved).forecaster


def test_bad_input_says_what_to_do(checkpoint, forecaster):
    with pytest.raises(ValueError, match="mode to be one of zero_shot"):
        TsseqForecaster(mode="zeroshot")
    with pytest.raises(TypeError, match="save_pretrained"):
        TsseqForecaster(load(checkpoint))
    with pytest.raises(ValueError, match="no checkpoint 'absent'"):
        TsseqForecaster("absent").fit(load_airline())
    with pytest.raises(ValueError, match="a device that this machine has"):
        TsseqForecaster(checkpoint, device="gpu0").fit(load_airline())
    with pytest.raises(ValueError, match="finite values.*impute"):
        forecaster.fit(pd.Series([1.0, np.inf, 2.0]))
    with pytest.raises(TypeError, match="y"):
        forecaster.clone().fit(["a", "b"])
    with pytest.raises(ValueError, match="fh"):
        forecaster.clone().fit(load_airline()).predict()


def test_a_thousand_series_cost_little_more_than_the_bare_network(checkpoint):
    y = panel(series=1000, length=60, columns=1)
    forecaster = TsseqForecaster(checkpoint, flip=False).fit(y)
    calls = []
    forward = Backbone.forward
    try:
        Backbone.forward = lambda self, *inputs: calls.append(len(inputs[0])) or forward(self, *inputs)
        forecast = forecaster.predict(fh=range(1, 25))
    finally:
        Backbone.forward = forward
    assert forecast.shape == (24000, 1) and len(calls) <= 2 and sum(calls) == 1000
    started = time.perf_counter()
    forecaster.predict(fh=range(1, 25))
    assert time.perf_counter() - started < 2
