"""Priors against their mathematics: covariances, tails, memory, periods, rates and differential equations."""

import calendar
import datetime
import math

import numpy as np
import pytest
import torch
from scipy import signal, stats

from tsseq.synthetic import PRIORS, ets, noise, scan
from tsseq.synthetic.arma import garch
from tsseq.synthetic.calendar import civil_from_days, days_in_month, weekday
from tsseq.synthetic.curves import impulses, lookup, renewals, smooth_path
from tsseq.synthetic.draws import pick, student
from tsseq.synthetic.forecast_pfn import ForecastPFN
from tsseq.synthetic.profiles import random_profiles
from tsseq.synthetic.sde import ornstein_uhlenbeck
from tsseq.synthetic.seasonal_trend import CLOCKS, SeasonalTrend, draw_clock
from tsseq.synthetic.waveforms import Waveforms

SEEDS = (0, 1, 2)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def covariance(series: torch.Tensor, lags: list[int]) -> torch.Tensor:
    """Mean of x_t x_{t+lag} over series and time (the mean is known to be zero)."""
    length = series.shape[-1]
    return torch.stack([(series[:, : length - k] * series[:, k:]).mean() for k in lags])


# Scans and filters


@pytest.mark.parametrize("length", (1, 2, 3, 7, 64, 129))
def test_scans_equal_their_loops(length):
    generator = seeded(length)
    decay = torch.rand((3, length), generator=generator)
    drive = torch.randn((3, length), generator=generator)
    period = torch.tensor([[2], [5], [12]])
    state, states, cumulated = torch.zeros(3), [], torch.zeros(3, length)
    for t in range(length):
        state = decay[:, t] * state + drive[:, t]
        states.append(state)
        for row in range(3):
            m = int(period[row])
            cumulated[row, t] = drive[row, t] + (cumulated[row, t - m] if t >= m else 0.0)
    assert torch.allclose(scan.linear_scan(decay, drive), torch.stack(states, -1), atol=1e-5)
    assert torch.allclose(scan.seasonal_cumsum(drive, period), cumulated, atol=1e-5)


@pytest.mark.parametrize("length", (50, 333))
def test_frequency_response_filters_like_the_recursion(length):
    """A filter at rest answers one shock as the recursion does; its memory is gone long before it wraps round."""
    shocks = torch.zeros(1, scan.fft_length(length))
    shocks[:, 0] = 1.0
    first, second, average = (torch.tensor([[x]]) for x in (1.2, -0.5, 0.4))
    found = scan.stationary(shocks, noise.arma_response(first, second, average, length), length)
    exact = signal.lfilter([1.0, 0.4], [1.0, -1.2, 0.5], shocks.numpy(), axis=-1)[:, :length]
    assert np.abs(found.numpy() - exact).max() < 1e-5


def test_fast_lengths():
    assert [scan.fft_length(n) for n in (1, 2, 48, 64, 1000, 4096, 4128)] == [2, 4, 96, 128, 2048, 8192, 9216]


def test_exponential_filter_recedes_by_its_memory():
    impulse = torch.zeros(1, 400)
    impulse[0, 100] = 1.0
    out = scan.exponential_filter(impulse, torch.tensor([[25.0]]))[0]
    assert torch.allclose(out[101:200] / out[100:199], torch.full((99,), math.exp(-1 / 25)), atol=1e-4)
    assert torch.allclose(scan.exponential_filter(torch.full((1, 50), 3.0), torch.tensor([[9.0]])), torch.tensor(3.0))


# Tails, volatility, memory


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("degrees", (2.5, 6.0, 1000.0))
def test_student_has_its_distribution(degrees, seed):
    sample = student(seeded(seed), (20_000,), torch.tensor(degrees)).numpy()
    assert stats.kstest(sample, stats.t(degrees).cdf).pvalue > 1e-3


