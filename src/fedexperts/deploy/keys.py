"""Who is let in: nodes by their keys, which Flower knows by numbers, and these by links."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import InputError, RunError
from ..peer.address import answers, split_address
from ..writing import write_whole
from .app import HERE, asked
from .place import Place, local_address

KEYS, KEY = "keys.json", "node.key"


@dataclass(frozen=True)
class Keyed:
    """A link's key.

    Attributes:
        public: its public half, as OpenSSH writes it.
        node: what Flower calls whoever has it; None as long as it is not let in.
        revoked: whether it is not to be let in any more.
    """

    public: str
    node: int | None = None
    revoked: bool = False


def write_keys(place: Place, keys: Mapping[str, Keyed]) -> None:
    """What `read_keys` finds."""
    write_whole(place.folder / KEYS, json.dumps({link: asdict(one) for link, one in keys.items()}, indent=1) + "\n")


def read_keys(place: Place) -> dict[str, Keyed]:
    """Each link's key.

    Raises:
        InputError: it is no deployment with keys, or the file was changed.
    """
    path = place.folder / KEYS
    try:
        found = {link: Keyed(**fields) for link, fields in json.loads(path.read_text()).items()}
    except FileNotFoundError as error:
        raise InputError(f"{place.folder}: has no keys, as fedexperts deploy init did not make it") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: was changed ({error}); put it back as it was") from error
    if set(found) != set(place.links):
        raise InputError(f"{path}: is of other nodes than {', '.join(place.links)}; put it back as it was")
    return found


def nodes_of(place: Place) -> dict[int, str] | None:
    """Which link a node is, by its key; None where there are no keys, as on one machine."""
    if place.server is None:
        return None
    return {one.node: link for link, one in read_keys(place).items() if one.node is not None and not one.revoked}


def check_server(place: Place) -> None:
    """Raises: RunError, where no SuperLink listens on this machine."""
    host, port = split_address("server", local_address(str(place.server)))
    if not answers(host, port, timeout_s=5.0):
        raise RunError(f"no SuperLink listens at port {port}; start {place.folder / 'server.sh'}, and then this again")


def register(place: Place) -> list[str]:
    """Let every node in that is not yet, and was not put out; returns their links."""
    keys, known = read_keys(place), set(_seen(place))
    found = [link for link, one in keys.items() if not one.revoked and one.node not in known]
    for link in found:
        keys[link] = replace(keys[link], node=_register(place, keys[link].public))
        write_keys(place, keys)
    return found


def revoke(place: Place, link: str) -> None:
    """Put a node out, from now on: the run goes on without it.

    Raises:
        InputError: there is no such link, or it is out already.
        RunError: Flower refuses, or is not there.
    """
    keys = read_keys(place)
    one = _one(keys, link)
    if one.revoked:
        raise InputError(f"{link}: its key is revoked already; fedexperts deploy keys rotate gives it another")
    if one.node is not None:
        check_server(place)
        _unregister(place, one.node)
    write_keys(place, {**keys, link: replace(one, node=None, revoked=True)})


def rotate(place: Place, link: str, folder: Path) -> Path:
    """Give a node another key, and put whoever has the old one out; returns the file that goes to its machine.

    Args:
        place: the deployment.
        link: whose.
        folder: where the key is written.

    Raises:
        InputError: there is no such link.
        RunError: Flower refuses, or is not there; the old key is still good then.
    """
    from ..peer.network import secret
    from ..peer.tls import ssh_pair

    keys = read_keys(place)
    old = _one(keys, link)
    check_server(place)
    private, public = ssh_pair()
    new = Keyed(public.decode(), _register(place, public.decode()))
    folder.mkdir(parents=True, exist_ok=True)
    waiting = folder / f".{KEY}.unfinished"
    secret(waiting, private)
    waiting.replace(folder / KEY)
    write_keys(place, {**keys, link: new})
    if old.node is not None:
        _unregister(place, old.node)
    return folder / KEY


def check_link(place: Place, link: str) -> None:
    """Raises: InputError, where there is no such node."""
    _one(read_keys(place), link)


def listed(place: Place) -> list[dict[str, Any]]:
    """Each link with its key's state: "revoked", "not let in", or what Flower says, as "online"; "?" if it does not answer."""
    try:
        seen: dict[int, str] | None = _seen(place)
    except RunError:
        seen = None
    rows = []
    for link, one in read_keys(place).items():
        state = "?" if seen is None else "not let in" if one.node is None else seen.get(one.node, "not let in")
        rows.append({"link": link, "node": one.node, "state": "revoked" if one.revoked else state, "key": one.public})
    return rows


def _one(keys: Mapping[str, Keyed], link: str) -> Keyed:
    if link not in keys:
        raise InputError(f"CLUSTER {link!r}: is no node of this deployment; known are {', '.join(keys)}")
    return keys[link]


def _seen(place: Place) -> dict[int, str]:
    """What state Flower says its nodes are in, those that it has not put out."""
    rows = asked(["list", HERE], place.folder)["nodes"]
    return {int(row["node-id"]): str(row["status"]) for row in rows if row["status"] != "unregistered"}


def _register(place: Place, public: str) -> int:
    with tempfile.NamedTemporaryFile("w", suffix=".pub") as file:
        file.write(public)
        file.flush()
        return int(asked(["register", file.name, HERE], place.folder)["node-id"])


def _unregister(place: Place, node: int) -> None:
    asked(["unregister", str(node), HERE], place.folder)
