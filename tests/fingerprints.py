"""Prints a fingerprint of the ledger and the final model of many small runs: what must not change when code is moved.

    python tests/fingerprints.py > before.txt        # then change the code, and
    python tests/fingerprints.py | diff before.txt -

Hashes differ between processors and versions of libraries: compare those of one machine, and keep none. Left out is what a
format's version says of itself, and what describes a run and changes nothing of it (`DESCRIBED`).
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import pictures
import small
from fedexperts import Scenario, run

BESIDE = ("baselines",)
"""Lines that tell of the data and change nothing of a run."""
DESCRIBED = {"run": ("format", "links", "used"), "train": ("loss", "goal")}
EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
START = datetime(2026, 1, 1, tzinfo=UTC)
FAULTS = {"drop": 0.2, "corrupt": 0.1, "early_close": 0.3}
ORBIT: dict[str, Any] = {
    "plan": {"kind": "orbit", "start": START, "days": 2.0},
    "satellite": [{"altitude_km": 600.0, "inclination_deg": 53.0}],
}
ORBIT["radio"] = {"preset": "paper-range"}
PLACES = [{"latitude_deg": 38.7, "longitude_deg": -9.1}, {"latitude_deg": -1.3, "longitude_deg": 36.8}]
LORA = {"model": {"config": small.CONFIG, "lora": {"rank": 2, "alpha": 4.0}}}
ALIGNED: dict[str, Any] = {
    "protocol": "aligned",
    "plan": {"kind": "always-on"},
    "train": {"cycles": 4, "max_rounds": 1, "seconds_per_round": 20.0, "shared": ["gate", "head", "backbone"]},
    "alignment": {"max_experts": 2, "appraisal_samples": 8},
}
NETWORKED: dict[str, Any] = {
    "name": "network",
    "protocol": "networked",
    "plan": {"kind": "always-on", "slot_s": 600.0},
    "model": {
        "config": {
            "model_type": "networked_moe",
            "image_size": pictures.SIDE,
            "width": 8,
            "expert_hidden": 8,
            "num_experts": 3,
            "projection_size": 8,
        }
    },
    "task": {"kind": "image"},
    "train": {"cycles": 5, "local_steps": 2, "batch_size": 8, "seconds_per_round": 60.0, "max_rounds": 1},
    "networked": {"extractor_cycles": 2, "expert_cycles": 1, "gate_cycles": 2},
    "evaluation": {"every_cycles": 2},
    "cluster": [{"name": "c", "devices": 3, "data": "train.npz", "test": "test.npz", "partition": "tau", "tau": 0.5}],
}


def merged(base: dict[str, Any], *more: dict[str, Any]) -> dict[str, Any]:
    """A document with the tables of others merged into it."""
    found = dict(base)
    for tables in more:
        for key, value in tables.items():
            found[key] = {**found.get(key, {}), **value} if isinstance(value, dict) else value
    return found


def text(*tables: dict[str, Any]) -> dict[str, Any]:
    return merged(small.document(), *tables)


def on_orbit(document: dict[str, Any]) -> dict[str, Any]:
    places = [{**cluster, **place} for cluster, place in zip(document["cluster"], PLACES, strict=False)]
    return merged(document, ORBIT, {"cluster": places, "train": {"cycles": 3, "max_rounds": 3, "seconds_per_round": 60.0}})


def scenarios() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every protocol under what may befall it."""
    for protocol in ("sync", "ems-fl", "ems-fl-enhanced"):
        of = {"protocol": protocol}
        yield protocol, text(of)
        yield f"{protocol}, faults", text(of, {"faults": FAULTS, "plan": {"idle_slots": 1}})
        yield f"{protocol}, int8", text(of, {"model": {"config": small.CONFIG, "uplink": "int8"}})
        yield f"{protocol}, orbit", on_orbit(text(of))
        yield (
            f"{protocol}, always on, speed of devices",
            text(
                of,
                {"plan": {"kind": "always-on", "slot_s": 1e-3}, "train": {"seconds_per_round": "device", "max_rounds": 2}},
            ),
        )
        for average in ("factors", "refactor", "merge"):
            yield (
                f"{protocol}, adapters, {average}",
                text(of, {"model": {"config": small.CONFIG, "lora": {"rank": 2, "alpha": 4.0, "average": average}}}),
            )
        kinds = [{**c, "device": kind} for c, kind in zip(small.document()["cluster"], ("laptop", "phone"), strict=True)]
        yield f"{protocol}, ranks by class", text(of, LORA, {"device": {"phone": {"lora_rank": 1}}, "cluster": kinds})
    yield "ems-fl, first cycle as in the paper", text({"train": {"first_cycle": "paper"}})
    yield "ems-fl, split again", text({"assignment": {"trial_samples": 8, "every_cycles": 1}})
    yield "ems-fl, layers", text({"assignment": {"trial_samples": 8, "granularity": "layer"}})
    yield "ems-fl, policy", text({"assignment": {"trial_samples": 8, "policy": "optimal"}})
    yield "ems-fl, warm-up", text({"warmup": {"data": ["digits:plain"], "samples": 50, "steps": 5}})
    for policy in ("random", "greedy", "balanced", "optimal"):
        yield f"aligned, {policy}", text(ALIGNED, {"alignment": {**ALIGNED["alignment"], "policy": policy}})
    for gate in ("per-client", "frozen"):
        yield f"aligned, {gate}", text(ALIGNED, {"alignment": {**ALIGNED["alignment"], "gate": gate}})
    yield "aligned, estimated", text(ALIGNED, {"alignment": {"capacity": "estimated", "max_experts": 4}})
    yield "aligned, adapters", text(ALIGNED, LORA)
    yield "aligned, faults", text(ALIGNED, {"faults": FAULTS})
    yield "aligned, orbit", on_orbit(text(ALIGNED))
    for extractor in ("fedce", "fedsc"):
        for gate in ("random", "rolling", "federated"):
            own = {"networked": {**NETWORKED["networked"], "extractor": extractor, "gate": gate}}
            yield f"networked, {extractor}, {gate}", merged(NETWORKED, own)
    yield "networked, cached experts", merged(NETWORKED, {"networked": {**NETWORKED["networked"], "expert_cache": True}})
    yield "networked, faults", merged(NETWORKED, {"faults": FAULTS})
    cities = [("lisbon", 38.7, -9.1), ("berlin", 52.5, 13.4), ("lima", -12.0, -77.0)]
    clusters = [
        {"name": name, "latitude_deg": at, "longitude_deg": along, "data": "train.npz", "test": "test.npz"}
        for name, at, along in cities
    ]
    away = {"cluster": clusters, "train": {**NETWORKED["train"], "max_rounds": 2}}
    for extractor, gate in (("fedsc", "rolling"), ("fedce", "federated")):
        stages = {"networked": {**NETWORKED["networked"], "extractor": extractor, "gate": gate}}
        yield f"networked, orbit, {extractor}, {gate}", merged(NETWORKED, ORBIT, away, stages)
    yield "networked, local", merged(NETWORKED, {"networked": {"control": "local"}})
    one = {"config": {**NETWORKED["model"]["config"], "num_experts": 1, "num_experts_per_tok": 1}}
    yield "networked, fedavg", merged(NETWORKED, {"networked": {"control": "fedavg"}, "model": one})


