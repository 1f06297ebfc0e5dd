"""What a protocol sees of the world.

Rules that every protocol and every link keep:

1. A protocol is a plain class with explicit state and ``async def contact(self, link)``, run once per contact. It sees no
   clock, no socket, no file and no global random generator. Its attributes are tensors, pieces, numbers, strings and
   containers of these, because the driver writes them to checkpoints; those that begin with _ are settings, left out.
2. Contacts may overlap. Between two awaits nothing else runs; at every await another contact may.
3. The signal may be lost at any await: `SignalLost` is raised there. What a protocol did before stays done. Devices go on
   with the standing order that came with the last `send`, and what they could not upload waits for a later `collect`.
4. ``model`` is the global model, part by part. Its pieces are replaced, never written to.
5. A class with ``by_client = True`` gets each device as a link of its own; one with a ``placement()``, from link to experts,
   is judged by that too. One with ``needs_owners = False`` is told of no owners, and no trial is made for it.
6. An optional ``async def flush(self, link)`` collects what is left when training is over; an optional
   ``def first_order(self, cluster)`` says what a cluster does before its first contact, a task or None.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from ..moe.parts import Fitted, Piece, unfitted
from ..train.task import Task, Update

if TYPE_CHECKING:
    from ..moe.lora import LoRA


class SignalLost(Exception):  # noqa: N818  # it is an event of the network, not an error of the program
    """The contact ended before the protocol did; the reason, if it is not the signal."""


class Link(Protocol):
    """The only way to the devices of one cluster, valid for one contact."""

    cluster: str
    cycle: int
    """Orbital cycle in which the contact began, counted from 0."""

    @property
    def expected(self) -> tuple[str, ...]:
        """Clusters with which this cycle has contacts, by the plan."""

    @property
    def gap_ahead(self) -> bool:
        """Whether the cluster is out of contact between the planned end of this contact and its next."""

    def rounds_left(self, up: Collection[str] = (), down: Collection[str] = (), task: Task | None = None) -> int:
        """Local rounds that still fit when parts ``up`` must then be uploaded, and parts ``down`` sent.

        Say for what ``task``: where devices are as fast as their class, a round's length depends on what is trained.
        """

    async def send(self, pieces: Collection[Piece], order: Task | None = None) -> None:
        """Broadcast pieces; devices that hold a piece already are spared it. ``order`` is what to do if the signal is lost."""

    async def train(self, task: Task) -> None:
        """Let every device of the cluster do ``task.rounds`` local rounds."""

    async def collect(self, parts: Collection[str]) -> list[Update]:
        """Upload what the devices have trained of ``parts`` and not delivered yet; complete for all devices.

        Snapshots whose upload began in an earlier contact come along, whatever parts are named. Collect before you send: a
        piece that is sent takes the place of what the devices have trained of that part. What the server does not let in
        (`admission`) is left out: a device may be missing.
        """

    async def trial(self, samples: int) -> tuple[NDArray[np.int64], int]:
        """Routing counts_LM of up to ``samples`` samples per device, and the number of tokens, summed over the cluster."""

    async def leave(self, task: Task | None) -> None:
        """End the contact; the devices go on with the task until the next one."""

    def log(self, event: str, **facts: Any) -> None:
        """Write a line to the ledger, with the time and the cluster.

        An event of your own has any name and fields; one of docs/ledger.md must have its fields.

        Raises:
            ValueError: it has not.
        """


@runtime_checkable
class ServerProtocol(Protocol):
    """What the driver needs of a protocol."""

    model: dict[str, Piece]

    async def contact(self, link: Link) -> None:
        """One contact with one cluster."""


@dataclass(frozen=True)
class Start:
    """What every protocol is given before the first contact.

    Attributes:
        model: θ_0 as pieces of version 0.
        clusters: names in the scenario's order.
        shared: parts trained in contact by whoever is there, e.g. ``{"gate"}``.
        owned: the expert parts of each cluster (Algorithm 1).
        cycles: orbital cycles that the run will have.
        samples: how many the devices of each link have.
        lora: how experts are adapted; None where their full parameters are trained.
        fitted: what of a piece the devices of a link are sent, and train from; the link sees to it.
        weights, overlap: how the server averages, see `aggregate.Averaging`.
        first_cycle: ``"met"``: clusters rest until their first contact; ``"paper"``: they train from the start.
        max_rounds: local rounds that a device makes at most between two contacts, and in rounds of clients also in one.
    """

    model: Mapping[str, Piece]
    clusters: tuple[str, ...]
    shared: frozenset[str]
    owned: Mapping[str, frozenset[str]]
    cycles: int
    samples: Mapping[str, int] = field(default_factory=dict)
    lora: LoRA | None = None
    fitted: Fitted = field(default_factory=lambda: unfitted, repr=False)
    weights: Literal["devices", "samples"] = "devices"
    overlap: Literal["add", "mean"] = "add"
    first_cycle: Literal["met", "paper"] = "met"
    max_rounds: int | None = None
