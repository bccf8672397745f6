"""Covariates around a forecaster: the regression, what it learns from the context, and when it stays away."""

import numpy as np
import pandas as pd
import pytest

import tsseq
from tsseq.cli.__main__ import main
from tsseq.covariates import CovariateConfig, constant_columns, forecast_with_covariates, ridge
from tsseq.seasonal_naive import SeasonalNaive

DAYS = 7


def weekly(series=3, length=150, horizon=14, seed=0):
    """Weekly seasons that a seasonal forecaster continues, plus the effect of a covariate that changes at random."""
    rng = np.random.default_rng(seed)
    t = np.arange(length + horizon)
    base = 50 + 5 * np.sin(2 * np.pi * t / DAYS) + rng.normal(0, 0.2, (series, len(t)))
    promotion = (rng.uniform(size=(series, len(t), 1)) < 0.2) * 1.0
    return base, promotion


def run(context, past, future, **settings):
    return forecast_with_covariates(SeasonalNaive(DAYS), context, past, future, (0.1, 0.5, 0.9), **settings)


def test_a_known_effect_is_carried_into_the_future():
    base, promotion = weekly()
    y = base + 20 * promotion[..., 0]
    forecast = run(y[:, :150], promotion[:, :150], promotion[:, 150:])
    plain = SeasonalNaive(DAYS).forecast(y[:, :150], 14)
    error = np.abs(forecast.quantiles[..., 1] - y[:, 150:]).mean()
    assert error < 0.6 < 3 < np.abs(plain.mean - y[:, 150:]).mean()
    assert set(forecast.chosen) <= {"levels", "changes"}
    assert (np.diff(forecast.quantiles, axis=-1) >= 0).all()


def test_an_effect_with_a_delay():
    base, promotion = weekly(seed=1)
    y = base + 20 * np.roll(promotion[..., 0], 2, axis=1)
    forecast = run(y[:, :150], promotion[:, :150], promotion[:, 150:])
    assert np.abs(forecast.mean - y[:, 150:]).mean() < 0.8
    lagless = run(y[:, :150], promotion[:, :150], promotion[:, 150:], config=CovariateConfig(lags=0))
    assert np.abs(lagless.mean - y[:, 150:]).mean() > 2


def test_a_covariate_that_explains_nothing_is_left_out():
    base, promotion = weekly(series=20)
    forecast = run(base[:, :150], promotion[:, :150], promotion[:, 150:])
    plain = SeasonalNaive(DAYS).forecast(base[:, :150], 14, (0.1, 0.5, 0.9))
    assert forecast.chosen.count("none") >= 15
    unused = [row for row, kind in enumerate(forecast.chosen) if kind == "none"]
    np.testing.assert_allclose(forecast.quantiles[unused], plain.quantiles[unused])
    # Two random walks are the textbook case of a regression without a meaning.
    rng = np.random.default_rng(0)
    walks = rng.normal(size=(2, 40, 214)).cumsum(-1)
    result = run(walks[0, :, :200], walks[1, :, :200, None], walks[1, :, 200:, None])
    naive = SeasonalNaive(DAYS).forecast(walks[0, :, :200], 14)
    errors = [np.abs(mean - walks[0, :, 200:]).mean() for mean in (result.mean, naive.mean)]
    assert errors[0] < 1.1 * errors[1]


def test_a_covariate_of_the_past_is_forecast():
    rng = np.random.default_rng(0)
    t = np.arange(164)
    temperature = 10 * np.sin(2 * np.pi * t / DAYS)[None, :, None] + rng.normal(size=(2, 164, 1))
    y = 100 - 3 * temperature[..., 0] + rng.normal(0, 0.1, (2, 164))
    unknown = np.full((2, 14, 1), np.nan)
    forecast = run(y[:, :150], temperature[:, :150], unknown)
    assert np.isfinite(forecast.mean).all()
    whole = run(y[:, :150], temperature[:, :150], temperature[:, 150:])
    errors = [np.abs(f.mean - y[:, 150:]).mean() for f in (whole, forecast)]
    assert errors[0] < 0.3 < errors[1] < 6


