"""Scores equal gluonts' own, Seasonal Naive equals the published rows."""

import os
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tsseq.datasets import gift_eval
from tsseq.datasets.series import Series, write_parquet
from tsseq.frequency import parse
from tsseq.metrics import (
    COLUMNS,
    DECILES,
    error_sums,
    geometric_mean,
    mase,
    scores,
    seasonal_error,
    weighted_quantile_loss,
)
from tsseq.seasonal_naive import SeasonalNaive, fill_missing

REAL = os.environ.get("TSSEQ_GIFT_EVAL")
needs_data = pytest.mark.skipif(not REAL, reason="TSSEQ_GIFT_EVAL does not name a folder of GIFT-Eval data")


class SkewedNaive:
    """A cheap predictor whose mean is not its median and whose quantiles lie unevenly."""

    def forecast(self, context, horizon, quantile_levels=DECILES):
        forecast = SeasonalNaive(3).forecast(context, horizon, quantile_levels)
        quantiles = forecast.quantiles + 0.3 * np.square(np.arange(len(quantile_levels)) - 3)
        return forecast._replace(quantiles=quantiles, mean=forecast.mean + 1.5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Small stand-ins for three sets: seasonal with two channels, intermittent with holes, of unequal lengths."""
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("gift_eval")
    t = np.arange(700)
    waves = np.stack([10 * np.sin(t / 4) + rng.normal(size=700), t / 50 + rng.normal(size=700)]).astype(np.float32)
    write_parquet(path / "bitbrains_rnd__H.parquet", [Series(f"a{i}", waves + i, "2020-01-01", "H") for i in range(3)])
    demand = rng.poisson(0.4, (30, 51)).astype(np.float32)
    demand[rng.random(demand.shape) < 0.1] = np.nan
    demand[0] = 0.0
    demand[1, :45] = 2.0
    demand[2, -12:] = np.nan
    write_parquet(path / "car_parts__M.parquet", [Series(f"b{i}", d, "1998-01-31", "M") for i, d in enumerate(demand)])
    walks = [rng.normal(size=n).cumsum().astype(np.float32) for n in (60, 61, 150)]
    write_parquet(
        path / "m4_weekly__W.parquet", [Series(f"c{i}", w, "2000-01-02", "W-SUN") for i, w in enumerate(walks)]
    )
    return path


def gluonts_scores(predictor, data_dir, name):
    """What gluonts' own split and evaluation make of the same configuration and predictor."""
    from gluonts.dataset.split import split
    from gluonts.ev import metrics as ev
    from gluonts.model import Predictor, evaluate_model
    from gluonts.model.forecast import QuantileForecast

    configuration = gift_eval.CONFIGURATIONS[name]
    series = gift_eval.load(data_dir, name)
    start = pd.Period("2000-01-01", freq=parse(series[0].freq).period_alias)
    entries = [
        {"item_id": s.item_id, "start": start, "target": channel.astype(np.float64)}
        for s in series
        for channel in s.channels()
    ]
    horizon = configuration.horizon
    windows = gift_eval.window_count(configuration, min(s.target.shape[-1] for s in series))
    _, template = split(entries, offset=-horizon * windows)
    data = template.generate_instances(prediction_length=horizon, windows=windows, distance=horizon)

    class Wrapped(Predictor):
        def predict(self, dataset, **kwargs):
            for entry in dataset:
                forecast = predictor.forecast([entry["target"]], self.prediction_length, DECILES)
                arrays = np.concatenate([forecast.mean, forecast.quantiles[0].T])
                begin = entry["start"] + len(entry["target"])
                yield QuantileForecast(arrays, begin, ["mean", *map(str, DECILES)], entry["item_id"])

    wanted = [
        ev.MSE(forecast_type="mean"),
        ev.MSE(forecast_type=0.5),
        ev.MAE(),
        ev.MASE(),
        ev.MAPE(),
        ev.SMAPE(),
        ev.MSIS(),
        ev.RMSE(),
        ev.NRMSE(),
        ev.ND(),
        ev.MeanWeightedSumQuantileLoss(quantile_levels=list(DECILES)),
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # gluonts divides by masked zeros and asks pandas for old aliases
        table = evaluate_model(
            Wrapped(horizon),
            test_data=data,
            metrics=wanted,
            axis=None,
            mask_invalid_label=True,
            allow_nan_forecast=False,
            seasonality=configuration.seasonality,
        )
    return table.iloc[0].to_dict()


def assert_equal_to_gluonts(predictor, data_dir, name):
    ours = next(gift_eval.run(predictor, data_dir, [name])).scores
    theirs = gluonts_scores(predictor, data_dir, name)
    assert tuple(ours) == tuple(theirs) == COLUMNS
    for column in COLUMNS:
        assert ours[column] == pytest.approx(theirs[column], rel=1e-6), column


@pytest.mark.parametrize("predictor", [SkewedNaive(), SeasonalNaive(24)], ids=["skewed", "seasonal"])
@pytest.mark.parametrize("name", ["bitbrains_rnd/H/short", "car_parts/M/short", "m4_weekly/W/short"])
def test_scores_are_those_of_gluonts(folder, name, predictor):
    assert_equal_to_gluonts(predictor, folder, name)


@needs_data
@pytest.mark.parametrize("name", ["us_births/D/short", "bizitobs_l2c/H/medium", "hierarchical_sales/W/short"])
def test_scores_are_those_of_gluonts_on_real_data(name):
    assert_equal_to_gluonts(SkewedNaive(), REAL, name)


@needs_data
def test_seasonal_naive_equals_the_published_rows():
    published = pd.read_csv(Path(REAL) / "published.csv").query("model == 'seasonal_naive'").set_index("dataset")
    results = list(gift_eval.run(SeasonalNaive(1), REAL))
    assert {r.configuration.name for r in results} == set(published.index)
    for r in results:
        row = published.loc[r.configuration.name]
        assert r.seasonal_naive["MASE[0.5]"] == pytest.approx(row.MASE, rel=1e-5), r.configuration.name
        assert r.seasonal_naive["mean_weighted_sum_quantile_loss"] == pytest.approx(row.CRPS, rel=1e-5)


def random_forecasts(seed=0, windows=6, horizon=5):
    rng = np.random.default_rng(seed)
    label = rng.normal(size=(windows, horizon))
    label[0, 1] = np.nan
    quantiles = np.sort(rng.normal(size=(windows, horizon, 9)), axis=-1)
    return label, rng.normal(size=(windows, horizon)), quantiles, rng.random(windows) + 0.1


def test_scores_of_parts_combine_exactly():
    label, mean, quantiles, units = random_forecasts()
    whole = error_sums(label, mean, quantiles, units)
    halves = [error_sums(label[s], mean[s], quantiles[s], units[s]) for s in (slice(0, 2), slice(2, 6))]
    added = {name: halves[0][name] + halves[1][name] for name in whole}
    assert scores(added) == pytest.approx(scores(whole), rel=1e-12)


def test_scores_by_hand():
    label, mean, quantiles, units = random_forecasts(windows=2, horizon=2)
    label = np.array([[1.0, np.nan], [4.0, -2.0]])
    result = scores(error_sums(label, mean, quantiles, units))
    errors = [(i, t, abs(label[i, t] - quantiles[i, t, 4])) for i, t in ((0, 0), (1, 0), (1, 1))]
    assert result["MAE[0.5]"] == pytest.approx(sum(e for *_, e in errors) / 3)
    assert result["MASE[0.5]"] == pytest.approx(sum(e / units[i] for i, _, e in errors) / 3)
    pinball = 0.0
    for i, t, _ in errors:
        for k, level in enumerate(DECILES):
            miss = label[i, t] - quantiles[i, t, k]
            pinball += 2 * max(level * miss, (level - 1) * miss)
    assert result["mean_weighted_sum_quantile_loss"] == pytest.approx(pinball / 9 / 7)
    assert mase(label, quantiles[..., 4], units) == pytest.approx(result["MASE[0.5]"])
    crps = weighted_quantile_loss(label, quantiles)
    assert crps == pytest.approx(result["mean_weighted_sum_quantile_loss"])


def test_nothing_to_score_is_nan():
    label, mean, quantiles, units = random_forecasts()
    empty = scores(error_sums(np.full_like(label, np.nan), mean, quantiles, units))
    assert all(np.isnan(value) for value in empty.values())
    assert np.isnan(mase(label, mean, np.zeros(6)))


def test_bad_forecasts_are_refused():
    label, mean, quantiles, units = random_forecasts()
    with pytest.raises(ValueError, match="shapes"):
        error_sums(label, mean, quantiles[..., :3], units)
    quantiles[2, 1, 3] = np.nan
    with pytest.raises(ValueError, match="finite"):
        error_sums(label, mean, quantiles, units)


def test_seasonal_error():
    assert seasonal_error([1.0, 2.0, 4.0, 8.0], 2) == pytest.approx((3 + 6) / 2)
    assert seasonal_error([1.0, 2.0, 4.0], 24) == pytest.approx(1.5)
    assert seasonal_error([1.0, np.nan, 4.0, 6.0], 1) == pytest.approx(2.0)
    assert np.isnan(seasonal_error([1.0], 1))


def test_geometric_mean():
    assert geometric_mean([0.5, 2.0, 1.0]) == pytest.approx(1.0)


def test_seasonal_naive_repeats_the_season_and_widens():
    history = np.array([1.0, 2.0, 3.0, 2.0, 4.0, 4.0])
    forecast = SeasonalNaive(3).forecast([history], 7, (0.1, 0.5, 0.9))
    assert forecast.mean[0] == pytest.approx([2, 4, 4, 2, 4, 4, 2])
    sigma = np.sqrt((1 + 4 + 1) / 3)
    spread = 1.2815515655446004 * sigma * np.sqrt([1, 1, 1, 2, 2, 2, 3])
    assert forecast.quantiles[0, :, 2] == pytest.approx(forecast.mean[0] + spread)
    assert forecast.quantiles[0, :, 0] == pytest.approx(forecast.mean[0] - spread)


def test_seasonal_naive_on_short_and_missing_histories():
    contexts = [np.array([5.0]), np.array([np.nan, 3.0, np.nan]), np.array([np.nan, np.nan])]
    forecast = SeasonalNaive(4).forecast(contexts, 5)
    assert forecast.mean[0] == pytest.approx([5.0] * 5)
    assert forecast.mean[1] == pytest.approx([3.0] * 5)
    assert forecast.mean[2] == pytest.approx([0.0] * 5)
    assert fill_missing(np.array([np.nan, 1.0, np.nan, 4.0])) == pytest.approx([1, 1, 1, 4])
