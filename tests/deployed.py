"""What a deployment leaves behind: its model, the contacts that it has lost, its processes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from fedexperts.contact.plan import ContactPlan


def weights(directory: Path) -> str:
    """A hash of a run's model."""
    return hashlib.sha256((directory / "model" / "model.safetensors").read_bytes()).hexdigest()


def losses(lines: Iterable[dict[str, Any]], plan: ContactPlan) -> dict[int, float]:
    """Of the contacts that were lost, when, by their number in the plan: what `Simulator` takes as ``closes_s``."""
    starts = {(c.cluster, round(c.start_s, 6)): i for i, c in enumerate(plan.contacts)}
    found, open_at = {}, {}
    for line in lines:
        if line["event"] in ("contact", "flush"):
            open_at[line["cluster"]] = starts[line["cluster"], line["t_s"]]
        if line["event"] == "lost":
            found[open_at[line["cluster"]]] = line["t_s"]
    return found


def left(folder: Path) -> list[int]:
    """Processes that were started for a deployment: its folder stands in their environment."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            if f"FLWR_HOME={folder / 'flower'}".encode() in path.read_bytes():
                found.append(int(path.parent.name))
    return found
