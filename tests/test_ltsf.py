"""Forecasters trained on the user's series: their definitions, their training, and the command that scores them."""

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Generator, nn
from torch.utils.data import DataLoader

from tsseq.cli.evaluate_ltsf import PUBLISHED, ltsf
from tsseq.datasets.ltsf import load
from tsseq.linear_forecasters import (
    DLinear,
    NLinear,
    WindowErrors,
    WindowTraining,
    XLSTMTime,
    _order,
    moving_average,
    score_windows,
    train_forecaster,
)

CONTEXT, HORIZON = 24, 8


def models():
    torch.manual_seed(0)
    return {
        "dlinear": DLinear(CONTEXT, HORIZON),
        "nlinear": NLinear(CONTEXT, HORIZON),
        "xlstm_time": XLSTMTime(CONTEXT, HORIZON, channels=3, width=16, layers=1),
    }


def waves(length=400, channels=3, period=12):
    """Noisy sines of one period that drift upwards."""
    generator = Generator().manual_seed(0)
    time = torch.arange(length)
    phase = torch.arange(channels)[:, None] / channels
    noise = 0.3 * torch.randn(channels, length, generator=generator)
    return torch.sin(2 * torch.pi * (time / period + phase)) + 0.003 * time + noise


def test_moving_average_is_a_mean_that_repeats_the_ends():
    x = torch.tensor([[[1.0, 2.0, 4.0, 8.0]]])
    expected = torch.tensor([[[4 / 3, 7 / 3, 14 / 3, 20 / 3]]])
    torch.testing.assert_close(moving_average(x, 3), expected)
    torch.testing.assert_close(moving_average(x, 1), x)


def test_dlinear_started_at_the_mean_forecasts_the_mean():
    model = DLinear(CONTEXT, HORIZON, start_at_mean=True)
    for layer in (model.trend, model.rest):
        layer.bias.data.zero_()
    x = torch.randn(2, 3, CONTEXT, generator=Generator().manual_seed(0))
    torch.testing.assert_close(model(x), x.mean(-1, keepdim=True).expand(2, 3, HORIZON))


def test_nlinear_follows_the_level():
    model, x = models()["nlinear"], torch.randn(2, 3, CONTEXT, generator=Generator().manual_seed(0))
    torch.testing.assert_close(model(x + 7), model(x) + 7, rtol=1e-5, atol=1e-5)


def test_xlstm_time_follows_level_and_scale_of_each_channel():
    model, x = models()["xlstm_time"], torch.randn(2, 3, CONTEXT, generator=Generator().manual_seed(0))
    scale, level = torch.tensor([1.0, 10.0, 100.0])[:, None], torch.tensor([5.0, -5.0, 0.0])[:, None]
    torch.testing.assert_close(model(scale * x + level), scale * model(x) + level, rtol=1e-3, atol=1e-3)
    model.linear = DLinear(CONTEXT, HORIZON)  # one started at the mean sees nothing yet: normalised means are zero
    later = x.clone()
    later[:, 2] = torch.randn(2, CONTEXT, generator=Generator().manual_seed(1))
    assert torch.equal(model(later)[:, :2], model(x)[:, :2])
    assert not torch.allclose(model(later.flip(1)).flip(1)[:, :2], model(x.flip(1)).flip(1)[:, :2])


@pytest.mark.parametrize("name", models())
def test_training_beats_the_last_season(name):
    model, values = models()[name], waves()
    training = WindowTraining(
        epochs=8, batch_size=8, learning_rate=1e-2, one_cycle=name == "xlstm_time", absolute=name == "xlstm_time"
    )
    heard = []
    best = train_forecaster(
        model, values, (280, 340), CONTEXT, HORIZON, training,
        generator=Generator().manual_seed(0), report=lambda epoch, errors: heard.append(errors),
    )  # fmt: skip
    assert best == min(heard, key=lambda errors: errors[training.absolute])
    test = score_windows(model, values, (340, 400), CONTEXT, HORIZON)

    class LastSeason(nn.Module):
        def forward(self, x):
            return x[..., -12:-4]

    assert test.mse < score_windows(LastSeason(), values, (340, 400), CONTEXT, HORIZON).mse
    # The weights kept are those of the best epoch.
    assert score_windows(model, values, (280, 340), CONTEXT, HORIZON) == best


def test_training_follows_its_generator():
    scores = []
    for seed in (0, 0, 1):
        model = models()["dlinear"]
        training = WindowTraining(epochs=1)
        generator = Generator().manual_seed(seed)
        scores.append(train_forecaster(model, waves(), (280, 340), CONTEXT, HORIZON, training, generator=generator))
    assert scores[0] == scores[1] != scores[2]


