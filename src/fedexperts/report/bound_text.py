"""What a plan allows, in words and rows, for terminals as for pages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .words import count, duration, size, utc

ORDERED = ("cluster", "first", "last", "updates", "waits for", "upload", "contacts each")
ANY = ("cluster", "first", "last", "updates", "waits for", "baseline")
CHANGES = ("change", "that update stands", "updates of all clusters")
MOST_TOLD = 10
"""So many clusters of a run have a sentence."""
CAUSES = {"compute": "local rounds", "uplink": "uplink", "downlink": "downlink", "contact": "contact", None: "–"}


def ordered_rows(bound: Mapping[str, Any]) -> Iterator[list[str]]:
    """Updates in EMS-FL's order, by cluster, and what one weighs."""
    for name, row in bound["clusters"].items():
        often = row["contacts_per_upload"]
        weight = [size(row["upload_B"]), "–" if often is None else f"{often:g}"]
        yield [name, *_told(row["schedule_s"]), CAUSES[row["schedule_bottleneck"]], *weight]


def any_rows(bound: Mapping[str, Any]) -> Iterator[list[str]]:
    """Updates by any protocol, by cluster, and rounds of the baseline."""
    for name, row in bound["clusters"].items():
        rounds = bound["sync"]["clusters"][name]["round_s"]
        yield [name, *_told(row["update_s"]), CAUSES[row["bottleneck"]], count(len(rounds), "round")]


def _told(times_s: Sequence[float]) -> list[str]:
    return [duration(times_s[0]), duration(times_s[-1]), f"{len(times_s):,}"] if times_s else ["never", "never", "0"]


def change_rows(bound: Mapping[str, Any]) -> Iterator[list[str]]:
    """What would help: each change alone."""
    for row in bound["helps"]:
        yield [
            row["change"],
            "not in this plan" if row["stands_s"] is None else duration(row["stands_s"]),
            f"{row['updates']:,}",
        ]


def sentences(bound: Mapping[str, Any], start: str | None = None) -> list[str]:
    """When the last model can be everywhere, what EMS-FL leaves to a better protocol, and what to know."""
    final, told = bound["final"], []
    if final["updates"]:
        when = f"{duration(final['reached_s'])} after the start"
        when = f"{utc(start, final['reached_s'])} UTC, {when}" if start else when
        up_B, joules = (max(row[key] for row in final["clusters"].values()) for key in ("uplink_B", "device_J"))
        down_B = max(row["downlink_B"] for row in final["clusters"].values())
        told.append(
            f"{count(final['updates'], 'update')} of every cluster can be on every device no earlier than {when}; a device "
            f"sends at least {size(up_B)}, gets {size(down_B)} and uses {joules:,.3g} J"
        )
    else:
        told.append("no update of every cluster can be on every device before this plan ends")
    ahead = [len(row["update_s"]) / len(row["schedule_s"]) for row in bound["clusters"].values() if row["schedule_s"]]
    if ahead and max(ahead) > 1:
        told.append(
            f"other protocols could make up to {max(ahead):.1f} times as many updates over these contacts: EMS-FL uploads once "
            "a contact, and nothing in its first"
        )
    if not bound["sync"]["round_s"]:
        told.append("the baseline never has a round: none of the contacts holds a download, a local round and an upload")
    return [*told, *_run_sentences(bound), *bound["notes"]]


def _run_sentences(bound: Mapping[str, Any]) -> Iterator[str]:
    """How many updates a run had, where there is one, and how many the bounds had by then."""
    if "run" not in bound:
        return
    rows = list(bound["clusters"].items())
    for name, row in rows[:MOST_TOLD]:
        came_s = bound["run"]["clusters"][name]["update_s"]
        many = f"the run: {name} {count(len(came_s), 'update')}"
        if not came_s:
            yield many
            continue
        told = []
        for key, whose in (("schedule_s", "in EMS-FL's order"), ("update_s", "by any protocol")):
            until = sum(t_s <= came_s[-1] for t_s in row[key])
            told.append(f"{until} {whose}")
        yield f"{many}, the last after {duration(came_s[-1])}, by when the plan allows {' and '.join(told)}"
    if len(rows) > MOST_TOLD:
        yield f"the run: {len(rows) - MOST_TOLD} more clusters in the figure, and in --json"
