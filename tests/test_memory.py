"""What will not fit in memory is refused in one line before it is begun, by an estimate that is about right."""

import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
import torch

from tsseq import memory
from tsseq.datasets import csv
from tsseq.datasets.panel import from_pandas
from tsseq.forecaster import Forecaster, ForecasterConfig
from tsseq.table import forecast

DAYS = pd.Series(np.arange(20.0), index=pd.date_range("2024-01-01", periods=20))


def test_what_is_free():
    assert 2**26 < memory.available() < 2**50
    memory.require(2**21, "little")
    with pytest.raises(ValueError, match="^not enough memory for much: it takes about 2 PiB, and .* [MGT]iB are free$"):
        memory.require(2**51, "much")


def test_machine_and_container(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    assert memory.available() > 2**26, "without /proc, all that the machine has"
    (tmp_path / "meminfo").write_text("MemTotal:  9000 kB\nMemAvailable:   4000 kB\n")
    assert memory.available() == 4000 * 1024
    (tmp_path / "memory.max").write_text("3000000\n")
    (tmp_path / "memory.current").write_text("2000000\n")
    (tmp_path / "memory.stat").write_text("anon 5\ninactive_file 500000\n")
    assert memory.available() == 1_500_000
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.available() == 4000 * 1024
    with pytest.raises(ValueError, match="takes about 4 MiB, and 3.91 MiB are free"):
        memory.require(2**22, "it")


@pytest.mark.parametrize("horizon", [10**10, 10**14, 10**20, 10**400], ids=lambda x: f"1e{len(str(x)) - 1}")
def test_horizons(horizon):
    began = time.perf_counter()
    model = Forecaster(ForecasterConfig()).eval()
    with pytest.raises(ValueError, match="not enough memory for forecasts of 2 series 10+ steps ahead"):
        model.forecast(torch.randn(2, 50), horizon)
    with pytest.raises(ValueError, match="not enough memory for a table of 1 × 10+ forecasts"):
        forecast(DAYS, horizon, model=model)
    assert time.perf_counter() - began < 5


def test_many_series(monkeypatch):
    """Of a horizon that one series can have, ten thousand cannot."""
    monkeypatch.setattr(memory, "available", lambda: 2**30)
    model = Forecaster(ForecasterConfig()).eval()
    assert model.forecast(torch.randn(1, 50), 1000).mean.shape == (1, 1000)
    with pytest.raises(ValueError, match=r"10000 series 1000 steps ahead: it takes about 1\.\d+ GiB, and 1 GiB are"):
        model.forecast(torch.randn(10_000, 50), 1000)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
@pytest.mark.parametrize(("series", "context", "horizon"), [(1, 100, 100_000), (64, 4096, 96), (700, 64, 320)])
def test_forecasts_take_about_what_is_said(series, context, horizon):
    code = f"""
import re, torch
from pathlib import Path
from tsseq.forecaster import Forecaster
peak = lambda: 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
model, x = Forecaster().eval(), torch.randn({series}, {context})
model.forecast(x[:1], 32)
before = peak()
model.forecast(x, {horizon})
print((peak() - before) / model._bytes(list(x), {horizon}, torch.device("cpu")))
"""
    ratio = float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    assert 0.7 < ratio < 1.5


def test_file_larger_than_memory(fails, tmp_path):
    huge = tmp_path / "huge.csv"
    with huge.open("wb") as file:
        file.write(b"date,x\n2024-01-01,1\n")
        file.truncate(2**43)  # a hole: it takes no room on the disk
    message = "huge.csv: not enough memory for a table of this size"
    with pytest.raises(ValueError, match=message):
        csv.load(huge)
    fails(["forecast", huge, "--horizon", 3, "--out", fails.out / "f.csv"], message)


def test_parquet_larger_than_memory(tmp_path, monkeypatch):
    pd.DataFrame({"x": np.zeros(100_000)}).to_parquet(tmp_path / "x.parquet")  # a few bytes when packed
    assert (tmp_path / "x.parquet").stat().st_size < 20_000
    monkeypatch.setattr(memory, "available", lambda: 3_000_000)
    with pytest.raises(ValueError, match="not enough memory for a table of this size: it takes about 3.81 MiB"):
        csv.load(tmp_path / "x.parquet")


def test_reader_that_runs_out(tmp_path, monkeypatch):
    def out_of_memory(*_, **__):
        raise pd.errors.ParserError("Error tokenizing data. C error: out of memory")

    (tmp_path / "x.csv").write_text("x\n1\n")
    monkeypatch.setattr(pd, "read_csv", out_of_memory)
    with pytest.raises(ValueError, match="not enough memory for a table of this size"):
        csv.load(tmp_path / "x.csv")


def test_absent_rows_beyond_memory(monkeypatch):
    stamps = pd.to_datetime(["2024-01-01", "2024-03-01"])
    monkeypatch.setattr(memory, "available", lambda: 2**25)
    with pytest.raises(ValueError, match="not enough memory for series 'x' with its absent rows"):
        from_pandas(pd.DataFrame({"x": [1.0, 2.0]}, index=stamps), freq="s")
    periods = pd.PeriodIndex(["2000-01-01", "2024-01-01"], freq="s")
    with pytest.raises(ValueError, match="expected at most 50000000 steps of 's', got 757382401"):
        from_pandas(pd.Series([1.0, 2.0], index=periods), freq="s")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
    ],
)
def test_running_out_all_the_same(error, checkpoint, fails, monkeypatch):
    def run_out(*_):
        raise error

    monkeypatch.setattr("tsseq.table.forecast_panel", run_out)
    argv = ["forecast", "airline", "--horizon", 3, "--checkpoint", checkpoint, "--out", fails.out / "f.csv"]
    fails(argv, "not enough memory: pass fewer or shorter series, or a shorter horizon")


@pytest.mark.parametrize("horizon", [10**10, 10**20])
def test_horizons_from_the_shell(horizon, checkpoint, fails):
    argv = ["forecast", "airline", "--horizon", horizon, "--checkpoint", checkpoint, "--out", fails.out / "f.csv"]
    fails(argv, f"not enough memory for a table of 1 × {horizon} forecasts")


def test_samples_from_the_shell(fails):
    argv = ["sample", "tsseq", "--n", 10**7, "--length", 10**7, "--out", fails.out / "s.parquet"]
    fails(argv, "not enough memory for 10000000 series of 10000000 steps")
