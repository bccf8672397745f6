"""Training: the stream, its tasks, the optimiser, and a run that is killed and resumed."""

import dataclasses
import errno
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import lightning
import pandas as pd
import pytest
import torch

from tsseq.backbone import BackboneConfig
from tsseq.checkpoint import load
from tsseq.cli.__main__ import main
from tsseq.cli.pretrain import run
from tsseq.datasets.stream import PriorStream, StreamConfig, stream_seed
from tsseq.datasets.tasks import masked_spans
from tsseq.forecaster import Forecaster, ForecasterConfig
from tsseq.muon import NorMuon, orthogonalise, parameter_groups
from tsseq.synthetic.base import Prior
from tsseq.synthetic.mixture import preset
from tsseq.training import ForecasterModule, ForecastingLoss, TrainingConfig

PATCH = 8
TINY = ForecasterConfig(
    patch_length=PATCH,
    hidden_width=32,
    max_context=128,
    backbone=BackboneConfig(width=32, layers=2, mlp_width=32, options={"gated_delta_product": {"heads": 2}}),
)
STREAM = StreamConfig(batch_size=8, patches=16, patch_length=PATCH, cuts=())


@dataclass(frozen=True)
class Sines(Prior):
    def sample(self, generator, batch_size, length):
        period, phase = 4 + 28 * torch.rand(2, batch_size, 1, generator=generator)
        noise = torch.randn(batch_size, length, generator=generator)
        return torch.sin(2 * torch.pi * torch.arange(length) / period + phase) + 0.1 * noise


def test_stream_seeds_differ():
    seeds = {stream_seed(seed, rank, step) for seed in range(5) for rank in range(5) for step in range(200)}
    assert len(seeds) == 5 * 5 * 200
    assert min(seeds) >= 0 and max(seeds) < 2**63


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 3])
def test_batches_do_not_depend_on_workers(workers):
    stream = PriorStream(Sines(), STREAM, first_step=5)
    loader = torch.utils.data.DataLoader(stream, batch_size=None, num_workers=workers)
    for step, batch in zip(range(5, 10), loader, strict=False):
        expected = stream.batch(step)
        for got, want in zip(batch, expected, strict=True):
            torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)


def test_ranks_draw_different_series():
    first, second = (PriorStream(Sines(), STREAM, rank=rank).batch(0).values for rank in (0, 1))
    assert not torch.equal(first, second)


def test_same_batch_in_a_fresh_process():
    code = (
        "from tsseq.synthetic.mixture import preset\n"
        "from tsseq.datasets.stream import PriorStream, StreamConfig\n"
        "stream = PriorStream(preset('tsseq'), StreamConfig(batch_size=8, patches=4, patch_length=8, seed=3))\n"
        "print(stream.batch(7).values.nan_to_num().double().sum().item())"
    )
    sums = {
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout for _ in "ab"
    }
    assert len(sums) == 1


def test_tasks_hide_spans_and_never_score_what_was_fitted_only(generator):
    values = torch.randn(500, 129 * PATCH, generator=generator)
    values[:, 3::7] = torch.nan
    task = masked_spans(generator, values, PATCH)
    missing = values.isnan()
    assert not (task.visible & missing).any() and not (task.targets & missing).any()
    assert not (task.fitted & ~task.visible).any()
    assert task.fitted.any(1).all(), "every series needs something to fit its scale to"
    assert task.targets.any(1).all(), "every series needs something to forecast"
    hidden = (~task.visible & task.targets).float().mean() / task.targets.float().mean()
    assert 0.2 < hidden < 0.6, f"{hidden:.2f} of the targets are hidden"


def test_tasks_reject_ragged_lengths(generator):
    with pytest.raises(ValueError, match="multiple of patch_length"):
        masked_spans(generator, torch.randn(2, 3 * PATCH + 1), PATCH)


def test_orthogonalise_brings_singular_values_near_one(generator):
    matrices = torch.randn(3, 40, 24, generator=generator)
    values = torch.linalg.svdvals(orthogonalise(matrices))
    assert 0.5 < values.min() and values.max() < 1.4


