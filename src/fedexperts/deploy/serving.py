"""Whether the server process of a run is at work: Flower starts it, and tells nobody who waits that it was killed."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import RunError
from ..writing import write_whole
from .place import Place

SERVING = "serving.pid"
MOST_BEGIN_S = 120.0
"""So long Flower may take to start the server process."""


@contextmanager
def serving(place: Place) -> Iterator[None]:
    """Say that this process is the server's, until the block ends."""
    path = place.folder / SERVING
    write_whole(path, f"{os.getpid()}\n")
    try:
        yield
    finally:
        if server(place) == os.getpid():  # and not one that was started when this one seemed to be dead
            path.unlink(missing_ok=True)


def server(place: Place) -> int | None:
    """The number of the server's process, whether it lives or was killed; None if there is none."""
    try:
        return int((place.folder / SERVING).read_text())
    except (FileNotFoundError, ValueError):
        return None


class Watch:
    """Of a run that is about to be handed over."""

    def __init__(self, place: Place):
        self.place, self.until_s = place, time.monotonic() + MOST_BEGIN_S
        (place.folder / SERVING).unlink(missing_ok=True)
        self.begun = False

    def __call__(self) -> None:
        """Look.

        Raises:
            RunError: it was killed, or does not begin.
        """
        number = server(self.place)
        self.begun |= number is not None
        gone = number is not None and not is_there(number, self.place)
        if self.place.outcome() is not None:  # which it leaves before it goes
            return
        if gone:
            raise RunError("the server process was killed; the same command goes on from its last checkpoint")
        if not self.begun and time.monotonic() > self.until_s:
            raise RunError(f"Flower has not started the server process in {MOST_BEGIN_S:g} s; the SuperLink's log says why")


def is_there(number: int, place: Place) -> bool:
    """Whether a process lives and, where that can be seen, is of this deployment, as numbers are given again."""
    try:
        os.kill(number, 0)
        words = Path(f"/proc/{number}/environ").read_bytes()
    except FileNotFoundError:  # no /proc
        return True
    except (ProcessLookupError, PermissionError):
        return False
    return f"FLWR_HOME={(place.folder / 'flower').resolve()}".encode() in words
