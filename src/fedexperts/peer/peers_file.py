"""peers.toml: who is in the network, where each listens, and how they know each other."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from ..errors import InputError
from ..scenario import read_toml, table_of
from ..tables.fields import Positive, Table, Whole
from .address import Address, split_address
from .links import Links
from .tls import Identity, identity

MOST_PEERS = 1000


class Tls(Table):
    """``[tls]``; without it peers talk in the open, which must be asked for with --insecure.

    In paths, which start from the file's folder, ``{name}`` stands for client-<number>, or for user.
    """

    ca: str = "certificates/ca.pem"
    """Certificate of the authority that has signed all others."""
    certificate: str = "certificates/{name}.pem"
    """Certificate of a client."""
    key: str = "certificates/{name}.key"
    """Its private key; each machine needs its own alone."""


class PeerRow(Table):
    """``[[peer]]``: one client."""

    client: Whole
    """Its number, which is that of its expert."""
    address: Address
    """HOST:PORT where others reach it."""
    name: str | None = None
    """The name in DNS that its certificate must have; client-<number>.<run> if left out."""


class Patience(Table):
    """``[patience]``: how long a client waits for others, and what it does when they do not answer."""

    deadline_s: Positive = 2.0
    """For all experts' answers to a request; who has not answered by then was absent."""
    k_min: Whole = 1
    """Answers that each sample should have; where all have as many, the rest is waited for a little longer only."""
    timeout_after_k_min_s: Positive = 1.0
    """How much longer; also at most the deadline."""
    attempts: Annotated[int, Field(ge=1, le=10)] = 3
    """How often a question is sent, where the connection was refused or the peer busy; always within the deadline."""
    suspect_s: Positive = 1.0
    """For how long a peer is skipped after it has not answered; twice as long each time."""
    suspect_most_s: Positive = 60.0
    """At most."""
    channel_tolerance_s: Positive | None = None
    """The gate's choice minds the channel: so many seconds of expected delay make a peer e times less likely. Left out: no."""


class PeersTable(Table):
    """The whole file."""

    run: str | None = None
    """Of extractor and gate, as fedexperts peer init found it; who has another is refused."""
    tls: Tls | None = None
    patience: Patience = Patience()
    links: str | None = None
    """A links.toml with a contact plan: who is out of contact is not asked, and answers say when waiting would help."""
    peer: Annotated[tuple[PeerRow, ...], Field(min_length=1, max_length=MOST_PEERS, strict=False)]


class Network:
    """peers.toml, checked against the model: every expert has one client.

    Args:
        path: of the file.
        experts: how many the model has; as many as clients if left out.
        run: digest of extractor and gate; that of the file if left out.
        insecure: whether peers may talk in the open.

    Raises:
        InputError: with the place in the file.
    """

    def __init__(self, path: Path, experts: int | None = None, run: str | None = None, insecure: bool = False):
        self.path, self.folder = path, path.resolve().parent
        self.table = table_of(PeersTable, read_toml(path), str(path))
        self.run = run or self.table.run or ""
        self.peers = {row.client: row for row in self.table.peer}
        self._check(len(self.table.peer) if experts is None else experts)
        self.links = None if self.table.links is None else Links(self.folder / self.table.links)
        if (self.table.tls is None) != insecure:
            raise InputError(
                f"{path}: has no [tls], so that anybody could ask and answer; run fedexperts peer init, or add --insecure"
                if self.table.tls is None
                else f"{path}: has a table [tls], and --insecure was given; leave one of them out"
            )

    def _check(self, experts: int) -> None:
        """Raises: InputError."""
        clients = [row.client for row in self.table.peer]
        if twice := sorted({client for client in clients if clients.count(client) > 1}):
            raise InputError(
                f"{self.path}: client = {twice[0]} is there {clients.count(twice[0])} times; every client has one [[peer]]"
            )
        addresses = [row.address for row in self.table.peer]
        if same := sorted({address for address in addresses if addresses.count(address) > 1}):
            at = [row.client for row in self.table.peer if row.address == same[0]]
            raise InputError(
                f"{self.path}: address = {same[0]!r}: of clients {', '.join(map(str, at))}; give each its own port"
            )
        for row in self.table.peer:
            split_address(f"{self.path}: client {row.client}: address =", row.address, least=1)
        if unknown := sorted(set(clients) - set(range(experts))):
            raise InputError(
                f"{self.path}: client = {unknown[0]}: the run has experts 0…{experts - 1}; is it another run's? "
                "Make a new file with fedexperts peer init"
            )
        if missing := sorted(set(range(experts)) - set(clients)):
            raise InputError(
                f"{self.path}: no [[peer]] for client {', '.join(map(str, missing))}, who has that expert; add it, "
                "also if it is away"
            )
        if self.table.run is not None and self.table.run != self.run:
            raise InputError(
                f"{self.path}: run = {self.table.run!r}: is of another run than the one given, {self.run}; give that, or make "
                "a new file with fedexperts peer init"
            )

    def row(self, client: int) -> PeerRow:
        """Of a client.

        Raises:
            InputError: there is none of this number.
        """
        if client not in self.peers:
            raise InputError(f"client {client}: {self.path} has clients 0…{len(self.peers) - 1}; name one of them")
        return self.peers[client]

    def name(self, client: int) -> str:
        """What its certificate must say.

        Raises:
            InputError: nothing says of which run it is.
        """
        if self.table.tls is not None and self.peers[client].name is None and not self.run:
            raise InputError(
                f"{self.path}: run: is missing, and names of certificates end with it; copy it from the file that fedexperts "
                f"peer init wrote, or add a name to the [[peer]] of client {client}"
            )
        return self.peers[client].name or default_name(f"client-{client}", self.run)

    def identity(self, who: str, name: str | None = None) -> Identity | None:
        """The files of ``who``, client-<number> or user; None where all is in the open.

        Raises:
            InputError: a file is missing, wrong, expired, or of another name than ``name``.
        """
        if (tls := self.table.tls) is None:
            return None
        ca, certificate, key = (self.folder / text.replace("{name}", who) for text in (tls.ca, tls.certificate, tls.key))
        return identity(ca, certificate, key, name)


def default_name(who: str, run: str) -> str:
    """A name in DNS, of a client or a user of a run."""
    return f"{who}.{run}"
