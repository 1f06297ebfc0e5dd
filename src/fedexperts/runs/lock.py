"""One process at a time in a run directory: an advisory lock on ``run.lock``, which lives as long as its process.

The lock is the kernel's, so that a process that was killed leaves none; the file says who holds it, and goes when the run
ends or stops. On a file system without locks the run goes on with a warning.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import re
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import InputError, RunError
from ..writing import DISK, kind, reason

log = logging.getLogger(__name__)
LOCK = "run.lock"
LEFTOVERS = frozenset({LOCK, "scenario.unfinished", ".scenario.toml.unfinished"})
"""All that a run leaves that was killed before it began."""
WAIT_S = 5.0
"""Worker processes whose parent was killed take a moment to end."""


def is_free(directory: Path) -> bool:
    """Whether a new run may begin in a folder: it does not exist, or holds nothing but what a killed process left."""
    return not directory.exists() or {path.name for path in directory.iterdir()} <= LEFTOVERS


def is_held(directory: Path) -> bool:
    """Whether a process is at work in a run directory; False where that cannot be told."""
    try:
        file = os.open(directory / LOCK, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # which the end of this process's hold gives back
    except OSError as error:
        return error.errno in (errno.EWOULDBLOCK, errno.EACCES)
    finally:
        os.close(file)
    return False


def check_usable(directory: Path, resume: bool) -> None:
    """Refuse what is no folder, and to begin in one with files; asked before anything is loaded.

    Raises:
        InputError: with the remedy.
    """
    try:
        if "\0" in str(directory):
            raise InputError(f"--out {str(directory)!r}: has a null byte; name another folder")
        if os.path.lexists(directory) and not directory.is_dir():
            raise InputError(f"--out {directory}: is {kind(directory.lstat().st_mode)}; name a folder")
        if not resume and not is_free(directory):
            raise InputError(
                f"--out {directory}: already holds files; add --resume to go on with that run, or name another folder"
            )
    except OSError as error:  # a name that is too long, links in a circle, no right to look
        raise InputError(f"--out {directory}: cannot be used ({reason(error)}); name another folder") from error


@contextmanager
def claimed(directory: Path) -> Iterator[None]:
    """Make a folder if need be, and hold its lock within the block; folders made here go again if they stayed empty.

    Raises:
        InputError: another process holds it, or the folder cannot be made or written.
        RunError: the disk is full.
    """
    made: list[Path] = []
    try:
        file = _claim(directory, made)
        try:
            yield
        finally:
            with suppress(OSError):  # while it is held: who waits for this file then looks for another one
                (directory / LOCK).unlink()
            os.close(file)
    finally:
        for at in made:
            with suppress(OSError):
                at.rmdir()


def forget_dead(directory: Path) -> None:
    """Remove the lock of a process that was killed as its run had ended; where that cannot be told it stays."""
    with suppress(OSError):
        file = os.open(directory / LOCK, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            (directory / LOCK).unlink()  # while it is held, as in `claimed`
        finally:
            os.close(file)


def _claim(directory: Path, made: list[Path]) -> int:
    try:
        made += [at for at in (directory, *directory.parents) if not at.exists()]
        directory.mkdir(parents=True, exist_ok=True)
        return _held(directory)
    except OSError as error:
        refused = RunError if error.errno in DISK else InputError
        raise refused(f"--out {directory}: cannot be written ({reason(error)}); name another folder") from error


def _held(directory: Path) -> int:
    """The open lock file, locked and still in its place."""
    path, until_s = directory / LOCK, time.monotonic() + WAIT_S
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
        try:
            if _locked(file, directory, until_s) and _in_place(file, path):
                with suppress(OSError):
                    os.ftruncate(file, 0)
                    os.pwrite(file, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
                return file
        except BaseException:
            os.close(file)
            raise
        os.close(file)
        time.sleep(0.05)


def _locked(file: int, directory: Path, until_s: float) -> bool:
    if not stat.S_ISREG(mode := os.fstat(file).st_mode):
        raise InputError(f"{directory / LOCK}: is {kind(mode)}; remove it")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
            log.warning(
                "warning: %s: this file system has no locks (%s); let no second process run there", directory, reason(error)
            )
            return True
        if time.monotonic() < until_s:
            return False
        said = os.pread(file, 200, 0).decode(errors="replace").strip()
        holder = said if re.fullmatch(r"process [0-9]+ on [\w.-]+", said) else "another process"
        raise InputError(
            f"--out {directory}: {holder} is at work there; wait for its end, end it, or name another folder"
        ) from error
    return True


def _in_place(file: int, path: Path) -> bool:
    """Whether the file that we hold is still the one of that name: who had it before removes it."""
    try:
        return os.path.samestat(os.fstat(file), path.lstat())
    except FileNotFoundError:
        return False
