"""Writing files: whole or not at all, never through a link, and what the disk refuses told as one error."""

from __future__ import annotations

import errno
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from .errors import InputError, RunError

MARK = '<meta name="generator" content="fedexperts">'
"""In the head of every page that we write: a page with it may be replaced."""
DISK = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ENOMEM, errno.EMFILE, errno.ENFILE})
"""What is the machine's fault and not that of the path that was given."""


def write_whole(path: Path, text: str) -> None:
    """Write a file that appears when it is complete; a link in its place is replaced, not followed.

    Raises:
        OSError: it cannot be written; what was there is as it was.
    """
    temporary = path.with_name(f".{path.name}.unfinished")
    temporary.unlink(missing_ok=True)  # left by a process that was killed
    try:
        with temporary.open("x", encoding="utf-8") as file:
            file.write(text)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def check_replaceable(path: Path, option: str, force: bool = False) -> None:
    """Refuse to replace what is no page of ours; ``force`` replaces any regular file, but neither links, folders nor devices.

    Raises:
        InputError: with the remedy.
    """
    try:
        mode = path.lstat().st_mode
        if not stat.S_ISREG(mode):
            raise InputError(f"{option} {path}: is {kind(mode)}; name a file")
        if force:
            return
        with path.open("rb") as file:
            head = file.read(1000)
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:  # ValueError: a null byte
        raise InputError(f"{option} {path}: cannot be written ({reason(error)}); name another file") from error
    if MARK.encode() not in head:
        raise InputError(
            f"{option} {path}: exists and is no page of fedexperts; name another file, or add --force to replace it"
        )


def kind(mode: int) -> str:
    """What a path is, in words, by its ``st_mode``."""
    kinds = ((stat.S_ISREG, "a file"), (stat.S_ISDIR, "a folder"), (stat.S_ISLNK, "a link"), (stat.S_ISFIFO, "a FIFO"))
    return next((name for test, name in kinds if test(mode)), "a device or socket")


def reason(error: Exception) -> str:
    """An error's cause in few words."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__


@contextmanager
def on_disk(where: Path, remedy: str) -> Iterator[None]:
    """What the disk refuses within the block becomes a `RunError` that names the file, the cause and the remedy."""
    try:
        yield
    except OSError as error:
        raise RunError(f"{error.filename or where}: {reason(error)}; {remedy}") from error
    except SafetensorError as error:  # its writer reports a full disk so
        raise RunError(f"{where}: {error}; {remedy}") from error
