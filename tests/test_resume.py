"""A run of `tsseq pretrain` that is stopped, and called again: what it goes on with, and what it refuses."""

import pickle
import shutil
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest
import torch

from tsseq.checkpoint import load
from tsseq.cli.__main__ import main

SIZES = "--prior sine_waves --width 16 --layers 1 --mlp_width 16 --patches 4 --batch_size 4"
SMALL_RUN = f"{SIZES} --max_steps 3 --save_every 2 --accelerator cpu"


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A run from the shell with a last.ckpt after two of its three steps."""
    folder = tmp_path_factory.mktemp("begun") / "run"
    assert main(f"pretrain {folder} {SMALL_RUN}".split()) == 0
    return folder


@pytest.fixture
def resume(begun, tmp_path, capfd):
    """Resume a copy of it with other options: the exit status, and the last line said."""
    folder = shutil.copytree(begun, tmp_path / "run")

    def again(options):
        status = main(f"pretrain {folder} {SMALL_RUN} {options}".split())
        return status, capfd.readouterr().err.splitlines()[-1]

    again.folder = folder
    return again


@pytest.mark.parametrize(
    "options, change",
    [
        ("--learning_rate 1e-5", "learning_rate was 0.002 and is now 1e-05"),
        ("--weight_decay 0", "weight_decay was 0.05 and is now 0.0"),
        ("--seed 7", "seed was 0 and is now 7"),
        ("--batch_size 2", "batch_size was 4 and is now 2"),
        ("--patches 8", "max_context was 128 and is now 256, patches was 4 and is now 8"),
        ("--cuts {}", "cuts was ((16, 0.3),) and is now ()"),
        ("--prior spikes", "prior was 'sine_waves' and is now 'spikes'"),
        ("--scaler context", "scaler was 'causal' and is now 'context'"),
        ("--mixer lru", "mixers was ('gated_delta_product',) and is now ('lru',)"),
        ("--width 32", "width was 16 and is now 32"),
        ('--options {"heads":2}', "is now {'gated_delta_product': {'heads': 2}}"),
        ("--start RUN", "start was None and is now"),
    ],
)
def test_a_run_does_not_go_on_with_other_settings(options, change, resume):
    before = {file: file.stat().st_mtime_ns for file in resume.folder.rglob("*")}
    status, said = resume(options.replace("RUN", str(resume.folder)))
    assert status == 2 and "last.ckpt is of a run with other settings: " in said and change in said
    assert {file: file.stat().st_mtime_ns for file in resume.folder.rglob("*")} == before


def test_a_run_goes_on_for_longer_and_computed_otherwise(resume):
    assert resume("--max_steps 1") == (
        2,
        f"tsseq: error: {resume.folder / 'last.ckpt'} has trained 2 steps, more than max_steps 1: "
        "pass more, or train in another folder",
    )
    free = "--decay_fraction 0.5 --log_every 1 --save_every 3 --block 2 --precision bf16-mixed --max_time 01:00:00:00"
    assert resume(f"--max_steps 5 {free}")[0] == 0
    assert torch.load(resume.folder / "last.ckpt", weights_only=True)["global_step"] == 3


def test_runs_of_earlier_versions_go_on(resume):
    """Their checkpoints do not say what they were trained on."""
    last = resume.folder / "last.ckpt"
    saved = torch.load(last, weights_only=True)
    saved["hyper_parameters"] = {name: saved["hyper_parameters"][name] for name in ("forecaster", "training")}
    torch.save(saved, last)
    assert resume("--seed 7")[0] == 0


class Bomb:
    def __reduce__(self):
        return pytest.fail, ("unpickled",)


def test_a_broken_last_checkpoint(resume):
    last = resume.folder / "last.ckpt"
    whole = last.read_bytes()
    for broken in (b"", whole[:1000], whole[: len(whole) // 2], whole[:-1], b"junk" * 1000, pickle.dumps(Bomb())):
        last.write_bytes(broken)
        status, said = resume("")
        assert status == 2 and f"{last} is not a whole checkpoint of a run: delete it to begin anew" in said


def test_a_log_that_a_kill_left_empty(resume):
    (resume.folder / "model.safetensors").unlink()
    (leg,) = (resume.folder / "log").glob("*")
    leg.mkdir(exist_ok=True)
    (leg / "metrics.csv").write_text("")
    assert resume("--max_steps 4 --log_every 1")[0] == 0
    assert load(resume.folder) and list(pd.read_csv(resume.folder / "metrics.csv")["step"]) == [2, 3]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
@pytest.mark.parametrize("number, said", [(signal.SIGTERM, "tsseq: terminated"), (signal.SIGINT, "tsseq: interrupted")])
def test_a_signal_ends_a_run_without_success(number, said, tmp_path):
    options = f"{SMALL_RUN} --max_steps 1000000".split()
    command = [sys.executable, "-m", "tsseq.cli", "pretrain", str(tmp_path / "run"), *options]

    def heed():  # a shell lets what it runs in the background ignore interrupts
        signal.signal(number, signal.SIG_DFL)

    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, preexec_fn=heed, **pipes) as running:
        while running.poll() is None and not (tmp_path / "run" / "last.ckpt").exists():
            time.sleep(0.1)
        running.send_signal(number)
        error = running.communicate(timeout=120)[1]
    assert running.returncode == 128 + number and error.splitlines()[-1] == said
    assert torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)["global_step"] >= 2
