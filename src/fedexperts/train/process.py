"""A Host whose devices live in a process of their own, with one thread and a model of their own."""

from __future__ import annotations

import multiprocessing
import pickle
from collections.abc import Callable, Collection, Sequence
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Self

import torch

from ..moe.parts import Piece, Tensors
from .host import Host, Near, Trained, Trial
from .member import NetworkClient
from .task import Experts, Task, Update, bare


class ProcessHost(Near):
    """`Host` at the other end of a pipe. What is sent is copied: nothing is shared with this process.

    Args:
        build: called in the new process, which is spawned, so it must be importable; returns the Host to be asked there.

    Raises:
        RuntimeError: the process has ended.
        Exception: whatever a verb raises there.
    """

    def __init__(self, build: Callable[[], Host]):
        context = multiprocessing.get_context("spawn")  # a forked torch may hang
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_answer, args=(theirs, build), daemon=True)
        self._process.start()
        theirs.close()
        self._devices, self._samples, self._local_steps = self._ask("facts")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End the process."""
        self._pipe.close()
        self._process.join(timeout=5)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def _ask(self, verb: str, *args: Any) -> Any:
        try:
            self._pipe.send_bytes(pickle.dumps((verb, args)))
            good, answer = pickle.loads(self._pipe.recv_bytes())
        except (EOFError, OSError) as error:
            raise RuntimeError(f"the process of a Host has ended (asked to {verb})") from error
        if not good:
            raise answer
        return answer

    @property
    def devices(self) -> tuple[str, ...]:
        """See `Host`."""
        names: tuple[str, ...] = self._devices
        return names

    @property
    def samples(self) -> tuple[int, ...]:
        """See `Host`."""
        counts: tuple[int, ...] = self._samples
        return counts

    @property
    def local_steps(self) -> int:
        """See `Host`."""
        return int(self._local_steps)

    def begin(self, model: dict[str, Piece]) -> None:
        """See `Host`."""
        self._ask("begin", model)

    def join(self, client: NetworkClient) -> None:
        """See `Host`."""
        self._ask("join", client)

    def lacks(self, pieces: Collection[Piece]) -> list[Piece]:
        """See `Host`."""
        missing = set(self._ask("lacks", [Piece(piece.part, piece.version, {}) for piece in pieces]))
        return [piece for piece in pieces if piece.part in missing]

    def receive(self, pieces: Collection[Piece]) -> None:
        """See `Host`."""
        self._ask("receive", list(pieces))

    def train(self, task: Task, rounds: int, round_s: float, peers: Experts | None) -> Trained:
        """See `Host`."""
        done: Trained = self._ask("train", task, rounds, round_s, peers)
        return done

    def flops(self, task: Task) -> list[int]:
        """See `Host`."""
        return list(self._ask("flops", task))

    def flops_beside(self, task: Task) -> int:
        """See `Host`."""
        return int(self._ask("flops_beside", task))

    def activations_B(self, task: Task) -> int:
        """See `Host`."""
        return int(self._ask("activations_B", task))

    def upload_B(self, part: str) -> int:
        """See `Host`."""
        return int(self._ask("upload_B", part))

    def snapshot(self, device: str, parts: Collection[str]) -> list[Update]:
        """See `Host`."""
        return list(self._ask("snapshot", device, set(parts)))

    def delivered(self, updates: Sequence[Update], parts: Collection[str]) -> None:
        """See `Host`; the tensors stay here."""
        self._ask("delivered", [bare(update) for update in updates], set(parts))

    def unsent_rounds(self) -> int:
        """See `Host`."""
        return int(self._ask("unsent_rounds"))

    def trial(self, samples: int) -> list[Trial]:
        """See `Host`."""
        return list(self._ask("trial", samples))

    def own(self, parts: Collection[str]) -> dict[str, Tensors]:
        """See `Host`."""
        return dict(self._ask("own", set(parts)))

    def release(self, parts: Collection[str]) -> None:
        """See `Host`."""
        self._ask("release", set(parts))

    def state(self) -> dict[str, Any]:
        """See `Host`."""
        return dict(self._ask("state"))

    def restore(self, state: dict[str, Any]) -> None:
        """See `Host`."""
        self._ask("restore", state)


def _answer(pipe: Connection, build: Callable[[], Host]) -> None:
    """In the new process: build the Host, and do what is asked until the pipe is closed."""
    torch.set_num_threads(1)
    host: Host | Exception
    try:
        host = build()
    except Exception as error:  # for whoever asks first
        host = error
    while True:
        try:
            verb, args = pickle.loads(pipe.recv_bytes())
        except EOFError:
            return
        try:
            answer = True, _done(host, verb, args)
        except Exception as error:  # for whoever has asked
            answer = False, error
        pipe.send_bytes(pickle.dumps(answer))


def _done(host: Host | Exception, verb: str, args: tuple[Any, ...]) -> Any:
    if isinstance(host, Exception):
        raise host
    if verb == "facts":
        return host.devices, host.samples, host.local_steps
    if verb == "lacks":
        return [piece.part for piece in host.lacks(*args)]
    return getattr(host, verb)(*args)
