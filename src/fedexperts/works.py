"""Whether a method works over a plan, by cluster: something is trained, what is trained arrives, and devices hold it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .contact.plan import ContactPlan
from .moe.parts import is_expert
from .report.words import duration, size, together

Told = tuple[bool | None, str]
"""Whether it works, None where that is not known, and why."""
WORDS = {True: "yes", False: "no", None: "not known"}
WELL = "every cluster trains, and what it trains arrives"


def judged(method: Mapping[str, Any], plan: ContactPlan, clusters: Sequence[str]) -> dict[str, Any]:
    """``works``, ``answer``, ``why`` and the same ``by_cluster``, of what `runs.outlook` has found.

    ``works`` is true where all clusters do, false where none does, and None where some do or it is not known: ``answer`` says
    which of it.
    """
    links: dict[str, list[str]] = {name: [] for name in clusters}
    for link, row in method["links"].items():
        for name in [row["cluster"]] if row["cluster"] in links else links:  # or of none, and so for all
            links[name].append(link)
    small = {link: i for i, row in enumerate(method["devices"]) if row["holds"] is False for link in row["links"]}
    found = {name: _told(method, plan, name, mine, small) for name, mine in links.items()}
    works = {one for one, _ in found.values()}
    whole = works.pop() if len(works) == 1 else None
    answer = "partly" if any(one for one, _ in found.values()) and not whole else WORDS[whole]
    groups: dict[Told, list[str]] = {}
    for name, told in found.items():
        groups.setdefault(told, []).append(name)
    alone = len(groups) == 1
    reasons = [why if alone else f"{together(names)}: {WORDS[one]}, {why}" for (one, why), names in groups.items()]
    return {
        "works": whole,
        "answer": answer,
        "why": WELL if alone and whole else "; ".join(reasons),
        "by_cluster": {
            name: {"works": one, "why": why, **_counted([method["links"][link] for link in links[name]])}
            for name, (one, why) in found.items()
        },
    }


def _counted(rows: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Contacts, and how many of them end before the protocol is done."""
    return {key: sum(row[key] for row in rows) for key in ("contacts", "lost")}


def _told(method: Mapping[str, Any], plan: ContactPlan, cluster: str, links: Sequence[str], small: Mapping[str, int]) -> Told:
    """Of one cluster; ``links`` are itself, or its clients, and ``small`` says which row of devices cannot hold the model."""
    if not method["played_cycles"]:
        return None, "the plan holds no whole cycle"
    if not plan.by_cluster.get(cluster):
        return False, "it is never seen"
    lacks, goes = _memory(method["devices"], links, small), _link(method, plan, cluster, links)
    both = [told for told in (goes, lacks) if told is not None and told[0] is not True]
    if not both:
        return goes
    return (False if any(one is False for one, _ in both) else None), "; ".join(why for _, why in both)


def idle(rows: Iterable[Mapping[str, Any]]) -> bool:
    """Whether nothing at all is trained over these links."""
    rounds = [row["rounds_per_cycle"] for row in rows]
    return None not in rounds and bool(rounds) and not sum(rounds)


def _link(method: Mapping[str, Any], plan: ContactPlan, cluster: str, links: Sequence[str]) -> Told:
    """Whether something is trained and arrives, whatever devices hold."""
    rows = [method["links"][link] for link in links]
    if idle(rows):
        return False, f"nothing is trained; {_narrow(method, plan, cluster, links)}"
    experts = any(is_expert(part) for one in _carried(method, links) for part in one["up"])
    if any(row["experts_arrive"] if experts else row["updates"] for row in rows):
        return True, "it trains, and what it trains arrives"
    if max(row["contacts"] for row in rows) < 2:
        return None, "one contact is too few to tell; give it more cycles or days"
    return False, f"what it trains never arrives; {_narrow(method, plan, cluster, links)}"


def _memory(devices: Sequence[Mapping[str, Any]], links: Sequence[str], small: Mapping[str, int]) -> Told | None:
    """What devices lack that cannot hold what the method loads."""
    if not (rows := [small[link] for link in links if link in small]):
        return None
    worst = max((devices[i] for i in sorted(set(rows))), key=lambda row: max(p["total_B"] for p in row["needs_B"].values()))
    needs_B, has_B = max(phase["total_B"] for phase in worst["needs_B"].values()), worst["memory_B"]
    many = len(rows)
    whose = "devices" if many == len(links) else f"{many} of {len(links)} devices"
    fits = has_B is None or needs_B <= has_B
    why = (
        "have no room for an expert"
        if fits
        else f"do not hold the model: {size(needs_B)} of memory, and they have {size(has_B)}"
    )
    return (False if many == len(links) else None), f"{whose} {why}"


def _carried(method: Mapping[str, Any], links: Sequence[str]) -> list[Mapping[str, Any]]:
    """What contacts of these links are to carry; of links that were not looked at, what those of others are."""
    stages = method["stages"].values()
    mine = [row[link] for row in stages for link in links if link in row]
    return mine or [one for row in stages for one in row.values()]


def _narrow(method: Mapping[str, Any], plan: ContactPlan, cluster: str, links: Sequence[str]) -> str:
    """What the contacts have no room for."""
    contacts = plan.by_cluster[cluster]
    up_B, down_B = (max((one[f"{way}link_B"] for one in _carried(method, links)), default=0) for way in ("up", "down"))
    if up_B > max(contact.carried_B("up", contact.start_s, contact.end_s) for contact in contacts):
        return f"{size(up_B)} up fit no contact"
    if down_B > max(contact.carried_B("down", contact.start_s, contact.end_s) for contact in contacts):
        return f"{size(down_B)} down fit no contact"
    most = duration(max(contact.end_s - contact.start_s for contact in contacts))
    return f"no contact ({most} at most) has room for {size(down_B)} down, a local round and {size(up_B)} up"
