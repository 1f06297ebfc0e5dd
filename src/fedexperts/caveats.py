"""What a reader should know before a run's results, from the lines of its ledger."""

from __future__ import annotations

from collections import Counter
from typing import Any

Lines = list[dict[str, Any]]
LEAST_USED = 0.99
"""Of training data; a smaller share is told."""
NAMED = 4
"""Of many links, those that a warning names."""
LOWER = frozenset({"loss", "perplexity", "macro_auc_left_out"})
"""Metrics of which less is better; of all others more is."""


def caveats(lines: Lines, run: dict[str, Any], end: dict[str, Any]) -> list[str]:
    """What a reader should know before the results."""
    found = [str(line["text"]) for line in lines if line["event"] == "warning"]
    found += left_over(run.get("used", {}))
    if end["cycles"] < run.get("cycles", 0):
        found.append(f"the plan ended after {end['cycles']} of train.cycles = {run['cycles']} orbital cycles")
    if end["steps"] == 0:
        found.append(
            "no gradient step was made: no round fits the contacts beside the transfers; see train.seconds_per_round, "
            "plan.slot_s and the rates of radio and devices"
        )
    if end["unsent_rounds"]:
        found.append(f"up to {end['unsent_rounds']} local rounds of a device were never uploaded; the plan ended before")
    broken: Counter[tuple[str, str]] = Counter()
    for line in lines:
        if line["event"] == "refuse" and "parts" in line:
            broken[str(line["device"]), ", ".join(map(str, line["parts"]))] += 1
        if line["event"] == "rates":
            own = ", ".join(f"{key} = {value:g}" for key, value in line.items() if "." in key)
            found.append(f"from {line['t_s']:g} s on the run went on with {own}")
    found += [f"{device} has given up {parts}, as not finite{_times(n)}" for (device, parts), n in broken.items()]
    found += not_let_in(lines)
    links = list(run["clusters"])
    if end["steps"] and (never := never_trained(lines, links)):
        judged = "; `personal`, like `final`, judges who can hold no expert with the global model"
        covered = end.get("personal_by_client") and never.keys() <= end["personal_by_client"].keys()
        found.append(who_never_trained(never, len(links), links_of(run, lines)) + (judged if covered else ""))
    return found + _below_majority(lines, end) + _never_asked(end)


def refused_updates(lines: Lines) -> dict[str, int]:
    """Of each device how many of its updates the server did not let in, if it did not."""
    return dict(Counter(str(line["device"]) for line in lines if line["event"] == "refuse" and {"device", "part"} <= set(line)))


def not_let_in(lines: Lines) -> list[str]:
    """Devices whose updates the server did not let in, each with the first reason."""
    why: dict[str, str] = {}
    for line in lines:
        if line["event"] == "refuse" and {"device", "part"} <= set(line):
            why.setdefault(str(line["device"]), f"{line['part']}: {line['reason']}")
    counts = refused_updates(lines)
    said = [f"{device}: {counts[device]} of its updates not let in, first {why[device]}" for device in list(why)[:NAMED]]
    more = sum(counts[device] for device in list(why)[NAMED:])
    return said + ([f"{more} updates of {len(why) - NAMED} other devices not let in"] if more else [])


def _below_majority(lines: Lines, end: dict[str, Any]) -> list[str]:
    """Links on which the final model is no better than the most frequent answer of their training data."""
    beside: dict[str, Any] = next((line["clusters"] for line in lines if line["event"] == "baselines"), {})
    both = {link: (score, beside[link]["majority"]) for link, score in end["accuracy_by_cluster"].items() if link in beside}
    below = [
        f"{link} ({score:.3f}, {usual:.3f})" for link, (score, usual) in both.items() if usual is not None and score <= usual
    ]
    if not below:
        return []
    named = ", ".join(below[:NAMED]) + (", …" if len(below) > NAMED else "")
    return [f"on {len(below)} of {len(both)} test sets the final model is not above the majority's answer: {named}"]


def _never_asked(end: dict[str, Any]) -> list[str]:
    """Experts of a Networked MoE that nobody asks."""
    if not end.get("accuracy_by_k"):  # controls ask nobody
        return []
    idle = [str(m) for m, shares in enumerate(zip(*end["routing"], strict=True)) if not any(shares)]
    return [f"the gate never picks expert {', '.join(idle)} on test data"] if idle else []


def links_of(run: dict[str, Any], lines: Lines) -> str:
    """Whether links are clusters or clients, which a ledger of an earlier version does not say in its first line."""
    return run.get("links") or ("clients" if any(line["event"] in ("align", "stage") for line in lines) else "clusters")


def _times(n: int) -> str:
    return f", {n} times" if n > 1 else ""


def left_over(used: dict[str, list[int]]) -> list[str]:
    """Clusters of whose training data more than a hundredth is dealt to nobody, from what is held and what is there."""
    return [
        f"cluster {name!r}: its devices hold {held:,} of {there:,} training samples, {1 - held / there:.0%} are left out: its "
        "partition gives all equally many, in the proportions asked for; other devices, another partition or more data of "
        "the rarest classes use more"
        for name, (held, there) in used.items()
        if held < LEAST_USED * there
    ]


def never_trained(lines: Lines, links: list[str]) -> dict[str, str]:
    """Links that made no gradient step though others did, and why: what kept them out of most rounds."""
    worked = {line["cluster"] for line in lines if line["event"] == "train" and line.get("steps")}
    met = {line["cluster"] for line in lines if line["event"] == "contact"}
    reasons: dict[str, Counter[str]] = {}
    for line in (line for line in lines if line["event"] == "align"):
        for link, reason in line["sat_out"].items():
            reasons.setdefault(link, Counter())[str(reason)] += 1
    return {
        link: reasons[link].most_common(1)[0][0] if link in reasons else "no round fitted" if link in met else "no contact"
        for link in links
        if worked and link not in worked
    }


def who_never_trained(never: dict[str, str], links: int, kind: str) -> str:
    """A sentence: "3 of 8 clients never trained (memory)"."""
    counts = Counter(never.values())
    why = ", ".join(reason if len(counts) == 1 else f"{reason} {n}" for reason, n in counts.most_common())
    return f"{len(never)} of {links} {kind} never trained ({why})"
