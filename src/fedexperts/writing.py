"""Writing files: whole or not at all, never through a link, and what the disk refuses told as one error."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import stat
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from .errors import InputError, RunError

MARK = '<meta name="generator" content="fedexperts">'
"""In the head of every page that we write: a page with it may be replaced."""
HEAD_B = 2000
"""A page's marks are within so many bytes."""
DISK = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ENOMEM, errno.EMFILE, errno.ENFILE})
"""What is the machine's fault and not that of the path that was given."""
PATHS = frozenset(
    {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENAMETOOLONG, errno.EROFS}
)
"""What is wrong with a path that was given."""
_BESIDE = re.compile(rb'<meta name="fedexperts-beside" content="([0-9a-f ]*)">')


def write_whole(path: Path, text: str | bytes) -> None:
    """Write a file that appears when it is complete; a link in its place is replaced, not followed.

    Raises:
        OSError: it cannot be written; what was there is as it was.
    """
    write_together({path: text})


def write_together(texts: Mapping[Path, str | bytes]) -> None:
    """Write files that appear when all of them are complete; links in their place are replaced, not followed.

    Raises:
        OSError: one cannot be written, with its name; if the disk is full, what was there is as it was.
    """
    waiting = {path: path.with_name(f".{path.name}.unfinished") for path in texts}
    at = None
    try:
        for at, text in texts.items():
            waiting[at].unlink(missing_ok=True)  # left by a process that was killed
            with waiting[at].open("xb") as file:
                file.write(text if isinstance(text, bytes) else text.encode())
        for at, temporary in waiting.items():
            temporary.replace(at)
    except BaseException as error:
        for temporary in waiting.values():
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename, error.filename2 = str(at), None
        raise


def mark(beside: Iterable[str] = ()) -> str:
    """What a page's head must hold to be ours, with the checksums of texts that are written beside it and are then ours too."""
    sums = " ".join(hashlib.sha256(text.encode()).hexdigest() for text in beside)
    return MARK + (f'<meta name="fedexperts-beside" content="{sums}">' if sums else "")


def written_beside(page: Path) -> frozenset[str]:
    """Checksums (SHA-256) of what we wrote beside a page that `check_replaceable` has let pass; none if it is not there."""
    try:
        with page.open("rb") as file:
            head = file.read(HEAD_B)
    except OSError:
        return frozenset()
    found = _BESIDE.search(head) if MARK.encode() in head else None
    return frozenset(found[1].decode().split()) if found else frozenset()


def check_replaceable(path: Path, option: str, force: bool | None = None, sums: Collection[str] = ()) -> None:
    """Refuse to replace what is no page of ours, nor a file with one of the checksums ``sums``, before any work.

    ``force`` replaces any regular file, but neither links, folders nor devices; None where the command has no such option.

    Raises:
        InputError: with the remedy.
    """
    try:
        if (there := _kind_there(path)) is not None:
            if there != "a file":
                raise InputError(f"{option} {path}: is {there}; name another file")
            if not (force or _is_ours(path, sums)):
                remedy = "remove it" if force is None else "add --force to replace it"
                raise InputError(
                    f"{option} {path}: exists, and fedexperts did not write it as it is; name another place, or {remedy}"
                )
        _check_place(path.parent, f"{option} {path}")
    except (OSError, ValueError) as error:  # ValueError: a null byte
        if isinstance(error, InputError):
            raise
        raise InputError(f"{option} {path}: cannot be written ({reason(error)}); name another file") from error


def _kind_there(path: Path) -> str | None:
    try:
        return kind(path.lstat().st_mode)
    except FileNotFoundError:
        return None


def _is_ours(path: Path, sums: Collection[str]) -> bool:
    with path.open("rb") as file:
        if MARK.encode() in file.read(HEAD_B):
            return True
        file.seek(0)
        return bool(sums) and hashlib.file_digest(file, "sha256").hexdigest() in sums


def _check_place(folder: Path, where: str) -> None:
    """A folder to write into, or the first above it that is there, must be one that can be written."""
    there = next(at for at in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(at))
    if not there.is_dir():
        raise InputError(f"{where}: {there} is {kind(there.lstat().st_mode)}; name another place")
    if not os.access(there, os.W_OK | os.X_OK):
        raise InputError(f"{where}: {there} cannot be written; name another place, or change its permissions")


def check_folder(folder: Path, option: str) -> None:
    """Refuse to write into what is no folder.

    Raises:
        InputError: with the remedy.
    """
    if os.path.lexists(folder) and not folder.is_dir():
        raise InputError(f"{option} {folder}: is {kind(folder.lstat().st_mode)}; name a folder")


def check_empty(folder: Path, option: str) -> None:
    """Refuse to write into what is no new or empty folder; links are none.

    Raises:
        InputError: with the remedy.
    """
    if "\0" in str(folder):
        raise InputError(f"{option} {str(folder)!r}: has a null byte; name another folder")
    try:
        if (there := _kind_there(folder)) not in (None, "a folder"):
            raise InputError(f"{option} {folder}: is {there}; name another folder")
        if there and any(folder.iterdir()):
            raise InputError(f"{option} {folder}: already holds files; name another folder")
    except OSError as error:
        raise InputError(f"{option} {folder}: cannot be written ({reason(error)}); name another folder") from error
    _check_place(folder, f"{option} {folder}")


@contextmanager
def filled(folder: Path, option: str) -> Iterator[None]:
    """A folder that `check_empty` has let pass, made if need be, to write into; what cannot be written whole is taken back.

    Raises:
        InputError: the place cannot be written.
        RunError: the machine refuses, as a full disk does.
    """
    made = [at for at in (folder, *folder.parents) if not at.exists()]
    with on_disk(folder, "make room, or name another folder", option):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            yield
        except BaseException:
            with suppress(OSError):
                for path in folder.iterdir():
                    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
                for at in made:
                    at.rmdir()
            raise


def kind(mode: int) -> str:
    """What a path is, in words, by its ``st_mode``."""
    kinds = ((stat.S_ISREG, "a file"), (stat.S_ISDIR, "a folder"), (stat.S_ISLNK, "a link"), (stat.S_ISFIFO, "a FIFO"))
    return next((name for test, name in kinds if test(mode)), "a device or socket")


def reason(error: Exception) -> str:
    """An error's cause in few words."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__


@contextmanager
def on_disk(where: Path, remedy: str, option: str | None = None) -> Iterator[None]:
    """What the disk refuses within the block becomes a `RunError` that names the file, the cause and the remedy.

    With the ``option`` that gave ``where`` a place that cannot be written becomes an `InputError`.
    """
    try:
        yield
    except OSError as error:
        if option is not None and error.errno in PATHS - {errno.ENOENT}:  # that is a file to read from
            raise InputError(f"{option} {where}: cannot be written ({reason(error)}); name another place") from error
        raise RunError(f"{error.filename or where}: {reason(error)}; {remedy}") from error
    except SafetensorError as error:  # its writer reports a full disk so
        raise RunError(f"{where}: {error}; {remedy}") from error
