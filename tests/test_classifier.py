"""The classifier: padding and missing values, training, the sktime estimator and its contract."""

import copy
import pickle

import numpy as np
import pandas as pd
import pytest
import torch

pytest.importorskip("lightning")
pytest.importorskip("sktime")

from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer
from sktime.datasets import load_basic_motions, load_japanese_vowels
from sktime.datatypes import convert_to
from sktime.utils.estimator_checks import check_estimator

from tsseq.adapters.sktime import TsseqClassifier
from tsseq.backbone import BackboneConfig
from tsseq.classifier import Classifier, ClassifierConfig, rescale, reverse
from tsseq.classifier_training import (
    ClassifierTrainingConfig,
    _BestEpoch,
    fit,
    log_probabilities,
    outshone_channels,
    split,
    warped,
)
from tsseq.cli.__main__ import main
from tsseq.ensemble import Recipe, train
from tsseq.mixers import MIXERS


def network(channels=2, classes=3, mixer="lru", width=32, **changes):
    backbone = BackboneConfig(mixers=(mixer,), width=width, layers=1, mlp_width=32)
    torch.manual_seed(0)
    return Classifier(ClassifierConfig(channels, classes, backbone=backbone, **changes)).eval()


def waves(cases=60, length=40, channels=2, seed=0):
    """Three classes by frequency, phase and offset at random."""
    rng = np.random.default_rng(seed)
    labels = np.arange(cases) % 3
    phase = rng.uniform(0, 6, (cases, 1, channels))
    t = np.arange(length)[None, :, None]
    values = np.sin((labels[:, None, None] + 1) * 0.3 * t + phase) * 5 + 100 + rng.normal(size=(cases, 1, channels))
    return values.astype(np.float32), labels


@pytest.mark.parametrize("stride", [1, 4])
@pytest.mark.parametrize("mixer", MIXERS)
def test_padding_and_company_change_nothing(mixer, stride):
    model = network(mixer=mixer, stride=stride, kernel=2 * stride + 1, rescaled=(1,))
    values = torch.from_numpy(waves(3)[0])
    alone = torch.cat([model(values[:1, :17]), model(values[1:2, :30]), model(values[2:])])
    values[0, 17:], values[1, 30:] = torch.nan, torch.nan
    padded = torch.cat([values, torch.full((3, 11, 2), torch.nan)], dim=1)
    torch.testing.assert_close(model(padded), alone, rtol=1e-4, atol=1e-4)


def test_missing_values_are_the_mean_and_are_seen():
    model = network()
    values = torch.from_numpy(waves(4)[0])
    values[:, 5:9, 1] = torch.nan
    values[0, :3] = torch.nan
    logits = model(values)
    assert logits.isfinite().all()
    mean = torch.where(values.isnan(), model.loc.expand_as(values), values)
    assert (logits - model(mean)).abs().max() > 1e-4
    assert model(torch.full((1, 6, 2), torch.nan)).isfinite().all()


def test_small_series_are_read_beside_large_ones():
    """Scales from 1e-9 to 1e9: in units of the training set, nearly all series are zero."""
    values, labels = waves(120)
    test, truth = waves(seed=1)
    sizes = 10 ** np.random.default_rng(2).uniform(-9, 9, (2, 120, 1, 1))
    values, test = (values - 100) * sizes[0], (test - 100) * sizes[1, :60]
    values, test = values.astype(np.float32), test.astype(np.float32)
    values[3] = np.nan
    assert outshone_channels(values) == (0, 1) and outshone_channels(waves()[0]) == ()
    assert outshone_channels(np.full((3, 4, 1), np.nan, np.float32)) == ()
    training = ClassifierTrainingConfig(max_steps=150, min_steps=150, learning_rate=5e-3)
    right = []
    for rescaled in ((), (0, 1)):
        model = fit(network(rescaled=rescaled), values, labels, training, device="cpu")
        found = log_probabilities(model, torch.from_numpy(test)).argmax(1).numpy()
        right.append((found == truth).mean())
    assert right[0] < 0.7 and right[1] > 0.9, right


