"""Clusters of one run trained at the same time, by processes that begin with an order before it is due.

Devices stay in the process of the run, with all that changes of them. What they will be told to train is foreseen
(`Host.foresee`, `Host.part`), and a process that has such devices too is lent their state and begins. When the order comes,
and is the one foreseen, what came of it is taken over; if it is another, that is given up and the devices train here. So
whether anybody was ahead can be told from the clock alone.
"""

from __future__ import annotations

import multiprocessing
import pickle
import signal
import traceback
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

import torch

from ..errors import InputError, RunError
from ..method.method import Prepare
from ..moe.parts import Piece, Tensors
from ..scenario import Scenario
from ..setup.prepare import Prepared
from ..train.host import Ahead, Host, Trained, Training, Trial
from ..train.task import Experts, Task, Update
from .child import follow_parent

if TYPE_CHECKING:
    from ..train.member import NetworkClient

STAYS = ("held", "flops")
"""Of a device's state what training leaves as it is."""


def check_jobs(jobs: Any, elsewhere: bool) -> None:
    """Refuse numbers of processes that are none; ``elsewhere``: the devices are on Hosts of the caller's own.

    Raises:
        InputError: with what is allowed.
    """
    if not isinstance(jobs, int) or isinstance(jobs, bool) or jobs < 1:
        raise InputError(f"jobs = {jobs!r}: must be a whole number of processes, at least 1, which is the run's own alone")
    if jobs > 1 and elsewhere:
        raise InputError(f"jobs = {jobs}: is for devices in this process, and hosts puts them elsewhere; leave one of both out")


@contextmanager
def ahead(prepared: Prepared, prepare: Prepare, jobs: int) -> Iterator[dict[str, Host]]:
    """Within the block the devices of links are trained by so many processes, each of which has every ``jobs``-th link.

    Args:
        prepared: with the devices here.
        prepare: prepares the scenario in the same way; it is called once more in each process, so it must be importable.
        jobs: how many; not more than there are links.
    """
    links, hosts = list(prepared.hosts), dict(prepared.hosts)
    with ExitStack() as stack:
        for i in range(min(jobs, len(links))):
            trainer = Trainer(partial(_hosts, prepare, prepared.scenario, links[i::jobs]))
            stack.callback(trainer.close)
            hosts |= {link: AheadHost(prepared.hosts[link], link, trainer) for link in links[i::jobs]}
        yield hosts


class Trainer:
    """A process that trains devices as it is told, one order after the other.

    Args:
        build: called in that process; returns its devices, by link.
    """

    def __init__(self, build: Callable[[], Mapping[str, Host]]):
        context = multiprocessing.get_context("spawn")  # a forked torch may hang
        self._pipe, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs, build, torch.get_num_threads()), daemon=True)
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # and so in the new one, which Ctrl-C is not for
        try:
            self.process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()  # or nobody would hear of its end
        self._thread = ThreadPoolExecutor(1)

    def begin(self, write: Callable[[], bytes]) -> Future[bytes]:
        """An order, written when its turn comes, to its answer.

        The future raises:
            RunError: the process has ended.
        """
        return self._thread.submit(self._ask, write)

    def _ask(self, write: Callable[[], bytes]) -> bytes:
        order = write()
        try:
            self._pipe.send_bytes(order)
            return self._pipe.recv_bytes()
        except (EOFError, OSError) as error:
            self.process.join()
            raise RunError(
                f"a process of jobs has ended (exit code {self.process.exitcode}) before it had trained; if memory was short, "
                "take fewer jobs; go on with resume"
            ) from error

    def close(self) -> None:
        """End the process; what it has begun is given up."""
        self.process.kill()
        self.process.join()
        self._thread.shutdown(cancel_futures=True)
        self._pipe.close()


