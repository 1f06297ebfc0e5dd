"""The scenarios of examples/ with small data, models and orbits in the place of those that they name, and what reads them."""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w
import torch

import families
import small
import text
from fedexperts.cli.plan_tables import cluster_table, contact_table, link_table, stage_table
from fedexperts.errors import InputError
from fedexperts.method.methods import METHODS
from fedexperts.moe.auto import new_model
from fedexperts.planned import described as describe
from fedexperts.planned import planned as planned_of
from fedexperts.report.bound_html import bound_section
from fedexperts.runs.advise import advise
from fedexperts.runs.allowed import allowed
from fedexperts.runs.judge import judge_model
from fedexperts.runs.run import ready
from fedexperts.scenario import Prospect, Scenario
from fedexperts.setup.plan import network_plan, orbit
from mutate import on_lines
from pictures import encoded, images, parquet

FOLDER = Path(__file__).resolve().parent.parent / "examples"
START = datetime(2026, 1, 1, tzinfo=UTC)
ORBIT: dict[str, Any] = {
    "name": "s",
    "seed": 1,
    "plan": {"kind": "orbit", "start": START, "days": 0.1, "min_elevation_deg": 10.0, "nodes": {"server": 1, "x": 2}},
    "satellite": {"altitude_km": 600, "inclination_deg": 53.0, "epoch": START, "raan_deg": 1.0},
    "radio": {"preset": "paper-range", "fixed_downlink_bps": 5e7},
    "cluster": [{"name": "x", "latitude_deg": 38.7, "longitude_deg": -9.1, "altitude_m": 5.0, "devices": 2}],
}
WALKER = {"walker": {"total": 6, "planes": 3, "phasing": 1, "altitude_km": 600.0, "inclination_deg": 53.0}}
SIZES = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 300}
SIZES |= {"num_key_value_heads": 2}
NETWORKS: dict[str, dict[str, Any]] = {
    "orbit": ORBIT,
    "walker": {**ORBIT, "satellite": WALKER},
    "round robin": {
        "name": "s",
        "plan": {"slot_s": 60.0, "idle_slots": 1, "days": 0.1},
        "cluster": [{"name": "x"}, {"name": "y"}],
    },
    "always on": {
        "name": "s",
        "plan": {"kind": "always-on", "slot_s": 9.0},
        "model": {"config": small.CONFIG},
        "cluster": [{"name": "x"}],
    },
}
BOUNDED: dict[str, dict[str, Any]] = {
    "orbit": {**ORBIT, "model": {"config": small.CONFIG}, "train": {"cycles": 2, "seconds_per_round": 60.0}},
    "round robin": {**NETWORKS["round robin"], "model": {"config": small.CONFIG, "lora": {"rank": 2, "alpha": 4.0}}},
}
EXAMPLES: dict[str, dict[str, Any]] = {  # what of them is too large for a test
    "adapters": {},
    "alignment-cifar10": {"cluster": [{"test_samples": 200}]},
    "digits-small": {},
    "llama3-medical": {"model": {"accelerator": "cpu"}},
    "minilm-glue": {},
    "mixtral-glue": {"model": {"accelerator": "cpu", "config": SIZES}},
    "nmoe-cifar10": {"cluster": [{"samples": 600, "test_samples": 200}]},
    "nmoe-fashion": {"cluster": [{"samples": 600, "test_samples": 200}]},
    "orbit": {},
    "overlap": {},
}


def written(document: dict[str, Any]) -> Callable[[Path], Path]:
    """What writes a scenario."""

    def make(folder: Path) -> Path:
        (folder / "scenario.toml").write_text(tomli_w.dumps(document))
        return folder / "scenario.toml"

    return make


def example(name: str, in_full: bool = False) -> Callable[[Path], Path]:
    """What writes a scenario of examples/, and small things of every kind that it names; ``in_full`` with all defaults."""

    def make(folder: Path) -> Path:
        os.environ["FEDEXPERTS_DATA"] = str(folder)
        document = tomllib.loads((FOLDER / f"{name}.toml").read_text())
        _stand_in(folder, name)
        path = written(_merged(document, EXAMPLES[name]))(folder)
        if in_full:
            path.write_text(Scenario.load(path).to_toml())
        return path

    return make