def test_rescaled_series_have_no_unit(generator):
    values = torch.randn(2, 50, 3, generator=generator)
    values[0, 40:], values[1, 7, 1] = torch.nan, torch.nan
    scaled = rescale(values)
    assert (scaled[values.isnan()] == 0).all()
    torch.testing.assert_close(scaled[0, :40].mean(0), torch.zeros(3), atol=1e-6, rtol=0)
    torch.testing.assert_close(scaled[0, :40].square().mean(0), torch.ones(3))
    for factor in (1e-30, -1.0, 1e30):
        torch.testing.assert_close(rescale(values * factor), scaled * np.sign(factor))
    nothing = torch.stack([torch.full((2, 5), 0.1), torch.full((2, 5), torch.nan)], dim=-1)
    assert (rescale(nothing) == 0).all()


def test_long_series_are_cut_finer():
    strides = {length: Recipe().stride(length) for length in (1, 50, 51, 400, 401, 3200, 3201, 17984)}
    assert strides == {1: 1, 50: 1, 51: 2, 400: 8, 401: 8, 3200: 8, 3201: 9, 17984: 45}
    assert Recipe(positions=50).stride(17984) == 360


def test_both_directions_are_read():
    values = torch.from_numpy(waves(2)[0])
    changed = values.clone()
    changed[:, 0] += 3
    for model in (network(), network(bidirectional=False)):
        assert (model(values) - model(changed)).abs().max() > 1e-5
    x = torch.arange(10.0).reshape(2, 5, 1)
    assert reverse(x, torch.tensor([3, 5]))[..., 0].tolist() == [[2, 1, 0, 3, 4], [9, 8, 7, 6, 5]]


@pytest.mark.parametrize(
    "changes", [{"warp": 0.0}, {"mixup": 0.4, "noise": 0.1, "stretch": 0.1, "hidden": 0.3, "warp": 0.3}]
)
def test_it_learns_in_any_unit(changes):
    values, labels = waves()
    values = values * np.array([1e-6, 1e6], np.float32)
    values[::7, 30:] = np.nan
    values[1::7, 4, 0] = np.nan
    training = ClassifierTrainingConfig(max_steps=120, min_steps=120, learning_rate=5e-3, **changes)
    model = fit(network(), values, labels, training, device="cpu")
    test, truth = waves(seed=1)
    test = test * np.array([1e-6, 1e6], np.float32)
    found = log_probabilities(model, torch.from_numpy(test)).argmax(1).numpy()
    assert (found == truth).mean() > 0.9
    seen = values[..., 0][~np.isnan(values[..., 0])]
    np.testing.assert_allclose(model.loc[0], seen.mean(), rtol=1e-4)
    np.testing.assert_allclose(model.scale[0], seen.std(), rtol=1e-4)


@pytest.mark.parametrize(("level", "unit"), [(1e4, 1.0), (1e9, 1.0), (0.0, 1e39), (0.0, 1e-46)])
def test_values_that_float32_cannot_hold(level, unit):
    """As of a channel of time stamps: counted from where they are, in units of their own."""
    values, labels = waves()
    plain = Recipe(width=16, layers=1, members=1, training=ClassifierTrainingConfig(max_steps=120, min_steps=120))
    moved = values.astype(np.float64) * unit + level
    ensemble = train(moved, labels, 3, plain, device="cpu")
    test, truth = waves(seed=1)
    test = test.astype(np.float64) * unit + level
    assert (ensemble.probabilities(test).argmax(1) == truth).mean() > 0.9
    again = pickle.loads(pickle.dumps(ensemble))
    np.testing.assert_array_equal(again.probabilities(test), ensemble.probabilities(test))


def test_warping_keeps_the_ends_and_passes_in_between_at_given_speeds():
    values = torch.tensor([[0.0, 1, 2, 3, 4, 5, 6, 7, 8], [0, 1, 2, 3, 4, torch.nan, torch.nan, torch.nan, torch.nan]])
    twice = torch.stack([values, -values], dim=-1)
    even = warped(twice, torch.ones(2, 4))
    torch.testing.assert_close(even, twice, equal_nan=True)
    # Half of the time for the first quarter of the way, then three quarters of it in the other half.
    uneven = warped(twice, torch.tensor([[1.0, 1, 3, 3], [1, 1, 3, 3]]))
    torch.testing.assert_close(uneven[0, :, 0], torch.tensor([0, 0.5, 1, 1.5, 2, 3.5, 5, 6.5, 8]))
    torch.testing.assert_close(uneven[1, :, 0], torch.tensor([0, 0.5, 1, 2.5, 4, *[torch.nan] * 4]), equal_nan=True)
    torch.testing.assert_close(uneven[..., 1], -uneven[..., 0], equal_nan=True)
    lonely = torch.full((1, 3, 1), torch.nan)
    torch.testing.assert_close(warped(lonely, torch.ones(1, 4)), lonely, equal_nan=True)


