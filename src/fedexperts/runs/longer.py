"""What a run goes on from: its last checkpoint, or, when it has ended and is to make more cycles, one kept for that.

A run's end is no state of a longer run: clusters stop in the middle of what they train out of contact, and what is left is
collected. So the last state that a longer run goes through as well is kept in ``checkpoints/longer``, once in a run.
"""

from __future__ import annotations

import hashlib
from functools import partial
from pathlib import Path
from typing import Any

from .. import __version__
from ..errors import InputError
from ..ledger import beginning, tail
from ..scenario import Scenario
from .ended import scenario_of, what_lacks
from .header import header
from .rates import CYCLES, apart_from_rates

LONGER = "longer"
"""In ``checkpoints``."""
AGAIN = "name another folder to run all cycles from the beginning"


def digest(label: str, scenario: Scenario) -> str:
    """Tells scenarios apart, but for their learning rates."""
    return hashlib.sha256((header(label) + apart_from_rates(scenario)).encode()).hexdigest()


def fault(directory: Path, scenario_sha256: str, saved: dict[str, Any]) -> str | None:
    """Why a checkpoint cannot be gone on from."""
    if (version := saved["version"]) != __version__:
        return f"of fedexperts {version}, and this is {__version__}"
    if saved["scenario_sha256"] != scenario_sha256:
        return "of another scenario than scenario.toml"
    so_far = beginning(directory / "ledger.jsonl", saved["ledger_B"])
    if so_far is None or so_far.hexdigest() != saved["ledger_sha256"]:
        return f"the first {saved['ledger_B']:,} bytes of ledger.jsonl are not as they were written"
    return None


def check_longer(directory: Path, before: float, scenario: Scenario) -> None:
    """Refuse other cycles than the run's, unless it has ended, they are more, and it has kept what to go on from.

    Raises:
        InputError: with the remedy.
    """
    now = scenario.train.cycles
    if lacks := what_lacks(directory):
        then = f", and then to {now}" if now > before else ""
        raise InputError(
            f"--out {directory}: holds a run of {CYCLES} = {before} that has not ended or was damaged since ({lacks}); go on "
            f"to its end with --resume --set {CYCLES}={before}{then}, or {AGAIN}"
        )
    if now < before:
        raise InputError(
            f"--out {directory}: has ended with {CYCLES} = {before}, and {now} are fewer; what was trained is not taken back: "
            "name another folder"
        )
    if not (directory / "checkpoints" / LONGER).is_dir():
        raise InputError(
            f"--out {directory}: has ended with {CYCLES} = {before}, and there is no checkpoints/{LONGER} to go on from: it "
            "was removed, or the run is of an earlier version, of a Networked MoE, whose stages are its length, of a protocol "
            f"of one's own, which may know its length, or of a plan whose contacts always overlap; {AGAIN}"
        )


def go_on_longer(directory: Path, label: str, scenario: Scenario, plan_cycles: int) -> bool:
    """Make a run that has ended one that has not, if the scenario asks for more cycles than it was to make; else say False.

    A process may be killed at any instant here: until ``scenario.toml`` is another, the run is as it was.

    Raises:
        InputError: the plan has no more cycles, or the checkpoint is damaged; nothing is changed then.
    """
    kept, folder = scenario_of(directory), directory / "checkpoints"
    if kept.train.cycles == scenario.train.cycles:
        return False
    made = (tail(directory / "ledger.jsonl", "end") or {})["cycles"]
    if plan_cycles <= made:
        raise InputError(
            f"{CYCLES} = {scenario.train.cycles}: the plan has only {plan_cycles} orbital cycles, and the run has made {made}; "
            "run a scenario with a longer plan into another folder"
        )
    from . import checkpoint  # torch: a comparison that has ended is read without

    found = checkpoint.load(folder / LONGER, partial(fault, directory, digest(label, kept)), AGAIN)
    if found is None:
        raise InputError(f"{folder / LONGER}: holds no checkpoint; put it back, or {AGAIN}")
    _, saved = found
    saved["scenario_sha256"] = digest(label, scenario)
    last = max(checkpoint.numbers(folder), default=0)
    checkpoint.forget_damaged(folder, last)
    checkpoint.save(folder, last + 1, saved)
    return True
