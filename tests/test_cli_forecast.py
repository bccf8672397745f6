"""`tsseq forecast`: what it prints, writes and draws, and one line for everything that can go wrong."""

import os
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
import torch

import tsseq
from tsseq.cli import output
from tsseq.cli.__main__ import main


def test_forecast_writes_and_draws(checkpoint, tmp_path, capsys):
    csv, picture = tmp_path / "f.csv", tmp_path / "f.png"
    argv = f"forecast airline --horizon 30 --checkpoint {checkpoint} --out {csv} --plot {picture}"
    assert main(argv.split()) == 0
    said = capsys.readouterr().out
    assert "airline" in said and "1960-12-01" in said and "1963-06-01" in said and "median" in said
    assert "wrote" in said and str(picture) in said.replace("\n", "")
    table = pd.read_csv(csv, parse_dates=["timestamp"])
    assert list(table.columns) == ["item_id", "timestamp", "mean", *(f"0.{k}" for k in range(1, 10))]
    assert len(table) == 30 and table["timestamp"].iloc[0] == pd.Timestamp("1961-01-01")
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["f.csv", "f.png"]


def test_forecast_of_a_long_file_as_parquet(checkpoint, tmp_path, capsys):
    days = pd.date_range("2024-01-01", periods=40)
    table = pd.DataFrame({"shop": np.repeat(list("edcba"), 40), "day": [*days] * 5, "sold": np.arange(200.0)})
    table.to_csv(tmp_path / "long.csv", index=False)
    out = tmp_path / "f.parquet"
    argv = f"forecast {tmp_path}/long.csv --horizon 7 --checkpoint {checkpoint} --out {out} --quantiles 0.05 0.5 0.95"
    assert main(argv.split()) == 0
    assert "and 2 more series, 7 steps each" in capsys.readouterr().out
    result = pd.read_parquet(out)
    assert list(result.columns) == ["item_id", "timestamp", "mean", "0.05", "0.5", "0.95"]
    assert list(result["item_id"].unique()) == list("edcba")
    assert result["timestamp"].iloc[-1] == pd.Timestamp("2024-02-16")


def test_names_of_series_and_files_are_shown_as_they_are(checkpoint, tmp_path, capsys):
    """Nothing in them is markup of the terminal's or a formula of the picture's."""
    names = ["sales [/kg]", "shop:new:[red]", "cost $a_{$"]
    days = pd.date_range("2024-01-01", periods=40)
    pd.DataFrame({"day": days, **dict.fromkeys(names, np.arange(40.0))}).to_csv(tmp_path / "in.csv", index=False)
    picture = tmp_path / "[red] plot.png"
    argv = ["forecast", f"{tmp_path}/in.csv", "--horizon", "3", "--checkpoint", str(checkpoint), "--plot", str(picture)]
    assert main(argv) == 0
    said = capsys.readouterr().out
    for text in (*names, str(picture)):
        assert text in said
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_series_that_ended_long_ago_is_forecast_from_what_was_there(checkpoint, tmp_path, capsys):
    values = np.where(np.arange(600) < 50, np.arange(600) % 7, np.nan)
    pd.DataFrame({"x": values, "y": 9999.97}).to_csv(tmp_path / "in.csv", index=False)
    out = tmp_path / "out.csv"
    assert main(f"forecast {tmp_path}/in.csv --horizon 30 --checkpoint {checkpoint} --out {out}".split()) == 0
    said = capsys.readouterr().out
    assert "missing" in said and "10,000" in said and "e+" not in said
    assert list(pd.read_csv(out).groupby("item_id")["0.5"].count()) == [30, 30]


@pytest.mark.skipif(not os.path.exists("/dev/stdin"), reason="no pipe has a name here")
@pytest.mark.parametrize(
    "text",
    [
        "day,item_id,x\n" + "".join(f"2024-01-{day:02},007,{day % 7}\n" for day in range(1, 29)),
        '"x"\n' + "".join(f'"2024-01-{day:02}",{day % 7}\n' for day in range(1, 29)),
    ],
)
def test_a_table_through_a_pipe_is_as_one_in_a_file(text, checkpoint, tmp_path):
    (tmp_path / "in.csv").write_text(text)
    command = [sys.executable, "-m", "tsseq.cli", "forecast", "--horizon", "3", "--checkpoint", str(checkpoint)]
    piped = subprocess.run([*command, "/dev/stdin"], input=text, capture_output=True, text=True, check=True).stdout
    read = subprocess.run([*command, str(tmp_path / "in.csv")], capture_output=True, text=True, check=True).stdout
    assert piped == read and "2024-01-31" in read