def test_early_stopping_keeps_the_best_epoch(monkeypatch):
    values, labels = waves(30)
    train, held_out = split(labels, 0.3, 0)
    assert sorted([*train, *held_out]) == list(range(30)) and np.bincount(labels[held_out]).tolist() == [3, 3, 3]

    def loss(model):
        chosen = log_probabilities(model, torch.from_numpy(values[held_out]))
        return -float(chosen[np.arange(len(held_out)), labels[held_out]].mean())

    losses = []
    end = _BestEpoch.on_train_epoch_end

    def watched(self, trainer, module):
        losses.append(loss(module.classifier))
        end(self, trainer, module)

    monkeypatch.setattr(_BestEpoch, "on_train_epoch_end", watched)
    training = ClassifierTrainingConfig(max_epochs=500, validation=0.3, patience=3, learning_rate=3e-2, batch_size=8)
    model = fit(network(width=16), values, labels, training, device="cpu")
    best = int(np.argmin(losses))
    assert loss(model) == pytest.approx(losses[best])
    assert len(losses) == best + 1 + training.patience < training.max_epochs
    _, none = split(np.array([0, 0, 1]), 0.9, 0)
    assert len(none) == 1, "the last case of a class is never held out"


def test_the_same_seed_gives_the_same_network_and_leaves_the_global_generator_alone():
    values, labels = waves(20)
    networks = [network() for _ in range(3)]
    state = torch.get_rng_state()
    seeds = (0, 0, 1)
    for one, seed in zip(networks, seeds, strict=True):
        torch.set_rng_state(state)
        fit(one, values, labels, ClassifierTrainingConfig(max_steps=5, min_steps=1, seed=seed), device="cpu")
    first, again, other = (one.head.weight for one in networks)
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_bad_settings():
    for changes, message in (({"kernel": 4}, "odd kernel"), ({"stride": 0}, "stride"), ({"dropout": 1.0}, "dropouts")):
        with pytest.raises(ValueError, match=message):
            network(**changes)
    with pytest.raises(ValueError, match="weave"):
        Classifier(ClassifierConfig(1, 2, backbone=BackboneConfig(width=16, weave=True)))
    with pytest.raises(ValueError, match="validation"):
        ClassifierTrainingConfig(validation=1.0)


def test_configuration_survives_json():
    config = network(stride=3, kernel=7).config
    assert ClassifierConfig.from_dict(config.to_dict()) == config


SMALL = {"width": 16, "members": 2, "max_steps": 80, "learning_rate": 5e-3, "device": "cpu"}


@pytest.fixture(scope="module")
def motions():
    return *load_basic_motions(split="train"), *load_basic_motions(split="test")


def test_real_motions_are_told_apart(motions):
    x, y, x_test, y_test = motions
    classifier = TsseqClassifier(**SMALL).fit(x, y)
    assert classifier.score(x_test, y_test) > 0.9
    chances = classifier.predict_proba(x_test)
    np.testing.assert_allclose(chances.sum(1), 1)
    assert (classifier.classes_[chances.argmax(1)] == classifier.predict(x_test)).all()
    parts = np.concatenate([classifier.predict_proba(x_test.iloc[[i]]) for i in range(3)])
    np.testing.assert_allclose(parts, chances[:3], atol=1e-5)
    for other in (pickle.loads(pickle.dumps(classifier)), copy.deepcopy(classifier)):
        np.testing.assert_allclose(other.predict_proba(x_test), chances, atol=1e-6)
    assert copy.deepcopy(classifier)._ensemble is classifier._ensemble


def test_unequal_lengths_in_every_container():
    x, y = load_japanese_vowels(split="train", return_type="nested_univ")
    some = np.r_[0:270:6]
    x, y = x.iloc[some], y[some]
    classifier = TsseqClassifier(**SMALL).fit(x, y)
    assert classifier.score(x, y) > 0.9
    for kind in ("df-list", "pd-multiindex"):
        same = classifier.predict_proba(convert_to(x, kind))
        np.testing.assert_allclose(same, classifier.predict_proba(x), atol=1e-6)