def examples() -> Iterator[tuple[str, Scenario]]:
    """The examples that run in seconds, as they are."""
    for name in ("digits-small", "overlap", "adapters"):
        yield f"examples/{name}.toml", Scenario.load(EXAMPLES / f"{name}.toml")
    yield "examples/orbit.toml, 2 cycles", Scenario.load(EXAMPLES / "orbit.toml", ["train.cycles=2"])


def fingerprint(directory: Path) -> str:
    """Of a run: its ledger, and its model, together with adapters if it has some."""
    ledger, model = hashlib.sha256(), hashlib.sha256()
    for line in (directory / "ledger.jsonl").read_text().splitlines():
        facts = json.loads(line)
        if facts["event"] in BESIDE:
            continue
        for name in DESCRIBED.get(facts["event"], ()):
            facts.pop(name, None)
        ledger.update(json.dumps(facts).encode() + b"\n")
    for path in sorted([*directory.rglob("*.safetensors")]):
        if "checkpoints" not in path.parts:
            model.update(path.read_bytes())
    return f"{ledger.hexdigest()[:16]} {model.hexdigest()[:16]}"


def resumed(scenario: Scenario, out: Path) -> Path:
    """A run that is interrupted in its second cycle, and gone on with."""

    def interrupt(line: dict[str, Any]) -> None:
        if line["event"] == "evaluate" and line["cycle"] == 2:
            raise KeyboardInterrupt

    import fedexperts.runs.run as module  # the interval is no option

    module.CHECKPOINT_EVERY_S, usual = 0.0, module.CHECKPOINT_EVERY_S
    try:
        run(scenario, out, listener=interrupt)
    except KeyboardInterrupt:
        pass
    finally:
        module.CHECKPOINT_EVERY_S = usual
    return run(scenario, out, resume=True).directory


def main(only: str = "") -> None:
    """Print a line for each run, those alone whose name contains ``only``."""
    with tempfile.TemporaryDirectory() as temporary:
        base = Path(temporary)
        pictures.npz(base / "train.npz", 120)
        pictures.npz(base / "test.npz", 60, seed=1)
        jobs = [(name, Scenario.parse(document, base)) for name, document in scenarios()]
        for name, scenario in [*jobs, *examples()]:
            if only in name:
                out = base / "run"
                print(f"{fingerprint(run(scenario, out).directory)} {name}", flush=True)
                shutil.rmtree(out)
        for name, scenario in jobs:
            if only in name and name in ("sync", "ems-fl, split again", "aligned, estimated", "networked, fedsc, rolling"):
                out = base / "run"
                print(f"{fingerprint(resumed(scenario, out))} {name}, resumed", flush=True)
                shutil.rmtree(out)


if __name__ == "__main__":
    main(*sys.argv[1:])
