"""Priors against their mathematics: covariances, tails, memory, periods, rates and differential equations."""

import datetime
import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from scipy import integrate, signal, special, stats

from tsseq.synthetic import PRIORS, conditional, dynamics, ets, noise, scan
from tsseq.synthetic import gaussian_process as gp
from tsseq.synthetic.arma import garch
from tsseq.synthetic.calendar import civil_from_days, weekday
from tsseq.synthetic.curves import impulses, lookup, renewals, smooth_path
from tsseq.synthetic.draws import pick, student
from tsseq.synthetic.forecast_pfn import ForecastPFN
from tsseq.synthetic.profiles import random_profiles
from tsseq.synthetic.sde import ornstein_uhlenbeck
from tsseq.synthetic.seasonal_trend import CLOCKS, SeasonalTrend
from tsseq.synthetic.waveforms import Waveforms

SEEDS = (0, 1, 2)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def covariance(series: torch.Tensor, lags: list[int]) -> torch.Tensor:
    """Mean of x_t x_{t+lag} over series and time (the mean is known to be zero)."""
    length = series.shape[-1]
    return torch.stack([(series[:, : length - k] * series[:, k:]).mean() for k in lags])


# Gaussian processes

KERNELS = {
    "squared exponential": lambda t: gp.squared_exponential(t, 12.0),
    "matern 1/2": lambda t: gp.matern(t, 20.0, 0),
    "matern 3/2": lambda t: gp.matern(t, 15.0, 1),
    "matern 5/2": lambda t: gp.matern(t, 10.0, 2),
    "rational quadratic": lambda t: gp.rational_quadratic(t, 8.0, 2.0),
    "locally periodic": lambda t: gp.periodic(t, 24.0, 0.8) * gp.squared_exponential(t, 50.0),
    "sum": lambda t: gp.matern(t, 5.0, 0) + 0.5 * gp.squared_exponential(t, 30.0),
    "periodic": lambda t: gp.periodic(t, 16.0, 1.0),  # divides the embedding
}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", KERNELS)
def test_gaussian_process_has_its_autocovariance(name, seed):
    """Both draws of a pair; 3000 series leave a standard error below 0.03 at every lag, and below 0.02 across."""
    length, lags = 128, [0, 1, 2, 5, 10, 16, 30, 60]
    kernel = KERNELS[name](gp.lags(length, torch.device("cpu")))
    first, second = gp.stationary_pair(seeded(seed), kernel.expand(3000, -1), length)
    for series in (first, second):
        assert (covariance(series, lags) - kernel[lags]).abs().max() < 0.1
    assert (first * second).mean().abs() < 0.06


@pytest.mark.parametrize("seed", SEEDS)
def test_exactly_periodic_paths(seed):
    """Any period, also one that is no whole number of steps: equal a cycle later, with the kernel's covariance."""
    period = torch.full((3000, 1), 12.25)
    path = gp.periodic_path(seeded(seed), period, torch.full((3000, 1), 0.7), 128)
    assert (path[:, 49:] - path[:, :-49]).abs().max() < 1e-3
    kernel = gp.periodic(torch.arange(64.0), 12.25, 0.7)
    lags = [0, 1, 3, 6, 12, 30]
    assert (covariance(path, lags) - kernel[lags]).abs().max() < 0.06


def test_random_kernels_keep_their_variance_through_the_embedding():
    """What clipping takes away is below 2% of the power for nearly all compositions, and small on average."""
    lag = gp.lags(1024, torch.device("cpu"))
    kernels = gp.GaussianProcess().autocovariance(seeded(0), 500, lag).double()
    eigenvalues = torch.fft.hfft(kernels, n=2 * (len(lag) - 1))
    clipped = -eigenvalues.clamp(max=0).sum(-1) / eigenvalues.clamp(min=0).sum(-1)
    assert (clipped > 0.02).double().mean() < 0.02 and clipped.mean() < 0.003


@pytest.mark.parametrize("order", (0, 1, 2))
def test_matern_is_the_bessel_form(order):
    lag, nu = np.linspace(0.1, 60, 50), order + 0.5
    r = math.sqrt(2 * nu) * lag / 7.0
    exact = 2 ** (1 - nu) / special.gamma(nu) * r**nu * special.kv(nu, r)
    found = gp.matern(torch.tensor(lag, dtype=torch.float32), 7.0, order)
    assert np.abs(found.numpy() - exact).max() < 1e-5