def test_in_a_scikit_learn_pipeline():
    x, y = load_basic_motions(split="train", return_type="numpy3d")
    x_test, y_test = load_basic_motions(split="test", return_type="numpy3d")
    pipeline = Pipeline([("root", FunctionTransformer(np.cbrt)), ("tsseq", TsseqClassifier(**SMALL))])
    assert pipeline.fit(x, y).score(x_test, y_test) > 0.9
    plain = TsseqClassifier(**SMALL).fit(np.cbrt(x), y)
    np.testing.assert_allclose(pipeline.predict_proba(x_test), plain.predict_proba(np.cbrt(x_test)), atol=1e-6)


def test_arrays_and_labels_of_any_kind(motions):
    values, labels = waves(24)
    x = values.transpose(0, 2, 1).astype(float)
    for y in (labels * 10, np.array(["a", "b", "c"])[labels]):
        classifier = TsseqClassifier(mixer="min_gru", max_steps=3, members=1, device="cpu").fit(x, y)
        assert set(classifier.predict(x)) <= set(y)
    longer = classifier.predict_proba(np.concatenate([x, x], axis=2))
    assert longer.shape == (24, 3)


def test_bad_input_says_what_to_do(motions):
    x, y, *_ = motions
    quick = {"max_steps": 1, "members": 1, "device": "cpu"}
    with pytest.raises(ValueError, match="expected mixers among"):
        TsseqClassifier(mixer="transformer", **quick).fit(x, y)
    with pytest.raises(ValueError, match="members"):
        TsseqClassifier(members=0).fit(x, y)
    with pytest.raises(TypeError, match="X"):
        TsseqClassifier(**quick).fit(["a"], np.array(["b"]))
    bad = np.ones((4, 2, 10))
    bad[2, 0, 3] = np.inf
    with pytest.raises(ValueError, match="series 2: impute"):
        TsseqClassifier(**quick).fit(bad, np.array([0, 1, 0, 1]))
    fitted = TsseqClassifier(**quick).fit(x, y)
    tables = [pd.DataFrame(np.ones((5, 6)))] * 2
    with pytest.raises(ValueError, match="6 channels as in the first, got 1 in 2"):
        fitted.predict([*tables, pd.DataFrame(np.ones((5, 1)))])
    with pytest.raises(ValueError, match="6 channels as in fit, got 3"):
        fitted.predict(np.ones((2, 3, 100)))


def test_the_command(tmp_path, capsys):
    data, out = tmp_path / "data", tmp_path / "out"
    data.mkdir()
    arrays = {}
    for part, seed in (("train", 0), ("test", 1)):
        values, labels = waves(30, seed=seed)
        lengths = np.full(30, 40)
        lengths[::5] = 33
        arrays |= {f"X_{part}": values.transpose(0, 2, 1), f"y_{part}": labels, f"len_{part}": lengths}
    np.savez(data / "Waves.npz", classes=np.array(["a", "b", "c"]), **arrays)
    words = ["evaluate", "uea", "--data", str(data), "--out", str(out), "--device", "cpu", "--members", "1"]
    words += ["--max_steps", "60", "--width", "16", "--layers", "1", "--learning_rate", "5e-3", "--max_epochs", "99"]
    assert main([*words, "--seeds", "0", "1"]) == 0
    table = pd.read_csv(out / "uea.csv")
    assert list(table["seed"]) == [0, 1] and (table["test"] == 30).all() and table["accuracy"].mean() > 0.6
    assert "Waves" in capsys.readouterr().out
    assert main([*words, "--protocol", "log-ncde"]) == 0
    again = pd.read_csv(out / "uea.csv")
    pd.testing.assert_frame_equal(again[:2], table)
    assert list(again["train"][2:]) == [42] * 5 and list(again["validation"][2:]) == [9] * 5
    assert main([*words, "--protocol", "log-ncde"]) == 0
    pd.testing.assert_frame_equal(pd.read_csv(out / "uea.csv"), again)
    capsys.readouterr()
    for wrong, message in (
        (["--mixer", "transformer"], "expected mixers among"),
        (["--names", "Absent"], "found Waves"),
        (["--width", "32"], "another classifier"),
    ):
        assert main([*words, *wrong]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.slow
def test_the_contract_of_sktime():
    """Every test that sktime has for classifiers, without exclusions."""
    results = check_estimator(TsseqClassifier, verbose=False)
    failed = {name: result for name, result in results.items() if result != "PASSED"}
    assert not failed and len(results) > 250
