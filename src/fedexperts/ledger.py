"""The ledger: every byte, second and round of a run, one JSON object per line, in simulated time.

``ledger.jsonl`` is byte-identical for a scenario and a seed; what depends on the machine goes to ``runtime.jsonl``.
Reports read these files and nothing else.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from .caveats import caveats, links_of, never_trained, refused_updates
from .errors import Diverged, InputError
from .events import EVENTS
from .lines import check, parsed

OF_CLIENTS = (
    *("personal_accuracy", "personal_by_client", "macro_f1", "macro_auc", "macro_auc_left_out"),
    *("mean_f1", "mean_auc", "mean_auc_left_out", "local_ratio", "inference_B", "accuracy_by_k", "routing", "ladder"),
    *("even_test", "one_shot"),
)
"""What an evaluation says where links are clients, as far as the protocol does."""
HISTORY = (
    "cycle",
    "t_s",
    "steps",
    "uplink_B",
    "energy_J_per_device",
    "accuracy",
    "loss",
    "accuracy_by_cluster",
    "training_loss",
)
OWN = ("personal_accuracy", "personal_by_client", "macro_f1", "macro_auc", "local_ratio")
"""Of each point of a history, as far as it has them."""
Listener = Callable[[dict[str, Any]], None]
ENCODED = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode
"""A line, by one encoder: `json.dumps` makes another each time."""
MOST_NATS = 700.0
"""A float holds e to that."""
LONGEST_B = 2**26
"""Of a line; a whole round of a thousand clients is well below it."""


class Ledger:
    """Appends lines to a file; `position` and ``start_at`` let a resumed run cut off what came after a checkpoint."""

    def __init__(self, path: Path, start_at: int = 0, listener: Listener | None = None):
        self.sha256 = hashlib.sha256()
        if start_at:
            self.sha256 = beginning(path, start_at) or self.sha256
        self.file = path.open("r+b" if start_at else "wb")
        self.file.truncate(start_at)
        self.file.seek(start_at)
        self.listener = listener

    def write(self, event: str, t_s: float, **facts: Any) -> None:
        """Add one line of an event in the table; keys keep their order.

        Raises:
            ValueError: there is no such event, a fact lacks, or one is not the event's; nothing is written.
            Diverged: a fact is not finite, which JSON cannot say; nothing is written.
        """
        check(event, facts.keys())
        self._append(event, t_s, facts)

    def write_any(self, event: str, t_s: float, **facts: Any) -> None:
        """`write`, but the table need not know the event: for protocols of one's own."""
        if event in EVENTS:
            check(event, facts.keys())
        self._append(event, t_s, facts)

    def _append(self, event: str, t_s: float, facts: dict[str, Any]) -> None:
        line = {"t_s": round(t_s, 6), "event": event, **facts}
        try:
            text = ENCODED(line)
        except ValueError as error:
            raise Diverged(f"event {event!r} at {t_s:g} s: {_not_finite(line)}; a ledger holds finite numbers only") from error
        data = text.encode() + b"\n"
        self.file.write(data)
        self.sha256.update(data)
        if self.listener:
            self.listener(line)

    def position(self) -> int:
        """Bytes written so far, safely on disk."""
        self.file.flush()
        os.fsync(self.file.fileno())
        return self.file.tell()

    def flush(self) -> None:
        """Hand what was written to the operating system, so that others can read it."""
        self.file.flush()

    def close(self) -> None:
        """Flush and close."""
        self.file.close()


def _not_finite(value: Any, at: str = "") -> str:
    """The first place of a NaN or an infinity."""
    if isinstance(value, float) and not math.isfinite(value):
        return f"{at} = {value}"
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, (list, tuple)) else ()
    return next((found for key, v in inner if (found := _not_finite(v, f"{at}.{key}" if at else str(key)))), "")


def beginning(path: Path, size_B: int) -> hashlib._Hash | None:
    """The hash of a file's first bytes; None where it has not so many, or is no file."""
    found = hashlib.sha256()
    if not path.is_file():
        return None
    with path.open("rb") as file:
        while size_B and (data := file.read(min(size_B, 2**20))):
            found.update(data)
            size_B -= len(data)
    return None if size_B else found


def read(path: Path) -> Iterator[dict[str, Any]]:
    """Lines of a ledger; a torn last line of a run that was killed is left out.

    Raises:
        InputError: no such file, or a line is none of a ledger, with its number.
    """
    return (parsed(line, f"{path}, line {number}") for number, line in _lines(path))


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a FIFO or a device may never end
            raise InputError(f"{path}: is not a regular file; give a run directory")
        with path.open("rb") as file:
            number = 0
            while (line := file.readline(LONGEST_B)).endswith(b"\n"):
                number += 1
                yield number, line
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); give a run directory") from error
    if len(line) == LONGEST_B:
        raise InputError(f"{path}, line {number + 1}: is longer than {LONGEST_B:,} bytes; the file is damaged")


