"""Runs on a Ray cluster (extra ``ray``): each is a task of one CPU, in a folder that all nodes see.

A node needs the same Python, Ray and fedexperts; data, scenario and ``--out`` must be on a file system that all nodes share.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Callable
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any

from ..errors import Diverged, InputError, RunError, overheard
from ..writing import reason
from .lock import LOCK

LOCAL, AUTO = "local", "auto"
CONNECT_S = 5.0
OURS = (InputError, RunError, Diverged)


class RayPool(Executor):
    """Takes the place of a pool of processes.

    Args:
        address: ``"auto"`` or HOST:PORT of a cluster, ``"local"`` to start one on this machine.
        out: the folder that runs are made in, which this process has claimed.
        warn: told what runs warn of.

    Raises:
        InputError: Ray is not installed, or there is no such cluster.
    """

    def __init__(self, address: str, out: Path, warn: Callable[[str], object]):
        self.ray, self.warn = _ray(), warn
        self.mine = not self.ray.is_initialized()
        if self.mine:
            _connect(self.ray, address)
        self.place = os.getcwd(), out.resolve() / LOCK, _held(out.resolve() / LOCK)
        self.task = self.ray.remote(num_cpus=1, max_retries=0)(_in_place)
        self.refs: list[Any] = []

    def submit(self, fn: Callable[..., Any], /, *args: Any, **_: Any) -> Future[Any]:
        """A call somewhere on the cluster; relative paths are those of this process."""
        future: Future[Any] = Future()
        future.set_running_or_notify_cancel()
        ref = self.task.remote(self.place, fn, tuple(at.resolve() if isinstance(at, Path) else at for at in args))
        self.refs.append(ref)
        ref.future().add_done_callback(lambda done: self._hand_on(done, future))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Leave the cluster, or end one that was started here; what still runs is ended."""
        for ref in self.refs if cancel_futures else ():
            self.ray.cancel(ref, force=True)
        if self.mine:
            self.ray.shutdown()

    def _hand_on(self, done: Future[Any], future: Future[Any]) -> None:
        try:
            value, error, warned = done.result()
        except Exception as broken:  # a node that died, a module that is not there
            last = str(broken).strip().splitlines()[-1]
            error = RunError(f"--ray: a node did not do its run ({type(broken).__name__}: {last}); mend it, and add --resume")
            error.__cause__, value, warned = broken, None, []
        for text in warned:
            self.warn(text)
        if error is None:
            future.set_result(value)
        else:
            future.set_exception(error)


def _in_place(place: tuple[str, Path, str], fn: Callable[..., Any], args: tuple[Any, ...]) -> tuple[Any, Any, list[str]]:
    """On a node: the call's value, else its error as an object, as Ray would wrap it in a traceback; and what it warned of."""
    import warnings

    folder, lock, said = place
    if _held(lock) != said:
        where = f"node {socket.gethostname()} does not see {lock.parent} as this machine does"
        return None, InputError(f"--ray: {where}; name an --out on a file system that all nodes share"), []
    try:
        os.chdir(folder)  # where paths and modules of the user's own are looked for
    except OSError as found:
        return None, InputError(f"--ray: node {socket.gethostname()}: {folder}: {reason(found)}; share it"), []
    try:
        with warnings.catch_warnings(), overheard() as heard:
            warnings.simplefilter("ignore")
            value, error = fn(*args), None
    except OURS as found:
        value, error = None, found
    return value, error, list(heard) if error is None else []


def _held(lock: Path) -> str:
    """What the lock of a folder says: the process that holds it."""
    return lock.read_text() if lock.is_file() else ""


def _ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise InputError(f"--ray: needs the extra ray ({error}); pip install 'fedexperts[ray]', or use --jobs") from error
    return ray


def _connect(ray: Any, address: str) -> None:
    where = f"--ray {address}"
    found = re.fullmatch(r"([\w.-]+):(\d{1,5})", address)
    if address not in (LOCAL, AUTO):
        if not found:
            raise InputError(f"{where}: must be auto, local, or HOST:PORT of a cluster's head, as 10.0.0.1:6379")
        try:
            socket.create_connection((found[1], int(found[2])), CONNECT_S).close()
        except (OSError, OverflowError) as error:
            raise InputError(f"{where}: cannot be reached ({error}); is the cluster up?") from error
    try:
        ray.init(
            address=address, log_to_driver=False, logging_level="error", include_dashboard=False if address == LOCAL else None
        )
    except Exception as error:  # of many kinds: no cluster, another version of Ray or Python
        last = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"{where}: cannot be used ({last}); Ray, Python and RAY_AUTH_MODE must be those of the cluster"
        ) from error
