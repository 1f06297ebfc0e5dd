"""What devices trained, held at once and sent: load of experts, memory and uplink (the table of EMS-FL's paper), stages."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .chart import Bars, Chart, Panel, looks
from .page import html_table, text_row
from .progress import ranked
from .table import mega
from .words import EXPERT

Lines = Sequence[Mapping[str, Any]]
MOST_RAM_B = 1e15
"""No machine has more."""


def expert_figure(runs: Mapping[str, Lines]) -> Chart | None:
    """Gradient steps that each expert was trained in, over all devices; None where no run says what it trained."""
    own, bars = looks(runs), []
    for name, lines in runs.items():
        steps: dict[str, float] = {}
        experts = [part for part in _first(lines).get("parts_B", {}) if part.startswith(EXPERT)]
        for part in experts:
            steps[part.removeprefix(EXPERT)] = 0.0
        for line in lines:
            if line["event"] == "train":
                for part in line.get("parts", ()):
                    if part.startswith(EXPERT):
                        key = part.removeprefix(EXPERT)
                        steps[key] = steps.get(key, 0.0) + line.get("steps", 0)
        if any(steps.values()):
            bars.append(Bars(name, steps, own[name]))
    if not bars:
        return None
    return Chart(
        "Load of experts",
        f"Gradient steps in which each expert was trained, of {', '.join(bar.name for bar in bars)}",
        [ranked(Panel("gradient steps, of all devices", "expert", bars), "expert")],
        "Steps in which an expert was among the trained parts; bars of one length are a balanced load.",
        columns=1,
    )


def cost_table(runs: Mapping[str, Lines], directories: Mapping[str, Path]) -> str:
    """Memory and uplink of a device, by run; nothing where ledgers do not say what parts weigh."""
    rows = [found for name, lines in runs.items() if (found := _costs(name, lines, directories[name])) is not None]
    if not rows:
        return ""
    least = min((row["up"] for row in rows if row["up"]), default=1.0)
    heads = ["run", "MB trained at once", "MB up a contact", "at most", "MB up a device", "of the least", "process, GB"]
    cells = [
        [
            row["name"],
            mega(row["trained"]),
            "–" if row["contact"] is None else mega(row["contact"]),
            "–" if row["most"] is None else mega(row["most"]),
            mega(row["up"]),
            f"× {row['up'] / least:.2f}" if row["up"] else "–",
            "–" if row["peak"] is None else f"{row['peak'] / 1e9:.2f}",
        ]
        for row in rows
    ]
    return (
        f"<h2>Memory and uplink</h2>{html_table([text_row(heads, 'th')], map(text_row, cells))}"
        "<p class='note'>Fewer are better. Trained at once: the parts that a device of the busiest cluster trains together, as "
        "they are sent; gradients weigh as much again, and the optimiser's state beside. Up a contact: what a device sends, "
        "the median over contacts that sent something, and the most. Of the least: of those runs that sent something. Process: "
        "the most memory that the whole simulation held, server and devices together, where the run's folder says it.</p>"
    )


def _costs(name: str, lines: Lines, directory: Path) -> dict[str, Any] | None:
    run = _first(lines)
    parts_B = run.get("parts_B")
    if not parts_B:
        return None
    devices = {link: max(1, len(samples)) for link, samples in run["clusters"].items()}
    trained = [sum(parts_B.get(part, 0) for part in line.get("parts", ())) for line in lines if line["event"] == "train"]
    sent = [
        line["uplink_B"] / devices.get(line["cluster"], 1)
        for line in lines
        if line["event"] == "collect" and line.get("uplink_B")
    ]
    end = next(line for line in reversed(lines) if line["event"] == "end")
    return {
        "name": name,
        "trained": max(trained, default=0),
        "contact": statistics.median(sent) if sent else None,
        "most": max(sent) if sent else None,
        "up": end["uplink_B"] / sum(devices.values()),
        "peak": peak_B(directory),
    }


def _first(lines: Lines) -> Mapping[str, Any]:
    return next(line for line in lines if line["event"] == "run")


def runtime_lines(directory: Path) -> list[dict[str, Any]]:
    """What a run's folder says of the machine; what cannot be read is left out."""
    path = directory / "runtime.jsonl"
    try:
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
    except (OSError, ValueError):
        return []
    found = []
    for line in text.splitlines():
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict):
            found.append(value)
    return found


def peak_B(directory: Path) -> float | None:
    """The most memory of the process, resident."""
    peaks = [line.get("peak_rss_B") for line in runtime_lines(directory)]
    known = [float(peak) for peak in peaks if isinstance(peak, int | float) and 0 <= peak < MOST_RAM_B]
    return max(known) if known else None


def stage_table(runs: Mapping[str, Lines]) -> str:
    """Stages of a Networked MoE with their rounds, steps and bytes; nothing for other runs."""
    rows = []
    for name, lines in runs.items():
        rows += [[name, *cells] for cells in _stages(lines)]
    if not rows:
        return ""
    heads = ["run", "stage", "rounds", "cycles", "clients", "steps", "MB up", "MB down", "MB between"]
    return (
        f"<h2>Stages</h2>{html_table([text_row(heads, 'th')], map(text_row, rows))}"
        "<p class='note'>Cycles are counted from 0. Between: bytes that clients asked of each other while they trained.</p>"
    )


def _stages(lines: Lines) -> list[list[str]]:
    found: list[dict[str, Any]] = []
    for line in lines:
        if line["event"] == "stage":
            if not found or found[-1]["stage"] != line["stage"]:
                found.append({"stage": line["stage"], "cycles": [], "clients": 0, "steps": 0, "up": 0, "down": 0, "peer": 0})
            found[-1]["cycles"].append(line["cycle"])
            found[-1]["clients"] = max(found[-1]["clients"], len(line["clients"]))
        elif found:
            found[-1]["steps"] += line.get("steps", 0) if line["event"] == "train" else 0
            found[-1]["peer"] += line.get("peer_B", 0) if line["event"] == "train" else 0
            found[-1]["up"] += line.get("uplink_B", 0) if line["event"] in ("collect", "trial") else 0
            found[-1]["down"] += line.get("downlink_B", 0) if line["event"] == "send" else 0
    return [
        [
            str(row["stage"]),
            str(len(row["cycles"])),
            f"{min(row['cycles'])}–{max(row['cycles'])}",
            str(row["clients"]),
            f"{row['steps']:,}",
            *(mega(row[key]) for key in ("up", "down", "peer")),
        ]
        for row in found
    ]
