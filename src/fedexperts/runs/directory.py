"""What lies in a run directory, and whether a run may begin or go on there."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from ..errors import InputError
from ..events import FORMAT
from ..reading import read_bytes, read_text
from ..scenario import Scenario
from ..writing import kind, reason
from .ended import ADAPTERS, scenario_of, what_lacks
from .header import format_of, header
from .lock import check_usable, is_free
from .longer import check_longer
from .rates import CYCLES, NAMES, differences, named, shown
from .sums import SUMS, write_sums

FILES, FOLDERS = ("scenario.toml", "ledger.jsonl", "runtime.jsonl"), ("checkpoints", "model", "base")


def check_directory(directory: Path, scenario: Scenario, label: str, resume: bool) -> dict[str, float]:
    """Refuse to start in a folder with files, and to resume what is not there or is another run.

    Returns:
        What the run had, of the numbers that are others now and may be: learning rates of one that has not ended, and fewer
        cycles of one that has.

    Raises:
        InputError: with the remedy.
    """
    try:
        return _check_directory(directory, scenario, label, resume)
    except OSError as error:  # a name that is too long, links in a circle, no right to look
        raise InputError(f"--out {directory}: cannot be used ({reason(error)}); name another folder") from error


def _check_directory(directory: Path, scenario: Scenario, label: str, resume: bool) -> dict[str, float]:
    check_usable(directory, resume)
    if not resume:
        return {}
    kept = directory / "scenario.toml"
    if not directory.exists() or not any(directory.iterdir()) or not (is_free(directory) or os.path.lexists(kept)):
        raise InputError(f"--out {directory}: holds no run to resume (no scenario.toml); leave out --resume to start one")
    if is_free(directory):  # killed before it began
        return {}
    form = format_of(directory)
    before = _other_numbers(directory, scenario, header(label, form))
    for names, right, word in ((FILES, stat.S_ISREG, "a file"), (FOLDERS, stat.S_ISDIR, "a folder")):
        for path in (directory / name for name in names):
            if os.path.lexists(path) and not right(path.stat().st_mode):
                raise InputError(f"{path}: must be {word} and is {kind(path.stat().st_mode)}; put it back, or remove it")
    if CYCLES in before:
        check_longer(directory, before[CYCLES], scenario)
    elif before and what_lacks(directory) is None:
        raise InputError(f"--out {directory}: has ended with {shown(before)}; name another folder for a run with other rates")
    if form != FORMAT and any((directory / "checkpoints").glob("*")) and (lacks := what_lacks(directory)):
        raise InputError(
            f"--out {directory}: holds a run of format {form}, which has not ended or was damaged since ({lacks}), and this "
            f"fedexperts goes on from checkpoints of format {FORMAT} alone; begin the run again in another folder, or here, "
            f"with --resume, after removing {directory / 'checkpoints'}"
        )
    return before


def _other_numbers(directory: Path, scenario: Scenario, head: str) -> dict[str, float]:
    """See `check_directory`."""
    text, why = read_text(directory / "scenario.toml", "file"), ""
    if text == head + scenario.to_toml():
        return {}
    with suppress(InputError):
        kept = scenario_of(directory)
        if text == head + kept.to_toml():
            found = differences(kept, scenario)
            if set(found) <= set(NAMES) or set(found) == {CYCLES}:
                return {name: before for name, (before, _) in found.items()}
            why = f" ({named(found)})"
    raise InputError(
        f"--out {directory}: holds a run of another scenario or protocol{why}; resume it with its own, of which only learning "
        "rates can change before it has ended, and train.cycles alone, upwards, when it has, or name another folder"
    )


def has_ended(directory: Path) -> bool:
    """Whether a run has ended, with checksums that still hold: then its ledger tells all, and nothing is left to do."""
    return (directory / SUMS).is_file() and what_lacks(directory) is None


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
