"""The running scale: what it knows at each patch, and a forecaster that reads and is trained by it."""

import dataclasses
import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from tsseq.backbone import BackboneConfig
from tsseq.checkpoint import load, save
from tsseq.cli.__main__ import main
from tsseq.datasets.tasks import masked_spans
from tsseq.forecaster import Forecaster, ForecasterConfig
from tsseq.patching import to_patches
from tsseq.scaler import Scale, causal_scale, fit_scale
from tsseq.testing import check_forecaster, check_scaler
from tsseq.training import ForecastingLoss

PATCH = 8
SMALL = ForecasterConfig(
    patch_length=PATCH,
    hidden_width=32,
    max_context=256,
    scaler="causal",
    backbone=BackboneConfig(width=32, layers=2, mlp_width=32),
)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return Forecaster(SMALL).eval()


@pytest.fixture
def walk(generator):
    return torch.randn(3, 20 * PATCH, generator=generator, dtype=torch.float64).cumsum(1)


def scale_of(values):
    return causal_scale(values, ~values.isnan(), PATCH)


def test_it_is_a_scaler():
    """Patches of a single value, then one patch of everything: there a series is scaled by itself."""
    for length in (1, 300):
        check_scaler(lambda x, observed, n=length: causal_scale(x, observed, min(n, x.shape[1])).last())


def test_equals_a_loop(walk):
    walk[:, 3::5] = torch.nan
    walk[0, : 2 * PATCH + 3] = torch.nan
    walk[1, 40:43] = 1e4
    scale = scale_of(walk)

    def means(rows):
        """Mean, and mean distance from the mean of the time, at the end of each patch."""
        locs, past, distances = [], [], []
        for row in rows:
            past += row
            locs.append(sum(past) / max(len(past), 1))
            distances.append([abs(x - locs[-1]) for x in row])
        flat = [sum(distances[: p + 1], []) for p in range(len(rows))]
        return locs, [sum(d) / max(len(d), 1) for d in flat]

    for series, loc, deviation in zip(walk, scale.loc, scale.scale, strict=True):
        rows = [[x for x in row.tolist() if x == x] for row in series.unflatten(0, (-1, PATCH))]
        locs, near = means(rows)
        clipped = [
            [min(max(x, at - 10 * by), at + 10 * by) for x in row] for row, at, by in zip(rows, locs, near, strict=True)
        ]
        expected = means(clipped)
        torch.testing.assert_close(loc, torch.tensor(expected[0], dtype=loc.dtype))
        torch.testing.assert_close(deviation, torch.tensor(expected[1], dtype=loc.dtype))


def test_the_future_changes_nothing(walk):
    whole = scale_of(walk)
    for patches in (1, 7, 19):
        past = scale_of(walk[:, : patches * PATCH])
        assert torch.equal(past.loc, whole.loc[:, :patches]) and torch.equal(past.scale, whole.scale[:, :patches])


def test_missing_patches_keep_the_scale(walk):
    walk[:, 10 * PATCH :] = torch.nan
    scale = scale_of(walk)
    assert (scale.scale[:, 10:] == scale.scale[:, 9:10]).all() and (scale.loc[:, 10:] == scale.loc[:, 9:10]).all()


def test_ends_near_the_scale_of_the_context(generator):
    noise = torch.randn(50, 100 * PATCH, generator=generator)
    noise[:, 50 * PATCH] = 1e3
    running, whole = scale_of(noise).last(), fit_scale(noise, noise.isfinite())
    assert ((running.scale / whole.scale - 1).abs() < 0.3).all()
    assert ((running.loc - whole.loc).abs() < 0.3 * whole.scale).all()


@pytest.mark.parametrize("offset", [1e4, -1e6])
def test_single_precision_far_from_zero(walk, offset):
    values = (walk + offset).float()
    exact, found = scale_of(values.double()), scale_of(values)
    torch.testing.assert_close(found.scale.double(), exact.scale, rtol=1e-4, atol=0)
    error = (found.loc - exact.loc).abs()
    assert (error <= torch.finfo(torch.float32).eps * abs(offset) + 1e-4 * exact.scale).all()