def _merged(given: Any, changes: Any) -> Any:
    if isinstance(given, dict):
        return given | {key: _merged(given.get(key), value) for key, value in changes.items()}
    if isinstance(given, list):
        return [_merged(one, change) for one, change in zip(given, changes, strict=True)]
    return changes


def _stand_in(folder: Path, name: str) -> None:
    (folder / "overlap.json").write_bytes((FOLDER / "overlap.json").read_bytes())
    if name == "llama3-medical":
        text.saved(folder / "llama3-moe", max_position_embeddings=512)
        (folder / "medical").mkdir(exist_ok=True)
        asked = [{"question": f"q{i}?", "choices": ["a", "b", "c"], "answer": i % 3} for i in range(20)]
        for task in ("mmlu", "cmexam", "medmcqa"):
            for part in ("shared", "train", "test"):
                (folder / "medical" / f"{task}-{part}.jsonl").write_bytes(on_lines(asked))
    if name in ("minilm-glue", "mixtral-glue"):
        text.tokenizer().save_pretrained(folder / "mixtral-tokenizer")
        _glue(folder / "glue")
    if name == "minilm-glue":
        config = {**small.CONFIG, **SIZES, "num_labels": 9, "pad_token_id": 256}
        families.saved(new_model(config, 0), folder / "minilm-moe")
        text.tokenizer().save_pretrained(folder / "minilm-moe")
    if name.endswith("cifar10"):
        (folder / "cifar10").mkdir(exist_ok=True)
        for part, n in (("train-0-of-5", 600), ("test", 200)):
            shown = [encoded(np.kron(one, np.ones((4, 4, 1), dtype=np.uint8))) for one in images(n)[0]]
            parquet(folder / "cifar10" / f"{part}.parquet", shown, [i % 10 for i in range(n)])
    if name == "nmoe-fashion":
        (folder / "fashion_mnist").mkdir(exist_ok=True)
        for part, n in (("train", 600), ("test", 200)):
            x = np.random.default_rng(0).integers(0, 255, (n, 28, 28), dtype=np.uint8)
            np.savez(folder / "fashion_mnist" / f"{part}.npz", x=x, y=np.arange(n) % 10)


def _glue(folder: Path) -> None:
    columns = {"sst2": ["sentence"], "mrpc": ["sentence1", "sentence2"], "mnli": ["premise", "hypothesis"]}
    columns["qnli"] = ["question", "sentence"]
    for task, names in columns.items():
        (folder / task).mkdir(parents=True, exist_ok=True)
        labels = [i % (3 if task == "mnli" else 2) for i in range(20)]
        for part in ("train", "dev"):
            more = {name: [f"{name} {i}" for i in range(20)] for name in names}
            parquet(folder / task / f"{part}.parquet", [b""] * 20, labels, **more)


def planned(path: Path) -> None:
    """What `fedexperts plan` does."""
    network = Prospect.load(path)
    found = orbit(network) if network.plan.kind == "orbit" else None
    document = describe(network, found.plan() if found else network_plan(network), found)
    contact_table(document, 80)
    cluster_table(document, 80)
    if document["method"]:
        stage_table(document["method"], 80)
        link_table(document["method"], 80)


def bounded(path: Path) -> None:
    """What `fedexperts plan --bound` does, and `advise`."""
    network, plan, found = planned_of(Prospect.load(path), None)
    document = {"start": None, "horizon_s": plan.horizon_s, "bound": allowed(network, plan, found)}
    json.dumps(document, allow_nan=False)
    bound_section(document)
    try:
        advise(path, "updates=2", "2 h", ["model.uplink=bf16,int8"])
    except InputError as error:
        if "nothing reaches" not in str(error):
            raise


def prepared(path: Path) -> None:
    """What `fedexperts plan` does, and `fedexperts run` before it trains."""
    torch.set_num_threads(1)
    refused = None
    try:
        planned(path)
    except InputError as error:
        refused = error
    scenario = Scenario.load(path)
    ready(scenario, METHODS[scenario.protocol])
    if refused:
        raise refused


def judged(path: Path) -> None:
    """What `fedexperts eval` does."""
    model = path.parent / "judged"
    if not model.exists():
        families.saved(new_model(small.CONFIG | {"num_hidden_layers": 1}, 0), model)
    judge_model(str(model), path, beside=False)
