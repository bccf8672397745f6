"""Every option that a command offers is read by it: one that is offered and ignored is worse than none."""

import ast
import importlib
import inspect
import textwrap

import pytest

from tsseq.cli.__main__ import COMMANDS


def functions(commands, path=()):
    for name, command in commands.items():
        module, target = command.place.split(":")
        found = getattr(importlib.import_module(module), target)
        if isinstance(found, dict):
            yield from functions(found, (*path, name))
        else:
            yield pytest.param(found, id=" ".join((*path, name)))


def unread(function):
    body = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
    read = {node.id for node in ast.walk(body) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    return set(inspect.signature(function).parameters) - read


def test_an_ignored_option_is_found():
    def command(used: int, ignored: int) -> int:
        return used

    assert unread(command) == {"ignored"}


@pytest.mark.parametrize("command", tuple(functions(COMMANDS)))
def test_every_option_is_read(command):
    assert not unread(command)