def test_forecaster_keeps_its_promises(model):
    check_forecaster(model)


@pytest.mark.parametrize("size", [1e-300, 1e308])
def test_huge_and_tiny_histories(model, generator, size):
    values = torch.rand(2, 200, generator=generator, dtype=torch.float64)
    expected = model.forecast(values, 5).quantiles
    torch.testing.assert_close(model.forecast(values * size, 5).quantiles / size, expected, rtol=1e-5, atol=1e-5)


def test_constant_history_forecasts_the_constant(model):
    for value in (0.0, 5.25, -1e9):
        for length in (1, 30):
            quantiles = model.forecast(torch.full((length,), value, dtype=torch.float64), 10).quantiles
            torch.testing.assert_close(quantiles, torch.full_like(quantiles, value), rtol=1e-12, atol=1e-200)


def test_one_pass_holds_the_forecast_of_every_prefix(model, walk):
    """Its output at a position, in the scale of that position, is the forecast from there; so are those of `step`."""
    walk[:, 50:70] = torch.nan
    scale = scale_of(walk)
    patches = scale.apply(to_patches(walk, PATCH)).float()
    tokens = model.embed_patches(patches, ~patches.isnan())
    with torch.no_grad():
        whole = model(patches, ~patches.isnan())
        states, steps = model.backbone.init_state(3), []
        for token in tokens.unbind(1):
            hidden, states = model.backbone.step(token, states)
            steps.append(hidden)
        streamed = model.read_out(torch.stack(steps, 1))
    torch.testing.assert_close(streamed, whole, rtol=1e-4, atol=1e-5)
    quantiles = scale.invert(whole.double().sort(-1).values)
    for patch in (0, 5, 8, 19):
        forecast = model.forecast(walk[:, : (patch + 1) * PATCH], PATCH).quantiles
        torch.testing.assert_close(forecast, quantiles[:, patch], rtol=1e-4, atol=1e-5)


def test_training_sees_what_forecasting_sees(model, walk):
    """A series without holes: tokens as in forecasting, and each patch scored in the scale of the one before."""
    visible = torch.ones_like(walk, dtype=torch.bool)
    visible[:, 64:80] = False
    tokens, ahead, scored = ForecastingLoss(model)._encode(walk.float(), visible, visible & False, visible | True)
    known = walk.masked_fill(~visible, torch.nan)[:, :-PATCH]
    scale, next_patches = scale_of(known), walk.unflatten(1, (-1, PATCH))[:, 1:]
    patches = scale.apply(to_patches(known, PATCH)).float()
    torch.testing.assert_close(tokens, model.embed_patches(patches, ~patches.isnan()), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ahead, scale.apply(next_patches).float(), rtol=1e-4, atol=1e-4)
    assert scored.all()


def test_what_is_hidden_and_what_follows_stay_unseen(model, walk, generator):
    task = masked_spans(generator, walk.float(), PATCH)
    tokens = ForecastingLoss(model)._encode(*task)[0]
    moved = task.values + 1e3 * ~task.visible
    assert torch.equal(ForecastingLoss(model)._encode(moved, *task[1:])[0], tokens)
    later = task.values.clone()
    later[:, 10 * PATCH :] *= 7
    assert torch.equal(ForecastingLoss(model)._encode(later, *task[1:])[0][:, :10], tokens[:, :10])


