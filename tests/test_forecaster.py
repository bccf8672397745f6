"""The forecaster beyond its contract: contexts of every kind, levels, horizons, and memory."""

import warnings

import numpy as np
import pytest
import torch

from tsseq.backbone import BackboneConfig, count_parameters
from tsseq.checkpoint import load
from tsseq.forecaster import Forecaster, ForecasterConfig
from tsseq.inference import InferenceConfig, Predictor
from tsseq.quantiles import mean_of_quantiles, resample_levels

SMALL = ForecasterConfig(
    patch_length=8, hidden_width=32, max_context=256, backbone=BackboneConfig(width=32, layers=2, mlp_width=32)
)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return Forecaster(SMALL).eval()


def test_contexts_of_every_kind_agree(model):
    series = torch.randn(3, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = model.forecast(series, 12).quantiles
    for context in (series.numpy(), list(series), series.tolist(), [row.numpy() for row in series]):
        torch.testing.assert_close(model.forecast(context, 12).quantiles, expected)
    mirrored, swapped, fixed = series.numpy()[:, ::-1][:, ::-1], series.numpy().astype(">f8"), series.numpy().copy()
    fixed.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for context in (mirrored, list(mirrored), swapped, list(swapped), fixed):
            torch.testing.assert_close(model.forecast(context, 12).quantiles, expected)
    half = model.forecast(series.bfloat16(), 12).quantiles
    torch.testing.assert_close(model.forecast(list(series.bfloat16()), 12).quantiles, half)
    single = model.forecast(series[0], 12).quantiles
    torch.testing.assert_close(single[0], expected[0], rtol=1e-5, atol=1e-5)


def test_none_is_missing(model):
    expected = model.forecast([[1.0, np.nan, 4.0]], 3).quantiles
    for context in ([[1.0, None, 4.0]], np.array([[1, None, 4]], dtype=object)):
        assert torch.equal(model.forecast(context, 3).quantiles, expected)


def test_dtypes(model):
    assert model.forecast(torch.randn(1, 20), 3).quantiles.dtype == torch.float32
    assert model.forecast(np.arange(20), 3).quantiles.dtype == torch.float64


def test_old_values_are_left_out(model):
    recent = torch.randn(256, generator=torch.Generator().manual_seed(1))
    old = torch.full((100,), 1e6)
    expected = model.forecast(recent, 5).quantiles
    torch.testing.assert_close(model.forecast(torch.cat([old, recent]), 5).quantiles, expected)


def test_all_missing_is_missing_and_harms_nobody(model):
    good = torch.randn(40, generator=torch.Generator().manual_seed(2))
    both = model.forecast([good, torch.full((40,), torch.nan)], 6)
    assert both.quantiles[1].isnan().all() and both.mean[1].isnan().all()
    torch.testing.assert_close(both.quantiles[:1], model.forecast(good, 6).quantiles, rtol=1e-5, atol=1e-5)


def test_horizons_agree_where_they_overlap(model):
    series = torch.randn(2, 64, generator=torch.Generator().manual_seed(3))
    long = model.forecast(series, 1024).quantiles
    assert long.shape == (2, 1024, 9)
    torch.testing.assert_close(model.forecast(series, 30).quantiles, long[:, :30], rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_far_ahead_and_after_long_gaps_the_base_stays_near_its_history():
    """Beyond the ages of training, too: 9,000 steps are 280 patches."""
    base, rng = load("base"), np.random.default_rng(0)
    series = [np.sin(np.arange(90.0)) + 5, rng.normal(size=500), rng.normal(size=500).cumsum(), np.arange(90.0) % 7]
    ends = [np.append(values, np.full(5000, np.nan)) for values in series]
    for values, far, near in zip(
        series, base.forecast(series, 9000).quantiles, base.forecast(ends, 100).quantiles, strict=True
    ):
        spread = np.ptp(values)
        for quantiles in (far, near):
            assert quantiles.min() > values.min() - 5 * spread and quantiles.max() < values.max() + 5 * spread


def test_constant_history_forecasts_the_constant(model):
    for value in (0.0, 5.25, -1e9):
        quantiles = model.forecast(torch.full((30,), value, dtype=torch.float64), 10).quantiles
        torch.testing.assert_close(quantiles, torch.full_like(quantiles, value), rtol=1e-9, atol=1e-200)


@pytest.mark.parametrize(
    ("context", "horizon", "levels", "message"),
    [
        (torch.randn(2, 3, 4), 1, None, "shape"),
        (torch.randn(2, 0), 1, None, "non-empty"),
        (torch.tensor([1.0, torch.inf]), 1, None, "infinite"),
        ([[1.0], []], 1, None, "series 1"),
        (torch.randn(5), 0, None, "horizon"),
        (torch.randn(5), -3, None, "horizon"),
        (torch.randn(5), 2.5, None, "whole number of at least 1, got 2.5"),
        (torch.randn(5), "3", None, "whole number of at least 1, got '3'"),
        ([["1", "2"]], 1, None, "expected numbers"),
        ([[None, "1"]], 1, None, "expected numbers"),
        (np.array([1.0, torch], dtype=object), 1, None, "expected numbers"),
        (torch.randn(5), 1, (0.0, 0.5), "levels"),
        (torch.randn(5), 1, (0.5, 0.4), "levels"),
        (torch.randn(5), 1, (), "levels"),
        (torch.randn(5, dtype=torch.complex64), 1, None, "real"),
    ],
)
def test_bad_input(model, context, horizon, levels, message):
    with pytest.raises(ValueError, match=message):
        model.forecast(context, horizon, levels)


@pytest.mark.parametrize(
    "bad", [{"patch_length": 0}, {"max_context": 3}, {"levels": (0.9, 0.1)}, {"levels": ()}, {"hidden_width": 0}]
)
def test_bad_config(bad):
    with pytest.raises(ValueError):
        ForecasterConfig(**bad)


def test_unknown_mixer_lists_the_known_ones():
    with pytest.raises(ValueError, match="gated_delta_product"):
        BackboneConfig(mixers=("nonsense",))


def test_config_round_trip():
    assert ForecasterConfig.from_dict(SMALL.to_dict()) == SMALL
    with pytest.raises(ValueError, match="not a forecaster configuration"):
        ForecasterConfig.from_dict({"surprise": 1})


def test_default_size():
    assert count_parameters(Forecaster()) < 8_000_000


def test_levels_of_a_normal_distribution_are_exact():
    normal = torch.distributions.Normal(3.0, 2.0)
    known, wanted = [k / 10 for k in range(1, 10)], [0.001, 0.05, 0.33, 0.5, 0.975, 0.999]
    quantiles = normal.icdf(torch.tensor(known, dtype=torch.float64))[None]
    expected = normal.icdf(torch.tensor(wanted, dtype=torch.float64))[None]
    torch.testing.assert_close(resample_levels(quantiles, known, wanted), expected, rtol=1e-6, atol=1e-6)
    assert mean_of_quantiles(quantiles, known).item() == pytest.approx(3.0)


def test_other_levels_rise_and_keep_the_learned_ones(model):
    series = torch.randn(4, 60, generator=torch.Generator().manual_seed(4))
    levels = (0.01, 0.1, 0.25, 0.5, 0.9, 0.995)
    forecast = model.forecast(series, 20, levels)
    assert forecast.levels == levels and (forecast.quantiles.diff(dim=-1) >= 0).all()
    torch.testing.assert_close(forecast.quantiles[..., 1], model.forecast(series, 20).quantiles[..., 0])


def test_flip_makes_forecasts_odd(model):
    series = torch.randn(3, 60, generator=torch.Generator().manual_seed(5))
    predictor = Predictor(model, InferenceConfig(flip=True, nonnegative=False))
    up, down = predictor.forecast(series, 10).quantiles, predictor.forecast(-series, 10).quantiles
    torch.testing.assert_close(up, -down.flip(-1))


def test_nonnegative_histories_have_nonnegative_forecasts(model):
    series = torch.rand(3, 60, generator=torch.Generator().manual_seed(6))
    assert (Predictor(model).forecast([series[0], series[1], -series[2]], 10).quantiles[:2] >= 0).all()
