"""links.toml: how each pair of nodes of a network is linked, by numbers or by a contact plan."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Annotated

from pydantic import Field

from ..contact.interchange import load_plan
from ..contact.plan import Contact, ContactPlan
from ..errors import InputError
from ..scenario import read_toml, table_of
from ..tables.fields import NonNegative, Positive, Table
from .address import Address, split_address
from .relay import Clock, Relay, Shape, Windows

Node = Annotated[str, Field(min_length=1, max_length=64)]
Pair = Annotated[tuple[Node, Node], Field(strict=False)]


class Numbers(Table):
    """How a link carries, in either direction."""

    rate_bps: Positive | None = None
    """Bits per second; without limit if left out. Over a contact plan at most the plan's own."""
    delay_s: NonNegative | None = None
    """From one end to the other."""
    jitter_s: NonNegative | None = None
    """Delays are drawn evenly from delay_s ± jitter_s; what is sent later never overtakes."""
    loss: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Part of the segments of 1,448 bytes that are lost, and sent again after a timeout while all behind them wait."""
    cut_B: Positive | None = None
    """Each time that so many bytes have passed, either way, the link's connections are reset; never if left out."""


class LinkRow(Numbers):
    """``[[link]]``: one pair; what is left out is as in ``[default]``."""

    between: Pair
    """Its two nodes; of a network of experts the clients' numbers, as ["0", "3"]."""


class RouteRow(Table):
    """``[[route]]``: where a relay carries a link."""

    between: Pair
    """From whom, to whom."""
    listen: Address
    """HOST:PORT that the first of them calls."""
    to: Address
    """HOST:PORT where the second listens."""


class LinksTable(Table):
    """The whole file."""

    plan: str | None = None
    """A contact plan: two nodes reach each other while both places are in contact, and always where they share one."""
    place: dict[Node, Node] = Field(default={})
    """Node → the name in the plan of the place where it is."""
    begins: NonNegative | None = None
    """When second 0 of the plan is, in Unix time; when the file is read, if left out."""
    speed: Positive = 1.0
    """How many times as fast as ours the plan's time passes."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Of jitter and loss."""
    default: Numbers = Numbers()
    link: Annotated[tuple[LinkRow, ...], Field(strict=False)] = ()
    route: Annotated[tuple[RouteRow, ...], Field(strict=False)] = ()


class Links:
    """links.toml, read.

    Raises:
        InputError: with the place in the file; or the plan's file is wrong.
    """

    def __init__(self, path: Path):
        self.path = path
        self.table = table_of(LinksTable, read_toml(path), str(path))
        pairs = [frozenset(row.between) for row in self.table.link]
        ends = [*(row.between for row in self.table.link), *(row.between for row in self.table.route)]
        if wrong := next((pair for pair in ends if len(set(pair)) < 2), None):
            raise InputError(f"{path}: between = {list(wrong)}: a link has two ends; name two nodes")
        if twice := next((pair for pair in pairs if pairs.count(pair) > 1), None):
            raise InputError(f"{path}: two [[link]] between {' and '.join(sorted(twice))}; keep one of them")
        self._link = {frozenset(row.between): row for row in self.table.link}
        begins = time.time() if self.table.begins is None else self.table.begins
        self.clock = Clock(begins, self.table.speed)
        self._plan: ContactPlan | None = None
        if self.table.plan is not None:
            places = sorted(set(self.table.place.values()))
            if not places:
                raise InputError(
                    f"{path}: plan = {self.table.plan!r}: needs a table [place] that says at which place each node is"
                )
            self._plan = load_plan(path.resolve().parent / self.table.plan, places)
        self._windows: dict[tuple[str, str], Windows | None] = {}

    def shape(self, one: str, other: str) -> Shape:
        """How the link between two nodes carries."""
        row, default = self._link.get(frozenset((one, other))), self.table.default
        found: dict[str, float] = {}
        for name in Numbers.model_fields:
            value = getattr(row, name) if row is not None else None
            value = getattr(default, name) if value is None else value
            if value is not None:
                found[name] = value
        return Shape(**found)

    def windows(self, one: str, other: str) -> Windows | None:
        """When there is one; None: always.

        Raises:
            InputError: a plan is given, and a node has no place.
        """
        if self._plan is None:
            return None
        if lost := next((node for node in (one, other) if node not in self.table.place), None):
            raise InputError(f"{self.path}: place.{lost}: is missing; say at which place of the plan node {lost} is")
        if (one, other) not in self._windows:
            here, there = self.table.place[one], self.table.place[other]
            self._windows[one, other] = None if here == there else together(self._plan, here, there)
        return self._windows[one, other]

    def relays(self) -> list[Relay]:
        """One for each route.

        Raises:
            InputError: an address has no port that can be, or a node no place in the plan.
        """
        found = []
        for i, row in enumerate(self.table.route):
            at = f"{self.path}: route[{i}]"
            listen, to = split_address(f"{at}.listen =", row.listen), split_address(f"{at}.to =", row.to, least=1)
            shape, windows = self.shape(*row.between), self.windows(*row.between)
            found.append(Relay(listen, to, shape, windows, self.clock, self.table.seed + i))
        return found


def together(plan: ContactPlan, here: str, there: str) -> Windows:
    """When two places are both in contact, and how fast a message then travels up from one and down to the other."""
    mine, theirs = (plan.by_cluster[place] for place in (here, there))
    rows, i, j = [], 0, 0
    while i < len(mine) and j < len(theirs):
        a, b = mine[i], theirs[j]
        begin_s, end_s = max(a.start_s, b.start_s), min(a.end_s, b.end_s)
        edges = sorted(s for s in {begin_s, end_s, *_edges(a), *_edges(b)} if begin_s <= s <= end_s)
        for at_s, until_s in pairwise(edges):
            (up, down), (their_up, their_down) = _rates(a, at_s), _rates(b, at_s)
            rows.append((at_s, until_s, min(up, their_down), min(their_up, down)))
        i, j = (i + 1, j) if a.end_s <= b.end_s else (i, j + 1)
    return Windows(tuple(row for row in rows if row[2] > 0 and row[3] > 0))


def _edges(contact: Contact) -> list[float]:
    return [contact.start_s, *(until_s for _, until_s, _, _ in contact.pieces())]


def _rates(contact: Contact, at_s: float) -> tuple[float, float]:
    """Up and down, in the piece that begins then or goes on."""
    return next((up, down) for from_s, until_s, up, down in contact.pieces() if from_s <= at_s < until_s)


def best(windows: Mapping[int, Windows], now_s: float) -> tuple[float, tuple[int, ...]] | None:
    """When the most of these links are there at once, of these moments the first; None if never any.

    Args:
        windows: of each client that is away.
        now_s: from when on.
    """
    starts = sorted({row[0] for each in windows.values() for row in each.rows if row[0] > now_s})
    found = [(tuple(m for m, each in sorted(windows.items()) if each.at(at_s)), at_s) for at_s in starts]
    there, at_s = max(found, key=lambda one: len(one[0]), default=((), math.inf))  # the first of the best
    return (at_s, there) if there else None
