"""The ServerApp: a run of the scenario whose devices are on nodes, reached by Flower's messages."""

from __future__ import annotations

import json
import logging
import math
import threading
import time
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import httpx
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp

from ..errors import Diverged, InputError, RunError
from ..moe.parts import MAX_UPDATE_NORM
from ..protocol.admission import quoted
from ..runs.run import run
from ..setup.prepare import Prepared
from ..train.host import Host
from .client_app import packed, unpacked
from .keys import nodes_of, read_keys
from .orders import said_hello
from .place import Place, load
from .remote import RemoteHost
from .serving import serving
from .switch import switch
from .worker import scenario_of

log = logging.getLogger(__name__)
app = ServerApp()
POLL_S = 0.05
AGAIN_S = 1.0
BACK_S = 5.0
"""A node that is there again is called again after so long, if it has not answered: it may be another process."""
CONTACTS = "contacts.jsonl"
"""In a deployment's folder: of each contact the seconds of this clock, and messages and bytes, retries left out; on one machine
also what has passed the link until it was shut, retries and all else with it, and how often it was cut in that time. What has
passed it since it was shut the last time is ``apart_B``, from the second contact on."""


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run what the folder says that the app was started with, and leave word of its end there."""
    place = load(Path(str(context.run_config["deployment"])))
    error: str | None = "the server ended before the run did; see its log"
    with serving(place):
        try:
            nodes = found(grid, place)
            hosts = partial(met, grid, place, nodes)
            run(scenario_of(place), place.run, resume=place.run.exists(), hosts=hosts)
            error = None
        except (InputError, RunError, Diverged) as raised:
            error = str(raised)
        finally:
            place.end(error)


def met(grid: Grid, place: Place, nodes: Mapping[str, tuple[int, bytes]], prepared: Prepared) -> dict[str, Host]:
    """The devices of each link, on its node; all are told at once of the trial pass that comes first."""
    known = {node for node, _ in nodes.values()}

    def host(link: str) -> RemoteHost:
        node, hello = nodes[link]
        way, codec = GridWay(grid, place, link, node, known), prepared.scenario.model.uplink
        most = prepared.scenario.train.max_update_norm or MAX_UPDATE_NORM
        found = RemoteHost(link, way, place.id, prepared.hosts[link], prepared.view, prepared.model, codec, hello, most)
        if not place.run.exists() and not prepared.by_client:
            found.foresee("trial", (prepared.scenario.assignment.trial_samples,), lambda: None)
        return found

    with ThreadPoolExecutor(len(prepared.hosts)) as pool:
        hosts = dict(zip(prepared.hosts, pool.map(host, prepared.hosts), strict=True))
    for one in hosts.values():
        one.others = hosts.values()
    return dict(hosts)


def found(grid: Grid, place: Place) -> dict[str, tuple[int, bytes]]:
    """Of each link its node's number, and what it answers to `hello`.

    Raises:
        RunError: one has not come in time.
    """
    nodes: dict[str, tuple[int, bytes]] = {}
    asked: dict[str, int] = {}
    seen: set[int] = set()
    wrong: dict[str, str] = {}
    until_s = time.monotonic() + place.patience_s
    while set(nodes) != set(place.links):
        for node in set(grid.get_node_ids()) - seen:
            if greeting := greeted(grid, place, node):
                seen.add(node)
                asked |= greeting
        for reply in grid.pull_messages(list(asked)) if asked else ():
            node = asked.pop(reply.metadata.reply_to_message_id)
            if not reply.has_content() or not (answer := unpacked(reply.content)):
                seen.discard(node)  # its worker is not ready
            elif (link := said_link(reply.content)) not in place.links:
                log.warning("warning: node %d says that it is %s; no link has that name", node, quoted(link))
            elif (fault := impostor(place, node, link)) is not None:
                if wrong.setdefault(link, fault) == fault:
                    log.warning("warning: %s", fault)
            elif link in nodes:
                log.warning(
                    "warning: node %d says that it is %s, as node %d did before it; it is left out", node, link, nodes[link][0]
                )
            else:
                nodes[link] = node, answer
        if time.monotonic() > until_s:
            missing = [link for link in place.links if link not in nodes]
            wrong = revoked(place) | wrong
            why = "; ".join(wrong[link] for link in missing if link in wrong) or "start it, and look into its log"
            raise RunError(f"{', '.join(missing)}: no node has come in {place.patience_s:g} s; {why}")
        time.sleep(POLL_S)
    return nodes


def greeted(grid: Grid, place: Place, node: int) -> dict[str, int]:
    """Ask a node which link it is: the message, by which its reply is known, and the node; nothing if it has just gone."""
    message = Message(packed(said_hello(place.id)), node, "query.hello", ttl=place.patience_s)
    return dict.fromkeys(filter(None, grid.push_messages([message])), node)


def revoked(place: Place) -> dict[str, str]:
    """What to say of links whose key was revoked."""
    keys = {} if place.server is None else read_keys(place)
    mend = f"fedexperts deploy keys {place.folder} rotate"
    return {link: f"the key of {link} was revoked: {mend} {link} gives it another" for link, one in keys.items() if one.revoked}


def impostor(place: Place, node: int, link: str) -> str | None:
    """What to say of a node that says it is a link and is not, by its key; None where it is, or there are no keys."""
    known = nodes_of(place)
    if known is None or known.get(node) == link:
        return None
    whose = f"that of {known[node]}" if node in known else "none of this deployment"
    return f"a node says that it is {link}, and its key is {whose}; give it the folder that belongs to its key"


def said_link(content: RecordDict) -> str:
    """Which link a node says that it is; whoever has made it may have put anything there."""
    record = content.get("node")
    return str(record.get("link")) if isinstance(record, ConfigRecord) else ""


class Pull:
    """Asks once for the reply to a message, beside whoever waits: for what lacks of one Flower waits three minutes, though its
    sender may have been killed."""

    def __init__(self, grid: Grid, number: str):
        self._grid, self._number = grid, number
        self._found: list[Message] = []
        self._failed: Exception | None = None
        self._thread = threading.Thread(target=self._ask, daemon=True)
        self._thread.start()
        self._thread.join(POLL_S)

    def _ask(self) -> None:
        try:
            self._found = list(self._grid.pull_messages([self._number]))
        except Exception as error:
            self._failed = error

    @property
    def is_over(self) -> bool:
        """Whether there is an answer, or none is to come."""
        return not self._thread.is_alive()

    def replies(self) -> list[Message]:
        """What has come, when it is over.

        Raises:
            Exception: what asking has raised.
        """
        if self._failed is not None:
            raise self._failed
        return self._found


class GridWay:
    """Calls to one node by Flower's messages."""

    def __init__(self, grid: Grid, place: Place, link: str, node: int, known: Collection[int]):
        self.grid, self.place, self.link, self.node = grid, place, link, node
        self.quiet_s = place.patience_s
        self.known = set(known)
        self.asked: dict[str, int] = {}  # hellos to nodes that were not there when the run began
        self.moved = {"messages": 0, "down_B": 0, "up_B": 0}
        self.opened: dict[str, int] | None = None  # what had passed the link on this machine, if there is one
        self.shut: dict[str, int] | None = None
        self.began_s = time.monotonic()

    def begin(self, start_s: float, end_s: float) -> None:
        """See `Way`. A node whose key was changed has another number."""
        for node, link in (nodes_of(self.place) or {}).items():
            if link == self.link:
                self.node = node
        self.moved, self.began_s = dict.fromkeys(self.moved, 0), time.monotonic()
        self.opened = switch(self.place.folder, self.link, True)

    def end(self) -> None:
        """See `Way`; what the contact moved, and how long it took here, is a line of a file."""
        shut = switch(self.place.folder, self.link, False)
        line = {"cluster": self.link, "clock_s": round(time.monotonic() - self.began_s, 3), **self.moved}
        if self.opened is not None and shut is not None:
            line |= {f"link_{name}": shut[name] - self.opened[name] for name in shut}
            line |= {"apart_B": _bytes(self.opened) - _bytes(self.shut)} if self.shut is not None else {}
            self.shut = shut
        with (self.place.folder / CONTACTS).open("a") as file:
            file.write(json.dumps(line) + "\n")

    def ask(self, message: bytes) -> bytes | None:
        """See `Way`. A reply is asked for as long as the node counts as there: to ask for one of others destroys it."""
        self.moved["messages"] += 1
        self.moved["down_B"] += len(message)
        until_s = time.monotonic() + self.place.patience_s
        pushed: str | None = None
        pull: Pull | None = None
        was_there, again_s = True, math.inf
        while (now_s := time.monotonic()) < until_s:
            try:
                is_there = self.node in self.grid.get_node_ids()
                if is_there and not was_there:
                    again_s = now_s + BACK_S
                was_there = is_there
                if self._moved() or now_s > again_s:
                    pushed, pull, again_s = None, None, math.inf
                if pushed is None:
                    call = Message(packed(message), self.node, "query.call", ttl=self.place.patience_s)
                    pushed = next(iter(self.grid.push_messages([call])), None) or None
                if pull is None and pushed and is_there:
                    pull = Pull(self.grid, pushed)
                if pull is not None and pull.is_over:
                    replies, pull = pull.replies(), None
                    for reply in replies:
                        if reply.has_content() and (answer := unpacked(reply.content)):
                            self.moved["up_B"] += len(answer)
                            return answer
                        why = "its worker does not answer" if reply.has_content() else reply.error.reason
                        log.warning("%s: %s; asking again", self.link, why)
                        pushed = None  # what is asked twice is done once
                        time.sleep(AGAIN_S)
            except httpx.HTTPError as error:
                log.warning("%s: the SuperLink does not answer (%s)", self.link, error)
                pull = None
            time.sleep(POLL_S)
        return None

    def _moved(self) -> bool:
        """Whether the link has another node: one without a key of its own that is started again has another number."""
        for node in set(self.grid.get_node_ids()) - self.known:
            if greeting := greeted(self.grid, self.place, node):
                self.known.add(node)
                self.asked |= greeting
        before = self.node
        for reply in self.grid.pull_messages(list(self.asked)) if self.asked else ():
            node = self.asked.pop(reply.metadata.reply_to_message_id)
            mine = reply.has_content() and said_link(reply.content) == self.link
            if mine and impostor(self.place, node, self.link) is None:
                log.warning("%s: is node %d now, and was %d", self.link, node, self.node)
                self.node = node
        return self.node != before


def _bytes(passed: Mapping[str, int]) -> int:
    """That a link has carried both ways."""
    return passed["up_B"] + passed["down_B"]
