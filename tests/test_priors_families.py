"""What makes each family what it is: shapes, counts, rates, recessions, ceilings and cycles, one property or more."""

import math

import numpy as np
import pytest
import torch
from scipy import signal

from tsseq.synthetic import PRIORS, spikes, telemetry, waveforms
from tsseq.synthetic.arma import ARIMA
from tsseq.synthetic.diagnostics import autocorrelation, periodogram
from tsseq.synthetic.economy import Economy
from tsseq.synthetic.epidemic import Epidemic
from tsseq.synthetic.forecast_pfn import ForecastPFN
from tsseq.synthetic.network import NetworkTopology
from tsseq.synthetic.noise import autoregressive
from tsseq.synthetic.power import Power
from tsseq.synthetic.rhythm import StochasticRhythm
from tsseq.synthetic.sensor import Sensor
from tsseq.synthetic.step import Step
from tsseq.synthetic.traffic import Traffic
from tsseq.synthetic.weather import Weather

SEEDS = (0, 1, 2)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("name", ("cauker", "common_factors"))
def test_channels_of_a_group_depend_on_each_other(name):
    prior = PRIORS[name]()
    channels = prior.sample_channels(seeded(0), 40, 300)
    assert channels.shape[0] == 40 and channels.shape[2] == 300 and channels.isfinite().all()
    inside = torch.stack([torch.corrcoef(group).abs().triu(1).max() for group in channels])
    assert inside.median() > 0.6
    assert torch.equal(prior.sample(seeded(0), 40 * channels.shape[1], 300), channels.flatten(0, 1))


# Shapes


def test_waves_are_those_of_the_signal_generator():
    phase = torch.linspace(0.003, 4.0, 997)[None]
    angle = 2 * math.pi * phase[0].numpy()
    expected = {
        0: np.sin(angle),
        1: signal.square(angle, 0.3),
        2: signal.sawtooth(angle, 0.5),
        3: signal.sawtooth(angle, 0.998),
        4: signal.square(angle, 0.1),
    }
    for kind, exact in expected.items():
        found = waveforms.wave(phase, torch.tensor([[kind]]), torch.tensor([[0.3]]), torch.tensor([[0.1]]))
        assert np.mean(np.abs(found[0].numpy() - exact) > 1e-3) < 0.01, waveforms.SHAPES[kind]


def test_peaks_have_their_shapes():
    """On -1 < u < 1: a triangle, the same cut off at one, e^(-3u) from the jump on; nothing elsewhere."""
    u = torch.linspace(-3, 3, 601).expand(300, -1)
    found = spikes.Spikes()._peak(seeded(0), u)
    triangle, decay = (1 - u[0].abs()).clamp(min=0), torch.exp(-3 * u[0]) * (u[0] > 0)
    distance = torch.stack([(found - shape).abs().amax(-1) for shape in (triangle, decay)], -1)
    flat = (found.amax(-1) == 1) & ((found == 1).sum(-1) > 20)
    assert ((distance.amin(-1) < 1e-5) | flat).all() and 0.2 < flat.float().mean() < 0.45
    assert (found[:, u[0] < -1] == 0).all()


def test_anomalies_are_rare_and_of_one_sign():
    series = PRIORS["anomaly"]().sample(seeded(0), 300, 1024)
    size = (series - series.median(-1, keepdim=True).values).abs()
    out = size > 0.5
    assert 0.001 < out.float().mean() < 0.05
    sides = torch.stack([(out & (series > 0)).any(-1), (out & (series < 0)).any(-1)])
    assert not (sides.all(0)).any()


def test_steps_are_piecewise_constant():
    """Without noise, a share that neither settles, slopes nor ripples: 0.6 × 0.75 × 0.7 of the series."""
    series = Step(noisy=0.0).sample(seeded(0), 400, 512)
    still = (series.diff(dim=-1).abs() < 1e-6).float().mean(-1)
    assert abs((still > 0.9).float().mean() - 0.315) < 0.08
    assert (series.amax(-1) > series.amin(-1)).all()


def test_rhythm_strikes_on_the_beat():
    """Layers without a tone rise after a strike only, and strikes are whole intervals apart, to a step."""
    layers = StochasticRhythm()._layer(seeded(0), torch.arange(2000.0), torch.full((200, 1), 240.0))
    found = 0
    for layer in layers[(layers >= 0).all(-1)]:
        rising = (layer.diff() > 0.02).nonzero()[:, 0]
        strikes = rising[torch.cat([torch.ones(1, dtype=torch.bool), rising.diff() > 8])]
        gaps = strikes.diff().float()
        off = [(gaps - interval * (gaps / interval).round()).abs().max() for interval in (30, 40) if len(gaps) > 3]
        found += len(off) > 0
        assert not off or min(off) <= 2
    assert found > 20