def test_gaps_in_everything():
    base, promotion = weekly()
    y = base + 20 * promotion[..., 0]
    y[0, :60] = y[1, 20:30] = y[2, ::9] = np.nan
    promotion[0, :50] = promotion[1, 100:103] = promotion[2, 155] = np.nan
    forecast = run(y[:, :150], promotion[:, :150], promotion[:, 150:])
    error = np.abs(forecast.mean - base[:, 150:] - 20 * np.nan_to_num(promotion[:, 150:, 0]))
    assert error.mean() < 2.5 and np.isfinite(forecast.quantiles).all()


def test_series_do_not_see_each_other():
    base, promotion = weekly(series=4)
    y = base + np.array([20, 0, -5, 1])[:, None] * promotion[..., 0]
    whole = run(y[:, :150], promotion[:, :150], promotion[:, 150:])
    for row in range(4):
        one = slice(row, row + 1)
        alone = run(y[one, :150], promotion[one, :150], promotion[one, 150:])
        np.testing.assert_allclose(alone.quantiles, whole.quantiles[one], rtol=1e-9)


def test_lengths_of_others_and_what_lies_before_a_series_change_nothing():
    """Series of 13 to 150 steps, which are tried on windows of different lengths, beside each other and alone."""
    lengths = np.array([13, 20, 26, 30, 60, 100, 150])
    base, promotion = weekly(series=7)
    y = base + 20 * promotion[..., 0]
    past = np.concatenate([promotion, np.cumsum(promotion, axis=1) - 20], axis=-1)[:, :150]
    future = np.concatenate([promotion[:, 150:], np.full((7, 14, 1), np.nan)], axis=-1)
    before = np.arange(150) < 150 - lengths[:, None]
    context = np.where(before, np.nan, y[:, :150])
    past[before] = np.nan
    whole = run(context, past, future)
    assert len(set(whole.chosen)) > 1
    for row, length in enumerate(lengths):
        one = slice(row, row + 1)
        alone = run(context[one, -length:], past[one, -length:], future[one])
        np.testing.assert_allclose(alone.mean, whole.mean[one], rtol=1e-9)  # Seasonal Naive's spread counts padding
        assert alone.chosen == whole.chosen[one]


def test_a_unit_of_the_covariate_or_the_series_does_not_matter():
    base, promotion = weekly()
    y = base + 20 * promotion[..., 0]
    plain = run(y[:, :150], promotion[:, :150], promotion[:, 150:])
    scaled = 1e6 + 1e-3 * promotion
    other = run(1e4 * y[:, :150], scaled[:, :150], scaled[:, 150:])
    np.testing.assert_allclose(other.quantiles, 1e4 * plain.quantiles, rtol=1e-5)


def test_what_is_never_negative_stays_so():
    base, promotion = weekly()
    y = (base - 50).clip(min=0) + 5 - 5 * promotion[..., 0]
    deeper = 3 * promotion[:, 150:]
    assert run(y[:, :150].clip(min=0), promotion[:, :150], deeper).quantiles.min() >= 0
    assert run(y[:, :150].clip(min=0), promotion[:, :150], deeper, nonnegative=False).quantiles.min() < 0


def test_ridge_equals_scikit_learn_without_a_penalty_and_shrinks_with_one():
    linear_model = pytest.importorskip("sklearn.linear_model")
    rng = np.random.default_rng(0)
    x, noise = rng.normal(size=(2, 60, 4)), rng.normal(size=(2, 60))
    y = x @ np.array([1.0, -2.0, 0.5, 0.0]) + 3 + noise
    observed = rng.uniform(size=(2, 60)) < 0.8
    found = ridge(x, np.where(observed, y, np.nan), observed, (1e-12,))
    shrunk = ridge(x, np.where(observed, y, np.nan), observed, (0.7,))
    for row in range(2):
        chosen, target = x[row, observed[row]], y[row, observed[row]]
        np.testing.assert_allclose(found[row], linear_model.LinearRegression().fit(chosen, target).coef_, rtol=1e-6)
        unit = chosen.std(0)
        model = linear_model.Ridge(alpha=0.7 * len(chosen)).fit(chosen / unit, target)
        np.testing.assert_allclose(shrunk[row], model.coef_ / unit, rtol=1e-6)


