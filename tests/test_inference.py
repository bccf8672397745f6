"""What wraps a forecaster: mirrored, coarser and clamped readings of the same history."""

from dataclasses import replace

import pytest
import torch

from tsseq.backbone import BackboneConfig
from tsseq.forecaster import DECILES, Forecast, Forecaster, ForecasterConfig
from tsseq.inference import FAST, InferenceConfig, Predictor, _weights
from tsseq.resampling import blocks_ahead, coarsen, join_phases, pinball, refine, split_phases

PLAIN = InferenceConfig(coarser=(), recent=(), recent_short=(), phases=())


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    backbone = BackboneConfig(width=32, layers=2, mlp_width=32, options={"gated_delta_product": {"heads": 2}})
    return Forecaster(ForecasterConfig(patch_length=8, hidden_width=32, backbone=backbone)).eval()


class Drifting:
    """Stands in for a network: repeats the mean of the last `window` values as every quantile."""

    config = ForecasterConfig()

    def __init__(self, window):
        self.window = window

    def forecast(self, context, horizon, quantile_levels=None):
        levels = torch.stack([values[-self.window :].mean() for values in context])
        quantiles = levels[:, None, None].expand(-1, horizon, len(DECILES)).clone()
        return Forecast(quantiles, quantiles[..., 0], DECILES)


def test_coarse_blocks_end_with_the_history_and_skip_what_is_missing():
    values = torch.tensor([9.0, 1.0, 3.0, torch.nan, 5.0, torch.nan, torch.nan])
    torch.testing.assert_close(coarsen(values, 2), torch.tensor([2.0, 5.0, torch.nan]), equal_nan=True)


@pytest.mark.parametrize("factor", [2, 3, 4, 6])
@pytest.mark.parametrize("horizon", [1, 5, 24, 25])
def test_a_straight_line_survives_a_coarse_reading(factor, horizon):
    line = torch.arange(240.0 + 2 * horizon + 4 * factor)
    past = coarsen(line[:240], factor)
    ahead = coarsen(line[240 : 240 + factor * blocks_ahead(horizon, factor)], factor)
    refined = refine(ahead[None, :, None].expand(1, -1, 3), past[-1:], factor, horizon)
    torch.testing.assert_close(refined[0, :, 1], line[240 : 240 + horizon])


def test_refined_quantiles_stay_in_order(generator):
    quantiles = torch.randn(4, 9, 5, generator=generator).sort(-1).values
    assert (refine(quantiles, torch.zeros(4), 3, 24).diff(dim=-1) >= 0).all()


def test_pinball_is_half_the_absolute_error_at_the_median(generator):
    truth, median = torch.randn(2, 3, 10, generator=generator)
    truth[0, 4] = torch.nan
    torch.testing.assert_close(pinball(median[..., None], truth, [0.5]), (truth - median).abs().nanmean(-1) / 2)


def test_a_coarser_reading_counts_only_where_it_forecast_the_past_better(generator):
    noisy = torch.randn(2000, generator=generator)
    stepped = torch.where(torch.arange(2000) % 400 < 200, 0.0, 1.0) + 0.0
    for series, wins in ((noisy, True), (stepped, False)):
        model = Drifting(window=2)
        plain = Predictor(model, PLAIN).forecast([series], 80).quantiles
        mixed = Predictor(model, InferenceConfig()).forecast([series], 80).quantiles
        assert torch.equal(plain, mixed) != wins


def test_short_histories_are_read_once(network, generator):
    series = [torch.randn(n, generator=generator) for n in (5, 40, 100)]
    torch.testing.assert_close(
        Predictor(network).forecast(series, 24).quantiles,
        Predictor(network, PLAIN).forecast(series, 24).quantiles,
        rtol=0,
        atol=0,
    )


@pytest.mark.parametrize(("lengths", "horizon"), [((30, 500, 700, 2000, 1999), 32), ((900, 5100, 5000, 9000), 250)])
def test_the_same_alone_and_in_a_batch(network, generator, lengths, horizon):
    series = [torch.randn(n, generator=generator).cumsum(0) for n in lengths]
    together = Predictor(network).forecast(series, horizon).quantiles
    for row, values in enumerate(series):
        alone = Predictor(network).forecast([values], horizon).quantiles[0]
        torch.testing.assert_close(together[row], alone, rtol=1e-4, atol=1e-4)