def test_training_steps_are_finite(generator):
    """From single values, constants, zeros, single steps and spikes on, too."""
    torch.manual_seed(0)
    model = Forecaster(SMALL)
    values = torch.randn(64, 24 * PATCH, generator=generator)
    values[:8] = 0.0
    values[8:16, :100] = 5.0
    values[16:24, 50] = 1e7
    values[24:32] += 1e6
    values[32:40, 3::4] = torch.nan
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(5):
        loss = ForecastingLoss(model)(*masked_spans(generator, values, PATCH))
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad.isfinite().all() for p in model.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_a_constant_stretch_is_no_yardstick(model):
    """What first departs from a constant is not scored; what departs from it next is."""
    values = torch.full((1, 6 * PATCH), 5.0)
    values[:, 2 * PATCH :] += torch.arange(4 * PATCH) % 3
    everything = torch.ones_like(values, dtype=torch.bool)
    _, ahead, scored = ForecastingLoss(model)._encode(values, everything, everything, everything)
    departs = (values != 5.0).unflatten(1, (-1, PATCH))[:, 1:]
    assert torch.equal(scored[:, 1], ~departs[:, 1]) and scored[:, 2:].all() and ahead.isfinite().all()


def test_checkpoints_keep_it_and_old_ones_have_none(model, tmp_path, walk):
    file = save(model, tmp_path / "new.safetensors")
    assert load(file).config == SMALL
    assert torch.equal(load(file).forecast(walk, 9).quantiles, model.forecast(walk, 9).quantiles)
    with safe_open(file, "pt") as opened:
        metadata, weights = opened.metadata(), {name: opened.get_tensor(name) for name in opened.keys()}
    config = json.loads(metadata["config"])
    assert config.pop("scaler") == "causal"
    save_file(weights, tmp_path / "old.safetensors", {**metadata, "config": json.dumps(config)})
    assert load(tmp_path / "old.safetensors").config.scaler == "context"


@pytest.mark.slow
def test_from_the_shell(tmp_path, capsys, fails):
    sizes = "--width 16 --layers 1 --mlp_width 16 --patches 4 --batch_size 4 --max_steps 2 --accelerator cpu"
    assert main(f"pretrain {tmp_path / 'run'} --prior sine_waves {sizes} --scaler causal".split()) == 0
    assert load(tmp_path / "run").config.scaler == "causal"
    capsys.readouterr()
    fails(["pretrain", fails.out, "--scaler", "global"], "expected one of 'context', 'causal' for scaler")


def test_unknown_scalers_are_named():
    with pytest.raises(ValueError, match="expected scaler to be one of context, causal, got 'global'"):
        ForecasterConfig(scaler="global")


def test_one_scale_for_each_patch(generator):
    values = torch.randn(2, 4, 3, 5, generator=generator)
    scale = Scale(torch.randn(2, 4, generator=generator), 1 + torch.rand(2, 4, generator=generator))
    scaled = scale.apply(values)
    expected = torch.asinh((values[1, 2] - scale.loc[1, 2]) / scale.scale[1, 2])
    torch.testing.assert_close(scaled[1, 2], expected)
    torch.testing.assert_close(scale.invert(scaled), values)


def test_forecasts_on_the_way_are_those_from_there(model, walk):
    series = [walk[0], walk[1, : 2 * PATCH + 3]]
    series[0][50:60] = torch.nan
    quantiles, truth = model.forecasts_on_the_way(series, 3)
    assert quantiles.shape == (2, 3 * PATCH, 9) and quantiles[1, :PATCH].isnan().all()
    torch.testing.assert_close(truth[0], walk[0, -3 * PATCH :])
    torch.testing.assert_close(truth[1, PATCH:], walk[1, 3 : 2 * PATCH + 3])
    for row, patches in ((0, 3), (1, 2)):
        for k in range(patches):
            known, place = series[row][: len(series[row]) - (patches - k) * PATCH], (3 - patches + k) * PATCH
            expected = model.forecast(known, PATCH).quantiles[0]
            torch.testing.assert_close(quantiles[row, place : place + PATCH], expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="got 'context'"):
        Forecaster(dataclasses.replace(SMALL, scaler="context")).forecasts_on_the_way(series, 3)