def test_random_kernels_are_valid_covariances():
    """Every composition is positive definite up to what the embedding clips, and nothing correlates beyond one."""
    lag = gp.lags(256, torch.device("cpu"))
    kernels = gp.GaussianProcess().autocovariance(seeded(0), 200, lag)
    assert (kernels.abs().amax(-1) <= kernels[:, 0] * (1 + 1e-5)).all()
    dense = kernels[:, torch.arange(96)[:, None].sub(torch.arange(96)).abs()].double()
    assert (torch.linalg.eigvalsh(dense)[:, 0] > -1e-4 * kernels[:, 0]).all()


@pytest.mark.parametrize("seed", SEEDS)
def test_conditional_law_of_a_gaussian_process_is_calibrated(seed):
    """Standardised futures are standard normal; the kernel dies away inside the embedding, so nothing is clipped."""
    lag = gp.lags(96, torch.device("cpu"))
    kernel = gp.periodic(lag, 12.0, 1.0) * gp.squared_exponential(lag, 20.0) + 0.05 * (lag == 0)
    series, _ = gp.stationary_pair(seeded(seed), kernel.expand(2000, -1), 96)
    mean, scale = conditional.gaussian_process(kernel.expand(2000, -1), series[:, :72], 24)
    z = (series[:, 72:] - mean) / scale
    assert z.mean(0).abs().max() < 0.1 and (z.square().mean(0) - 1).abs().max() < 0.15
    assert scale[0, 0] < 0.6 * kernel[0].sqrt() < scale[0, -1]
    with pytest.raises(ValueError, match="97 lags"):
        conditional.gaussian_process(kernel[None, :50], series[:1, :72], 25)


@pytest.mark.parametrize("seed", SEEDS)
def test_conditional_law_of_ornstein_uhlenbeck_is_calibrated(seed):
    shape, known = (4000, 60), 40
    relaxation = torch.where(torch.arange(60) < 50, 30.0, 4.0).expand(shape)
    mean, volatility = torch.linspace(0, 3, 60).expand(shape), torch.linspace(1, 2, 60).expand(shape)
    series = ornstein_uhlenbeck(relaxation, mean, volatility, torch.randn(shape, generator=seeded(seed)))
    future = [x[:, known:] for x in (relaxation, mean, volatility)]
    centre, scale = conditional.ornstein_uhlenbeck(*future, series[:, known - 1 : known])
    z = (series[:, known:] - centre) / scale
    assert z.mean(0).abs().max() < 0.08 and (z.square().mean(0) - 1).abs().max() < 0.12


@pytest.mark.parametrize("name", ("cauker", "common_factors"))
def test_channels_of_a_group_depend_on_each_other(name):
    prior = PRIORS[name]()
    channels = prior.sample_channels(seeded(0), 40, 300)
    assert channels.shape[0] == 40 and channels.shape[2] == 300 and channels.isfinite().all()
    inside = torch.stack([torch.corrcoef(group).abs().triu(1).max() for group in channels])
    assert inside.median() > 0.6
    assert torch.equal(prior.sample(seeded(0), 40 * channels.shape[1], 300), channels.flatten(0, 1))


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