def test_scale_and_shift_pass_through(network, generator):
    series = torch.randn(3, 900, generator=generator, dtype=torch.float64).cumsum(1)
    predictor = Predictor(network, InferenceConfig(nonnegative=False))
    moved = predictor.forecast(250.0 * series - 3e4, 24).quantiles
    torch.testing.assert_close(moved, 250.0 * predictor.forecast(series, 24).quantiles - 3e4, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("config", [InferenceConfig(), FAST], ids=["default", "fast"])
def test_hard_histories_give_finite_rising_quantiles(network, config, generator):
    long = torch.randn(9000, generator=generator).cumsum(0)
    holes = torch.where(torch.rand(9000, generator=generator) < 0.9, torch.nan, long)
    ends = long.clone()
    ends[-800:] = torch.nan
    series = [long, holes, ends, torch.full((3000,), 7.0), 1e9 + long, 1e-9 * long, torch.zeros(2500), torch.ones(1)]
    for horizon in (1, 40, 700):
        quantiles = Predictor(network, config).forecast(series, horizon).quantiles
        assert quantiles.isfinite().all() and (quantiles.diff(dim=-1) >= 0).all()
        torch.testing.assert_close(quantiles[3], torch.full_like(quantiles[3], 7.0))


def test_nothing_observed_is_forecast_as_missing(network):
    series = [torch.full((2000,), torch.nan), torch.randn(2000, generator=torch.Generator().manual_seed(0))]
    quantiles = Predictor(network).forecast(series, 24).quantiles
    assert quantiles[0].isnan().all() and quantiles[1].isfinite().all()


def test_short_horizons_take_one_reading_where_the_scaler_looks_ahead(network, generator):
    series = torch.randn(2, 1900, generator=generator)
    plain, mixed = (Predictor(network, c).forecast(series, 15).quantiles for c in (PLAIN, InferenceConfig()))
    torch.testing.assert_close(plain, mixed, rtol=0, atol=0)


class DriftingOnTheWay(Drifting):
    """The same with a causal scaler: its forecasts on the way are means of the `window` values before a patch."""

    config = ForecasterConfig(scaler="causal")

    def forecasts_on_the_way(self, context, patches):
        length, levels = 32 * patches, len(DECILES)
        truth = torch.stack([values[-length:].double() for values in context])
        quantiles = torch.full((len(context), length, levels), torch.nan, dtype=torch.float64)
        for row, values in enumerate(context):
            for back in range(length, 0, -32):
                at = length - back
                quantiles[row, at : at + 32] = values[: len(values) - back][-self.window :].mean()
        return quantiles, truth


def test_a_recent_reading_counts_for_a_short_horizon_too():
    series = [torch.cat([torch.zeros(5000), torch.ones(800)]), torch.ones(700)]
    forecaster = DriftingOnTheWay(window=4000)
    plain = Predictor(forecaster, PLAIN).forecast(series, 20).quantiles
    mixed = Predictor(forecaster, InferenceConfig()).forecast(series, 20).quantiles
    assert (plain[0] == 0.2).all() and (mixed[0] > 0.7).all()
    assert torch.equal(mixed[1], plain[1])


def test_nothing_on_the_way_that_was_observed(generator):
    torch.manual_seed(0)
    backbone = BackboneConfig(width=16, layers=1, mlp_width=16)
    causal = Forecaster(ForecasterConfig(patch_length=8, hidden_width=16, scaler="causal", backbone=backbone)).eval()
    series = torch.randn(1500, generator=generator)
    series[800:] = torch.nan
    mixed, plain = (Predictor(causal, c).forecast([series], 10).quantiles for c in (InferenceConfig(), PLAIN))
    torch.testing.assert_close(mixed, plain, rtol=0, atol=1e-5)


@pytest.mark.parametrize("bad", [{"coarser": (1, 2)}, {"recent": (0,)}, {"recent_short": (0,)}, {"phases": (1,)}])
def test_an_impossible_reading_is_refused(bad):
    with pytest.raises(ValueError, match="at least 2 in coarser"):
        InferenceConfig(**bad)


def test_the_spread_of_quantiles_leaves_the_median(network, generator):
    series = [torch.randn(60, generator=generator)]
    plain, wide = (Predictor(network, replace(PLAIN, spread=x)).forecast(series, 5).quantiles for x in (1.0, 2.0))
    median = plain[..., 4, None]
    torch.testing.assert_close(wide - median, 2 * (plain - median))
    with pytest.raises(ValueError, match="a positive temperature and spread"):
        replace(PLAIN, spread=0.0)


def test_phases_are_split_and_joined_in_the_order_of_time():
    values = torch.arange(26.0)
    phases = split_phases(values, 4)
    assert [phase.tolist() for phase in phases[:2]] == [[2, 6, 10, 14, 18, 22], [3, 7, 11, 15, 19, 23]]
    ahead = torch.stack([phase[-1] + 4 * torch.arange(1.0, 4.0) for phase in phases * 2])[..., None]
    assert torch.equal(join_phases(ahead, 4, 10)[:, :, 0], torch.arange(26.0, 36.0).expand(2, 10))


def test_phases_count_far_ahead_of_a_history_longer_than_the_network_reads(generator):
    profile = torch.randn(24, generator=generator)
    config = InferenceConfig(coarser=(), recent=(), phases=(24,))
    for horizon, days, wins in ((240, 220, True), (200, 220, False), (240, 180, False)):
        found = Predictor(Drifting(window=5), config).forecast([profile.repeat(days)], horizon).quantiles[0, :, 4]
        exact = profile.repeat(10)[:horizon]
        assert torch.allclose(found, exact, atol=0.01) == wins


def test_a_reading_with_a_phase_that_was_never_observed_does_not_count(generator):
    values = torch.randn(24, generator=generator).repeat(220)
    values[7::24] = torch.nan
    config = InferenceConfig(coarser=(), recent=(), phases=(24,))
    plain, mixed = (Predictor(Drifting(window=5), c).forecast([values], 240).quantiles for c in (PLAIN, config))
    assert torch.equal(mixed, plain)


def test_a_recent_reading_counts_where_the_past_has_changed():
    series = torch.cat([torch.zeros(1500), torch.ones(500)])
    config = InferenceConfig(coarser=(), recent=(100,), phases=())
    changed = Predictor(Drifting(window=1000), config).forecast([series], 80).quantiles
    torch.testing.assert_close(changed, torch.ones_like(changed), rtol=0.01, atol=0)


@pytest.mark.parametrize("levels", [(1.5,), (0.0, 0.5), (0.9, 0.1), ()])
def test_bad_levels_are_refused(network, levels):
    with pytest.raises(ValueError, match="quantile levels must rise"):
        Predictor(network).forecast(torch.randn(40), 3, levels)


def test_no_series_is_no_forecast(network):
    assert Predictor(network).forecast([], 3).quantiles.shape == (0, 3, 9)


@pytest.mark.parametrize("horizon", [3, 100])
@pytest.mark.parametrize("wrap", [lambda network: network, Predictor])
def test_what_ended_beyond_reach_is_forecast_from_what_was_there(network, wrap, horizon):
    length = network.config.max_context
    values = torch.randn(300, generator=torch.Generator().manual_seed(0)) + 50
    half, twice, long = (
        wrap(network).forecast(torch.cat([values, torch.full((gap,), torch.nan)]), horizon).quantiles
        for gap in (length // 2, 2 * length, 60 * length)
    )
    assert torch.equal(half, twice) and torch.equal(half, long) and half.isfinite().all()
    nothing = wrap(network).forecast(torch.full((2 * length,), torch.nan), horizon).quantiles
    assert nothing.isnan().all()


def test_a_reading_that_saw_nothing_has_no_weight():
    past = torch.tensor([[1.0, 1.0, 1.0], [0.5, 0.5, torch.nan], [2.0, 2.0, 2.0]])
    unable = torch.tensor([[False, True, True], [False, False, True], [False, False, True]])
    weights = _weights(past, unable, 0.1)
    torch.testing.assert_close(weights[:, 0], torch.tensor([1.0, torch.e**5 - 1, 0.0]) / torch.e**5)
    torch.testing.assert_close(weights[:, 1], torch.tensor([0.0, 1.0, 0.0]))
    assert weights[:, 2].isnan().all()