@pytest.mark.parametrize("seed", SEEDS)
def test_garch_variance_and_kurtosis(seed):
    """E x⁴ / (E x²)² = 3 (1 - (a + b)²) / (1 - (a + b)² - 2 a²) (Bollerslev, 1986): 3.558 here; s.e. below 0.03."""
    arch, persistence = torch.tensor([[0.2]]), torch.tensor([[0.5]])
    shocks = torch.randn((1500, 1000), generator=seeded(seed))
    series = garch(shocks, arch.expand(1500, 1), persistence.expand(1500, 1))
    assert abs(series.square().mean() - 1) < 0.01
    assert abs(series.pow(4).mean() / series.square().mean() ** 2 - 3.558) < 0.12
    variance, row = 1.0, []
    for e in shocks[0, :50].tolist():
        row.append(math.sqrt(variance) * e)
        variance = 0.3 + 0.2 * row[-1] ** 2 + 0.5 * variance
    assert torch.allclose(series[0, :50], torch.tensor(row), atol=1e-4)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("memory", (-0.3, 0.2, 0.4))
def test_fractional_noise_has_its_hurst_exponent(memory, seed):
    """Block means of m steps have variance m^(2H - 2) with H = 1/2 + memory; also the first autocorrelation."""
    length = 2048
    shocks = torch.randn((400, scan.fft_length(length)), generator=seeded(seed))
    series = scan.stationary(shocks, noise.fractional_response(torch.full((400, 1), memory), length), length)
    sizes = torch.tensor([16.0, 32, 64, 128])
    variances = torch.stack([series.unflatten(-1, (-1, int(m))).mean(-1).square().mean() for m in sizes])
    slope = np.polyfit(sizes.log(), variances.log(), 1)[0]
    assert abs(1 + slope / 2 - (0.5 + memory)) < 0.06
    found = covariance(series, [0, 1])
    assert abs(found[1] / found[0] - memory / (1 - memory)) < 0.03


@pytest.mark.parametrize("seed", SEEDS)
def test_ornstein_uhlenbeck_variance_and_relaxation(seed):
    relaxation, volatility = 20.0, 1.7
    shape = (1500, 512)
    shocks = torch.randn(shape, generator=seeded(seed))
    constants = (torch.full(shape, x) for x in (relaxation, 3.0, volatility))
    series = ornstein_uhlenbeck(*constants, shocks) - 3.0
    found = covariance(series, [0, 10, 20, 60]) / volatility**2
    assert (found - torch.exp(-torch.tensor([0.0, 10, 20, 60]) / relaxation)).abs().max() < 0.04
    assert abs(series[:, 0].std() - volatility) < 0.15


def test_coloured_noise_has_unit_scale():
    series = noise.coloured(seeded(0), 2000, 256)
    assert abs(series.square().mean() - 1) < 0.15


# Exponential smoothing