def test_the_penalty_is_chosen_by_generalised_cross_validation():
    linear_model = pytest.importorskip("sklearn.linear_model")
    rng = np.random.default_rng(1)
    x = rng.normal(size=(1, 30, 12))
    x = (x - x.mean(1)) / x.std(1)
    y = rng.normal(size=(1, 30)) + 0.3 * x[..., 0]
    penalties = (1e-3, 1e-2, 0.1, 1.0, 10.0)
    scores = []
    for penalty in penalties:
        model = linear_model.Ridge(alpha=penalty * 30).fit(x[0], y[0])
        inverse = np.linalg.inv(x[0].T @ x[0] + penalty * 30 * np.eye(12))
        freedom = 1 - (np.trace(x[0] @ inverse @ x[0].T) + 1) / 30
        scores.append(np.mean((y[0] - model.predict(x[0])) ** 2) / freedom**2)
    best = linear_model.Ridge(alpha=penalties[int(np.argmin(scores))] * 30).fit(x[0], y[0]).coef_
    np.testing.assert_allclose(ridge(x, y, np.ones((1, 30), bool), penalties)[0], best, rtol=1e-8)


def test_constant_and_short():
    assert constant_columns(np.array([[[1, 1, np.nan], [1, 2, np.nan]]])).tolist() == [True, False, True]
    y = np.arange(8.0)[None]
    forecast = run(y, np.ones((1, 8, 2)), np.ones((1, 3, 2)))
    assert forecast.chosen == ("none",)


def test_bad_input_says_what_was_expected():
    y, past, future = np.ones((2, 20)), np.ones((2, 20, 1)), np.ones((2, 5, 1))
    for bad_past, bad_future in ((past[:, 1:], future), (past, future[:1]), (past, np.ones((2, 5, 2)))):
        with pytest.raises(ValueError, match="expected covariates of shape"):
            run(y, bad_past, bad_future)
    with pytest.raises(ValueError, match="finite covariates"):
        run(y, past * np.inf, future)
    with pytest.raises(ValueError, match="lags"):
        CovariateConfig(lags=-1)


def shops(length=150, horizon=14):
    """A long table of three shops, the covariates of the days to come, and the truth of these."""
    base, promotion = weekly(length=length, horizon=horizon)
    y = base + np.array([20, 0, -10])[:, None] * promotion[..., 0]
    days = pd.date_range("2026-01-01", periods=length + horizon)
    table = pd.DataFrame({"shop": np.repeat(["c", "a", "b"], len(days)), "day": [*days] * 3, "sold": y.ravel()})
    table["promotion"] = promotion.ravel()
    past = np.tile(np.arange(len(days)) < length, 3)
    return table[past], table[~past].drop(columns="sold"), y[:, length:]


def test_a_table_with_covariates_is_forecast_as_its_arrays_are():
    table, future, truth = shops()
    settings = {"covariates": ["promotion"], "model": SeasonalNaive(DAYS), "quantile_levels": (0.1, 0.5, 0.9)}
    forecast = tsseq.forecast(table, 14, future=future, **settings)
    y, promotion = table["sold"].to_numpy().reshape(3, 150), table["promotion"].to_numpy().reshape(3, 150, 1)
    expected = run(y, promotion, future["promotion"].to_numpy().reshape(3, 14, 1), nonnegative=False)
    np.testing.assert_allclose(forecast["mean"].to_numpy().reshape(3, 14), expected.mean)
    np.testing.assert_allclose(forecast[["0.1", "0.5", "0.9"]].to_numpy().reshape(3, 14, 3), expected.quantiles)
    assert list(forecast["item_id"].unique()) == ["c", "a", "b"]
    assert np.abs(forecast["mean"].to_numpy().reshape(3, 14) - truth).mean() < 0.6
    mixed = tsseq.forecast(table, 14, future=future.sample(frac=1, random_state=0).sort_values("day"), **settings)
    pd.testing.assert_frame_equal(mixed, forecast)
    early = tsseq.forecast(table, 14, future=future[future["day"] < "2026-06-05"], **settings)
    assert np.isfinite(early["mean"]).all() and not early.equals(forecast)
    alone = tsseq.forecast(table, 14, **settings)
    unknown = run(y, promotion, np.full((3, 14, 1), np.nan), nonnegative=False)
    np.testing.assert_allclose(alone["mean"].to_numpy().reshape(3, 14), unknown.mean)


