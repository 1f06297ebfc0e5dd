"""Ledgers by hand, of every kind of run that a page tells of."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

NAME = "<script>alert(1)</script>"
USE = {"radio_J": 1.5, "compute_J": 0.25, "idle_J": 900.0}
Lines = list[dict[str, Any]]


def folder(at: Path, lines: Lines) -> Path:
    at.mkdir(parents=True)
    (at / "ledger.jsonl").write_text("".join(json.dumps({"t_s": 0.0, **line}) + "\n" for line in lines))
    (at / "scenario.toml").write_text(f'name = "made"\nprotocol = "{at.name}"\n[train]\nlr_expert = 0.01\n')
    (at / "runtime.jsonl").write_text(json.dumps({"environment": {"python": "3.11.2"}}) + "\n" + '{"peak_rss_B":500000000}\n')
    return at


def owners_lines(protocol: str, seed: int, flush: bool = False, cycles: int = 6) -> Lines:
    """Of clusters that own experts, with a lost contact, baselines and, with ``flush``, a final one."""
    clusters = ["lisbon", "a cluster with quite a long name", NAME]
    parts = {**{f"expert:{m}": 20_000 for m in range(6)}, "gate": 400}
    owned = {name: [2 * i, 2 * i + 1] for i, name in enumerate(clusters)}
    lines: Lines = [
        {
            "event": "run",
            "name": "made",
            "version": "0.1.0",
            "protocol": protocol,
            "seed": seed,
            "clusters": {key: [50, 50] for key in clusters},
            "parts_B": parts,
            "cycles": cycles,
            "target": 0.5,
            "plateau": [3, 0.01],
        },
        {
            "event": "baselines",
            "clusters": {name: {"majority": 0.2, "tfidf": 0.4 if i else None} for i, name in enumerate(clusters)},
        },
        {
            "event": "assignment",
            "experts": [f"expert:{m}" for m in range(6)],
            "clusters": clusters,
            "relevance": [[0.8 if m in owned[name] else 0.1 for name in clusters] for m in range(6)],
            "assignment": owned,
            "gamma": dict.fromkeys(clusters, 2.5),
            "advice": "experts are specialised",
        },
    ]
    costs = {"steps": 0, "uplink_B": 0, "downlink_B": 0}
    lines.append({"event": "evaluate", "cycle": 0, **judged(0.1, clusters), **costs})
    t_s = 0.0
    for cycle in range(cycles):
        for i, name in enumerate(clusters):
            lost = cycle == 2 and i == 1
            mine = [f"expert:{m}" for m in owned[name]]
            lines.append({"t_s": t_s, "event": "contact", "cluster": name, "satellite": "leo", "until_s": t_s + 600})
            facts = {
                "phase": "connected",
                "parts": [*mine, "gate"],
                "rounds": 1,
                "steps": 4,
                "loss": 2.0 / (cycle + 1) + i / 10,
            }
            lines.append({"t_s": t_s + 300, "event": "train", "cluster": name, **facts})
            if lost:
                lines.append({"t_s": t_s + 320, "event": "lost", "cluster": name, "reason": "no signal"})
            else:
                lines.append(
                    {"t_s": t_s + 400, "event": "collect", "cluster": name, "parts": mine, "uplink_B": 80_000, "rounds": 1}
                )
            t_s += 1800
        costs = {"steps": costs["steps"] + 12, "uplink_B": costs["uplink_B"] + 200_000 * seed, "downlink_B": 100}
        score = 0.9 - 0.8 * math.exp(-(cycle + 1) / (2 + seed))
        lines.append({"t_s": t_s, "event": "energy", "cycle": cycle + 1, "per_device": dict.fromkeys(clusters, USE)})
        lines.append({"t_s": t_s, "event": "evaluate", "cycle": cycle + 1, **judged(score, clusters), **costs})
    if flush:
        lines.append({"t_s": t_s + 60, "event": "flush", "cluster": clusters[0], "satellite": "leo", "until_s": t_s + 600})
        costs["uplink_B"] += 300_000
        t_s += 500
    end = {"cycles": cycles, "late": flush, "unsent_rounds": 0, "validation": judged(0.875, clusters)}
    return [*lines, {"t_s": t_s, "event": "end", **judged(0.8, clusters), **costs, **end}]


def judged(score: float, links: list[str], personal: bool = False) -> dict[str, Any]:
    by = {name: min(1.0, score + 0.02 * (i % 5)) for i, name in enumerate(links)}
    own = {"personal_accuracy": score / 2, "personal_by_client": {name: value / 2 for name, value in by.items()}}
    return {"accuracy": score, "loss": 1 - score, "accuracy_by_cluster": by, **(own if personal else {})}


def aligned_lines(clients: int, experts: int, rounds: int) -> Lines:
    """Of clients that are assigned experts in rounds; one sits out each."""
    names = [f"town-{i // 10}/{i % 10}" for i in range(clients)]
    run = {"protocol": "aligned", "seed": 1, "target": None, "plateau": [3, 0.01], "cycles": rounds}
    lines: Lines = [{"event": "run", **run, "clusters": {key: [9] for key in names}, "links": "clients"}]
    costs = {"steps": 0, "uplink_B": 0, "downlink_B": 0}
    lines.append({"event": "evaluate", "cycle": 0, **judged(0.1, names, personal=True), **costs})
    for cycle in range(rounds):
        begin_s = 600.0 * cycle
        out = names[cycle % clients]
        assigned = {name: [(i + cycle) % experts, (i + 3) % experts] for i, name in enumerate(names) if name != out}
        for name in names:
            lines.append({"t_s": begin_s, "event": "contact", "cluster": name, "satellite": "leo", "until_s": begin_s + 500})
        lines.append(
            {
                "t_s": begin_s,
                "event": "align",
                "cluster": names[0],
                "cycle": cycle,
                "assigned": assigned,
                "sat_out": {out: "memory"},
            }
        )
        for i, name in enumerate(names):
            if name != out:
                lines.append(
                    {"t_s": begin_s + 9, "event": "train", "cluster": name, "steps": 2, "loss": 2 / (cycle + 1) + i / 100}
                )
        load = [float(10 + m) for m in range(experts)]
        lines.append({"t_s": begin_s + 300, "event": "round", "cluster": names[0], "cycle": cycle, "load": load, "usage": load})
        costs = {"steps": costs["steps"] + 2 * clients, "uplink_B": costs["uplink_B"] + 50_000, "downlink_B": 10}
        lines.append({"t_s": begin_s + 600, "event": "energy", "cycle": cycle + 1, "per_device": dict.fromkeys(names, USE)})
        score = judged(0.1 + 0.1 * cycle, names, personal=True)
        lines.append({"t_s": begin_s + 600, "event": "evaluate", "cycle": cycle + 1, **score, **costs})
    end = {"cycles": rounds, "late": False, "unsent_rounds": 0}
    return [*lines, {"t_s": 600.0 * rounds, "event": "end", **judged(0.5, names, personal=True), **costs, **end}]


def tables() -> dict[str, Any]:
    """What a comparison of a Networked MoE fills."""
    partitions, methods = (
        ["iid", "0.2"],
        [f"{e}, {g}" for e in ("none", "fedce", "fedsc") for g in ("random", "rolling", "federated")],
    )
    cells = {name: {metric: [0.5, 0.625] for metric in ("accuracy", "macro_f1", "macro_auc")} for name in partitions}
    shares = [[0.5 if i == j else 0.5 / 9 for j in range(10)] for i in range(10)]
    one = {
        "local_ratio": [0.5],
        "inference_B": [1800.0],
        "routing": [shares],
        "accuracy_by_k": [{str(k): 0.5 + k / 20 for k in range(1, 6)}] * 2,
    }
    return {
        "tables": {key: dict.fromkeys([*methods, "local", "central"], cells) for key in ("same", "even")},
        "partitions": partitions,
        "network": {method: dict.fromkeys(partitions, one) for method in methods},
        "clients": {str(n): {"fedce": [0.5 + n / 100, 0.5], "fedsc": [0.625]} for n in (5, 10, 20)},
        "seeds": 2,
    }
