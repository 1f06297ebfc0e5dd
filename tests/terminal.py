"""What a terminal shows of a table, and of a command."""

from __future__ import annotations

import io
import sys

import pytest
from rich.console import Console, RenderableType

from fedexperts.cli.main import main


def printed(table: RenderableType, width: int = 80) -> str:
    """In a terminal of so many columns, none of whose lines is wider."""
    file = io.StringIO()
    Console(width=width, file=file).print(table)
    assert max(map(len, file.getvalue().splitlines())) <= width
    return file.getvalue()


def fedexperts(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    """The command with these words, in this process: exit code, stdout and stderr."""
    monkeypatch.setattr(sys, "argv", ["fedexperts", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        main()
    found = capsys.readouterr()
    return int(ended.value.code or 0), found.out, found.err
