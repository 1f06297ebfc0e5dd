"""Checksums of files, in a file ``SHA256SUMS`` beside them that ``sha256sum --check`` reads."""

from __future__ import annotations

import hashlib
import re
import stat
import types
from collections.abc import Collection, Mapping
from pathlib import Path

from ..errors import InputError
from ..reading import read_text
from ..writing import reason, write_whole

SUMS = "SHA256SUMS"
LINE = re.compile(r"([0-9a-f]{64})  (.+)")


def write_sums(folder: Path, names: Collection[str], known: Mapping[str, str] = types.MappingProxyType({})) -> None:
    """Write the checksums of files, given by their paths within the folder; those that are ``known`` are not read for it."""
    sums = {name: _sum(folder / name) for name in names} | dict(known)
    write_whole(folder / SUMS, "".join(f"{digest}  {name}\n" for name, digest in sorted(sums.items())))


def listed(folder: Path) -> dict[str, str]:
    """Checksums of files as they were written, by path.

    Raises:
        InputError: there are none, or they are damaged.
    """
    if not (folder / SUMS).is_file():
        raise InputError(f"no {SUMS}")
    found = [LINE.fullmatch(line) for line in read_text(folder / SUMS, "file").splitlines()]
    written = {line[2]: line[1] for line in found if line}
    if not all(found):
        raise InputError(f"{SUMS} is damaged")
    return written


def damage(folder: Path, needed: Collection[str] = (), only: str = "") -> str | None:
    """What is missing, or is not as it was written, with the reason; None where all is well.

    Args:
        folder: holds the checksums.
        needed: files that must be among them.
        only: look at files alone whose names begin so.
    """
    try:
        written = listed(folder)
    except InputError as error:
        return str(error)
    if not set(needed) <= set(written):
        return f"{SUMS} is damaged"
    for name, digest in written.items():
        if not name.startswith(only):
            continue
        try:
            if _sum(folder / name) != digest:
                return f"{name} is not as it was written"
        except (OSError, ValueError) as error:  # ValueError: a null byte
            return f"{name}: {reason(error)}"
    return None


def _sum(path: Path) -> str:
    if not stat.S_ISREG(path.stat().st_mode):  # a FIFO or a device may never end
        raise OSError(0, "is not a regular file", str(path))
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