def test_exponential_smoothing_equals_the_textbook_recursion():
    length, m = 60, 5
    generator = seeded(0)
    error = torch.randn((1, length), generator=generator)
    season = torch.randn((1, m), generator=generator)
    alpha, beta, gamma, phi, b = 0.4, 0.1, 0.3, 0.9, 0.7
    level, slope, seasonal, exact = 0.0, b, season[0].tolist(), []
    for t, e in enumerate(error[0].tolist()):
        exact.append(level + phi * slope + seasonal[t] + e)
        level, slope = level + phi * slope + alpha * e, phi * slope + beta * e
        seasonal.append(seasonal[t] + gamma * e)
    parameters = [torch.tensor([[x]]) for x in (alpha, beta, phi, b)]
    pattern = season.repeat(1, length // m)
    found = ets.level_and_trend(error, *parameters) + error
    found = found + ets.seasonal_component(error, torch.tensor([[gamma]]), torch.tensor([[m]]), pattern)
    assert torch.allclose(found[0], torch.tensor(exact), atol=1e-4)


# Seasons and calendars


def test_profiles_are_periodic_and_standardised():
    table = random_profiles(seeded(0), 500)
    assert table.isfinite().all() and table.mean(-1).abs().max() < 1e-4
    assert (table.square().mean(-1) - 1).abs().max() < 1e-2
    phase = torch.arange(96) / 24.0
    values = lookup(table, phase.expand(500, -1))
    assert torch.allclose(values[:, :24], values[:, 72:], atol=1e-3)


def test_clocks_nest_days_in_weeks_in_years():
    """A day of 5 min to 6 h steps times seven is its week, and weeks and days make the same year."""
    for inner, ratio, slow, weight in CLOCKS:
        assert inner > 1 and ratio > 1 and slow >= 1 and weight > 0
        if ratio == 7.0 and inner >= 4:
            assert abs(inner * ratio * slow / (inner * 365.25) - 1) < 1e-3
    periods = {round(x) for c in CLOCKS for x in (c[0], c[0] * c[1])}
    assert {24, 168, 48, 336, 96, 672, 144, 1008, 288, 2016, 7, 365, 12, 4, 52, 60, 1440, 8640} <= periods


@pytest.mark.parametrize("seed", SEEDS)
def test_every_clock_is_drawn_in_its_share(seed):
    """All calendar periods, to five standard errors, and arbitrary nested ones for the rest."""
    inner, outer, slow = draw_clock(seeded(seed), 20_000, 1.0)
    total = sum(clock[3] for clock in CLOCKS)
    for day, ratio, longer, weight in CLOCKS:
        known = torch.tensor([day, day * ratio, day * ratio * longer])
        drawn = torch.isclose(torch.cat([inner, outer, slow], -1), known, rtol=1e-5).all(-1).float().mean()
        share = weight / total
        assert abs(drawn - share) < 5 * math.sqrt(share / 20_000)
    mixed = draw_clock(seeded(seed), 20_000, 0.8)[0]
    named = torch.isin(mixed, torch.tensor([clock[0] for clock in CLOCKS])).float().mean()
    assert abs(named - 0.8) < 0.015
    assert mixed.min() >= 3.0


@pytest.mark.parametrize("clean, low, high", ((1.0, 3e-4, 0.06), (0.0, 0.05, 2.0)))
def test_clean_series_have_next_to_no_noise(clean, low, high, monkeypatch):
    """Standard deviations of the noise, which is what a draw loses when its residuals are taken away."""
    prior = SeasonalTrend(clean=clean, multiplicative=0.0, clipped=0.0)
    noisy = prior.sample(seeded(3), 400, 1024)
    monkeypatch.setattr("tsseq.synthetic.seasonal_trend.modulated", lambda *shape: 0 * noise.modulated(*shape))
    lost = (noisy - prior.sample(seeded(3), 400, 1024)).std(-1)
    found = lost.quantile(torch.tensor([0.05, 0.95]))
    assert low < found[0] < found[1] < high


@pytest.mark.parametrize("seed", SEEDS)
def test_seasonal_trend_repeats_at_a_calendar_period(seed):
    """Without drift and noise nearly all series correlate with themselves at one of the clock's periods."""
    prior = SeasonalTrend(calendar=1.0, clean=1.0, drifting=0.0, multiplicative=0.0, clipped=0.0)
    length = 4096
    series = prior._seasons(seeded(seed), 200, length)
    series = series[series.std(-1) > 1e-3].double()
    series = (series - series.mean(-1, keepdim=True)) / series.std(-1, keepdim=True)
    best = torch.full((len(series),), -1.0, dtype=torch.float64)
    for inner, ratio, _, _ in CLOCKS:
        for period in (inner, inner * ratio):
            k = round(period)
            if 2 <= k < length // 2:
                best = torch.maximum(best, (series[:, k:] * series[:, :-k]).mean(-1))
    assert (best > 0.5).double().mean() > 0.85


def test_one_wave_has_one_frequency():
    prior = Waveforms(shapes=(1.0, 0.0, 0.0, 0.0, 0.0), components=1, modulated=0.0, noisy=0.0, cycles=8.0)
    series = prior.sample(seeded(0), 200, 1024).double()
    steps = torch.linspace(-1, 1, 1024, dtype=torch.float64)
    line = torch.stack([torch.ones_like(steps), steps], -1)
    series = series - (line @ torch.linalg.lstsq(line, series.T).solution).T
    power = torch.fft.rfft(series * torch.hann_window(1024, dtype=torch.float64)).abs().square()
    near = torch.nn.functional.max_pool1d(power[:, None], 1)[:, 0]
    peak = near.argmax(-1, keepdim=True)
    bins = torch.arange(power.shape[-1])
    share = (power * ((bins - peak).abs() <= 3)).sum(-1) / power.sum(-1)
    assert (share > 0.9).double().mean() > 0.95


def test_civil_calendar_is_pythons():
    days = torch.arange(-1000, 60_000, 7)
    month, day = civil_from_days(days)
    found = torch.stack([month, day, weekday(days)], -1).tolist()
    dates = [datetime.date(1970, 1, 1) + datetime.timedelta(int(d)) for d in days]
    assert found == [[d.month, d.day, d.weekday()] for d in dates]


def test_months_have_their_days():
    months = torch.arange(4800)
    exact = [calendar.monthrange(1970 + m // 12, m % 12 + 1)[1] for m in range(4800)]
    assert days_in_month(months).tolist() == exact


def test_forecast_pfn_reads_the_calendar():
    prior = ForecastPFN()
    start = torch.tensor([[3]])  # Sunday 4 January 1970
    *_, hour, week, _, month = prior._phases(start, torch.tensor([[3600.0]]), 24 * 40)
    assert torch.allclose(hour[0, :48], torch.arange(48) % 24 / 24)
    assert week[0, ::24][:3].tolist() == pytest.approx([6 / 7, 0.0, 1 / 7])
    assert (month[0, 24 * 28 - 1], month[0, 24 * 28]) == (0.0, pytest.approx(1 / 12))


# Events


@pytest.mark.parametrize("seed", SEEDS)
def test_events_come_at_their_rate(seed):
    rate = torch.full((400, 1000), 0.03)
    events = impulses(seeded(seed), rate, torch.full((400, 1), 0.5))
    hit = events[events > 0]
    assert abs(len(hit) / rate.numel() - 0.03) < 5 * math.sqrt(0.03 / rate.numel())
    assert abs(hit.log().mean()) < 0.03 and abs(hit.log().std() - 0.5) < 0.03


@pytest.mark.parametrize("seed", SEEDS)
def test_segments_last_as_long_as_they_should(seed):
    dwell = torch.full((500, 300), 20.0)
    index, age = renewals(seeded(seed), dwell, 1000)
    assert abs(index[:, -1].float().mean() - 999 / 20) < 5 * math.sqrt(999 / 20 / 500)
    assert (age >= 0).all() and (index.diff(dim=-1) >= 0).all()
    assert (age[:, 1:][index.diff(dim=-1) == 0] > age[:, :-1][index.diff(dim=-1) == 0]).all()


def test_choices_follow_their_weights():
    drawn = pick(seeded(0), (30_000,), (7, 24, 12), (1, 2, 5))
    for value, share in ((7, 1 / 8), (24, 2 / 8), (12, 5 / 8)):
        assert abs((drawn == value).float().mean() - share) < 0.015


def test_demand_is_counts_and_often_zero():
    series = PRIORS["demand"]().sample(seeded(0), 300, 512)
    assert (series >= 0).all() and torch.equal(series, series.round())
    quiet = (series == 0).float().mean(-1)
    assert 0.2 < (quiet > 0.5).float().mean() < 0.7


def test_smooth_paths_are_smooth_and_of_unit_scale():
    path = smooth_path(seeded(0), torch.full((800, 1), 64.0), 1024)
    assert abs(path.square().mean() - 1) < 0.08
    assert path.diff(dim=-1).square().mean().sqrt() < 2.5 / 64
