"""How far a deployment is, from its folder alone; taking its run out of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..ledger import read
from ..runs.ended import check_ended, what_lacks
from ..runs.lock import LOCK, is_held
from ..writing import check_empty, filled
from .place import PROCESSES, Place
from .serving import is_there
from .worker import scenario_of

BYTES, SUMMED = ("uplink_B", "downlink_B"), ("evaluate", "end")


def status(place: Place) -> dict[str, Any]:
    """What ``fedexperts deploy status --json`` prints.

    ``state`` is "new" (nothing was begun), "running", "stopped" (begun, and nobody is at work), "failed" (and ``error`` says
    why) or "ended". ``t_s`` is the second of the plan; contacts, losses, accuracy, bytes and steps are the ledger's so far.
    ``processes`` are those of a deployment on one machine that live.

    Raises:
        InputError: the ledger is damaged.
    """
    scenario, path = scenario_of(place), place.run / "ledger.jsonl"
    lines = list(read(path)) if path.exists() else []
    events = [line["event"] for line in lines]
    judged = [line for line in lines if "accuracy" in line and line["event"] in SUMMED]
    outcome, living = place.outcome(), alive(place)
    ended = has_ended(place)
    error = outcome["error"] if outcome is not None and not ended else None
    working = bool(living) or is_held(place.run) or is_held(place.folder)
    state = "ended" if ended else "failed" if error else "running" if working else "stopped" if lines else "new"
    return {
        "scenario": scenario.name,
        "protocol": scenario.label,
        "seed": scenario.seed,
        "server": place.server,
        "nodes": list(place.links),
        "state": state,
        "error": error,
        "cycle": max((line["cycle"] for line in lines if line["event"] == "evaluate"), default=0),
        "cycles": scenario.train.cycles,
        "t_s": lines[-1]["t_s"] if lines else 0.0,
        "contacts": events.count("contact") + events.count("flush"),
        "lost": events.count("lost"),
        "refused": events.count("refuse"),
        "metric": judged[-1].get("metric", "accuracy") if judged else "accuracy",
        "accuracy": judged[-1]["accuracy"] if judged else None,
        **{name: _bytes(lines, name) for name in BYTES},
        "processes": living,
        "run": str(place.run),
    }


def has_ended(place: Place) -> bool:
    """Whether its run is complete."""
    return place.run.is_dir() and what_lacks(place.run) is None


def _bytes(lines: list[dict[str, Any]], name: str) -> int:
    """The last sum that the ledger tells, and what was sent since."""
    at = max((i for i, line in enumerate(lines) if line["event"] in SUMMED), default=-1)
    before = int(lines[at][name]) if at >= 0 else 0
    return before + sum(int(line.get(name, 0)) for line in lines[at + 1 :])


def alive(place: Place) -> list[str]:
    """Which of the processes that `local` or `standing` has started for this folder are there."""
    try:
        kept = json.loads((place.folder / PROCESSES).read_text())
    except (FileNotFoundError, ValueError):
        return []
    return [name for name, number in kept.items() if is_there(int(number), place)]


def collect(place: Place, out: Path) -> None:
    """Copy the run, which has ended, into a new folder.

    Raises:
        InputError: it has not ended, or was changed since, or the folder holds files.
        RunError: the machine refuses.
    """
    if not place.run.is_dir():
        raise InputError(f"{place.folder}: its run has not ended, nor begun; see fedexperts deploy status {place.folder}")
    if (lacks := what_lacks(place.run)) is not None:
        raise InputError(f"{place.folder}: its run has not ended (lacks {lacks}); see fedexperts deploy status {place.folder}")
    check_ended(place.run)
    check_empty(out, "--out")
    with filled(out, "--out"):
        shutil.copytree(place.run, out, dirs_exist_ok=True, ignore=shutil.ignore_patterns(LOCK, "checkpoints"))
    check_ended(out)
