"""How links of a deployment on one machine carry: a file of links as peers have it, from the server to nodes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..errors import InputError
from ..peer.links import Links
from ..peer.relay import Shape
from ..scenario import read_toml

SERVER = "server"
ELSEWHERE = ("plan", "place", "begins", "speed", "route")
"""Keys of such a file that say when there is a link, and where: here the scenario's plan does, and `deploy local`."""


def shapes(path: Path, links: Sequence[str]) -> tuple[dict[str, Shape], int]:
    """Of each link how it carries, and the seed of jitter and loss.

    Raises:
        InputError: the file is wrong, says what is not its to say, or names a node that is none.
    """
    given = set(read_toml(path))
    if (key := next((key for key in ELSEWHERE if key in given), None)) is not None:
        raise InputError(
            f"{path}: {key} = …: is not for deploy local, where the scenario's plan says when there is a link; leave it out"
        )
    found = Links(path)
    known = [SERVER, *links]
    for i, row in enumerate(found.table.link):
        strange = [node for node in row.between if node not in known]
        if strange or SERVER not in row.between:
            raise InputError(
                f"{path}: link[{i}].between = {list(row.between)}: links of a deployment are between {SERVER!r} and one of "
                f"{', '.join(links)}"
            )
    return {link: found.shape(SERVER, link) for link in links}, found.table.seed
