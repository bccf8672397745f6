"""Fine-tuning: it learns, it keeps what it cannot better, and it scores what it says it scores."""

import copy
import dataclasses
import pickle
import warnings

import numpy as np
import pandas as pd
import pytest
import torch

pytest.importorskip("lightning")

from tsseq.backbone import BackboneConfig
from tsseq.checkpoint import load
from tsseq.datasets import bundled
from tsseq.datasets.tasks import TrainingBatch
from tsseq.finetuning import FinetuningConfig, finetune, train_from_scratch
from tsseq.forecaster import Forecaster, ForecasterConfig
from tsseq.held_out import Windows, hold_out
from tsseq.inference import FAST, Predictor

NETWORK = ForecasterConfig(
    patch_length=4,
    hidden_width=32,
    max_context=128,
    backbone=BackboneConfig(mixers=("lru",), width=16, layers=1, mlp_width=32),
)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return Forecaster(NETWORK).eval()


def seasons(count=6, length=120):
    """Noisy sawtooth series: easy to learn, impossible for random weights."""
    rng = np.random.default_rng(0)
    t = np.arange(length)
    return [10 * i + (t + i) % 6 + 0.1 * rng.normal(size=length) for i in range(count)]


def config(**changes):
    return FinetuningConfig(**{"horizon": 6, "max_steps": 60, "learning_rate": 3e-3, "inference": FAST, **changes})


def same_weights(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_it_learns_and_scores_the_tail_as_it_says(model):
    series = seasons()
    before = copy.deepcopy(model)
    result = finetune(model, series, config())
    assert result.improved and result.after < 0.6 * result.before
    assert same_weights(model, before), "the given forecaster has been changed"
    losses = []
    for row in series:
        for cut in (108, 114):
            forecast = Predictor(result.forecaster, FAST).forecast([row[:cut]], 6)
            error = row[cut : cut + 6, None] - forecast.quantiles[0].numpy()
            level = np.array(forecast.levels)
            loss = 2 * np.where(error > 0, level * error, (level - 1) * error).mean()
            losses.append(loss / np.abs(np.diff(row[:cut])).mean())
    np.testing.assert_allclose(result.after, np.mean(losses), rtol=1e-5)
    assert "before" in str(result) and f"{result.after:.4f}" in str(result)


def test_what_is_not_better_is_not_kept(model):
    useless = config(learning_rate=1e2, max_steps=20, evaluate_every=5)
    result = finetune(model, seasons(), useless)
    assert not result.improved and result.after == result.before
    assert same_weights(result.forecaster, model)
    assert str(result).startswith("kept the weights as they were")


def test_training_stops_when_the_tail_does_not_improve(model):
    result = finetune(model, seasons(), config(learning_rate=1e2, evaluate_every=2, patience=3))
    assert [step for step, _ in result.scores] == [0, 2, 4, 6]


def test_the_same_seed_gives_the_same_network_and_leaves_the_global_generator_alone():
    state = torch.get_rng_state()
    first, again, other = (train_from_scratch(NETWORK, seasons(), config(max_steps=5, seed=s)) for s in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), state)
    assert same_weights(first.forecaster, again.forecaster) and first.scores == again.scores
    assert not same_weights(first.forecaster, other.forecaster)


def test_the_tail_is_not_trained_on():
    series = seasons(3, 100)
    training, tail = hold_out(series, 6, seed=0)
    assert [len(row) for row in training] == [94] * 3 and tail.labels.shape == (3, 6)
    for row, kept, context, label in zip(series, training, tail.contexts, tail.labels, strict=True):
        np.testing.assert_array_equal(row, np.concatenate([kept, label]))
        np.testing.assert_array_equal(kept, context)


def test_long_series_hold_out_several_windows_and_short_ones_none():
    t = np.arange(1000.0) % 7
    training, tail = hold_out([t, t[:200], t[:10]], 8, seed=0)
    assert [len(row) for row in training] == [1000 - 4 * 8, 200 - 2 * 8, 10]
    assert [len(context) for context in tail.contexts] == [968, 976, 984, 992, 184, 192]
    _, tail = hold_out([t[:9], t[:4]], 24, seed=0)
    assert tail.horizon == 3 and len(tail.contexts) == 1