# Noise and volatility


@pytest.mark.parametrize("memory", (5.0, 300.0, 5000.0))
def test_autoregressive_noise_has_unit_variance_at_any_memory(memory):
    """Also where it remembers far more than the window; correlation e^(-k / memory)."""
    series = autoregressive(seeded(0), torch.full((4000, 1), memory), 200)
    assert abs(series.square().mean() - 1) < 0.1
    assert abs((series[:, 20:] * series[:, :-20]).mean() / series.square().mean() - math.exp(-20 / memory)) < 0.03


@pytest.mark.parametrize("seed", SEEDS)
def test_financial_volatility_clusters(seed):
    """Absolute steps stay correlated over tens of steps, and are heavier-tailed than normal ones."""
    steps = PRIORS["financial_volatility"]().sample(seeded(seed), 300, 1024).diff(dim=-1)
    cluster = autocorrelation(steps.abs())[:, 1:30].mean(-1)
    assert (cluster > 0.05).float().mean() > 0.5
    assert steps.pow(4).mean(-1).div(steps.square().mean(-1).square()).median() > 4


def test_fractals_fall_off_as_a_power():
    """Noise of exponent 1 to 3 behind low-passes: no spectrum rises, none is flatter than 1 / f^0.7."""
    power = periodogram(PRIORS["multiscale_fractal"]().sample(seeded(0), 300, 2048)).clamp(min=1e-12)
    frequency = torch.arange(1, power.shape[-1] + 1).log()
    band = slice(7, 500)
    x = frequency[band] - frequency[band].mean()
    slope = (power.log()[:, band] * x).sum(-1) / x.square().sum()
    assert (slope < -0.7).float().mean() > 0.97 and -6 < slope.median() < -1.5


@pytest.mark.parametrize("order", (0, 1))
def test_arima_is_integrated_as_often_as_told(order):
    """The way covered in 1984 steps is much longer than that in 32 for walks alone."""
    weights = tuple(1.0 * (i == order) for i in range(3))
    series = ARIMA(orders=weights, volatile=0.0).sample(seeded(0), 800, 2048)
    near, far = ((series[:, 64 + ahead] - series[:, 64]).abs() for ahead in (32, 1983))
    ratio = (far / near.clamp(min=1e-9)).median()
    assert ratio > 3 if order else ratio < 1.5


def test_weibull_noise_has_median_one():
    noise = ForecastPFN()._noise(seeded(0), 400, 1000)
    assert (noise.median(-1).values - 1).abs().max() < 0.15 and noise.min() > 0


# Counts and events


@pytest.mark.parametrize("seed", SEEDS)
def test_requests_are_poisson(seed):
    """At constant demand the variance of the counts is their mean."""
    counts = telemetry.Telemetry()._requests(seeded(seed), torch.ones(200, 4000), torch.empty(0))
    mean = counts.mean(-1)
    assert torch.equal(counts, counts.round())
    assert abs((counts.var(-1) / mean).median() - 1) < 0.03


def test_utilisation_keeps_under_its_ceiling_and_jobs_keep_their_schedule():
    prior = telemetry.Telemetry(metrics=(1.0, 0.0, 0.0, 0.0, 0.0), coarse=0.0)
    load = prior.sample(seeded(0), 200, 512)
    assert load.min() >= 0 and load.max() <= 100
    jobs = prior._jobs(seeded(1), 400, 1440)
    starts = [((row[1:] > 0) & (row[:-1] == 0)).nonzero()[:, 0] for row in jobs if (row > 0).any()]
    gaps = [row.diff().float() for row in starts if len(row) > 3]
    exact = [min(float((g / p - (g / p).round()).abs().max()) for p in telemetry.JOBS) for g in gaps]
    assert len(gaps) > 60 and np.mean(np.array(exact) < 0.01) > 0.95


def test_epidemics_are_counts_or_running_totals():
    counts = Epidemic(cumulative=0.0).sample(seeded(0), 200, 512)
    assert (counts >= 0).all() and torch.equal(counts, counts.round())
    totals = Epidemic(cumulative=1.0).sample(seeded(0), 200, 512)
    assert (totals.diff(dim=-1) >= 0).all()