def test_stream_cuts_its_steps_in_the_shares_asked_for():
    config = StreamConfig(batch_size=2, patches=8, patch_length=4, cuts=((2, 0.3), (4, 0.2)), block=4)
    stream = PriorStream(Sines(), config)
    shapes = [tuple(stream.batch(step).values.shape) for step in range(300)]
    share = {shape: shapes.count(shape) / len(shapes) for shape in set(shapes)}
    assert set(share) == {(8, 8), (4, 16), (2, 32)}
    assert abs(share[8, 8] - 0.3) < 0.1 and abs(share[4, 16] - 0.2) < 0.1


def test_a_woven_stack_is_scored_on_what_it_has_not_heard():
    woven = dataclasses.replace(TINY, backbone=dataclasses.replace(TINY.backbone, weave=True))
    loss = ForecastingLoss(Forecaster(woven))
    batch = PriorStream(Sines(), STREAM).batch(0)
    tokens, _, scored = loss._encode(*batch)
    assert scored.any()
    ahead = torch.cat([torch.zeros_like(scored[:, :1]), scored], dim=1).flatten(1)
    others = batch._replace(values=torch.where(ahead, torch.randn_like(batch.values), batch.values))
    assert torch.equal(loss._encode(*others)[0], tokens)


def test_a_block_drawn_between_steps_is_the_one_drawn_at_once():
    """Steps in order draw the next block ahead, piece by piece; a fresh stream draws the block of one step whole."""
    config = StreamConfig(batch_size=4, patches=4, patch_length=4, cuts=(), missing=0.0, block=5)
    running = PriorStream(preset("tsseq"), config)
    for step in range(12):
        alone = PriorStream(preset("tsseq"), config).batch(step)
        for found, expected in zip(running.batch(step), alone, strict=True):
            assert torch.equal(found, expected), step
    last = running.batch(9)  # a step behind, with a later block half drawn
    assert torch.equal(last.values, PriorStream(preset("tsseq"), config).batch(9).values)


@pytest.mark.parametrize("cuts", [((1, 0.5),), ((16, -0.1),), ((4, 0.6), (8, 0.6))])
def test_bad_cuts(cuts):
    with pytest.raises(ValueError, match="shares of at most 1"):
        StreamConfig(cuts=cuts)


def test_schedule():
    config = TrainingConfig(max_steps=100, warmup_steps=10, decay_fraction=0.2)
    assert (
        config.factor(0) < 0.1 and config.factor(50) == 1.0 and config.factor(90) == 0.5 and config.factor(100) == 0.0
    )
    assert TrainingConfig(max_steps=100, decay_fraction=0.0).factor(100) > 0.0


@pytest.mark.parametrize("missing", [2.0, -1.0])
def test_bad_share_of_missing_values(missing):
    with pytest.raises(ValueError, match=r"expected missing, a share, in \[0, 1\]"):
        StreamConfig(missing=missing)


@pytest.mark.parametrize(
    "bad",
    [{"max_steps": 0}, {"decay_fraction": 1.5}, {"ema_decay": 1.0}, {"weight_decay": -1.0}, {"learning_rate": -1.0}],
)
def test_bad_training_config(bad):
    with pytest.raises(ValueError, match="expected"):
        TrainingConfig(**bad)


def test_training_learns():
    torch.manual_seed(0)
    model = Forecaster(TINY)
    optimizer = NorMuon(parameter_groups(model, 0.0), lr=5e-3)
    losses = []
    for _, batch in zip(range(60), PriorStream(Sines(), STREAM), strict=False):
        loss = ForecastingLoss(model)(*batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-10:]) < 0.75 * sum(losses[:10])


