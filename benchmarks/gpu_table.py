"""Part of gpu.py: its one table, row by row."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

FAILED = "FAILED"


@dataclass(frozen=True)
class Row:
    """What was measured, what stands beside it, a note, and the numbers behind them for the JSON file."""

    what: str
    found: str
    beside: str = ""
    note: str = ""
    data: dict[str, Any] = field(default_factory=dict)


def line(row: Row) -> str:
    return f"{row.what:50} {row.found:30} {row.beside:38} {row.note}".rstrip()


def failed(what: str, error: BaseException) -> Row:
    """A row for what did not work, with the reason; where it happened goes to stderr."""
    traceback.print_exception(error)
    said = " ".join(str(error).split())
    return Row(
        what, FAILED, note=f"{type(error).__name__}: {said[:240]}", data={"trace": traceback.format_exception(error)[-6:]}
    )


def tried(what: str, make: Callable[[], Row]) -> Row:
    """The row, or why there is none: what comes after it is wanted all the same."""
    try:
        return make()
    except Exception as error:
        return failed(what, error)


def clock(device: str) -> float:
    """Now, in s, with all work done that was asked for."""
    if device == "cuda":
        import torch

        torch.cuda.synchronize()
    return time.perf_counter()
