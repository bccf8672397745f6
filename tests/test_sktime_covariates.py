"""Covariates in the sktime forecaster: X of fit, update and predict."""

import numpy as np
import pandas as pd
import pytest

pytest.importorskip("sktime")


from tsseq.adapters.sktime import TsseqForecaster
from tsseq.checkpoint import load
from tsseq.covariates import forecast_with_covariates
from tsseq.inference import InferenceConfig, Predictor


@pytest.fixture
def forecaster(checkpoint):
    return TsseqForecaster(checkpoint, device="cpu")


def panel(series=5, length=40, columns=2, start=0):
    rng = np.random.default_rng(0)
    index = pd.MultiIndex.from_product([[f"s{i}" for i in range(series)], range(start, start + length)])
    values = rng.normal(size=(series * length, columns)).cumsum(0)
    return pd.DataFrame(values, index.set_names(["shop", "day"]), [f"c{i}" for i in range(columns)])


def sales(series=2, length=60, horizon=8):
    """A panel y whose level moves with the first column of X; X reaches `horizon` steps beyond y."""
    X = panel(series=series, length=length + horizon, columns=2)
    X["c0"] = (np.arange(len(X)) % 5 == 0) * 1.0
    y = panel(series=series, length=length + horizon, columns=1) / 50
    y["c0"] += 10 * X["c0"]
    return y.query(f"day < {length}"), X


def test_covariates_are_used_as_the_arrays_are(forecaster, checkpoint):
    y, X = sales()
    forecast = forecaster.fit(y, X=X.query("day < 60")).predict_quantiles(
        fh=[1, 6], X=X.query("day >= 60"), alpha=[0.5]
    )
    arrays = X.to_numpy().reshape(2, 68, 2)
    model = Predictor(load(checkpoint), InferenceConfig(nonnegative=False))
    context = y.to_numpy().reshape(2, 60)
    direct = forecast_with_covariates(model, context, arrays[:, :60], arrays[:, 60:66], (0.5,))
    np.testing.assert_allclose(forecast.to_numpy().reshape(2, 2), direct.quantiles[:, [0, 5], 0], rtol=1e-6)
    assert "none" not in direct.chosen
    early = forecaster.clone().fit(y, X=X).predict_quantiles(fh=[1, 6], alpha=[0.5])
    np.testing.assert_allclose(early.to_numpy(), forecast.to_numpy(), rtol=1e-6)
    plain = forecaster.clone().fit(y).predict_quantiles(fh=[1, 6], alpha=[0.5])
    off = forecaster.clone().set_params(covariates=False).fit(y, X=X).predict_quantiles(fh=[1, 6], X=X, alpha=[0.5])
    assert not off.equals(forecast)
    pd.testing.assert_frame_equal(off, plain)


def test_covariates_of_the_past_only_and_of_many_columns(forecaster):
    y, X = sales(series=1)
    y, X = y.loc["s0"], X.loc["s0"]
    wide = pd.concat([y, -2 * y], axis=1, keys=["up", "down"]).droplevel(1, axis=1)
    forecast = forecaster.fit(wide, X=X[:60]).predict(fh=[1, 2, 3])
    assert np.isfinite(forecast.to_numpy()).all() and list(forecast.columns) == ["up", "down"]
    alone = forecaster.clone().fit(y, X=X[:60]).predict(fh=[1, 2, 3])
    np.testing.assert_allclose(forecast["up"], alone["c0"], rtol=1e-5)
    updated = forecaster.clone().fit(y[:50], X=X[:50]).update(y[50:], X=X[50:60])
    pd.testing.assert_frame_equal(updated.predict(fh=[1, 2, 3]), alone)
    half = forecaster.clone().fit(y, X=X[:60]).predict(fh=[1, 2, 3], X=X[["c0"]][60:])
    assert not np.allclose(half, alone)


def test_ignored_covariates_are_named(forecaster):
    y, X = sales()
    future = X.query("day >= 60").assign(other=1.0)
    with pytest.warns(UserWarning, match="not in the X of fit: other"):
        forecaster.fit(y, X=X.query("day < 60")).predict(fh=[1], X=future)
    with pytest.warns(UserWarning, match="not in the X of fit: c0, c1"):
        forecaster.clone().fit(y).predict(fh=[1], X=X.query("day >= 60"))
    with pytest.warns(UserWarning, match="never change: c1"):
        forecaster.clone().fit(y, X=X.assign(c1=3.0)).predict(fh=[1])
    history = X.query("day < 60")
    with pytest.raises(ValueError, match="X with rows after the cutoff, 59, .* of 2 steps, got rows from 0 to 59"):
        forecaster.clone().fit(y, X=history).predict(fh=[2], X=history)
    with pytest.raises(ValueError, match="finite values .* in X.*'c1'"):
        forecaster.clone().fit(y, X=X.assign(c1=np.inf))
