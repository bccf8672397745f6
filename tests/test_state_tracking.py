"""State-tracking words against their rules in plain Python."""

from itertools import permutations

import pandas as pd
import pytest
import torch

from tsseq.backbone import BackboneConfig
from tsseq.cli.evaluate_state_tracking import state_tracking as command
from tsseq.cli.state_tracking_models import (
    BRACKETS,
    GROUP_ROWS,
    LANGUAGE_ROWS,
    LANGUAGES,
    model,
    published,
    training_of,
)
from tsseq.datasets import state_tracking
from tsseq.datasets.state_tracking import TASKS, group_table
from tsseq.state_tracker import Score, StateTracker, TrackerTraining, train_tracker

SYMBOLS = "01234+-*=()"


def draw(name, lengths=(3, 40), batch=200, seed=0):
    return TASKS[name].sample(torch.Generator().manual_seed(seed), batch, lengths)


def rows(name, **options):
    """Tokens and labels of each word without its padding, as lists."""
    tokens, labels, scored = draw(name, **options)
    for row, label, mask in zip(tokens, labels, scored, strict=True):
        inside = row < TASKS[name].vocabulary
        yield row[inside].tolist(), label[inside].tolist(), mask[inside].tolist()


def compose(first, second):
    return tuple(second[i] for i in first)


def answer(name, word):
    if name == "parity":
        return sum(word) % 2
    if name == "even_pairs":
        return int(sum(a != b for a, b in zip(word, word[1:], strict=False)) % 2 == 0)
    if name == "cycle_navigation":
        return sum({0: 0, 1: 1, 2: -1}[move] for move in word) % 5
    text = "".join(SYMBOLS[token] for token in word)
    assert text.endswith("=") and text.count("=") == 1
    return eval(text[:-1], {"__builtins__": {}}) % 5


@pytest.mark.parametrize(
    "name", ["parity", "even_pairs", "cycle_navigation", "modular_arithmetic", "modular_arithmetic_brackets"]
)
def test_languages_are_labelled_right(name):
    seen, lengths = set(), set()
    for word, labels, scored in rows(name):
        assert scored == [False] * (len(word) - 1) + [True]
        assert labels[-1] == answer(name, word)
        seen.add(labels[-1])
        lengths.add(len(word))
    assert seen == set(range(TASKS[name].classes))
    assert min(lengths) in (3, 4) and max(lengths) == 40


def test_bracketed_expressions_use_every_symbol_and_shape():
    words = ["".join(SYMBOLS[t] for t in word) for word, _, _ in rows("modular_arithmetic_brackets", lengths=(2, 40))]
    assert set("".join(words)) == set(SYMBOLS)
    assert max(word.count("(") for word in words) > 4


@pytest.mark.parametrize(("name", "degree", "size"), [("s3", 3, 6), ("s4", 4, 24), ("a5", 5, 60), ("s5", 5, 120)])
def test_word_problems_are_products_of_permutations(name, degree, size):
    elements = list(permutations(range(degree)))
    if name == "a5":
        elements = [p for p in elements if round(float(torch.linalg.det(torch.eye(degree)[list(p)]))) == 1]
    assert len(elements) == size == TASKS[name].classes
    for word, labels, scored in rows(name, batch=20):
        assert all(scored)
        product = elements[0]
        for token, label in zip(word, labels, strict=True):
            product = compose(product, elements[token])
            assert product == elements[label]


def test_group_tables_are_groups():
    for degree, even in ((3, False), (4, True)):
        table = group_table(degree, even)
        n = len(table)
        assert torch.equal(table[0], torch.arange(n)) and torch.equal(table[:, 0], torch.arange(n))
        assert all(sorted(row.tolist()) == list(range(n)) for row in (*table, *table.T))
        assert torch.equal(table[table], table[:, table])


