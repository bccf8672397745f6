"""Makes a command-line parser from a typed function: its signature gives the options, its docstring the help.

Positional parameters become arguments, keyword-only ones options; a bool becomes a flag, a list takes several
words. The docstring is a summary, prose, `Examples:` and `Args:`, in this order.
"""

import argparse
import inspect
import re
import types
import typing
from collections.abc import Callable
from typing import Any

import jsonargparse

Function = Callable[..., Any]

KINDS = {"int": "a whole number", "float": "a number", "bool": "true or false", "dict": "a JSON object"}


def parse(prog: str, function: Function, argv: list[str]) -> dict[str, Any]:
    """The keyword arguments for `function` that `argv` spells. Raises ValueError, in one line, if it does not.

    `--help` prints the help and exits.
    """
    parser = make_parser(prog, function)
    names = set(inspect.signature(function).parameters)
    try:
        values = parser.parse_args([_with_underscores(word, names) for word in argv])
    except argparse.ArgumentError as error:
        raise ValueError(f"{one_line(str(error))}; see {prog} --help") from error
    return {name: values[name] for name in names}


def make_parser(prog: str, function: Function) -> jsonargparse.ArgumentParser:
    """The parser of one command; every option can also come from a YAML file given as `--config`."""
    prose, examples, help_of = read_docstring(function)
    parser = jsonargparse.ArgumentParser(
        prog=prog,
        usage=f"{prog} {_positionals(function)}[options]",
        description=prose,
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        exit_on_error=False,
        default_env=False,
    )
    hints = typing.get_type_hints(function)
    for name, parameter in inspect.signature(function).parameters.items():
        _add(parser, parameter, hints[name], help_of.get(name, ""))
    from_file = jsonargparse.ActionConfigFile  # type: ignore[attr-defined]
    parser.add_argument("--config", action=from_file, help="YAML file with any of these options")
    return parser


def read_docstring(function: Function) -> tuple[str, str, dict[str, str]]:
    """Prose, examples (with their title) and one line per argument."""
    text = inspect.getdoc(function) or ""
    head, _, arguments = text.partition("\nArgs:\n")
    prose, title, examples = head.partition("\nExamples:\n")
    lines = re.findall(r"^ +(\w+): (.+(?:\n {8,}.+)*)", arguments, flags=re.MULTILINE)
    help_of = {name: " ".join(help_text.split()) for name, help_text in lines}
    return prose.strip(), (title.strip() + "\n" + examples.rstrip()) if title else "", help_of


def _add(parser: jsonargparse.ArgumentParser, parameter: inspect.Parameter, hint: Any, help_text: str) -> None:
    required = parameter.default is inspect.Parameter.empty
    options: dict[str, Any] = {"help": help_text.replace("%", "%%")}
    if required:
        options["help"] += " (required)" if parameter.kind is inspect.Parameter.KEYWORD_ONLY else ""
    else:
        options["default"] = parameter.default
        if not any(parameter.default is empty for empty in (None, False, "")):
            options["help"] += f" (default: {_shown(parameter.default)})"
    item = _list_item(hint)
    if hint is bool and parameter.default is False:
        options["action"] = "store_true"
    elif item is not None:
        options |= {"type": item, "nargs": "+", "metavar": _singular(parameter.name).upper()}
    else:
        options["type"] = hint
        options["metavar"] = parameter.name.upper()
    if parameter.kind is inspect.Parameter.KEYWORD_ONLY:
        parser.add_argument(f"--{parameter.name}", **options, **({"required": True} if required else {}))
    else:
        options["nargs"] = options.get("nargs") or (None if required else "?")
        if options["nargs"] == "+" and not required:
            options["nargs"] = "*"
        parser.add_argument(parameter.name, **{k: v for k, v in options.items() if v is not None or k == "default"})


def _positionals(function: Function) -> str:
    parameters = inspect.signature(function).parameters.values()
    return "".join(f"{p.name.upper()} " for p in parameters if p.kind is not inspect.Parameter.KEYWORD_ONLY)


def _singular(name: str) -> str:
    return f"{name[:-3]}y" if name.endswith("ies") else name.removesuffix("s")


def _list_item(hint: Any) -> Any:
    """The element type of a list, optional or not; None for other types."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        hint = next((part for part in typing.get_args(hint) if part is not type(None)), None)
    return typing.get_args(hint)[0] if typing.get_origin(hint) is list else None


def _shown(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _with_underscores(word: str, names: set[str]) -> str:
    """`--max-steps` is accepted for `--max_steps`."""
    option, equals, value = word.partition("=")
    plain = option.lstrip("-").replace("-", "_")
    return f"--{plain}{equals}{value}" if option.startswith("--") and plain in names else word


def one_line(message: str) -> str:
    """The parser's page on a value of the wrong type, as one sentence."""
    key = re.match(r'Parser key "(\w+)"', message)
    expected = re.search(r"Expected an? (?:<class '(\w+)'>|typing\.Literal\[(.*?)\])", message)
    value = re.search(r"(?:Got|Given) value: (.*)", message, re.DOTALL)
    if not (key and expected and value):
        return " ".join(message.split())
    kind, choices = expected.groups()
    wanted = f"one of {choices}" if choices else KINDS.get(kind, kind)
    return f"expected {wanted} for {key[1]}, got {value[1]!r}"
