"""`tsseq COMMAND`: the table of commands, and how their errors are shown."""

import os
import signal
import sys
import warnings
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from importlib import import_module
from typing import Any

from tsseq.cli.command import Command

COMMANDS: dict[str, Command] = {
    "forecast": Command("tsseq.cli.forecast:forecast", "forecast the series in a file, zero-shot"),
    "evaluate": Command("tsseq.cli.evaluate:TARGETS", "score a checkpoint on a benchmark"),
    "sample": Command("tsseq.cli.sample:sample", "draw synthetic series"),
    "pretrain": Command("tsseq.cli.pretrain:pretrain", "train a forecaster on synthetic series"),
    "finetune": Command("tsseq.cli.finetune:finetune", "adapt a forecaster to your series"),
    "benchmark": Command("tsseq.cli.benchmark:benchmark", "check every op on this machine and time it"),
    "list": Command("tsseq.cli.list:show", "name everything that tsseq knows by name"),
}
INTRODUCTION = """Linear RNNs and state-space models for time series."""
EXAMPLES = """examples:
  tsseq forecast airline --horizon 24 --plot airline.png
  tsseq forecast sales.csv --horizon 28 --out forecast.csv
  tsseq evaluate gift-eval --data path/to/gift_eval --out results
  tsseq pretrain runs/mine
  tsseq list"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status. A wrong call ends in one line on stderr and status 2."""
    words = list(sys.argv[1:] if argv is None else argv)
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        try:
            status = _dispatch("tsseq", COMMANDS, words)
            sys.stdout.flush()
            return status
        except BrokenPipeError:  # whoever reads wants no more, as head does
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the last flush complains
            return 141  # as of a process that ends by the signal of a broken pipe, which Windows lacks
        except (ValueError, OSError) as error:
            return _fail(_describe(error))
        except ModuleNotFoundError as error:
            if error.name is None or error.name.startswith("tsseq"):
                raise
            return _fail(f"this needs {error.name}: install tsseq[all]")
        except (MemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error):
                raise
            return _fail("not enough memory: pass fewer or shorter series, or a shorter horizon")
        except Exception as error:
            if not _is_wrong_call_of_lightning(error):
                raise
            return _fail(_describe(error))
        except (KeyboardInterrupt, SystemExit) as end:
            if _is_interrupt(end):
                print("tsseq: interrupted", file=sys.stderr)
                return 128 + signal.SIGINT
            if _is_termination_of_lightning(end):
                print("tsseq: terminated", file=sys.stderr)
                return 128 + signal.SIGTERM
            raise


def _dispatch(prog: str, commands: Mapping[str, Command], words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help"):
        print(_overview(prog, commands))
        return 0 if words else 2
    if words[0] == "--version" and prog == "tsseq":
        from tsseq import __version__

        print(f"tsseq {__version__}")
        return 0
    name, *rest = words
    if name not in commands:
        near = get_close_matches(name, commands, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"unknown command {name!r}: expected {', '.join(commands)}{hint}")
    target = _load(commands[name].place)
    if isinstance(target, Mapping):
        return _dispatch(f"{prog} {name}", target, rest)
    from tsseq.cli.parser import parse

    try:
        arguments = parse(f"{prog} {name}", target, rest)
    except SystemExit as ended:  # --help and --print_config
        return int(ended.code or 0)
    target(**arguments)
    return 0


def _load(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)


def _overview(prog: str, commands: Mapping[str, Command]) -> str:
    width = max(map(len, commands))
    lines = [f"  {name:{width}}  {command.summary}" for name, command in commands.items()]
    parts = [f"usage: {prog} COMMAND ...", "commands:\n" + "\n".join(lines)]
    if prog == "tsseq":
        parts = [parts[0], INTRODUCTION, parts[1], EXAMPLES]
    return "\n\n".join([*parts, f"{prog} COMMAND --help explains a command."])


def _describe(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return " ".join(str(error).split()) or type(error).__name__


def _fail(message: str) -> int:
    print(f"tsseq: error: {message}", file=sys.stderr)
    return 2


def _is_out_of_memory(error: Exception) -> bool:
    text = str(error)
    return isinstance(error, MemoryError) or "out of memory" in text or "allocate memory" in text


def _is_wrong_call_of_lightning(error: Exception) -> bool:
    """Its complaint about arguments has no base class but Exception."""
    return type(error).__name__ == "MisconfigurationException"


def _is_interrupt(end: BaseException) -> bool:
    """Lightning catches an interrupt, and exits with a status of its own."""
    return isinstance(end, KeyboardInterrupt) or isinstance(end.__context__, KeyboardInterrupt)


def _is_termination_of_lightning(end: BaseException) -> bool:
    """It ends a training at the step that was under way, with the status of success."""
    return type(end).__name__ == "SIGTERMException"


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"tsseq: warning: {' '.join(str(message).split())}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