def test_gpu_loops_equal_the_torch_forms():
    """Triton's interpreter runs the kernels on the CPU; it must be chosen before Triton is imported."""
    pytest.importorskip("triton")
    code = """
import torch
from tsseq.synthetic import curves, dynamics, maps, scan, threshold, triton_loops
g = torch.Generator().manual_seed(0)
for length in (1, 65, 1025):
    a, b = torch.rand((2, 1), generator=g).expand(2, length), torch.randn((length, 2), generator=g).t()
    assert torch.allclose(triton_loops.linear_scan(a, b), scan.odd_even_scan(a, b), atol=1e-5), length
    table = torch.randn((2, 3, 9), generator=g)[:, 1]
    for x in (5 * b, 5 * b[:1].expand(2, length)):
        assert torch.allclose(triton_loops.lookup(table, x, linear=True), curves.lookup(table, x), atol=1e-5), length
        assert torch.equal(triton_loops.lookup(table, x, linear=False), curves.held(table, x)), length
        x = x.abs().clamp(max=5.9)
        assert torch.allclose(triton_loops.spline(table, x), curves.spline(table, x), atol=1e-5), length
batch = 35
fields = [system(g, (batch,))[0] for system in dynamics.SYSTEMS.values()]
tables = torch.stack([dynamics.coefficient_table(field, batch, g.device) for field in fields])
table = tables[torch.arange(batch) % len(tables), torch.arange(batch)]
start, weights = torch.rand((batch, 4), generator=g), torch.rand((batch, 4), generator=g)
step = torch.full((batch, 1), 0.05)
found = triton_loops.trajectories(table, start, step / 2, weights, 3, dynamics.BOUND, 2, False)
exact = dynamics.trajectories(table, start, step, weights, 3, substeps=2)
assert torch.allclose(found, exact, atol=1e-5), (found - exact).abs().max()
table = torch.cat([dynamics.coefficient_table(m(g, (7,))[0], 7, g.device) for m in maps.MAPS.values()])
found = triton_loops.trajectories(table, start, step, weights, 3, dynamics.BOUND, 1, True)
exact = dynamics.trajectories(table, start, step, weights, 3, iterate=True)
assert torch.allclose(found, exact, atol=1e-4), (found - exact).abs().max()
shocks, above, below = (torch.randn((batch, n), generator=g) / 2 for n in (9, 4, 4))
exact = threshold.threshold_autoregression(shocks, above, below, start[:, :1])
found = triton_loops.threshold_autoregression(shocks, above, below, start[:, :1], threshold.BOUND)
assert torch.allclose(found, exact, atol=1e-4), (found - exact).abs().max()
"""
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "TRITON_INTERPRET": "1"})


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


# Differential equations


def textbook(name, c, state):
    """Right-hand sides as they stand in the books; `c` maps (variable, monomial) to the drawn coefficient."""
    x, y, z, w = state
    if name == "lorenz":
        return [10 * (y - x), x * (c["y", "x"] - z) - y, x * y - 8 / 3 * z, 0 * w]
    if name == "rossler":
        return [-y - z, x + 0.2 * y, 0.2 + z * (x + c["z", "z"]), 0 * w]
    if name == "duffing":
        omega = c["w", "z"]
        return [y, x - x**3 + c["y", "y"] * y + c["y", "z"] * z, -omega * w, omega * z]
    if name == "van_der_pol":
        mu = c["x", "x"]
        return [mu * (x - x**3 / 3 + y), -x / mu, 0 * z, 0 * w]
    if name == "fitzhugh_nagumo":
        slow = c["w", "z"]
        current = c["x", "1"] + c["x", "z"] * z
        return [x - x**3 / 3 - y + current, 0.08 * (x + 0.7 - 0.8 * y), -slow * w, slow * z]
    if name == "lotka_volterra":
        return [x * (c["x", "x"] - y), y * (x + c["y", "y"]), 0 * z, 0 * w]
    if name == "pendulum":
        return [y * z, -x * z, c["z", "x"] * x + c["z", "z"] * z, 0 * w]
    beta, waning, recovery = c["y", "xy"], c["x", "1"], -c["y", "y"]
    return [waning * (1 - x - y) - beta * x * y, beta * x * y - recovery * y, 0 * z, 0 * w]


@pytest.mark.parametrize("name", dynamics.SYSTEMS)
def test_dynamics_equal_scipys_integrator(name):
    """The field is the book's, and forty steps agree with an adaptive integrator to 1e-3 of the largest value."""
    batch, length = 4, 40
    field, start, step = dynamics.SYSTEMS[name](seeded(1), (batch,))
    table = dynamics.coefficient_table(field, batch, torch.device("cpu"))
    states = torch.tensor([start]).expand(batch, 4) * torch.linspace(0.8, 1.2, batch)[:, None]
    output = torch.tensor([[1.0, 0.5, 0.25, 0.0]]).expand(batch, 4)
    found = dynamics.trajectories(table, states, torch.full((batch, 1), step), output, length, substeps=2)
    for row in range(batch):
        c = {key: float(value[row]) if torch.is_tensor(value) else value for key, value in field.items()}
        exact = integrate.solve_ivp(
            lambda _, s, c=c: textbook(name, c, s),
            (0, step * length),
            states[row].double().numpy(),
            t_eval=step * np.arange(length),
            rtol=1e-9,
            atol=1e-10,
        ).y
        expected = output[row].double().numpy() @ exact
        assert np.abs(found[row].numpy() - expected).max() < 1e-3 * np.abs(expected).max()
