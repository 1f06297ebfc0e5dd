"""What lies in a run directory, and whether a run may begin or go on there."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import TextIO

from ..errors import InputError
from ..reading import read_bytes, read_text
from ..scenario import Scenario
from ..writing import kind, reason
from .export import ADAPTERS
from .lock import is_free
from .sums import write_sums

FILES, FOLDERS = ("scenario.toml", "ledger.jsonl", "runtime.jsonl"), ("checkpoints", "model", "base")


def header(label: str) -> str:
    """The first line of a run's ``scenario.toml``."""
    return f"# Resolved scenario of a run with protocol {label}; paths are relative to the original file.\n"


def check_directory(directory: Path, scenario: Scenario, label: str, resume: bool) -> None:
    """Refuse to start in a folder with files, and to resume what is not there or is another run.

    Raises:
        InputError: with the remedy.
    """
    try:
        _check_directory(directory, scenario, label, resume)
    except OSError as error:  # a name that is too long, links in a circle, no right to look
        raise InputError(f"--out {directory}: cannot be used ({reason(error)}); name another folder") from error


def _check_directory(directory: Path, scenario: Scenario, label: str, resume: bool) -> None:
    if "\0" in str(directory):
        raise InputError(f"--out {str(directory)!r}: has a null byte; name another folder")
    if os.path.lexists(directory) and not directory.is_dir():
        raise InputError(f"--out {directory}: is {kind(directory.lstat().st_mode)}; name a folder")
    if not resume:
        if not is_free(directory):
            raise InputError(
                f"--out {directory}: already holds files; add --resume to go on with that run, or name another folder"
            )
        return
    kept = directory / "scenario.toml"
    if not directory.exists() or not any(directory.iterdir()) or not (is_free(directory) or os.path.lexists(kept)):
        raise InputError(f"--out {directory}: holds no run to resume (no scenario.toml); leave out --resume to start one")
    if is_free(directory):  # killed before it began
        return
    if read_text(kept, "file") != header(label) + scenario.to_toml():
        raise InputError(
            f"--out {directory}: holds a run of another scenario or protocol; resume it with its own, or name another folder"
        )
    for names, right, word in ((FILES, stat.S_ISREG, "a file"), (FOLDERS, stat.S_ISDIR, "a folder")):
        for path in (directory / name for name in names):
            if os.path.lexists(path) and not right(path.stat().st_mode):
                raise InputError(f"{path}: must be {word} and is {kind(path.stat().st_mode)}; put it back, or remove it")


def seal(directory: Path) -> None:
    """Checksums of all that a run has come to; with them it has ended."""
    files = [directory / "scenario.toml", directory / "ledger.jsonl", directory / ADAPTERS]
    files += [path for name in ("model", "base") for path in (directory / name).rglob("*")]
    write_sums(directory, [path.relative_to(directory).as_posix() for path in files if path.is_file()])


def appended(path: Path) -> TextIO:
    """A file of lines, open for more; what a process that was killed has left of a line is cut off."""
    if path.exists() and (data := read_bytes(path, "file")) and not data.endswith(b"\n"):
        os.truncate(path, data.rfind(b"\n") + 1)
    return path.open("a", encoding="utf-8")
