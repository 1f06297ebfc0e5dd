"""What a terminal shows of a table."""

from __future__ import annotations

import io

from rich.console import Console, RenderableType


def printed(table: RenderableType, width: int = 80) -> str:
    """In a terminal of so many columns, none of whose lines is wider."""
    file = io.StringIO()
    Console(width=width, file=file).print(table)
    assert max(map(len, file.getvalue().splitlines())) <= width
    return file.getvalue()