class AheadHost:
    """`Host` for the devices of another one, which a trainer begins to train as soon as that is foreseen."""

    away = ""

    def __init__(self, host: Host, link: str, trainer: Trainer):
        self.host, self.link, self.trainer = host, link, trainer
        self.begun: tuple[Any, Future[bytes]] | None = None
        self.lent: dict[tuple[str, str], Piece] = {}  # by device and part what the trainer holds

    def foresee(self, verb: str, args: tuple[Any, ...], ahead: Ahead) -> None:
        """See `Host`."""
        if verb == "train":
            self._begin(*args)

    def part(self, ahead: Ahead) -> None:
        """See `Host`."""
        order = ahead()
        self._give_up()
        if order is not None and order[1] > 0:
            self._begin(*order)

    def _begin(self, task: Task, rounds: int, round_s: float, peers: Experts | None) -> None:
        self._give_up()
        order = task, rounds, round_s, peers
        self.begun = _known(order), self.trainer.begin(partial(self._written, self.host.state(), order))

    def _give_up(self) -> None:
        if self.begun is not None:
            self.begun[1].cancel()
        self.begun = None

    def _written(self, state: dict[str, Any], order: Training) -> bytes:
        """An order with the devices' state but for pieces that the trainer has; called by the trainer's thread alone."""
        lent = {(name, part): piece for name, saved in state["devices"].items() for part, piece in saved["held"].items()}
        devices = {}
        for name, saved in state["devices"].items():
            lacking = {part: None if self.lent.get((name, part)) is piece else piece for part, piece in saved["held"].items()}
            devices[name] = {**{key: value for key, value in saved.items() if key not in STAYS}, "held": lacking}
        order_and_state = pickle.dumps((self.link, {**state, "devices": devices, "measured": {}}, order))
        self.lent = lent  # only now: who gives an order up may go on to change what is being written, and it fails
        return order_and_state

    def train(self, task: Task, rounds: int, round_s: float, peers: Experts | None) -> Trained:
        """See `Host`."""
        begun, order = self.begun, (task, rounds, round_s, peers)
        if begun is None or begun[0] != _known(order):
            return self._changing().train(*order)
        self.begun = None
        answer, failed = pickle.loads(begun[1].result())
        if failed is not None:
            raise failed
        done, after = answer
        now = self.host.state()
        for name, saved in after["devices"].items():
            saved |= {key: now["devices"][name][key] for key in STAYS}
        self.host.restore({**after, "measured": now["measured"]})
        trained: Trained = done
        return trained

    def _changing(self) -> Host:
        """The devices, to change them by something that was not foreseen."""
        self._give_up()
        return self.host

    @property
    def devices(self) -> tuple[str, ...]:
        """See `Host`."""
        return self.host.devices

    @property
    def samples(self) -> tuple[int, ...]:
        """See `Host`."""
        return self.host.samples

    @property
    def local_steps(self) -> int:
        """See `Host`."""
        return self.host.local_steps

    def meet(self, start_s: float, end_s: float) -> None:
        """See `Host`."""

    def begin(self, model: dict[str, Piece]) -> None:
        """See `Host`."""
        self._changing().begin(model)

    def join(self, client: NetworkClient) -> None:
        """See `Host`."""
        self._changing().join(client)

    def lacks(self, pieces: Collection[Piece]) -> list[Piece]:
        """See `Host`."""
        return self.host.lacks(pieces)

    def receive(self, pieces: Collection[Piece]) -> None:
        """See `Host`."""
        self._changing().receive(pieces)

    def flops(self, task: Task) -> list[int]:
        """See `Host`."""
        return self.host.flops(task)

    def flops_beside(self, task: Task) -> int:
        """See `Host`."""
        return self.host.flops_beside(task)

    def activations_B(self, task: Task) -> int:
        """See `Host`."""
        return self.host.activations_B(task)

    def upload_B(self, part: str) -> int:
        """See `Host`."""
        return self.host.upload_B(part)

    def snapshot(self, device: str, parts: Collection[str]) -> list[Update]:
        """See `Host`."""
        return self._changing().snapshot(device, parts)

    def delivered(self, updates: Sequence[Update], parts: Collection[str]) -> None:
        """See `Host`."""
        self._changing().delivered(updates, parts)

    def unsent_rounds(self) -> int:
        """See `Host`."""
        return self.host.unsent_rounds()

    def trial(self, samples: int) -> list[Trial]:
        """See `Host`."""
        return self.host.trial(samples)

    def own(self, parts: Collection[str]) -> dict[str, Tensors]:
        """See `Host`."""
        return self.host.own(parts)

    def late_B(self) -> int:
        """See `Host`."""
        return self.host.late_B()

    def release(self, parts: Collection[str]) -> None:
        """See `Host`."""
        self._changing().release(parts)

    def state(self) -> dict[str, Any]:
        """See `Host`; of what is under way there is nothing in it."""
        return self.host.state()

    def restore(self, state: dict[str, Any]) -> None:
        """See `Host`."""
        self._changing().restore(state)


def _known(order: Training) -> tuple[Any, ...]:
    """What tells orders apart; a version says how often an expert was told."""
    task, rounds, round_s, peers = order
    return task, rounds, round_s, None if peers is None else {part: piece.version for part, piece in peers.items()}


def _hosts(prepare: Prepare, scenario: Scenario, links: Sequence[str]) -> dict[str, Host]:
    """In a trainer: devices on a model as it is before the first contact; what pieces do not hold of it comes from there."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the process of the run has said it
        prepared = prepare(scenario)
        if prepared.lora:
            prepared.begin()
    return {link: prepared.hosts[link] for link in links}


def _work(pipe: Connection, build: Callable[[], Mapping[str, Host]], threads: int) -> None:
    """In a trainer: build the devices, and train them as told until there is nobody to tell."""
    follow_parent()
    torch.set_num_threads(threads)
    hosts, failed = _tried(build)
    while True:
        try:
            link, state, order = pickle.loads(pipe.recv_bytes())
        except (EOFError, OSError):
            return
        answer = _tried(partial(_trained, hosts[link], state, order)) if hosts else (None, failed)
        pipe.send_bytes(pickle.dumps(answer))


def _tried(work: Callable[[], Any]) -> tuple[Any, Exception | None]:
    """What comes of it, or what it raises, for whoever comes for it."""
    try:
        return work(), None
    except Exception as error:
        error.add_note(traceback.format_exc())  # its own does not travel
        return None, error


def _trained(host: Host, state: dict[str, Any], order: Training) -> tuple[Trained, dict[str, Any]]:
    """What came of an order, and the state after it."""
    now = host.state()["devices"]
    for name, saved in state["devices"].items():
        here = now[name]["held"]
        saved["held"] = {part: here[part] if piece is None else piece for part, piece in saved["held"].items()}
    host.restore(state)
    done, after = host.train(*order), host.state()
    for saved in after["devices"].values():
        for key in STAYS:
            del saved[key]
    return done, {**after, "measured": {}}