def tail(path: Path, event: str) -> dict[str, Any] | None:
    """The last complete line of an event, or None; a missing ledger has none.

    Raises:
        InputError: as `read`.
    """
    if not path.is_file():
        return None
    word = json.dumps(event).encode()  # parsing every line of a run under way would cost more than the run
    wanted = ((number, line) for number, line in _lines(path) if number == 1 or word in line)  # the first says the format
    found = (parsed(line, f"{path}, line {number}") for number, line in wanted)
    lines = [line for line in found if line["event"] == event]
    return lines[-1] if lines else None


def summary(path: Path) -> dict[str, Any]:
    """What a run came to, from its ledger alone; the keys of ``fedexperts run --json``.

    ``history``, plateau and ``…_to_target`` read the validation data, ``final_accuracy`` and ``accuracy_by_cluster`` the test
    data (``judged_on`` says "test" of a run without validation data, where both are the same). ``…_to_target`` are taken at the
    first evaluation that reaches the target, None if none does. Steps are gradient steps summed over all devices, joules are
    means over them, hours those of the plan. ``final_loss`` is on test data, in nats; ``perplexity``, of language models alone,
    e to it, None beyond all numbers. What arrives after the last cycle, in the final flush say, counts as one more cycle.
    ``metric`` is what the accuracies are, where they are none. ``links`` says whether what is kept by cluster is by client,
    ``warnings`` what a reader should know, ``never_trained`` who made no gradient step, and why, ``refused_updates`` how many
    updates of which device the server did not let in.
    ``training_loss`` of a point, by what is learnt and by link, is what the steps since the point before began with.
    Clients have what `OF_CLIENTS` names.

    Raises:
        InputError: no such file, a line is none of a ledger, lines do not belong together, or the run has not ended.
    """
    lines = list(read(path))
    try:
        return _summed(lines, path)
    except InputError:
        raise
    except (LookupError, TypeError, ValueError, ArithmeticError) as error:
        raise InputError(f"{path}: its lines do not belong together ({error!r}); the file is damaged") from error


def _summed(lines: list[dict[str, Any]], path: Path) -> dict[str, Any]:
    run = next((line for line in lines if line["event"] == "run"), None)
    assigned: dict[str, Any] = next((line for line in lines if line["event"] == "assignment"), {})
    beside: dict[str, Any] = next((line["clusters"] for line in lines if line["event"] == "baselines"), {})
    if run is None:
        raise InputError(f"{path}: the run has not begun to train; finish it with fedexperts run --resume first")
    _add_losses(lines)
    _add_joules(lines, {name: len(samples) for name, samples in run["clusters"].items()})
    points = [line for line in lines if line["event"] in ("evaluate", "end") and "accuracy" in line]
    if not points or points[-1]["event"] != "end":
        raise InputError(f"{path}: the run has not ended; finish it with fedexperts run --resume first")
    end = points[-1]
    end["cycle"] = end["cycles"] + (1 if end["late"] else 0)
    points[-1] = {**end, **end.get("validation", {})}
    target = run["target"]
    reached = next((p for p in points if target is not None and p["accuracy"] >= target), None)
    return {
        "protocol": run["protocol"],
        "seed": run["seed"],
        "links": links_of(run, lines),
        "target": target,
        "judged_on": "validation" if "validation" in end else "test",
        "metric": end.get("metric", "accuracy"),
        "metric_by_cluster": end.get("metric_by_cluster") or dict.fromkeys(end["accuracy_by_cluster"], "accuracy"),
        "final_accuracy": end["accuracy"],
        **_of_loss(end),
        "accuracy_by_cluster": end["accuracy_by_cluster"],
        "metrics_by_cluster": end.get("metrics_by_cluster", {}),
        "baselines": beside,
        "cycles_to_target": reached["cycle"] if reached else None,
        "steps_to_target": reached["steps"] if reached else None,
        "uplink_B_to_target": reached["uplink_B"] if reached else None,
        "hours_to_target": reached["t_s"] / 3600 if reached else None,
        "joules_to_target": sum(reached["energy_J_per_device"].values()) if reached else None,
        "uplink_B": end["uplink_B"],
        "downlink_B": end["downlink_B"],
        "peer_B": end.get("peer_B", 0),
        "steps": end["steps"],
        "energy_J_per_device": end["energy_J_per_device"],
        "cycles": end["cycles"],
        "unsent_rounds": end["unsent_rounds"],
        "cycles_to_plateau": _plateau(points, *run["plateau"]),
        "assignment": assigned.get("assignment", {}),
        "gamma": assigned.get("gamma", {}),
        **_of_clients(end),
        **_alignment(lines, list(run["clusters"]), end),
        "privacy": next((line["note"] for line in lines if line["event"] == "privacy"), None),
        "never_trained": never_trained(lines, list(run["clusters"])),
        "refused_updates": refused_updates(lines),
        "warnings": caveats(lines, run, end),
        "history": [{key: p[key] for key in (*HISTORY, *OWN) if key in p} for p in points],
    }