@pytest.mark.parametrize("name", TASKS)
def test_words_follow_the_generator(name):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first, again, other = draw(name), draw(name), draw(name, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(map(torch.equal, first, again))
    assert not torch.equal(first.tokens, other.tokens)
    counts = torch.bincount(first.labels[first.scored], minlength=TASKS[name].classes)
    assert counts.min() > 0 or TASKS[name].classes > 60


def test_wrong_requests_are_named():
    with pytest.raises(ValueError, match="task among parity, .*; got 'chess'"):
        state_tracking.load("chess")
    with pytest.raises(ValueError, match="1 <= low <= high, got 5 and 3"):
        draw("parity", lengths=(5, 3))


SHORT = TrackerTraining(
    steps=300,
    batch_size=64,
    learning_rate=1e-2,
    every_position=True,
    train_length=(1, 10),
    test_length=(20, 60),
    test_words=512,
    test_every=50,
)


def best(mixer, **options):
    """Best accuracy on parity of words two to six times as long as in training."""
    config = BackboneConfig((mixer,), width=32, layers=1, mlp_width=32, options={mixer: options})
    return max(score.accuracy for score in train_tracker(TASKS["parity"], config, SHORT))


def test_parity_takes_negative_eigenvalues():
    assert best("gated_delta_product", kernel=1, heads=1, gated=False) > 0.999
    assert best("gated_delta_product", kernel=1, heads=1, gated=False, negative_eigenvalues=False) < 0.6


def test_parity_takes_memory_that_mixes_with_itself():
    assert best("slstm") > 0.9
    assert best("mlstm") < 0.6


def test_training_repeats_itself_and_leaves_the_global_generator_alone():
    training = TrackerTraining(
        steps=4, batch_size=8, test_every=2, test_words=32, test_length=(5, 9), every_position=True, penalty=1e-3
    )
    config = BackboneConfig(("slice",), width=8, layers=1, mlp_width=0)
    torch.manual_seed(7)
    before, heard = torch.get_rng_state(), []
    scores = train_tracker(TASKS["s3"], config, training, seed=3, report=heard.append)
    assert torch.equal(torch.get_rng_state(), before)
    assert scores == heard and [score.step for score in scores] == [2, 4]
    assert scores == train_tracker(TASKS["s3"], config, training, seed=3)


def test_learning_rate_rises_and_falls():
    rates = [TrackerTraining(steps=100).rate(step) for step in range(101)]
    assert rates[0] == 0.1 and rates[9] == rates[10] == 1.0
    assert rates[-1] == pytest.approx(0.005)
    assert sorted(rates[10:], reverse=True) == rates[10:]


def test_training_stops_when_all_is_right(monkeypatch):
    monkeypatch.setattr("tsseq.state_tracker.accuracy", lambda *_: 1.0)
    config = BackboneConfig(("lru",), width=4, layers=1, mlp_width=0)
    training = TrackerTraining(steps=6, batch_size=2, test_every=2)
    assert train_tracker(TASKS["parity"], config, training) == [Score(2, 1.0)]


@pytest.mark.parametrize(
    ("task", "name"), [*(("parity", name) for name in LANGUAGE_ROWS), *(("a5", name) for name in GROUP_ROWS)]
)
def test_models_of_the_tables_can_be_built(task, name):
    config, training = model(task, name, 8, 2, 0, {})
    assert training_of(TrackerTraining(start_length=5), training, {"batch_size": 3}).batch_size == 3
    logits = StateTracker(TASKS[task], config)(torch.zeros(2, 5, dtype=torch.long))
    assert logits.shape == (2, 5, TASKS[task].classes) and logits.isfinite().all()


def test_published_accuracies_are_complete():
    assert all(len(row.published) == len(LANGUAGES) for row in LANGUAGE_ROWS.values() if row.published)
    assert published("parity", "delta_net") == 57.8 and published("parity", "lru") is published("a5", "mamba") is None
    assert published("modular_arithmetic_brackets", "slstm") == pytest.approx(33.84)
    assert set(BRACKETS) < set(LANGUAGE_ROWS)


def test_words_grow_as_they_are_learnt(monkeypatch):
    """Every label right: from two tokens by a third at a time, at least one, up to the longest."""
    seen = []
    right = torch.ones(())
    monkeypatch.setattr(
        "tsseq.state_tracker._loss",
        lambda model, words, _: (seen.append(words.tokens.shape[1]), (model.read_out.bias.sum(), right))[1],
    )
    training = TrackerTraining(steps=200, batch_size=2, start_length=2, train_length=(1, 9), test_words=2, enough=2.0)
    train_tracker(TASKS["s3"], BackboneConfig(("lru",), 4, 1, 0), training)
    assert list(dict.fromkeys(seen)) == [2, 3, 4, 5, 6, 8, 9] and seen == sorted(seen)
    with pytest.raises(ValueError, match="start_length of at least 3, got 2"):
        TrackerTraining(start_length=2)


def test_command_writes_and_continues(tmp_path, capsys):
    options = {"task": ["parity"], "seeds": [0, 1], "steps": 2, "batch_size": 2, "test_words": 4, "test_length": [4, 6]}
    command(mixer=["min_gru"], width=8, layers=1, out=tmp_path, **options)
    first = pd.read_csv(tmp_path / "state_tracking.csv")
    assert first["seed"].tolist() == [0, 1] and first["best"].between(0, 1).all()
    command(mixer=["min_gru", "delta_net[-1,1]"], width=8, layers=1, out=tmp_path, **options)
    both = pd.read_csv(tmp_path / "state_tracking.csv")
    assert len(both) == 4
    pd.testing.assert_frame_equal(both.head(2), first)
    said = capsys.readouterr().out
    assert "97.7" in said and "delta_net[-1,1]" in said


def test_several_processes_find_the_same(tmp_path, capsys):
    options = {"task": ["parity"], "mixer": ["min_gru", "lru"], "steps": 2, "batch_size": 2, "test_words": 4}
    command(out=tmp_path / "one", **options)
    command(workers=2, out=tmp_path / "two", **options)
    one, two = (pd.read_csv(tmp_path / name / "state_tracking.csv") for name in ("one", "two"))
    two = two.set_index("model").loc[one["model"]].reset_index()[one.columns]
    pd.testing.assert_frame_equal(one.drop(columns="seconds"), two.drop(columns="seconds"))


def test_only_runs_with_the_same_settings_count_as_done(tmp_path):
    options = {"task": ["parity"], "mixer": ["lru"], "steps": 2, "batch_size": 2, "test_words": 4, "out": tmp_path}
    for rate in (1e-3, 1e-2, 1e-3):
        command(learning_rate=rate, **options)
    assert len(pd.read_csv(tmp_path / "state_tracking.csv")) == 2


def test_command_trains_groups_on_their_own_lengths(tmp_path):
    command(task=["a5"], mixer=["slice[dense]"], steps=1, batch_size=2, test_words=2, out=tmp_path)
    run = pd.read_csv(tmp_path / "state_tracking.csv").iloc[0]
    assert (run["layers"], run["trained_on"], run["tested_on"]) == (1, "1-20", "20-20")


def test_command_names_what_is_wrong():
    with pytest.raises(ValueError, match=r"mixer or model among .*slice\[dplr\]; got 'gru'"):
        command(mixer=["gru"])
    with pytest.raises(ValueError, match="two numbers for train_length, got 3"):
        command(train_length=[3])
    with pytest.raises(ValueError, match="task among"):
        command(task=["sudoku"])
    with pytest.raises(ValueError, match="at least 1 worker, got 0"):
        command(workers=0)
    for smoothing in (3, -0.1, float("nan")):
        with pytest.raises(ValueError, match="label_smoothing between 0 and 1, got"):
            command(label_smoothing=smoothing)
    with pytest.raises(ValueError, match="positive width and layers and .* got 64, 0 and 0"):
        command(task=["parity"], mixer=["lru"], layers=0)
    with pytest.raises(ValueError, match="a device that this machine has, such as cpu or cuda, got 'gpu'"):
        command(task=["parity"], mixer=["lru"], device="gpu")
