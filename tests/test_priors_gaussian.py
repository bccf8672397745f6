"""Gaussian processes have their covariances, and known laws of the future are the true ones."""

import math

import numpy as np
import pytest
import torch
from scipy import special

from tsseq.synthetic import PRIORS, conditional
from tsseq.synthetic import gaussian_process as gp
from tsseq.synthetic.base import PriorWithLaw
from tsseq.synthetic.kernel_synth import KernelSynth
from tsseq.synthetic.sde import ornstein_uhlenbeck

SEEDS = (0, 1, 2)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def covariance(series: torch.Tensor, lags: list[int]) -> torch.Tensor:
    """Mean of x_t x_{t+lag} over series and time (the mean is known to be zero)."""
    length = series.shape[-1]
    return torch.stack([(series[:, : length - k] * series[:, k:]).mean() for k in lags])


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


@pytest.mark.parametrize("seed", SEEDS)
def test_conditional_law_of_a_curve_plus_noise_is_calibrated(seed):
    """AR(1) noise around a sine, seen for 30 steps; 4000 series leave a standard error below 0.03."""
    correlation, time = torch.full((4000, 1), 0.8), torch.arange(50.0)
    curve, scale = torch.sin(time / 5).expand(4000, -1), (1 + time / 50).expand(4000, -1)
    shocks = torch.randn((4000, 50), generator=seeded(seed)) * (1 - 0.8**2) ** 0.5
    shocks[:, 0] /= (1 - 0.8**2) ** 0.5
    noise = torch.stack([(shocks[:, : t + 1] * 0.8 ** torch.arange(t, -1, -1)).sum(-1) for t in range(50)], -1)
    law = conditional.curve_plus_noise(curve[:, 30:], scale[:, 30:], correlation, noise[:, 29:30])
    z = (curve + scale * noise)[:, 30:].sub(law[0]) / law[1]
    assert z.mean(0).abs().max() < 0.08 and (z.square().mean(0) - 1).abs().max() < 0.12
    white = conditional.curve_plus_noise(curve, scale, torch.zeros(4000, 1), noise[:, :1])
    assert torch.equal(white[0], curve) and torch.equal(white[1], scale)


def test_expected_quantile_loss_is_the_mean_over_outcomes():
    """Against 400,000 draws, to five standard errors; the gradient is that of the loss, Φ(z) - level."""
    mean, scale, level = torch.tensor([0.0, 2.0, -1.0]), torch.tensor([1.0, 0.3, 4.0]), torch.tensor([0.1, 0.5, 0.9])
    forecast = torch.tensor([0.7, 1.8, -3.0], requires_grad=True)
    expected = conditional.expected_quantile_loss(forecast, level, mean, scale)
    outcome = mean + scale * torch.randn((400_000, 3), generator=seeded(0))
    error = outcome - forecast.detach()
    realised = torch.maximum(level * error, (level - 1) * error)
    assert ((realised.mean(0) - expected).abs() < 5 * realised.std(0) / math.sqrt(400_000)).all()
    (gradient,) = torch.autograd.grad(expected.sum(), forecast)
    below = (outcome < forecast).double().mean(0)
    assert (gradient - (below - level)).abs().max() < 0.005
    certain = [torch.tensor(x) for x in (3.0, 0.2, 1.0, 0.0)]
    assert conditional.expected_quantile_loss(*certain) == pytest.approx(0.8 * 2)


@pytest.mark.parametrize("name", ("gaussian_process", "sde", "sine_waves", "waveforms"))
def test_priors_with_a_law_are_calibrated(name):
    """Standardised by their law, futures have mean 0 and variance 1 at every step, as far as anything is unknown."""
    prior = PRIORS[name]()
    assert isinstance(prior, PriorWithLaw)
    values, mean, scale = prior.sample_with_law(seeded(0), 2500, 96, 24)
    assert values.shape == (2500, 96) and mean.shape == scale.shape == (2500, 24) and (scale >= 0).all()
    uncertain = scale[:, -1] > 0
    z = ((values[:, -24:] - mean) / scale)[uncertain]
    assert torch.allclose(values[:, -24:][~uncertain], mean[~uncertain])
    assert uncertain.float().mean() > 0.4 and z.mean(0).abs().max() < 0.12
    assert (z.square().mean(0) - 1).abs().max() < 0.2 and abs(z.square().mean() - 1) < 0.06


@pytest.mark.parametrize(
    "kind, exact", ((25, lambda t: gp.squared_exponential(t, 0.1 * 256)), (30, lambda t: 0.1 * (t == 0)))
)
def test_the_bank_of_kernels_holds_what_chronos_lists(kind, exact, monkeypatch):
    """The first choice of every pick: lengthscale 0.1 of the window, white variance 0.1, period 24 on the circle."""
    monkeypatch.setattr("tsseq.synthetic.kernel_synth.pick", lambda g, shape, values: torch.full(shape, values[0]))
    lag = gp.lags(256, torch.device("cpu"))
    found = KernelSynth()._kernel(seeded(0), torch.tensor([[kind], [0]]), lag, 256)
    assert torch.allclose(found[0], exact(lag) * torch.ones(len(lag)), atol=1e-6)
    assert abs(found[1, 24] - 1) < 0.1 and found[1, 12] < 0.2


@pytest.mark.parametrize("times", (False, True))
def test_the_bank_of_kernels_joins_by_sum_and_product(times, monkeypatch):
    """Two fixed kernels: 3000 draws have the sum or the product of their covariances, to 0.1."""
    lag = gp.lags(128, torch.device("cpu"))
    kernels = [gp.periodic(lag, 16.0, 1.0), 0.6 * gp.squared_exponential(lag, 15.0)]
    left = iter(kernels)
    monkeypatch.setattr(KernelSynth, "_kernel", lambda *_: next(left).expand(3000, -1))
    monkeypatch.setattr("tsseq.synthetic.kernel_synth.integers", lambda g, shape, low, high: torch.full(shape, 2))
    monkeypatch.setattr("tsseq.synthetic.kernel_synth.chance", lambda g, shape, p: torch.full(shape, times))
    series = KernelSynth(max_kernels=2).sample(seeded(0), 3000, 128)
    exact = kernels[0] * kernels[1] if times else kernels[0] + kernels[1]
    lags = [0, 1, 4, 8, 16, 40]
    assert (covariance(series, lags) - exact[lags]).abs().max() < 0.1