def _of_loss(end: dict[str, Any]) -> dict[str, float | None]:
    """The loss on test data and, where links are judged by it, the perplexity over all their tokens."""
    loss = end.get("loss")
    if loss is None:
        return {}
    of_tokens = any("perplexity" in metrics for metrics in end.get("metrics_by_cluster", {}).values())
    perplexity = math.exp(loss) if loss < MOST_NATS else None
    return {"final_loss": loss, **({"perplexity": perplexity} if of_tokens else {})}


def _of_clients(end: dict[str, Any]) -> dict[str, Any]:
    """How a model does for clients; of one that is judged link by link alone F1 and AUC are means over these."""
    found = {key: end[key] for key in OF_CLIENTS if key in end}
    for mean, metric in (("mean_f1", "macro_f1"), ("mean_auc", "macro_auc")):
        own = [metrics[metric] for metrics in end.get("metrics_by_cluster", {}).values() if metric in metrics]
        if own and mean not in found:
            told = [value for value in own if value is not None]
            found[mean] = sum(told) / len(told) if told else None
    return found


def _plateau(points: list[dict[str, Any]], patience: int, min_gain: float) -> int | None:
    """The first cycle whose accuracy no later evaluation exceeds by ``min_gain``; None if fewer than ``patience`` follow it."""
    found = [(point["cycle"], point["accuracy"]) for point in points if point["event"] == "evaluate"]
    for i, (cycle, accuracy) in enumerate(found[: max(0, len(found) - patience)]):
        if max(later for _, later in found[i + 1 :]) < accuracy + min_gain:
            return int(cycle)
    return None


def _alignment(lines: list[dict[str, Any]], clients: list[str], end: dict[str, Any]) -> dict[str, Any]:
    """Of a run that assigned experts to clients in rounds: how often, how evenly, and who sat out why.

    ``load_cv`` is the coefficient of variation over experts of what was trained of each in all rounds, ``load_cv_by_round``
    the mean of that of each round in which something was. ``assignment_counts`` has a row for each of ``clients`` and a column
    for each expert.
    """
    rounds = [line for line in lines if line["event"] == "align"]
    loads = [line["load"] for line in lines if line["event"] == "round"]
    if not rounds or not loads:
        return {}
    counts = [[0] * len(loads[0]) for _ in clients]
    sat_out: dict[str, dict[str, int]] = {}
    for line in rounds:
        for client, experts in line["assigned"].items():
            for m in experts:
                counts[clients.index(client)][m] += 1
        for client, reason in line["sat_out"].items():
            reasons = sat_out.setdefault(client, {})
            reasons[reason] = reasons.get(reason, 0) + 1
    each = [cv for load in loads if (cv := _variation(load)) is not None]
    return {
        "personal_accuracy": end.get("personal_accuracy"),
        "personal_by_client": end.get("personal_by_client", {}),
        "load_cv": _variation([sum(load) for load in zip(*loads, strict=True)]),
        "load_cv_by_round": sum(each) / len(each) if each else None,
        "clients": clients,
        "assignment_counts": counts,
        "sat_out": sat_out,
    }


def _variation(values: list[float]) -> float | None:
    """Standard deviation over mean; None where the mean is zero."""
    mean = sum(values) / len(values)
    return (sum((v - mean) ** 2 for v in values) / len(values)) ** 0.5 / mean if mean else None


def _add_losses(lines: list[dict[str, Any]]) -> None:
    """Give each evaluation the mean training loss since the last, by what was learnt and by link."""
    sums: dict[str, dict[str, list[float]]] = {}
    for line in lines:
        if line["event"] == "train" and "loss" in line:
            found = sums.setdefault(line.get("goal", "task"), {}).setdefault(line["cluster"], [0.0, 0.0])
            found[0] += line["steps"] * line["loss"]
            found[1] += line["steps"]
        elif line["event"] in ("evaluate", "end") and "accuracy" in line:
            line["training_loss"] = {
                goal: {link: round(total / steps, 6) for link, (total, steps) in by_link.items() if steps}
                for goal, by_link in sums.items()
            }
            sums = {}


def _add_joules(lines: list[dict[str, Any]], devices: dict[str, int]) -> None:
    """Give each evaluation the joules used so far, the mean over all devices."""
    joules = {"radio_J": 0.0, "compute_J": 0.0, "idle_J": 0.0}
    for line in lines:
        if line["event"] == "energy":
            for use in joules:
                joules[use] += sum(n * line["per_device"][c][use] for c, n in devices.items()) / sum(devices.values())
        elif line["event"] in ("evaluate", "end"):
            line["energy_J_per_device"] = dict(joules)
