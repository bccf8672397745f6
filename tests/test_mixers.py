"""What every mixer keeps: the contract, constant memory, woven stacks, a toy forecast better than Seasonal Naive."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tsseq.backbone import Backbone, BackboneConfig
from tsseq.mixers import MIXERS
from tsseq.mixers.s5 import hippo_normal
from tsseq.testing import check_mixer

WIDTH = 8


CONTRACTS = {
    "slice dense, exact": ("slice", {"structure": "dense", "flow": "exponential"}),
    "slice diagonal, paths": ("slice", {"structure": "diagonal", "increments": "paths"}),
    "slice diagonal_dense, windows": ("slice", {"structure": "diagonal_dense", "window": 4, "depth": 2}),
    "slice dplr, driven": ("slice", {"structure": "dplr", "drive": True, "states": 6}),
    "slice sparse": ("slice", {"structure": "sparse"}),
    "slice walsh_hadamard, window longer than the split": ("slice", {"structure": "walsh_hadamard", "window": 12}),
    "log_ncde, one step a position": ("log_ncde", {"window": 1, "depth": 1, "solver": "euler", "control_width": 3}),
    "log_ncde, long windows": ("log_ncde", {"window": 8, "solver_steps": 2}),
    "mlstm, one head": ("mlstm", {"heads": 1, "expand": 1, "kernel": 1}),
    "longhorn, no window": ("longhorn", {"kernel": 1, "expand": 1}),
    "local_attention, window shorter than the split": ("local_attention", {"window": 4, "head_width": 4}),
    "s4d inverse": ("s4d", {"spectrum": "inverse"}),
    "s4d real": ("s4d", {"spectrum": "real"}),
}


@pytest.mark.parametrize("case", CONTRACTS)
def test_options_keep_the_contract(case):
    name, options = CONTRACTS[case]
    torch.manual_seed(0)
    check_mixer(lambda: MIXERS[name](WIDTH, **options), length=21)


EVERY = {name: (name, {}) for name in MIXERS} | CONTRACTS


@pytest.mark.parametrize("name", MIXERS)
def test_a_sequence_has_a_position_and_the_width(name):
    mixer = MIXERS[name](WIDTH)
    for shape in ((2, 0, WIDTH), (2, 3, WIDTH + 1), (3, WIDTH)):
        for state in (None, mixer.init_state(2)):
            with pytest.raises(ValueError, match=rf"expected x \[batch, time >= 1, 8\], got \({shape[0]}, {shape[1]}"):
                mixer(torch.zeros(shape), state)


@pytest.mark.parametrize("case", [case for case in EVERY if not case.startswith("s4d")])  # FFTs need a series
def test_a_batch_may_be_empty(case):
    name, options = EVERY[case]
    x = torch.zeros(0, 9, WIDTH, requires_grad=True)
    y, state = MIXERS[name](WIDTH, **options)(x)
    y.sum().backward()
    assert y.shape == x.shape == x.grad.shape
    assert all(leaf.shape[0] == 0 for leaf in state)


def relative_gap(y, expected):
    return float((y.float() - expected).norm() / expected.norm())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", EVERY)
def test_autocast_keeps_states_wide(case, dtype):
    name, options = EVERY[case]
    torch.manual_seed(0)
    mixer, x = MIXERS[name](WIDTH, **options), torch.randn(2, 20, WIDTH)
    expected = mixer(x)[0].detach()
    with torch.autocast("cpu", dtype):
        first, state = mixer(x[:, :9])
        second, state = mixer(x[:, 9:], state)
        y = torch.cat([first, second], 1).float()
        y.square().sum().backward()
    assert all(leaf.dtype == torch.float32 for leaf in state)
    assert relative_gap(y.detach(), expected) < 0.02
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in mixer.parameters())


@pytest.mark.parametrize("case", EVERY)
def test_narrow_parameters_keep_states_wide(case):
    name, options = EVERY[case]
    torch.manual_seed(0)
    mixer, x = MIXERS[name](WIDTH, **options).bfloat16(), torch.randn(2, 20, WIDTH).bfloat16()
    y, state = mixer(x)
    y.float().square().sum().backward()
    assert all(p.grad.isfinite().all() for p in mixer.parameters())
    _, early = mixer(x[:, :19])
    last, stepped = mixer.step(x[:, 19], early)
    assert y.dtype == last.dtype == torch.bfloat16
    assert all(leaf.dtype == torch.float32 for leaf in (*mixer.init_state(2), *state, *stepped))
    expected = mixer.float()(x.float())[0].detach()
    assert relative_gap(y.detach(), expected) < 0.02
    assert relative_gap(last.detach(), expected[:, -1]) < 0.02


@pytest.mark.parametrize("case", EVERY)
def test_gradients_have_gradients(case):
    """Kernels of attention that have none say so; the plain one has them."""
    name, options = EVERY[case]
    torch.manual_seed(0)
    mixer = MIXERS[name](WIDTH, **options).double()
    x, direction, other = torch.randn(3, 2, 9, WIDTH, dtype=torch.float64)

    def slope(x):
        y, state = mixer(x)
        loss = y.square().sum() + sum(leaf.square().sum() for leaf in state)
        return (torch.autograd.grad(loss, x, create_graph=True)[0] * direction).sum()

    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        found = (torch.autograd.grad(slope(x.requires_grad_()), x)[0] * other).sum()
        step = 1e-5 * other
        expected = (slope(x + step) - slope(x - step)) / 2e-5
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize("name", MIXERS)
def test_step_runs_in_constant_memory(name):
    """Ten thousand steps: the state stays as large as after ten, and the end is that of the parallel form."""
    torch.manual_seed(0)
    mixer = MIXERS[name](WIDTH).eval()
    x = torch.randn(1, 10_000, WIDTH)
    sizes = {}
    with torch.inference_mode():
        state = mixer.init_state(1)
        for t, x_t in enumerate(x.unbind(1), start=1):
            y, state = mixer.step(x_t, state)
            if t in (10, 100, 10_000):
                sizes[t] = sum(leaf.untyped_storage().nbytes() for leaf in state)
        whole, last = mixer(x)
    assert sizes[10] == sizes[100] == sizes[10_000]
    assert all(leaf.dtype == torch.float32 and leaf.isfinite().all() for leaf in state)
    torch.testing.assert_close(y, whole[:, -1], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(state, last, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", MIXERS)
def test_woven_stack_hears_the_future(name):
    torch.manual_seed(0)
    stack = Backbone(BackboneConfig(mixers=(name,), width=WIDTH, layers=2, mlp_width=8, weave=True))
    x = torch.randn(2, 20, WIDTH)
    y, _ = stack(x)
    y.square().sum().backward()
    assert y.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in stack.parameters())
    changed = x.clone()
    changed[:, -3:] += 1.0
    with torch.no_grad():
        moved = (stack(changed)[0] - y)[:, 5:10].abs().max()
    assert moved > 1e-7


def test_attention_overlooks_what_is_not_there():
    torch.manual_seed(0)
    mixer = MIXERS["local_attention"](WIDTH, window=16).double()
    x = torch.randn(2, 12, WIDTH, dtype=torch.float64)
    alone, last = mixer(x)
    for zeros in (1, 4, 40):
        padded, state = mixer(F.pad(x, (0, 0, zeros, 0)))
        torch.testing.assert_close(padded[:, zeros:], alone)
        assert not padded[:, :zeros].any()
        torch.testing.assert_close(state, last)


class Toy(nn.Module):
    """Two layers of one mixer that forecast the next value of a series."""

    def __init__(self, name, **options):
        super().__init__()
        config = BackboneConfig(mixers=(name,), width=32, layers=2, mlp_width=32, options={name: options})
        self.read_in, self.stack, self.read_out = nn.Linear(1, 32), Backbone(config), nn.Linear(32, 1)

    def forward(self, x):
        return self.read_out(self.stack(self.read_in(x[..., None]))[0])[..., 0]


def noisy_waves(generator, batch, length=26, period=8):
    """Sines of one period, of any phase and of amplitude 1 to 2, in noise of standard deviation a half."""
    phase, size = (torch.rand(batch, 1, generator=generator) for _ in range(2))
    wave = (1 + size) * torch.sin(2 * math.pi * (torch.arange(length) / period + phase))
    return wave + 0.5 * torch.randn(batch, length, generator=generator)


def error_of(model, x, period=8):
    return (model(x[:, :-1])[:, period:] - x[:, period + 1 :]).square().mean()


# The one without order, and the one that starts from a vector field of almost zero, take longer.
STEPS = {"linear_attention": 200, "log_ncde": 100}
OPTIONS = {"log_ncde": {"hidden": 16, "control_width": 4, "states": 16}}


@pytest.mark.parametrize("name", MIXERS)
def test_two_layers_learn_to_beat_seasonal_naive(name):
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    model = Toy(name, **OPTIONS.get(name, {}))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(STEPS.get(name, 50)):
        optimizer.zero_grad()
        error_of(model, noisy_waves(generator, 32)).backward()
        optimizer.step()
    with torch.no_grad():
        x = noisy_waves(generator, 512)
        naive = error_of(lambda past: F.pad(past, (7, 0))[:, :-7], x)
        assert error_of(model, x) < naive


def test_spectra_of_the_linear_recurrences():
    torch.manual_seed(0)
    lru_ = MIXERS["lru"](64, state_width=500, r_min=0.6, r_max=0.9)
    modulus = torch.exp(-lru_.log_rate.exp()).square()
    assert 0.36 <= modulus.min() < 0.38 and 0.79 < modulus.max() <= 0.81
    torch.testing.assert_close(modulus.mean(), torch.tensor(0.585), atol=0.02, rtol=0)
    # One unit of white noise in keeps the variance of B u: γ² / (1 − |λ|²) = 1.
    torch.testing.assert_close((2 * lru_.log_gamma).exp() / (1 - modulus), torch.ones(500))

    n = torch.arange(6.0, dtype=torch.float64)
    p = torch.sqrt(n + 0.5)
    legs = -torch.outer(torch.sqrt(2 * n + 1), torch.sqrt(2 * n + 1)).tril(-1) - torch.diag(n + 1)
    frequency, vectors = hippo_normal(6)
    vectors = torch.cat([vectors, vectors.conj()], 1).to(torch.complex128)
    values = -0.5 + 1j * torch.cat([frequency, -frequency]).double()
    rebuilt = vectors @ torch.diag(values) @ vectors.mH
    torch.testing.assert_close(rebuilt.real, legs + torch.outer(p, p), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("slice", {"structure": "round"}, "structure must be one of block_diagonal"),
        ("slice", {"block": 3}, "multiple of the block size, got 8 and 3"),
        ("slice", {"structure": "walsh_hadamard", "states": 12}, "power of two, got 12"),
        ("slice", {"depth": 2}, "a window of at least depth, got 2 and 1"),
        ("slice", {"increments": "both"}, "values or paths, got 'both'"),
        ("log_ncde", {"solver": "rk4"}, "heun or euler"),
        ("hgrn", {"lower_bound": 1.0}, r"lie in \[0, 1\), got 1.0"),
        ("s4d", {"states": 5}, "even and positive, got 5"),
        ("s4d", {"spectrum": "cubic"}, "one of linear, inverse, real; got 'cubic'"),
        ("s5", {"states": 6, "blocks": 2}, "even multiple of blocks, got 6 and 2"),
        ("mamba2", {"head_width": 7}, "multiple of head_width"),
        ("local_attention", {"head_width": 6}, "multiple of an even head_width of at least 4, got width 8 and 6"),
        ("local_attention", {"window": 0}, "window must be at least 1, got 0"),
        ("mlstm", {"heads": 3}, "multiple of heads"),
        ("slstm", {"heads": 3}, "multiple of heads, got width 8 and heads 3"),
        ("efla", {"kernel": 0}, "kernel must be at least 1, got 0"),
        ("block_lrnn", {"norm": 0.5}, "norm must be at least 1, got 0.5"),
    ],
)
def test_wrong_options_are_named(name, options, message):
    with pytest.raises(ValueError, match=message):
        MIXERS[name](WIDTH, **options)


@pytest.mark.parametrize("name", MIXERS)
def test_docstring_says_state_and_paper(name):
    text = MIXERS[name].__doc__
    assert "State:" in text and "Paper" in text
    assert "track" in text