def test_digits_of_a_high_level_are_written(checkpoint, tmp_path):
    pd.DataFrame({"x": 1e12 + np.arange(40) % 7}).to_csv(tmp_path / "in.csv", index=False)
    out = tmp_path / "out.csv"
    assert main(f"forecast {tmp_path}/in.csv --horizon 7 --checkpoint {checkpoint} --out {out}".split()) == 0
    expected = tsseq.forecast(pd.read_csv(tmp_path / "in.csv"), 7, model=str(checkpoint))
    written = pd.read_csv(out, float_precision="round_trip")
    np.testing.assert_array_equal(written["mean"], expected["mean"])
    assert written["0.9"].nunique() > 1


def test_an_encoding_without_the_signs_of_the_fan_keeps_the_figures(tmp_path):
    command = [sys.executable, "-m", "tsseq.cli", "forecast", "airline", "--horizon", "2"]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0 and "1961-02-01" in done.stdout


@pytest.mark.parametrize("columns", [50, 80, 200])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e6, 1e8])
def test_no_figure_is_cut(scale, columns, checkpoint, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    times = pd.date_range("2024-01-01 00:15", periods=40, freq="15min")
    values = scale * (1.2345678 + np.arange(40) / 7)
    pd.DataFrame({"time": times, "a name of many words and letters": values}).to_csv(tmp_path / "in.csv", index=False)
    out = tmp_path / "out.csv"
    assert main(f"forecast {tmp_path}/in.csv --horizon 30 --checkpoint {checkpoint} --out {out}".split()) == 0
    said = capsys.readouterr().out.split("wrote")[0]
    assert "…" not in said and len({len(line) for line in said.splitlines() if "2024" in line}) == 1
    digits = ",.4g" if scale < 1e4 else ",.0f"
    ahead = pd.read_csv(out)
    for figure in (*values[-6:], *ahead["0.1"][:21], *ahead["0.5"][-2:]):
        assert format(figure, digits) in said
    assert "2024-01-01 10:00:00" in said and "2024-01-01 17:30:00" in said


def test_warnings_are_one_line(checkpoint, tmp_path, capsys):
    (tmp_path / "w.csv").write_text("date,x,note\n2024-01-01,1,a\n2024-01-02,2,b\n2024-01-03,3,c\n")
    assert main(f"forecast {tmp_path}/w.csv --horizon 2 --checkpoint {checkpoint}".split()) == 0
    assert capsys.readouterr().err == "tsseq: warning: columns not used: 'note'\n"


def forecast_of(text, checkpoint, tmp_path, *options):
    """The table that `tsseq forecast` writes of a CSV file, as text."""
    (tmp_path / "in.csv").write_text(text)
    argv = ["forecast", f"{tmp_path}/in.csv", "--horizon", "2", "--checkpoint", str(checkpoint)]
    assert main([*argv, "--out", f"{tmp_path}/out.csv", *options]) == 0
    return pd.read_csv(tmp_path / "out.csv", dtype=str, keep_default_na=False)


@pytest.mark.parametrize("column, options", [("item_id", []), ("shop", ["--id_column", "shop"])])
@pytest.mark.parametrize("names", [["007", "10E1", "NA"], ["NA", "EU"], ["1", "2"]])
def test_names_of_series_are_read_as_they_are_written(names, column, options, checkpoint, tmp_path):
    rows = [f"{name},2024-01-0{day},{day}" for name in names for day in (1, 2, 3, 4)]
    options = options if column == "item_id" or "EU" not in names else []  # words in a column are found to be names
    table = forecast_of("\n".join([f"{column},date,y", *rows]), checkpoint, tmp_path, *options)
    assert list(table["item_id"].unique()) == names
    plans = [f"{name},2024-01-0{day},{day % 2}" for name in names for day in (5, 6)]
    (tmp_path / "plans.csv").write_text("\n".join([f"{column},date,price", *plans]))
    text = "\n".join([f"{column},date,y,price", *(f"{row},{len(row) % 2}{row[-1]}" for row in rows)])
    options = [*options, "--covariates", "price", "--future", f"{tmp_path}/plans.csv"]
    assert list(forecast_of(text, checkpoint, tmp_path, *options)["item_id"].unique()) == names


@pytest.mark.parametrize(
    "text",
    [
        "date,y\n2024-01-01,1,\n2024-01-02,2,\n2024-01-03,3,\n",
        "date,y,\n2024-01-01,1,\n2024-01-02,2,\n2024-01-03,3,\n",
        '"y"\n"2024-01-01",1\n"2024-01-02",2\n"2024-01-03",3\n',
    ],
    ids=["commas at the ends", "and of the header", "R"],
)
def test_rows_longer_than_the_header(text, checkpoint, tmp_path):
    expected = forecast_of("date,y\n2024-01-01,1\n2024-01-02,2\n2024-01-03,3\n", checkpoint, tmp_path)
    pd.testing.assert_frame_equal(forecast_of(text, checkpoint, tmp_path), expected)


BAD_FILES = {
    "empty file": ("", [], "got an empty file"),
    "no numeric column": ("date,x\n2024-01-01,a\n2024-01-02,b\n", [], "expected a numeric column, got 'date', 'x'"),
    "text in a numeric column": (
        "date,x\n2024-01-01,1\n2024-01-02,oops\n2024-01-03,3\n",
        [],
        "expected numbers in column 'x', got 'oops' in row 2",
    ),
    "unsorted time stamps": (
        "date,x\n2024-01-01,1\n2024-01-03,2\n2024-01-02,3\n",
        [],
        "expected increasing time stamps, got 2024-01-02 00:00:00 after 2024-01-03 00:00:00 in row 3",
    ),
    "repeated time stamps": (
        "date,x\n2024-01-01,1\n2024-01-01,2\n",
        [],
        "expected increasing time stamps, got 2024-01-01 00:00:00 twice in row 2",
    ),
    "unknown frequency": (
        "date,x\n2024-01-01,1\n2024-01-02,2\n",
        ["--freq", "fortnight"],
        "unknown frequency 'fortnight'",
    ),
    "irregular time stamps": (
        "date,x\n2024-01-01,1\n2024-01-02,2\n2024-01-09,3\n",
        [],
        "expected evenly spaced time stamps or a freq",
    ),
    "all missing": ("date,x\n2024-01-01,\n2024-01-02,\n", [], "series 'x': expected at least one observed value"),
    "infinite values": ("date,x\n2024-01-01,1\n2024-01-02,-inf\n", [], "expected finite values, got -inf in row 2"),
    "grid beyond memory": (
        "date,x\n2024-01-01,1\n2024-06-01,2\n",
        ["--freq", "us"],
        "expected at most 50000000 steps of 'us'",
    ),
    "decimal commas": (
        "year,x\n2000,10,5\n2001,11\n",
        [],
        "expected 2 fields in each row, as in the header, got 3 in row 1",
    ),
    "decimal commas beside dates": ('"date","x"\n"2024-01-01",1,5\n"2024-01-02",1,6\n', [], "got 3 in row 1"),
    "no header": ("2024-01-01,5,\n2024-01-02,6,1\n", [], "in the first line, got dates and numbers: 2024-01-01, 5"),
    "unknown column": ("date,x\n2024-01-01,1\n", ["--target_column", "y"], "expected a column 'y', got 'date', 'x'"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_files(case, checkpoint, fails, tmp_path):
    content, options, message = BAD_FILES[case]
    path = tmp_path / "bad.csv"
    path.write_text(content)
    out, plot = fails.out / "f.csv", fails.out / "f.png"
    argv = ["forecast", path, "--horizon", 3, "--checkpoint", checkpoint, "--out", out, "--plot", plot, *options]
    fails(argv, message)


@pytest.mark.parametrize("horizon", [0, -5])
def test_bad_horizon(horizon, checkpoint, fails):
    argv = ["forecast", "airline", f"--horizon={horizon}", "--checkpoint", checkpoint, "--out", fails.out / "f.csv"]
    fails(argv, f"expected a horizon of one step or more, got {horizon}")


def test_bad_quantiles(checkpoint, fails):
    argv = ["forecast", "airline", "--horizon", 3, "--checkpoint", checkpoint, "--quantiles", "0.5", "1.5"]
    fails(argv, "expected distinct quantile levels between 0 and 1, got [0.5, 1.5]")


@pytest.mark.parametrize("source", ["airlines", "nothing.csv"])
def test_unknown_source(source, checkpoint, fails):
    message = "neither a file nor a bundled series (those are airline" if source == "airlines" else "does not exist"
    fails(["forecast", source, "--horizon", 3, "--checkpoint", checkpoint], message)


def test_unknown_checkpoint(fails):
    argv = ["forecast", "airline", "--horizon", 3, "--out", fails.out / "f.csv", "--checkpoint"]
    fails([*argv, "colossal"], "no checkpoint 'colossal'")


@pytest.mark.parametrize("damage", ["truncated", "foreign", "text", "empty"])
def test_damaged_checkpoint(damage, checkpoint, fails, tmp_path):
    path = tmp_path / f"{damage}.safetensors"
    with open(checkpoint, "rb") as file:
        whole = file.read()
    if damage == "foreign":
        import safetensors.torch

        safetensors.torch.save_file({"weight": torch.zeros(2)}, path)
    else:
        path.write_bytes({"truncated": whole[: len(whole) // 2], "text": b"weights, honest", "empty": b""}[damage])
    argv = ["forecast", "airline", "--horizon", 3, "--checkpoint", path, "--out", fails.out / "f.csv"]
    fails(argv, f"{damage}.safetensors")


@pytest.mark.parametrize("option, name", [("--out", "f.csv"), ("--plot", "f.png")])
def test_output_folder_that_does_not_exist(option, name, fails, monkeypatch):
    monkeypatch.setattr("tsseq.table.resolve", lambda *_: pytest.fail("checked too late"))
    fails(["forecast", "airline", "--horizon", 3, option, fails.out / "none" / name], "does not exist")


def test_output_that_is_not_writable(fails, monkeypatch):
    monkeypatch.setattr("tsseq.table.resolve", lambda *_: pytest.fail("checked too late"))
    monkeypatch.setattr(output.os, "access", lambda *_: False)
    fails(["forecast", "airline", "--horizon", 3, "--out", fails.out / "f.csv"], "is not writable")
    fails(["evaluate", "gift-eval", "--out", fails.out], "is not writable")


def test_output_of_an_unknown_kind(fails):
    fails(["forecast", "airline", "--horizon", 3, "--out", fails.out / "f.xlsx"], "expected a file called *.csv")
    fails(["forecast", "airline", "--horizon", 3, "--plot", fails.out / "f.bmp"], "expected a file called *.png")


def test_nothing_half_written(checkpoint, fails, monkeypatch):
    def full_disk(table, path):
        path.write_text("item_id,timest")
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("tsseq.cli.forecast._write", full_disk)
    argv = ["forecast", "airline", "--horizon", 3, "--checkpoint", checkpoint, "--out", fails.out / "f.csv"]
    fails(argv, "No space left on device")


def test_dates_beyond_those_of_pandas(checkpoint, fails):
    argv = ["forecast", "airline", "--horizon", 10_000, "--checkpoint", checkpoint, "--out", fails.out / "f.csv"]
    fails(argv, "expected a horizon whose time stamps pandas can hold, got 10000 steps")


@pytest.mark.parametrize("option", ["--freq", "--id_column", "--time_column", "--target_column"])
def test_bundled_series_are_what_they_are(option, checkpoint, fails):
    argv = ["forecast", "airline", "--horizon", 3, "--checkpoint", checkpoint, option, "D"]
    fails(argv, "airline ships with its columns and time stamps")


def test_bundled_series_have_no_covariates(checkpoint, fails):
    argv = ["forecast", "airline", "--horizon", 3, "--checkpoint", checkpoint, "--covariates", "x"]
    fails(argv, "airline ships without covariates")


@pytest.mark.slow
def test_bundled_series_in_under_five_seconds(tmp_path):
    """Installed, by its name, imports and all, on a machine that imports PyTorch in two; others get as much more.

    The better of two turns, as a machine may have other things to do.
    """

    def seconds(*words):
        began = time.perf_counter()
        done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=True, cwd=tmp_path)
        said.append(done.stdout)
        return time.perf_counter() - began

    said = []
    command = ["-m", "tsseq.cli", "forecast", "airline", "--horizon", "24"]
    turns = [(seconds("-c", "import torch"), seconds(*command)) for _ in range(2)]
    assert "1962-12-01" in said[-1]
    yardstick, fastest = map(min, zip(*turns, strict=True))
    assert fastest < 5.0 * max(1.0, yardstick / 2.0), turns
