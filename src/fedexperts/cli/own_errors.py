"""Errors in code of the user's own, a protocol or a local loss: where in that code, and what; not what of ours called it."""

from __future__ import annotations

import sysconfig
import traceback
from pathlib import Path

OURS = Path(__file__).resolve().parents[1]
INSTALLED = ("site-packages", "dist-packages")
STANDARD = Path(sysconfig.get_path("stdlib")).resolve()


def theirs(error: BaseException) -> str:
    """An error as Python shows it, with the user's own frames alone; nothing where there is none."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if is_own(frame.filename)]
    if not own:
        return ""
    head = f"error in code of your own ({len(frames) - len(own)} frames of others left out):\n"
    return (head + "".join(traceback.format_list(own)) + "".join(traceback.format_exception_only(error))).rstrip()


def is_own(file: str) -> bool:
    """Whether a file is neither ours, nor installed, nor Python's."""
    path = Path(file).resolve()
    if file.startswith("<") or set(INSTALLED) & set(path.parts):
        return False
    return not any(path.is_relative_to(folder) for folder in (OURS, STANDARD))
