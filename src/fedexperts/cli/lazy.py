"""Commands that are imported when they are run: help and completion need their names and docstrings alone."""

from __future__ import annotations

import ast
from importlib import import_module
from importlib.resources import files
from typing import Any

import click
import typer
from typer.core import TyperCommand, TyperGroup

PANELS = {
    "begin": ("init", "explain"),
    "plan": ("plan", "bound", "advise", "inspect", "check"),
    "build": ("build",),
    "train": ("demo", "run", "compare", "assign"),
    "judge": ("eval", "try"),
    "look": ("report", "export"),
    "network": ("peer", "deploy"),
}
"""What people come for, and the commands for it."""
MODULES = {"try": "try_"}
"""Of commands whose names are words of Python."""


class LazyGroup(TyperGroup):
    """The command line: each command is a module of this package, with a ``command``, or with an ``app`` of several."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the order in which help shows them."""
        return [name for names in PANELS.values() for name in names]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """A stand-in that knows what help shows."""
        panel = next((panel for panel, names in PANELS.items() if cmd_name in names), None)
        if panel is None:
            return None
        return TyperCommand(cmd_name, help=_docstring(_module(cmd_name)), rich_help_panel=panel)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        """The command itself, with what it imports."""
        name, stand_in, rest = super().resolve_command(ctx, args)
        return name, None if stand_in is None or name is None else _loaded(name), rest


def _module(name: str) -> str:
    return MODULES.get(name, name)


def _loaded(name: str) -> click.Command:
    module: Any = import_module(f".{_module(name)}", __package__)
    if hasattr(module, "app"):
        return typer.main.get_command(module.app)
    alone = typer.Typer(add_completion=False)
    alone.command(name)(module.command)
    return typer.main.get_command(alone)


def _docstring(module: str) -> str:
    """Of a module's ``command``, or of the help of its ``app``, without importing it."""
    tree = ast.parse((files(__package__) / f"{module}.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name == "command":
            return ast.get_docstring(node) or ""
    for call in ast.walk(tree):
        if isinstance(call, ast.Call) and ast.unparse(call.func) == "typer.Typer":
            texts = [word.value for word in call.keywords if word.arg == "help"]
            return str(ast.literal_eval(texts[0]))
    raise AssertionError(f"{module}: has neither a command nor an app")
