"""What came of a plan in a run: when each cluster's updates stood, by its ledger alone, to be shown beside what was allowed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..contact.plan import Contact, ContactPlan
from ..errors import InputError
from ..ledger import read
from ..moe.parts import EXPERT, is_expert

NEAR_S = 1e-3
"""Ledgers keep microseconds of the seconds in a plan."""


@dataclass(frozen=True)
class Arrived:
    """A run's updates.

    Attributes:
        protocol: of the run.
        owners: expert parts by cluster, as Algorithm 1 or a policy gave them; None in the baseline, where nobody owns.
        update_s: by cluster, when everything that it trains had been averaged once more.
        upload_B: of each part.
    """

    protocol: str
    owners: dict[str, frozenset[str]] | None
    update_s: dict[str, list[float]]
    upload_B: dict[str, int]


def arrived(directory: Path, plan: ContactPlan) -> Arrived:
    """Read a run over a plan; of owners that changed the first count.

    Raises:
        InputError: it is no run of clusters that own experts or of the baseline, or was made over another plan.
    """
    path = directory / "ledger.jsonl"
    if not path.is_file():
        raise InputError(f"--run {directory}: holds no ledger.jsonl; give a run directory")
    lines = list(read(path))
    head: dict[str, Any] = next((line for line in lines if line["event"] == "run"), {})
    assigned = next((line["assignment"] for line in lines if line["event"] == "assignment"), None)
    if head.get("links") == "clients" or (assigned is None and head.get("protocol") != "sync"):
        raise InputError(
            f"--run {directory}: is of protocol {head.get('protocol')!r}; bounds are of ems-fl, ems-fl-enhanced and sync"
        )
    if (strange := set(head["clusters"]) ^ set(plan.clusters)) or not _over(lines, plan):
        what = f"cluster {sorted(strange)[0]}" if strange else "some of its contacts"
        raise InputError(
            f"--run {directory}: was made over another plan ({what}); give the scenario of the run, with the --set of it"
        )
    experts = frozenset(part for part in head["parts_B"] if is_expert(part))
    owners = None if assigned is None else {name: frozenset(f"{EXPERT}{m}" for m in row) for name, row in assigned.items()}
    mine = owners or dict.fromkeys(plan.clusters, experts | set(head["shared"]))
    return Arrived(head["protocol"], owners, _updates_s(lines, mine, owners is None), head["upload_B"])


def _over(lines: Iterable[Mapping[str, Any]], plan: ContactPlan) -> bool:
    """Whether every contact of the run stands in the plan."""

    def is_one(line: Mapping[str, Any], contacts: Sequence[Contact]) -> bool:
        return any(abs(contact.start_s - line["t_s"]) < NEAR_S for contact in contacts)

    met = (line for line in lines if line["event"] == "contact")
    return all(is_one(line, plan.by_cluster[line["cluster"]]) for line in met)


def _updates_s(lines: Iterable[Mapping[str, Any]], mine: Mapping[str, Collection[str]], late: bool) -> dict[str, list[float]]:
    """A cluster's k-th update stands when each of its parts was averaged k times, from its newest version unless ``late``."""
    seen: dict[str, Counter[str]] = {name: Counter() for name in mine}
    found: dict[str, list[float]] = {name: [] for name in mine}
    for line in lines:
        if line["event"] == "aggregate" and line["part"] in mine[name := line["cluster"]] and (late or not line["behind"]):
            seen[name][line["part"]] += 1
            if min(seen[name][part] for part in mine[name]) > len(found[name]):
                found[name].append(line["t_s"])
    return found
