"""Host: the devices of one cluster, wherever they run.

The server, the simulated link and the accounts of a run know devices by these verbs alone: what they must know of a device
arrives in an `Update` or by one of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..moe.parts import Piece, Tensors, in_order, is_expert
from .task import Experts, Task, Update

if TYPE_CHECKING:  # devices train with torch; who plans asks none of them
    from .cohort import Together
    from .device import Device
    from .member import NetworkClient


@dataclass(frozen=True)
class Trained:
    """What came of an order to train.

    Attributes:
        steps: gradient steps of all devices.
        peer_B: bytes that went to and from other clients.
        broken: parts that left the finite numbers, or all bounds, by device; these gave them up.
        loss: what the steps began with, each on its batch: the mean over steps and those devices where it is finite, if any.
    """

    steps: int
    peer_B: int
    broken: dict[str, list[str]]
    loss: float | None = None


@dataclass(frozen=True)
class Trial:
    """A device's trial pass: routing counts, the number of tokens, and the bytes of the samples themselves."""

    counts_LM: NDArray[np.int64]
    tokens: int
    samples_B: int


Training = tuple[Task, int, float, Experts | None]
"""What `Host.train` is told."""
Ahead = Callable[[], Training | None]
"""What a cluster is to do until its next contact, by the plan; None if nothing."""


class Host(Protocol):
    """The devices of one cluster.

    What is asked of devices elsewhere is carried by messages, which take time and may fail. So a link says what it will ask at
    the end of an await as soon as that begins (`foresee`), and looks whether anybody is there (`away`): what begins when nobody
    is there is lost. A verb that was not foreseen, or is asked of those who are away, counts as done, and is done when they
    are back.
    """

    @property
    def away(self) -> str:
        """Why somebody who should be in contact does not answer, in words; empty if they do; see `Near`."""

    def meet(self, start_s: float, end_s: float) -> None:
        """A contact begins, and ends by the plan at ``end_s``."""

    def foresee(self, verb: str, args: tuple[Any, ...], ahead: Ahead) -> None:
        """Begin with what this verb will be asked for; and with ``ahead``, if the contact ends then."""

    def part(self, ahead: Ahead) -> None:
        """The contact is over, or lost; begin with what is ahead."""

    @property
    def devices(self) -> tuple[str, ...]:
        """Their names, in a fixed order."""

    @property
    def samples(self) -> tuple[int, ...]:
        """How many each of them has."""

    @property
    def local_steps(self) -> int:
        """Gradient steps of a local round."""

    def begin(self, model: dict[str, Piece]) -> None:
        """θ_0, version 0 everywhere."""

    def join(self, client: NetworkClient) -> None:
        """Become a client of a Networked MoE, which is a device alone."""

    def lacks(self, pieces: Collection[Piece]) -> list[Piece]:
        """Those that not every device holds.

        Raises:
            ValueError: one would take the place of training that was not collected.
        """

    def receive(self, pieces: Collection[Piece]) -> None:
        """Take over parts of the global model."""

    def train(self, task: Task, rounds: int, round_s: float, peers: Experts | None) -> Trained:
        """Do local rounds of a task, each of which takes ``round_s``, on every device; ``peers`` as `Device.train` has them."""

    def flops(self, task: Task) -> list[int]:
        """FLOPs of a gradient step of the task, by device; the task need not have been trained yet."""

    def flops_beside(self, task: Task) -> int:
        """FLOPs of training by this task beyond its steps, over all devices."""

    def activations_B(self, task: Task) -> int:
        """Bytes that autograd saves in one step of the task."""

    def upload_B(self, part: str) -> int:
        """Bytes of a device's upload of the part."""

    def snapshot(self, device: str, parts: Collection[str]) -> list[Update]:
        """Frozen copies of those parts that the device has trained and not yet delivered, in travelling order."""

    def delivered(self, updates: Sequence[Update], parts: Collection[str]) -> None:
        """The server has these snapshots, which are all that there was of ``parts``."""

    def unsent_rounds(self) -> int:
        """Local rounds that were not delivered, summed over devices; of each the most of any part."""

    def trial(self, samples: int) -> list[Trial]:
        """Trial pass (27) of every device over at most so many of its samples."""

    def own(self, parts: Collection[str]) -> dict[str, Tensors]:
        """Parts as the first device has them now: of a client, which is alone."""

    def late_B(self) -> int:
        """Bytes to and from other clients that are known only now, of phases whose `Trained` could not tell them; once."""

    def release(self, parts: Collection[str]) -> None:
        """Give up parts for good."""

    def state(self) -> dict[str, Any]:
        """Everything that changes, for a checkpoint."""

    def restore(self, state: dict[str, Any]) -> None:
        """Inverse of `state`."""