def test_the_covariates_of_a_wide_table_belong_to_all_its_series():
    table, future, _ = shops()
    wide = table.pivot(index="day", columns="shop", values="sold")
    first = table["shop"] == "c"
    wide["promotion"] = table.loc[first].set_index("day")["promotion"]
    ahead = future[future["shop"] == "c"].set_index("day")[["promotion"]]
    settings = {"covariates": ["promotion"], "model": SeasonalNaive(DAYS)}
    stamped = tsseq.forecast(wide, 14, future=ahead, **settings)
    assert list(stamped["item_id"].unique()) == ["a", "b", "c"]
    numbered = tsseq.forecast(wide.reset_index(drop=True), 14, future=ahead.reset_index(drop=True), **settings)
    np.testing.assert_array_equal(numbered["mean"], stamped["mean"])
    expected = tsseq.forecast(table, 14, future=future, **settings)
    np.testing.assert_allclose(
        stamped.loc[stamped["item_id"] == "c", "mean"], expected.loc[expected["item_id"] == "c", "mean"]
    )


def one_shop():
    """The history of one shop in an index of days, and its promotions ahead in another."""
    table, future, _ = shops()
    past, ahead = (part[part["shop"] == "c"].set_index("day").drop(columns="shop") for part in (table, future))
    return past, ahead


FUTURES = {
    "text": lambda ahead: ahead.set_axis(ahead.index.astype(str)),
    "periods": lambda ahead: ahead.to_period("D"),
    "a column": lambda ahead: ahead.reset_index(),
    "a column of another name": lambda ahead: ahead.rename_axis("when").reset_index(),
    "no time": lambda ahead: ahead.reset_index(drop=True),
    "numbers YYYYMMDD": lambda ahead: ahead.set_axis(ahead.index.strftime("%Y%m%d").astype(int)),
}


@pytest.mark.parametrize("kind", FUTURES)
def test_the_time_of_the_future_may_be_written_otherwise(kind):
    past, ahead = one_shop()
    settings = {"covariates": "promotion", "model": SeasonalNaive(DAYS)}
    expected = tsseq.forecast(past, 14, future=ahead, **settings)
    pd.testing.assert_frame_equal(tsseq.forecast(past, 14, future=FUTURES[kind](ahead), **settings), expected)
    late = ahead.set_axis(ahead.index + pd.Timedelta(days=30))
    if kind != "no time":
        with pytest.raises(ValueError, match="table of the future: expected evenly spaced"):
            tsseq.forecast(past, 14, future=FUTURES[kind](late), **settings)


def test_a_future_whose_time_is_of_another_kind_says_so():
    past, ahead = one_shop()
    in_zone = past.tz_localize("Europe/Berlin"), ahead.tz_localize("Europe/Berlin").tz_convert("UTC")
    settings = {"covariates": ["promotion"], "model": SeasonalNaive(DAYS)}
    for history, future in (in_zone, (past.to_period("D"), ahead)):
        found = tsseq.forecast(history, 14, future=future, **settings)
        np.testing.assert_array_equal(found["mean"], tsseq.forecast(past, 14, future=ahead, **settings)["mean"])
    for freq in ("MS", "ME"):
        ends = pd.date_range("2020-01-31", periods=164, freq=freq)
        history, future = past.set_axis(ends[:150]), ahead.set_axis(ends[150:].to_period("M"))
        found = tsseq.forecast(history, 14, future=future, **settings)
        np.testing.assert_array_equal(found["mean"], tsseq.forecast(past, 14, future=ahead, **settings)["mean"])
    numbered = past.reset_index(drop=True)
    for history, future, message in (
        (
            past,
            in_zone[1],
            "time stamps without a time zone as in the data, got time stamps with a time zone in the index",
        ),
        (past, ahead.to_period("M"), "time stamps .* got periods of 'M'"),
        (past.to_period("D"), ahead.shift(6, freq="h"), "periods of 'D' as in the data, got time stamps"),
        (past, ahead.set_axis(range(150, 164)), "time stamps .* got integers in the index"),
        (past, ahead.set_axis(list("abcdefghijklmn")), "time stamps in the index, got 'a' in row 1"),
        (numbered, ahead, "integers as in the data, got time stamps"),
        (numbered, numbered[["promotion"]].set_axis(range(151, 301)), "evenly spaced integers, got 151 after 149"),
    ):
        with pytest.raises(ValueError, match=f"table of the future: expected {message}"):
            tsseq.forecast(history, 14, future=future, **settings)


