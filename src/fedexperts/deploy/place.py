"""The folder of a deployment: which scenario, which run, and how its parts find each other."""

from __future__ import annotations

import json
import secrets
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..peer.address import everywhere, split_address
from ..writing import write_whole

DOCUMENT = "deployment.json"
SCENARIO = "scenario.toml"
LINKS = "links.toml"
"""How the links of a deployment on one machine carry, where that was said."""
RUN = "run"
OUTCOME = "outcome.json"
PROCESSES = "processes.json"
"""Numbers of the processes that were started for the folder, and are not ended yet."""
PARENT = "FEDEXPERTS_PARENT"
"""In the environment of these processes, and of what they start: the number of the one that has started them."""
CERTIFICATES, CA = "certificates", "ca.pem"
WORK = "work"
"""In a folder that is one node's alone: where it works."""


@dataclass(frozen=True)
class Place:
    """A deployment's folder.

    Attributes:
        folder: where it is.
        id: of the run, so that no node answers for another.
        base: what the scenario's paths are relative to; itself relative to the folder.
        links: its nodes, by the clusters' names.
        patience_s: how long a reply is waited for in a contact.
        server: HOST:PORT of the SuperLink, where nodes are on machines of their own; None on one machine.
        link: whose the folder is, if it is a node's own.
    """

    folder: Path
    id: str
    base: str
    links: tuple[str, ...]
    patience_s: float
    server: str | None = None
    link: str | None = None

    @property
    def run(self) -> Path:
        """The run directory."""
        return self.folder / RUN

    def node(self, link: str) -> Path:
        """Where a node works."""
        return self.folder / WORK if self.link is not None else self.folder / "nodes" / str(self.links.index(link))

    def outcome(self) -> dict[str, Any] | None:
        """What a server that has ended left; None as long as none has."""
        path = self.folder / OUTCOME
        return json.loads(path.read_text()) if path.exists() else None

    def end(self, error: str | None) -> None:
        """Leave word of the end: an error, or None."""
        write_whole(self.folder / OUTCOME, json.dumps({"error": error}))


def create(folder: Path, scenario: str, base: Path, links: tuple[str, ...], patience_s: float) -> Place:
    """Make the folder.

    Raises:
        InputError: something is there already.
    """
    if folder.exists() and any(folder.iterdir()):
        raise InputError(f"--out {folder}: is not empty; name another folder, or go on with what is there by --resume")
    folder.mkdir(parents=True, exist_ok=True)
    place = Place(folder, secrets.token_hex(8), str(base.resolve()), links, patience_s)
    write(place, scenario)
    return place


def write(place: Place, scenario: str) -> None:
    """What `load` and the scenario's readers find again."""
    write_whole(place.folder / SCENARIO, scenario)
    fields = {name: value for name, value in asdict(place).items() if name != "folder" and value is not None}
    write_whole(place.folder / DOCUMENT, json.dumps(fields, indent=1) + "\n")


def load(folder: Path) -> Place:
    """A folder that `create` has made.

    Raises:
        InputError: it is none.
    """
    try:
        fields = json.loads((folder / DOCUMENT).read_text())
        return Place(folder, **{**fields, "links": tuple(fields["links"])})
    except FileNotFoundError as error:
        raise InputError(f"{folder}: is no deployment, as {DOCUMENT} is not there; make one with fedexperts deploy") from error
    except (ValueError, TypeError, LookupError) as error:
        raise InputError(f"{folder / DOCUMENT}: was changed ({error}); put it back as it was, or begin anew") from error


def listens(server: str) -> tuple[str, int]:
    """Host and port where the SuperLink of a server listens."""
    return split_address("--server", everywhere(server))


def local_address(server: str) -> str:
    """Where a program of the server's own machine finds it."""
    host, port = listens(server)
    here = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"[{here}]:{port}" if ":" in here else f"{here}:{port}"
