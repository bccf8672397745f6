"""The sktime forecaster in sktime's pipelines, on real series, and its contract."""

import numpy as np
import pandas as pd
import pytest

pytest.importorskip("sktime")

from sktime.datasets import load_airline, load_longley
from sktime.datasets import load_shampoo_sales as load_shampoo
from sktime.forecasting.compose import EnsembleForecaster, TransformedTargetForecaster
from sktime.forecasting.model_evaluation import evaluate
from sktime.forecasting.model_selection import ForecastingGridSearchCV
from sktime.forecasting.naive import NaiveForecaster
from sktime.split import ExpandingWindowSplitter
from sktime.transformations.detrend import Deseasonalizer
from sktime.transformations.impute import Imputer
from sktime.utils.estimator_checks import check_estimator

from tsseq.adapters.sktime import TsseqForecaster


@pytest.fixture
def forecaster(checkpoint):
    return TsseqForecaster(checkpoint, device="cpu")


def test_in_a_pipeline(forecaster):
    y = load_airline().astype(float)
    y.iloc[20:24] = np.nan
    pytest.importorskip("statsmodels")
    steps = [Imputer(), Deseasonalizer(sp=12), forecaster]
    pipeline = TransformedTargetForecaster(steps).fit(y)
    forecast = pipeline.predict(fh=[1, 2, 12])
    inner = Deseasonalizer(sp=12)
    adjusted = forecaster.clone().fit(inner.fit_transform(Imputer().fit_transform(y))).predict(fh=[1, 2, 12])
    pd.testing.assert_series_equal(forecast, inner.inverse_transform(adjusted), check_names=False)
    assert pipeline.predict_interval(fh=[1, 2]).shape == (2, 2)


def test_in_a_grid_search(forecaster):
    y = load_airline()
    cv = ExpandingWindowSplitter(fh=[1, 2, 3], initial_window=100, step_length=15)
    search = ForecastingGridSearchCV(forecaster, cv, {"point": ["median", "mean"], "flip": [True, False]}).fit(y)
    assert len(search.cv_results_) == 4 and np.isfinite(search.best_score_)
    best = forecaster.clone().set_params(**search.best_params_).fit(y)
    pd.testing.assert_series_equal(search.predict(fh=[1, 2, 3]), best.predict(fh=[1, 2, 3]))


@pytest.mark.parametrize("strategy", ["refit", "update", "no-update_params"])
def test_in_evaluate(forecaster, strategy):
    y = load_shampoo()
    cv = ExpandingWindowSplitter(fh=[1, 2], initial_window=24, step_length=4)
    result = evaluate(forecaster, cv, y, strategy=strategy, return_data=True)
    for predicted, train in zip(result["y_pred"], result["y_train"], strict=True):
        pd.testing.assert_series_equal(predicted, forecaster.clone().fit(train).predict(fh=[1, 2]))


def test_in_an_ensemble_and_on_many_columns(forecaster):
    _, y = load_longley()
    ensemble = EnsembleForecaster([("tsseq", forecaster), ("naive", NaiveForecaster())]).fit(y)
    expected = (forecaster.clone().fit(y).predict(fh=[1, 2]) + NaiveForecaster().fit(y).predict(fh=[1, 2])) / 2
    pd.testing.assert_frame_equal(ensemble.predict(fh=[1, 2])[y.columns], expected)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["zero_shot", "fine_tune", "from_scratch"])
def test_the_contract_of_sktime(mode):
    """Every test that sktime has for forecasters, without exclusions."""
    (parameters,) = (p for p in TsseqForecaster.get_test_params() if p.get("mode", "zero_shot") == mode)
    results = check_estimator(TsseqForecaster(**parameters), verbose=False)
    failed = {name: result for name, result in results.items() if result != "PASSED"}
    assert not failed and len(results) > 400
