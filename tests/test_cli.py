"""The command line as a whole: its help, its parser, its lists, and what it makes of mistakes."""

import inspect
import os
import subprocess
import sys
import time

import pytest

from tsseq.cli.__main__ import COMMANDS, _load, main
from tsseq.cli.evaluate import TARGETS
from tsseq.cli.parser import make_parser, parse, read_docstring


def test_help_is_quick_and_light():
    heavy = "torch numpy pandas jsonargparse rich matplotlib"
    code = (
        "import sys; from tsseq.cli.__main__ import main; main(['--help']);"
        f"print([m for m in '{heavy}'.split() if m in sys.modules])"
    )
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        seconds.append(time.perf_counter() - began)
    assert said.splitlines()[-1] == "[]"
    assert all(name in said for name in COMMANDS) and "tsseq forecast airline --horizon 24" in said
    assert min(seconds) < 1.0


def test_runs_as_a_module():
    said = subprocess.run([sys.executable, "-m", "tsseq.cli", "--version"], capture_output=True, text=True)
    assert said.returncode == 0 and said.stdout.startswith("tsseq 0.")
    said = subprocess.run([sys.executable, "-m", "tsseq.cli", "nonsense"], capture_output=True, text=True)
    assert said.returncode == 2 and said.stderr.count("\n") == 1


@pytest.mark.parametrize("name", [*(n for n in COMMANDS if n != "evaluate"), *(f"evaluate {n}" for n in TARGETS)])
def test_every_command_teaches(name, capsys):
    assert main([*name.split(), "--help"]) == 0
    said = capsys.readouterr().out
    assert f"Examples:\n  tsseq {name}" in said or f"{name} " in said.partition("Examples:")[2]
    function = _load({**COMMANDS, **{f"evaluate {n}": c for n, c in TARGETS.items()}}[name].place)
    _, _, help_of = read_docstring(function)
    assert set(help_of) == set(inspect.signature(function).parameters)


@pytest.mark.parametrize(
    "argv, message",
    [
        (["nonsense"], "unknown command 'nonsense': expected forecast"),
        (["forcast"], "did you mean 'forecast'?"),
        (["evaluate", "nonsense"], "unknown command 'nonsense': expected gift-eval"),
        (["forecast"], "required: source, horizon; see tsseq forecast --help"),
        (["forecast", "airline", "--horizon", "many"], "expected a whole number for horizon, got 'many'"),
        (["forecast", "airline", "--horizon", "3", "--quantiles", "0.5", "high"], "a number for quantiles, got 'high'"),
        (["list", "--only", "nonsense"], "expected one of 'checkpoints', "),
        (["pretrain", "run", "--options", "heads"], "expected a JSON object for options, got 'heads'"),
        (["sample", "tsseq", "--seed", "-1"], "expected a seed from 0 to 2^63 - 1, got -1"),
        (["forecast", "airline", "--horizon", "3", "--colour", "red"], "unrecognized arguments: --colour red"),
    ],
)
def test_wrong_calls(argv, message, fails):
    fails(argv, message)


@pytest.mark.skipif(os.name != "posix", reason="pipes of a POSIX shell")
def test_a_reader_that_wants_no_more_ends_a_command_in_silence():
    command = f"{sys.executable} -m tsseq.cli list --only configurations | true"
    done = subprocess.run(["bash", "-c", f"{command}; echo ${{PIPESTATUS[0]}}"], capture_output=True, text=True)
    assert done.stderr == "" and done.stdout.strip() == "141"


def test_no_command_shows_the_commands(capsys):
    assert main([]) == 2
    assert "forecast the series in a file" in capsys.readouterr().out


def demo(source: str, other: str = "x", *, size: int, rate: float = 0.5, deep: bool = False, tags: list[str] = ()):
    """Say what this does.

    More about it.

    Examples:
      tsseq demo a --size 3

    Args:
        source: where from
        other: where else
        size: how big, at most 100%
        rate: how fast,
            told in two lines
        deep: whether deep
        tags: names
    """


def test_parser_from_a_function():
    got = parse("tsseq demo", demo, ["a", "--size", "3", "--deep", "--tags", "u", "v"])
    assert got == {"source": "a", "other": "x", "size": 3, "rate": 0.5, "deep": True, "tags": ["u", "v"]}
    assert parse("tsseq demo", demo, ["a", "b", "--size=3"])["other"] == "b"
    shown = make_parser("tsseq demo", demo).format_help()
    assert "usage: tsseq demo SOURCE OTHER [options]" in shown
    assert "how big, at most 100% (required)" in shown and "told in two lines (default: 0.5)" in shown
    assert shown.rstrip().endswith("Examples:\n  tsseq demo a --size 3")
    for bad in (["a"], ["--size", "3"], ["a", "--size", "x"], ["a", "--size", "3", "--tags"]):
        with pytest.raises(ValueError, match="see tsseq demo --help"):
            parse("tsseq demo", demo, bad)


def test_parser_takes_dashes_and_files(tmp_path):
    def tune(*, max_steps: int = 1):
        """Tune."""

    assert parse("tsseq tune", tune, ["--max-steps", "5"]) == {"max_steps": 5}
    (tmp_path / "options.yaml").write_text("max_steps: 7\n")
    assert parse("tsseq tune", tune, ["--config", str(tmp_path / "options.yaml")]) == {"max_steps": 7}


def test_our_own_mistakes_are_not_hidden(checkpoint, monkeypatch):
    def broken(*_):
        raise RuntimeError("a bug")

    monkeypatch.setattr("tsseq.table.forecast_panel", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        main(["forecast", "airline", "--horizon", "3", "--checkpoint", checkpoint])


def test_interrupted(monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("tsseq.cli.forecast.read_source", interrupted)
    assert main(["forecast", "airline", "--horizon", "3"]) == 130
    assert capsys.readouterr().err == "tsseq: interrupted\n"


def test_list_names_everything(capsys):
    from tsseq.mixers import MIXERS

    assert main(["list", "--only", "mixers"]) == 0
    assert capsys.readouterr().out.split() == list(MIXERS)
    assert main(["list"]) == 0
    assert "airline" in capsys.readouterr().out
    assert main(["list", "--only", "configurations"]) == 0
    assert len(capsys.readouterr().out.split()) == 97