def test_a_covariate_without_a_value_is_of_no_use_to_its_series():
    table, future, _ = shops()
    holes = table.assign(promotion=table["promotion"].where(table["shop"] != "a"))
    settings = {"covariates": ["promotion"], "model": SeasonalNaive(DAYS)}
    plain = tsseq.forecast(table.drop(columns="promotion"), 14, model=SeasonalNaive(DAYS))
    for ahead in (None, future):
        found, whole = (tsseq.forecast(data, 14, future=ahead, **settings) for data in (holes, table))
        without = found["item_id"] == "a"
        pd.testing.assert_frame_equal(found[without], plain[without])
        pd.testing.assert_frame_equal(found[~without], whole[~without])
    with pytest.warns(UserWarning, match="never change: promotion"):
        none = tsseq.forecast(table.assign(promotion=np.nan), 14, **settings)
    pd.testing.assert_frame_equal(none, plain)


def test_a_table_of_unequal_series_and_missing_values():
    table, future, _ = shops()
    table = table[~((table["shop"] == "a") & (table["day"] < "2026-03-01"))].copy()
    table.loc[table["day"] == "2026-04-10", ["sold", "promotion"]] = np.nan
    forecast = tsseq.forecast(table, 14, covariates=["promotion"], future=future, model=SeasonalNaive(DAYS))
    assert len(forecast) == 42 and np.isfinite(forecast["mean"]).all()


def test_a_table_of_covariates_that_does_not_fit_says_why():
    table, future, _ = shops()

    def refused(message, data=table, **settings):
        with pytest.raises(ValueError, match=message):
            tsseq.forecast(data, 14, model=SeasonalNaive(DAYS), **{"covariates": ["promotion"], **settings})

    refused("expected a column 'price'", covariates=["price"])
    refused("name them", covariates=[], future=future)
    refused("the future: expected .* 'promotion', got 'shop', 'day'", future=future[["shop", "day"]])
    refused("the future: expected only series of the data, got 'z'", future=future.assign(shop="z"))
    refused("the future: series 'c': expected increasing .* row 1$", future=table[["shop", "day", "promotion"]])
    refused("the future: covariate 'promotion': .*'x' in row 2$", future=future.assign(promotion=["1", "x"] * 21))
    refused("the future: covariate 'promotion': .*inf in row 2$", future=future.assign(promotion=[1, np.inf] * 21))
    refused(
        "the future: .*'day', got none in row 2$", future=future.assign(day=future["day"].where(future.index != 151))
    )
    refused(
        "the future: .*without a time zone.*, got .*with .* 'day'",
        future=future.assign(day=future["day"].dt.tz_localize("UTC")),
    )
    refused("covariate 'promotion': .*numbers .*'yes'", data=table.assign(promotion="yes"))
    refused("covariate 'promotion': .*finite", data=table.assign(promotion=np.inf))
    refused("column of time", id_column="shop", data=table.drop(columns="day"), future=future.drop(columns="day"))
    with pytest.warns(UserWarning, match="future not used: 'weather'"):
        tsseq.forecast(table, 14, covariates=["promotion"], future=future.assign(weather=1), model=SeasonalNaive(DAYS))
    with pytest.warns(UserWarning, match="never change: open"):
        tsseq.forecast(table.assign(open=1), 14, covariates=["promotion", "open"], model=SeasonalNaive(DAYS))


def test_covariates_from_the_shell(checkpoint, tmp_path, capsys):
    table, future, _ = shops()
    data, plans, out = (str(tmp_path / name) for name in ("sales.csv", "plans.csv", "f.parquet"))
    table.to_csv(data, index=False)
    future.to_csv(plans, index=False)
    words = ["forecast", data, "--horizon", "14", "--checkpoint", checkpoint, "--out", out]
    assert main([*words, "--covariates", "promotion", "--future", plans]) == 0
    expected = tsseq.forecast(table, 14, covariates=["promotion"], future=future, model=checkpoint)
    pd.testing.assert_frame_equal(pd.read_parquet(out), expected, rtol=1e-6)
    capsys.readouterr()
    for wrong, message in (
        (["--future", plans], "name them"),
        (["--covariates", "price"], "expected a column 'price', got 'shop', 'day', 'sold', 'promotion'"),
        (["--covariates", "promotion", "--future", f"{tmp_path}/absent.csv"], "does not exist"),
    ):
        assert main([*words, *wrong]) == 2
        said = capsys.readouterr().err
        assert message in said and said.count("\n") == 1