def test_constant_prefix_does_not_poison_the_loss():
    values = torch.zeros(4, 17 * PATCH)
    values[:, -3 * PATCH :] = 1e4 * torch.randn(4, 3 * PATCH)
    model = Forecaster(TINY)
    loss = ForecastingLoss(model)(*masked_spans(torch.Generator().manual_seed(0), values, PATCH))
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def pretrain(folder, *callbacks, log_every=1, max_steps=12):
    run(
        folder,
        "seasonal_trend",
        TINY,
        TrainingConfig(max_steps=max_steps, warmup_steps=2, ema_decay=0.5, decay_fraction=0.5),
        STREAM,
        workers=0,
        save_every=4,
        accelerator="cpu",
        precision=None,
        log_every_n_steps=log_every,
        extra_callbacks=callbacks,
    )


KILLED = """
import os, sys, lightning
from pathlib import Path
sys.path.append({tests!r})
from test_training import pretrain
class Kill(lightning.Callback):
    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == 6:
            os._exit(9)
pretrain(Path({folder!r}), Kill())
"""


@pytest.mark.slow
def test_killed_run_resumes_with_the_same_loss_curve(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir(), killed.mkdir()
    pretrain(whole)
    code = KILLED.format(tests=str(Path(__file__).parent), folder=str(killed))
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 9
    assert (killed / "last.ckpt").exists() and not (killed / "model.safetensors").exists()
    pretrain(killed)
    curves = [pd.read_csv(folder / "metrics.csv").set_index("step")["loss"] for folder in (whole, killed)]
    assert list(curves[0].index) == list(range(12))
    pd.testing.assert_series_equal(*curves)
    models = [load(folder / "model.safetensors").state_dict() for folder in (whole, killed)]
    for key, weight in models[0].items():
        torch.testing.assert_close(weight, models[1][key], rtol=1e-6, atol=1e-7)
    assert all((folder / "loss.png").stat().st_size > 1000 for folder in (whole, killed))


SMALL_RUN = "--prior sine_waves --width 16 --layers 1 --mlp_width 16 --patches 4 --batch_size 4 --max_steps 3"


@pytest.mark.slow
def test_from_the_shell_to_a_forecast(tmp_path, capsys):
    run_folder = tmp_path / "run"
    assert main(f"pretrain {run_folder} {SMALL_RUN} --log-every 1 --accelerator cpu".split()) == 0
    assert "model.safetensors" in capsys.readouterr().out.replace("\n", "")
    assert list(pd.read_csv(run_folder / "metrics.csv")["step"]) == [0, 1, 2]
    assert (run_folder / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert main(f"forecast airline --horizon 5 --checkpoint {run_folder} --out {tmp_path}/f.csv".split()) == 0
    assert len(pd.read_csv(tmp_path / "f.csv")) == 5


@pytest.mark.slow
def test_a_run_can_start_from_the_weights_of_another(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    assert main(f"pretrain {first} {SMALL_RUN} --accelerator cpu".split()) == 0
    still = f"--start {first} --scaler context --learning_rate 0 --seed 7 --accelerator cpu"
    assert main(f"pretrain {second} {SMALL_RUN} {still}".split()) == 0
    one, two = load(first), load(second)
    assert (one.config.scaler, two.config.scaler) == ("causal", "context")
    for name, weight in one.state_dict().items():
        torch.testing.assert_close(two.state_dict()[name], weight)


@pytest.mark.parametrize(
    "option, message",
    [
        ("--start base --width 16", "do not fit the network"),
        ("--start nonsense", "no checkpoint 'nonsense'"),
        ("--mixer nonsense", "expected mixers among"),
        ('--options {"nonsense":7}', "expected options of gated_delta_product among heads"),
        ('--options {"heads":7}', "width must be an even multiple of heads, got width 256 and heads 7"),
        ("--prior nonsense", "expected a mixture among"),
        ("--max_steps 0", "expected max_steps of at least 1"),
        ("--learning_rate fast", "expected a number for learning_rate, got 'fast'"),
        ("--patches 0", "got 32, 512 and 0"),
        ("--batch_size 0", "must be at least 1"),
        ("--layers -1", "expected positive width and layers"),
        ('--mixer gla --options {"heads":"x"}', "expected heads of type int, got 'x'"),
        ("--accelerator abacus", "for accelerator, got 'abacus'"),
        ("--accelerator tpu", "for accelerator, got 'tpu'"),
        ("--devices 0", "devices=0"),
        ("--devices -1", "devices=-1"),
        ("--save_every 0", "save_every must be at least 1, got 0"),
        (f"{SMALL_RUN} --log_every 0", "log_every=0"),
        (f"{SMALL_RUN} --block 0", "must be at least 1"),
        ("--max_time soon", "duration='soon'"),
        ("--precision half", "Precision 'half' is invalid"),
    ],
)
def test_wrong_calls_from_the_shell(option, message, fails):
    fails(["pretrain", fails.out, *option.split()], message)


def test_last_checkpoint_is_replaced_and_never_rewritten(tmp_path, monkeypatch):
    """Also where temporary files are on another disk."""

    def other_disk(*_, **__):
        raise OSError(errno.EXDEV, "another disk")

    class Link(lightning.Callback):
        def on_train_batch_end(self, trainer, *_):
            if trainer.global_step == 5:
                os.link(tmp_path / "last.ckpt", tmp_path / "fifth")

    monkeypatch.setattr(os, "rename", other_disk)
    pretrain(tmp_path, Link())
    assert torch.load(tmp_path / "fifth", weights_only=True)["global_step"] == 4
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 12
    assert not list(tmp_path.glob("*.partial"))


def test_a_longer_run_stopped_early_has_its_last_weights_and_no_old_average(tmp_path):
    class Stop(lightning.Callback):
        def on_train_batch_end(self, trainer, *_):
            trainer.should_stop = trainer.global_step == 14

    pretrain(tmp_path)
    pretrain(tmp_path, Stop(), max_steps=1000)
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 14
    for name, weight in load(tmp_path).state_dict().items():
        average, last = (saved[key][f"loss.forecaster.{name}"] for key in ("state_dict", "current_model_state"))
        assert torch.equal(weight, last) and not torch.equal(weight, average), name


def test_a_finished_run_stays_as_it_is(tmp_path):
    pretrain(tmp_path)
    finished = (tmp_path / "model.safetensors").read_bytes()
    pretrain(tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == finished


def test_wrong_folders_from_the_shell(fails, tmp_path):
    (tmp_path / "file").write_text("")
    fails(["pretrain", tmp_path / "file"], "is a file; expected a folder")
    fails(["pretrain", tmp_path / "no" / "such" / "run"], "does not exist")


def test_gradient_that_is_not_finite_changes_nothing():
    module = ForecasterModule(Forecaster(TINY), TrainingConfig())
    for p in module.parameters():
        p.grad = torch.full_like(p, torch.nan)
    module.configure_gradient_clipping(None, 1.0)
    assert all((p.grad == 0).all() for p in module.parameters())


def test_run_too_short_for_a_line_of_its_log_still_leaves_a_model(tmp_path):
    pretrain(tmp_path, log_every=100)
    assert load(tmp_path / "model.safetensors") and (tmp_path / "loss.png").stat().st_size > 1000
    assert pd.read_csv(tmp_path / "metrics.csv").empty


@pytest.mark.slow
def test_run_stopped_by_the_clock_keeps_its_weights_and_continues(tmp_path):
    class Stop(lightning.Callback):
        def on_train_batch_end(self, trainer, *_):
            trainer.should_stop = trainer.global_step == 5

    pretrain(tmp_path, Stop())
    early = load(tmp_path / "model.safetensors")
    assert not torch.equal(early.head.skip.weight, torch.zeros_like(early.head.skip.weight))
    assert list(pd.read_csv(tmp_path / "metrics.csv")["step"]) == list(range(5))
    pretrain(tmp_path)
    assert list(pd.read_csv(tmp_path / "metrics.csv")["step"]) == list(range(12))