def test_windows_are_pieces_of_the_series():
    series = [np.arange(50.0), np.arange(5.0) + 1000]
    windows = Windows(series, patch_length=4, horizon=6, patches=48, batch_size=64, seed=0)
    batch = windows.draw(torch.Generator().manual_seed(0))
    assert isinstance(batch, TrainingBatch) and batch.values.shape[1] % 4 == 0
    steps = batch.values.diff(dim=1)
    observed = ~steps.isnan()
    unit = {1 / np.std(row) for row in series}
    assert all(min(abs(float(step) - u) for u in unit) < 1e-5 for step in steps[observed])
    assert (batch.visible & batch.targets).any() and (~batch.visible & batch.targets).any()
    assert not batch.visible[:, -8:].any() and batch.visible.any(1).all()
    assert not (batch.targets & batch.values.isnan()).any()


def test_missing_values_constant_and_short_series(model):
    series = seasons()
    series[0][::3] = np.nan
    series[1][:100] = np.nan
    result = finetune(model, [*series, np.full(60, 3.0), np.array([1.0]), np.full(40, np.nan)], config())
    assert result.improved and np.isfinite(result.after)
    for useless in ([np.full(60, 3.0)], [np.array([1.0, 2.0])], []):
        with pytest.raises(ValueError, match="three values that is not constant"):
            finetune(model, useless, config())


def test_a_series_far_from_zero_trains_like_the_same_series_near_it(model):
    near = finetune(model, seasons(2), config(max_steps=10))
    far = finetune(model, [1e7 + 1e3 * row for row in seasons(2)], config(max_steps=10))
    np.testing.assert_allclose(far.after, near.after, rtol=1e-2)


def test_bad_settings():
    with pytest.raises(ValueError, match="at least 1"):
        FinetuningConfig(horizon=0)


sktime = pytest.importorskip("sktime")


def test_time_that_is_over_between_evaluations(model):
    """What was trained until then is scored, or nothing was and it is said."""
    result = finetune(model, seasons(), config(max_minutes=1e-3, max_steps=100_000, evaluate_every=100_000))
    assert len(result.scores) == 2 and result.scores[1][0] > 0 and "tail" in str(result)
    untrained = dataclasses.replace(result, scores=result.scores[:1], after=result.before)
    assert "before the first step" in str(untrained)
    for minutes in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="max_minutes"):
            config(max_minutes=minutes)


@pytest.mark.parametrize("device", ["tpu", "cuda:x", "meta", "xpu"])
def test_a_device_that_is_not_there(model, device):
    with pytest.raises(ValueError, match=f"a device that this machine has, such as cpu or cuda, got '{device}'"):
        finetune(model, seasons(), config(), device=device)


def test_the_first_cpu_is_the_cpu(model):
    first, cpu = (finetune(model, seasons(), config(max_steps=5), device=device) for device in ("cpu:0", "cpu"))
    assert first.scores == cpu.scores


def test_the_sktime_estimator_fine_tunes_and_keeps_its_weights(tmp_path, model):
    from tsseq.adapters.sktime import TsseqForecaster

    path = model.save_pretrained(tmp_path / "model.safetensors")
    y = pd.concat({f"s{i}": pd.DataFrame({"y": row}) for i, row in enumerate(seasons())})
    settings = {"mode": "fine_tune", "max_steps": 60, "learning_rate": 3e-3, "flip": False, "device": "cpu"}
    forecaster = TsseqForecaster(path, **settings).fit(y, fh=range(1, 7))
    truth = [10 * i + (np.arange(120, 126) + i) % 6 for i in range(6)]
    errors = np.abs(forecaster.predict().to_numpy().reshape(6, 6) - truth).mean()
    plain = TsseqForecaster(path, device="cpu").fit(y).predict(fh=range(1, 7))
    assert errors < 0.6 * np.abs(plain.to_numpy().reshape(6, 6) - truth).mean()
    path.unlink()
    for other in (pickle.loads(pickle.dumps(forecaster)), copy.deepcopy(forecaster)):
        pd.testing.assert_frame_equal(other.predict(), forecaster.predict())
    again = forecaster.clone()
    with pytest.raises(ValueError, match="no checkpoint"):
        again.fit(y)


def test_the_sktime_estimator_says_when_it_keeps_the_weights(tmp_path, model):
    from tsseq.adapters.sktime import TsseqForecaster

    path = model.save_pretrained(tmp_path / "model.safetensors")
    y = pd.Series(seasons()[0])
    with pytest.warns(UserWarning, match="kept the weights as they were"):
        kept = TsseqForecaster(path, "fine_tune", learning_rate=1e2, max_steps=3, device="cpu").fit(y)
    plain = TsseqForecaster(path, device="cpu").fit(y)
    pd.testing.assert_series_equal(kept.predict(fh=[1, 2]), plain.predict(fh=[1, 2]))
    assert len(pickle.dumps(kept)) < 8000, "a kept checkpoint is pickled as a reference"