class Near:
    """What Hosts have in common whose devices are always at hand: there is nothing to foresee."""

    away = ""

    def meet(self, start_s: float, end_s: float) -> None:
        """See `Host`."""

    def foresee(self, verb: str, args: tuple[Any, ...], ahead: Ahead) -> None:
        """See `Host`."""

    def part(self, ahead: Ahead) -> None:
        """See `Host`."""

    def late_B(self) -> int:
        """See `Host`."""
        return 0


class LocalHost(Near):
    """Devices in this process, one after the other on its resident model.

    Args:
        group: the devices.
        build: makes them anew with these experts in memory, where nobody knows yet which they will train: they load an expert
            when they are told to train it, or are sent it. Those that are not there they hold without tensors.
    """

    def __init__(self, group: Sequence[Device], build: Callable[[Collection[str]], list[Device]] | None = None):
        self.group = {device.name: device for device in group}
        self.build, self.loaded = build, frozenset[str]()
        self.uncollected: set[str] = set()  # parts trained since they were collected last
        self.measured: dict[tuple[str, int, frozenset[str], bool, str, int], int] = {}  # see `flops`
        self.sizes_B: dict[str, int] = {}  # see `upload_B`
        self.together: Together | None = None  # trains them at once, where they are told to

    @property
    def devices(self) -> tuple[str, ...]:
        """See `Host`."""
        return tuple(self.group)

    @property
    def samples(self) -> tuple[int, ...]:
        """See `Host`."""
        return tuple(device.samples for device in self.group.values())

    @property
    def local_steps(self) -> int:
        """See `Host`."""
        return self._first.local.local_steps

    @property
    def _first(self) -> Device:
        return next(iter(self.group.values()))

    def begin(self, model: dict[str, Piece]) -> None:
        """See `Host`."""
        for device in self.group.values():
            device.held = dict(model)

    def join(self, client: NetworkClient) -> None:
        """See `Host`."""
        from .member import Member

        self._first.member = Member(client)

    def lacks(self, pieces: Collection[Piece]) -> list[Piece]:
        """See `Host`."""
        missing = [piece for piece in pieces if not all(device.holds(piece) for device in self.group.values())]
        if lost := [piece.part for piece in missing if piece.part in self.uncollected]:
            raise ValueError(
                f"send: {', '.join(lost)} would take the place of what {', '.join(self.group)} trained of it; collect first"
            )
        return missing

    def receive(self, pieces: Collection[Piece]) -> None:
        """See `Host`."""
        self._need([piece.part for piece in pieces])
        for device in self.group.values():
            device.receive(pieces)

    def train(self, task: Task, rounds: int, round_s: float, peers: Experts | None) -> Trained:
        """See `Host`."""
        self._need(task.parts)
        self.uncollected |= task.parts - task.keeps
        before_B = self._peer_B()
        if self._first.local.together:
            steps, doubtful = self._joint().train(list(self.group.values()), task, rounds, round_s)
        else:
            steps = sum(device.train(task, rounds, round_s, peers) for device in self.group.values())
            doubtful = set(self.group)
        broken = {name: d.diverged(task.parts) if name in doubtful else [] for name, d in self.group.items()}
        losses = [d.loss for d in self.group.values() if d.loss is not None and math.isfinite(d.loss)]
        return Trained(steps, self._peer_B() - before_B, broken, sum(losses) / len(losses) if losses else None)

    def _joint(self) -> Together:
        from .cohort import Together

        self.together = self.together or Together()
        return self.together

    def _peer_B(self) -> int:
        return sum(device.member.peer_B for device in self.group.values() if device.member is not None)

    def flops(self, task: Task) -> list[int]:
        """See `Host`.

        Asked once for each kind of task: how many experts, which shared parts, masked or not, what batch. Clusters differ in
        the lengths of their data and in what their gate picks (where neither counts, see `flops.alike`); devices of one cluster
        where lengths vary.
        """
        self._need(task.parts)
        shared = frozenset(part for part in task.parts if not is_expert(part))
        of = (len(task.parts) - len(shared), shared, task.route is not None, task.goal)
        found, measured = [], self.measured
        for device in self.group.values():
            kind = (device.name if device.lengths_vary else "", *of, device.batch_size)
            if kind not in measured:
                measured[kind] = device.flops_per_step(task)
            found.append(measured[kind])
        return found

    def flops_beside(self, task: Task) -> int:
        """See `Host`."""
        return sum(d.member.spent(d, task) for d in self.group.values() if d.member is not None)

    def activations_B(self, task: Task) -> int:
        """See `Host`; measured on the first device."""
        self._need(task.parts)
        return self._first.activations_B(task)

    def upload_B(self, part: str) -> int:
        """See `Host`."""
        if part not in self.sizes_B:  # which each device is asked for, and there may be thousands
            self.sizes_B[part] = max(device.upload_B(part) for device in self.group.values())
        return self.sizes_B[part]

    def snapshot(self, device: str, parts: Collection[str]) -> list[Update]:
        """See `Host`."""
        return self.group[device].snapshot(parts)

    def delivered(self, updates: Sequence[Update], parts: Collection[str]) -> None:
        """See `Host`."""
        for update in updates:
            self.group[update.device].delivered(update)
        self.uncollected -= set(parts)

    def unsent_rounds(self) -> int:
        """See `Host`."""
        return sum(max(device.pending.values(), default=0) for device in self.group.values())

    def trial(self, samples: int) -> list[Trial]:
        """See `Host`."""
        return [Trial(*device.observe(samples), _samples_B(device, samples)) for device in self.group.values()]

    def own(self, parts: Collection[str]) -> dict[str, Tensors]:
        """See `Host`."""
        return {part: self._first.latest(part) for part in parts}

    def release(self, parts: Collection[str]) -> None:
        """See `Host`."""
        for device in self.group.values():
            device.release(parts)

    def state(self) -> dict[str, Any]:
        """See `Host`."""
        devices = {name: device.state() for name, device in self.group.items()}
        found = {"devices": devices, "uncollected": in_order(self.uncollected), "measured": self.measured}
        if self.together is not None:  # who goes on must train the same devices at once, or sums round otherwise
            found["activations_B"] = self.together.activations_B
        return found if self.build is None else {**found, "loaded": self.loaded}

    def restore(self, state: dict[str, Any]) -> None:
        """See `Host`."""
        if self.build is not None and state["loaded"] != self.loaded:
            self._load(state["loaded"])
        for name, saved in state["devices"].items():
            self.group[name].restore(saved)
        self.uncollected, self.measured = set(state["uncollected"]), state["measured"]
        if self.together is not None or "activations_B" in state:
            self._joint().activations_B = state.get("activations_B", {})

    def _need(self, parts: Collection[str]) -> None:
        """Load experts that are not there yet; all else stays as it is."""
        lacking = frozenset(filter(is_expert, parts)) - self.loaded
        if self.build is None or not lacking:
            return
        before = {name: device.state() for name, device in self.group.items()}
        self._load(self.loaded | lacking)
        for name, device in self.group.items():
            fresh = {part: device.held[part] for part in lacking}
            device.restore(before[name])
            device.held |= fresh

    def _load(self, experts: frozenset[str]) -> None:
        assert self.build is not None
        self.group, self.sizes_B = {}, {}  # its memory first
        self.group = {device.name: device for device in self.build(in_order(experts))}
        self.loaded = experts


def _samples_B(device: Device, n: int) -> int:
    return sum(values[:n].numel() * values.element_size() for values in device.data.values())