def test_learning_rate_halves_after_every_epoch_but_the_first(monkeypatch):
    rates = []
    step = torch.optim.Adam.step

    def watched(self, *args, **kwargs):
        rates.append(self.param_groups[0]["lr"])
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.Adam, "step", watched)
    training = WindowTraining(epochs=4, batch_size=100, learning_rate=0.5, patience=9)
    model = models()["nlinear"]
    train_forecaster(model, waves(), (280, 340), CONTEXT, HORIZON, training, generator=Generator().manual_seed(0))
    # 249 windows: two batches of 100 an epoch, and 49 left over.
    assert rates == [0.5] * 4 + [0.25] * 2 + [0.125] * 2


def test_order_is_that_of_a_data_loader():
    """One over the training part, one shuffled over the validation part, one over the test part, as published."""
    torch.manual_seed(3)
    state = torch.get_rng_state()
    loaders = [DataLoader(range(7), shuffle=shuffle) for shuffle in (True, True, False)]
    expected = [[int(x) for loader in loaders for x in loader][:7] for _ in range(2)]
    generator = Generator()
    generator.set_state(state)
    assert [_order(7, generator).tolist() for _ in range(2)] == expected


def test_scores_cover_exactly_the_part():
    values = torch.zeros(1, 60)
    values[0, 50] = 1.0

    class Zero(nn.Module):
        def forward(self, x):
            return torch.zeros(*x.shape[:2], HORIZON)

    # Futures of 8 steps within steps 40 to 59 start at 40 to 52; those that hold step 50 start at 43 to 50.
    assert score_windows(Zero(), values, (40, 60), CONTEXT, HORIZON) == WindowErrors(8 / (13 * 8), 8 / (13 * 8))
    with pytest.raises(ValueError, match="at least 24 steps before and 8 within steps 55 to 60"):
        score_windows(Zero(), values, (55, 60), CONTEXT, HORIZON)


def test_wrong_sizes_are_named():
    with pytest.raises(ValueError, match="context and horizon must be at least 1, got 0 and 8"):
        NLinear(0, 8)
    with pytest.raises(ValueError, match="kernel must be odd and positive, got 4"):
        DLinear(24, 8, kernel=4)


@pytest.fixture
def folder(tmp_path):
    """A small set in the layout of the benchmark: a date and one column per channel."""
    frame = pd.DataFrame(waves(1000).numpy().T, columns=["a", "b", "c"])
    frame.insert(0, "date", pd.date_range("2020-01-01", periods=1000, freq="h"))
    frame.to_csv(tmp_path / "waves.csv", index=False)
    return tmp_path


def test_command_writes_and_continues(folder, capsys):
    out = folder / "results"
    ltsf(data=folder, sets=["waves"], model=["nlinear"], horizons=[HORIZON], context=CONTEXT, epochs=1, out=out)
    first = pd.read_csv(out / "ltsf.csv")
    ltsf(data=folder, sets=["waves"], horizons=[HORIZON], context=CONTEXT, epochs=1, out=out)
    both = pd.read_csv(out / "ltsf.csv")
    assert both["model"].tolist() == ["nlinear", "dlinear"]
    pd.testing.assert_frame_equal(both.head(1), first)
    assert f"{first['mse'][0]:.4f}" in capsys.readouterr().out
    benchmark = load(folder, "waves")
    futures = np.stack([future for _, future in benchmark.windows(CONTEXT, HORIZON)])
    assert first["mse"][0] < np.square(futures).mean()


def test_only_runs_with_the_same_settings_and_data_count_as_done(folder):
    options = {"sets": ["waves"], "model": ["nlinear"], "horizons": [HORIZON], "context": CONTEXT, "out": folder}
    for changed in ({"epochs": 1}, {"epochs": 2}, {"batch_size": 8}, {"learning_rate": 0.1}, {"epochs": 1}):
        ltsf(data=folder, **{"epochs": 1, **changed}, **options)
    assert len(pd.read_csv(folder / "ltsf.csv")) == 4
    frame = pd.read_csv(folder / "waves.csv")
    frame.loc[999, "a"] += 1.0
    frame.to_csv(folder / "waves.csv", index=False)
    for _ in range(2):
        ltsf(data=folder, epochs=1, **options)
    assert len(pd.read_csv(folder / "ltsf.csv")) == 5


def test_command_names_a_device_that_is_not_there(folder):
    with pytest.raises(ValueError, match="a device that this machine has, such as cpu or cuda, got 'gpu'"):
        ltsf(data=folder, sets=["waves"], device="gpu")


def test_published_errors_are_complete():
    assert all(len(horizons) == 4 for sets in PUBLISHED.values() for horizons in sets.values())