def test_the_sktime_estimator_from_scratch_with_a_mixer_by_name_and_updates():
    from tsseq.adapters.sktime import TsseqForecaster

    y = pd.Series(seasons()[0])
    settings = {"mode": "from_scratch", "mixer": "min_gru,lru", "width": 16, "max_steps": 5, "device": "cpu"}
    forecaster = TsseqForecaster(**settings).fit(y[:100], fh=[1, 2]).update(y[100:])
    whole = TsseqForecaster(**settings).fit(y, fh=[1, 2])
    pd.testing.assert_series_equal(forecaster.predict(), whole.predict())
    frozen = TsseqForecaster(**settings).fit(y[:100], fh=[1, 2])
    before = frozen._shared.forecaster
    assert frozen.update(y[100:], update_params=False)._shared.forecaster is before
    assert frozen.predict().index[0] == 120
    with pytest.raises(ValueError, match="expected mixers among"):
        TsseqForecaster(mode="from_scratch", mixer="transformer").fit(y)
    with pytest.raises(ValueError, match="three values"):
        TsseqForecaster(**settings).fit(y[:2])
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        TsseqForecaster(**settings).fit(y)


def test_bundled_series_train_from_scratch():
    series = [bundled.load(name).values[0] for name in bundled.names()]
    result = train_from_scratch(NETWORK, series, config(horizon=12, max_steps=40))
    assert result.improved


@pytest.mark.slow
def test_the_base_is_never_worse_on_the_tail_and_the_message_says_so():
    series = [bundled.load(name).values[0] for name in ("airline", "nottingham")]
    base = load("base")
    for rate in (1e-4, 3.0):
        settings = FinetuningConfig(
            12, max_steps=10, learning_rate=rate, evaluate_every=5, batch_size=4, inference=FAST
        )
        result = finetune(base, series, settings)
        _, tail = hold_out(series, 12, settings.seed)
        before, after = (tail.score(Predictor(model, FAST)) for model in (base, result.forecaster))
        assert after <= before
        np.testing.assert_allclose([result.before, result.after], [before, after], rtol=1e-5)
        assert str(result).startswith("improved" if after < before else "kept the weights as they were")
        assert same_weights(result.forecaster, base) == (not result.improved)
    assert not result.improved, "a learning rate of 3 destroys any network"


@pytest.mark.parametrize("mixer", ["lru", "slice", "slstm", "gated_delta_product,mlstm"])
def test_the_sktime_estimator_trains_any_mixer_from_scratch(mixer):
    from sktime.datasets import load_airline

    from tsseq.adapters.sktime import TsseqForecaster

    y = load_airline()
    settings = {"mode": "from_scratch", "mixer": mixer, "width": 16, "flip": False, "device": "cpu"}
    trained, new = (TsseqForecaster(**settings, max_steps=n).fit(y, fh=range(1, 7)) for n in (60, 1))
    assert trained._shared.forecaster.config.backbone.mixers == tuple(mixer.split(","))
    assert not trained.predict().equals(new.predict()) and np.isfinite(trained.predict()).all()
    assert abs(trained.predict().mean() / y[-12:].mean() - 1) < 0.3


def test_the_command(tmp_path, model, capsys):
    from tsseq.cli.__main__ import main

    path, out, table = (str(tmp_path / name) for name in ("model.safetensors", "out.safetensors", "data.csv"))
    model.save_pretrained(path)
    pd.DataFrame({f"s{i}": row for i, row in enumerate(seasons())}).to_csv(table, index=False)
    words = ["finetune", table, out, "--horizon", "6", "--checkpoint", path, "--device", "cpu"]
    assert main([*words, "--max_steps", "40", "--learning_rate", "3e-3"]) == 0
    said = capsys.readouterr().out
    assert "improved: " in said and "step    20" in said and out in said.replace("\n", "")
    assert not same_weights(load(out), model)
    assert main([*words, "--max_steps", "3", "--learning_rate", "100"]) == 0
    assert "kept the weights as they were" in capsys.readouterr().out
    assert same_weights(load(out), model)
    for wrong, message in (
        (["--horizon", "0"], "horizon"),
        (["--checkpoint", "absent"], "no checkpoint 'absent'"),
    ):
        assert main([*words, *wrong]) == 2
        assert message in capsys.readouterr().err