def test_congestion_recovers_exponentially():
    """Between two hits the depth falls by the same factor at every step."""
    depth = NetworkTopology()._decaying(seeded(0), (100, 1), 600, 60.0, 300.0)
    ratio = depth[:, 1:] / depth[:, :-1].clamp(min=1e-9)
    falling = (depth[:, 1:] < depth[:, :-1]) & (depth[:, :-1] > 1e-3)
    for row, kept in zip(ratio, falling, strict=True):
        assert not kept.any() or row[kept].max() - row[kept].min() < 1e-2


# Nature and machines


def test_rivers_rise_fast_and_recede_slowly():
    flow = PRIORS["hydrology"]().sample(seeded(0), 300, 1024)
    change = flow.diff(dim=-1)
    assert (change.amax(-1) > -change.amin(-1)).float().mean() > 0.7


@pytest.mark.parametrize("number, low, high", ((1, 3.0, 100.0), (2, 0.0, 3.0), (3, 0.0, np.inf), (5, 0.0, np.inf)))
def test_weather_keeps_its_bounds(number, low, high):
    """Humidity, radiation, pollution, wind."""
    weights = [0.0] * 6
    weights[number] = 1.0
    series = Weather(variables=tuple(weights)).sample(seeded(0), 200, 700)
    assert series.min() >= low and series.max() <= high


def test_radiation_is_zero_at_night_and_daily():
    series = Weather(variables=(0.0, 0.0, 1.0, 0.0, 0.0, 0.0)).sample(seeded(0), 300, 1024)
    dark = (series == 0).float().mean(-1)
    assert ((dark > 0.2) & (dark < 0.8)).float().mean() > 0.6
    assert (autocorrelation(series[dark > 0.2])[:, [24, 48, 96, 144, 288]].amax(-1) > 0.4).float().mean() > 0.8


def test_traffic_repeats_by_day_and_counts_whole_passengers():
    counts = Traffic(quantities=(0.0, 0.0, 1.0, 0.0)).sample(seeded(0), 200, 1200)
    assert (counts >= 0).all() and torch.equal(counts, counts.round())
    speed = Traffic(quantities=(1.0, 0.0, 0.0, 0.0)).sample(seeded(0), 200, 1200)
    assert speed.max() < 65 * 1.6 and speed.median() > 30
    daily = autocorrelation(counts)[:, [24, 48, 72, 96, 288]].amax(-1)
    assert (daily > 0.25).float().mean() > 0.8


def test_power_is_never_negative_and_off_as_often_as_told():
    series = Power(outages=1.0).sample(seeded(0), 300, 2048)
    assert series.min() >= 0
    assert abs((series == 0).any(-1).float().mean() - 0.9) < 0.1
    assert (Power(outages=0.0).sample(seeded(0), 300, 512) > 0).all()


@pytest.mark.parametrize("seed", SEEDS)
def test_business_cycles_last_12_to_120_steps(seed):
    """The spectrum of an AR(2) with complex roots peaks near its angle: most power lies in that band."""
    power = periodogram(Economy()._cycle(seeded(seed), 300, 2048))
    steps = 2048 / torch.arange(1, power.shape[-1] + 1)
    inside = (power * ((steps > 8) & (steps < 200))).sum(-1) / power.sum(-1)
    assert inside.median() > 0.85


def test_seasons_of_economies_have_their_periods():
    season = Economy(seasonal=1.0)._season(seeded(0), 300, 416)
    assert (autocorrelation(season)[:, [12, 52, 104, 156]].amax(-1) > 0.3).float().mean() > 0.9


def test_sensors_cycle_by_day_turn_and_stick():
    prior = Sensor(reversed_flow=0.0)
    day = torch.full((300, 1), 24.0)
    cycle = prior._cycle(seeded(0), day, 960)
    assert (autocorrelation(cycle)[:, 24] > 0.3).float().mean() > 0.8
    turned = Sensor(reversed_flow=1.0)._cycle(seeded(0), day, 960)
    same = torch.isclose(turned, cycle).float().mean()
    assert torch.allclose(turned.abs(), cycle.abs()) and 0.35 < same < 0.75
    walk = torch.randn((300, 2000), generator=seeded(1)).cumsum(-1)
    held = Sensor(stuck=1.0)._stick(seeded(0), walk)
    frozen = held.diff(dim=-1) == 0
    assert frozen.any(-1).float().mean() > 0.7 and 0.005 < frozen.float().mean() < 0.2
    assert torch.equal(Sensor(stuck=0.0)._stick(seeded(0), walk), walk)
