"""A first scenario for data that are at hand: commented TOML that runs as it is, and what it needs beside it."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from ..data.rows import Row
from ..errors import InputError
from .guess import Guess, Kind, found_in, guess, test_beside

VOCABULARY = 4000
LENGTHS = (64, 128, 256, 512)
"""To choose ``max_length`` from."""
DEVICES = 2
TEST_EVERY = 5
"""Where there are no test data, each fifth row is one."""
IMAGES, TEST_IMAGES = 2000, 500
"""Taken of each cluster at most, so that a first run is short."""
TOWNS = {
    "lisbon": (38.72, -9.14),
    "nairobi": (-1.29, 36.82),
    "sydney": (-33.87, 151.21),
    "lima": (-12.05, -77.04),
    "tromso": (69.65, 18.96),
}


@dataclass(frozen=True)
class Sketch:
    """What is to be written: texts of files by their names, and texts to make a tokenizer of, if it needs one."""

    files: Mapping[str, str]
    corpus: Sequence[str] = ()
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Source:
    """One cluster's data, as they were found."""

    name: str
    data: Path
    test: Path | None
    guess: Guess


def plan(name: str) -> Sketch:
    """Five towns and a satellite, for ``fedexperts plan``."""
    towns = "\n".join(
        f'[[cluster]]\nname = "{town}"\nlatitude_deg = {latitude}\nlongitude_deg = {longitude}\n'
        for town, (latitude, longitude) in TOWNS.items()
    )
    return Sketch({"scenario.toml": PLAN.format(name=name, towns=towns)})


def tuning(folder: Path, kind: Kind | None, data: Sequence[Path], tests: Sequence[Path], model: str | None) -> Sketch:
    """A model, and a cluster for each file of training data.

    Args:
        folder: where the scenario will stand; without ``data`` it and the folders in it are looked through.
        kind: of task; None takes what the files look like.
        data: training data, one file for each cluster.
        tests: test data, as many; without, files beside the data are taken, or rows of these.
        model: a checkpoint, relative to the folder; without, a small one with random weights.

    Raises:
        InputError: there are no data, they cannot be read, or nothing is recognised.
    """
    found = list(data) or (found_in(folder) if folder.is_dir() else [])
    if not found:
        raise InputError(
            f"{folder}: holds no training data (.csv, .tsv, .json, .jsonl, .parquet or .npz); name them with --data, or take "
            "--kind plan, which needs none"
        )
    if tests and len(tests) != len(found):
        raise InputError(f"--test: {len(tests)} for {len(found)} files of training data; give each its own, or none")
    named = dict(zip(found, tests, strict=True)) if tests else {path: test_beside(path) for path in found}
    names = _names(found)
    sources = [Source(name, path, test, guess(path, kind)) for name, (path, test) in zip(names, named.items(), strict=True)]
    kinds = {source.guess.kind for source in sources}
    if len(kinds) > 1:
        told = ", ".join(f"{source.name}: {source.guess.kind}" for source in sources)
        raise InputError(
            f"one model learns one kind of task, and these look like several ({told}); say --kind where one is mistaken, or "
            "name those of one kind with --data"
        )
    return _tuning(folder, sources, model)


def _tuning(folder: Path, sources: Sequence[Source], model: str | None) -> Sketch:
    kind = sources[0].guess.kind
    files: dict[str, str] = {}
    corpus: list[str] = []
    clusters, common = [], _common(sources)
    for source in sources:
        clusters.append(_cluster(folder, source, files, common))
        if model is None:
            corpus += _texts(source.guess)
    table = f"path = {json.dumps(model)}" if model else _model(kind, sources)
    notes = [f"{source.name}: taken for {kind}, {_told(source.guess)}" for source in sources]
    text = TUNING.format(
        name=re.sub(r"[^A-Za-z0-9_.-]+", "-", folder.resolve().name) or "mine",
        kind=kind,
        model=table,
        task=_task(kind, common, sources),
        warmup=_warmup(clusters, kind == "text") if model is None else "",
        shared='["gate", "head"]' if kind == "text" and model else '["gate"]',
        clusters="\n".join(clusters),
    )
    return Sketch({"scenario.toml": text, **files}, corpus if model is None else (), notes)


def _common(sources: Sequence[Source]) -> Mapping[str, Any]:
    """What all clusters have of ``[task]``, if they are alike."""
    tasks = [source.guess.task for source in sources]
    return tasks[0] if all(task == tasks[0] for task in tasks) else {}


def _names(paths: Sequence[Path]) -> list[str]:
    """A cluster is called after its file, or its folder where the file is called train."""
    found: list[str] = []
    for path in paths:
        stem = re.sub(r"(?i)[-_.]*train[-_.]*", "", path.stem) or path.resolve().parent.name
        name = re.sub(r"[^A-Za-z0-9_.-]+", "-", stem) or "cluster"
        found.append(name if name not in found else f"{name}-{len(found)}")
    return found


def _cluster(folder: Path, source: Source, files: dict[str, str], common: Mapping[str, Any]) -> str:
    lines = ["[[cluster]]", f"name = {json.dumps(source.name)}", f"devices = {DEVICES}"]
    data, test, samples, rows = source.data, source.test, source.guess.samples, source.guess.rows
    if test is None:
        if source.guess.kind == "images":
            raise InputError(f"{data}: there are no test images beside it (test.npz, say); name them with --test")
        files[f"{source.name}-train.jsonl"] = _jsonl(row for n, row in enumerate(rows, 1) if n % TEST_EVERY)
        files[f"{source.name}-test.jsonl"] = _jsonl(rows[TEST_EVERY - 1 :: TEST_EVERY])
        lines += [f"data = {json.dumps(f'{source.name}-train.jsonl')} # of {data}, whose every fifth row is in the test data"]
        lines += [f"test = {json.dumps(f'{source.name}-test.jsonl')}"]
    else:
        lines += [f"data = {_relative(data, folder)} # {samples:,} {'images' if source.guess.kind == 'images' else 'rows'}"]
        lines += [f"test = {_relative(test, folder)}"]
    if source.guess.kind == "images" and test:
        judged = min(TEST_IMAGES, guess(test).samples)
        lines += [f"samples = {min(IMAGES, samples)} # leave it out for all", f"test_samples = {judged}"]
    if not common and source.guess.task:
        lines.append(f"task = {_inline(source.guess.task)}")
    return "\n".join(lines) + "\n"


def _relative(path: Path, folder: Path) -> str:
    return json.dumps(Path(os.path.relpath(path.absolute(), folder.absolute())).as_posix(), ensure_ascii=False)


def _jsonl(rows: Iterable[Row]) -> str:
    try:
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    except TypeError as error:
        raise InputError(f"the data hold values that are no text or numbers ({error}); name test data with --test") from error


def _texts(found: Guess) -> list[str]:
    task, rows = found.task, found.rows
    if found.kind == "questions":
        return [json.dumps(row, ensure_ascii=False, default=str) for row in rows]
    return [str(row.get(name) or "") for row in rows for name in (task["text"], task.get("text_pair")) if name]


def _inline(task: Mapping[str, Any]) -> str:
    """A table on one line."""
    pairs = (f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in task.items())
    return "{ " + ", ".join(pairs) + " }"


def _told(found: Guess) -> str:
    unused = f"; not used: {', '.join(found.unused)}" if found.unused else ""
    return (", ".join(f"{key} = {value}" for key, value in found.task.items()) or "arrays x and y") + unused


def _task(kind: Kind, task: Mapping[str, Any], sources: Sequence[Source]) -> str:
    kinds = {"text": "classification", "questions": "multiple-choice", "images": "image"}
    lines = [f'kind = "{kinds[kind]}"']
    lines += [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in task.items()]
    if task and (columns := sources[0].guess.columns):
        lines.append(f"# the columns are {', '.join(columns)}")
    if kind == "text":
        lines.append('# metric = "f1" # or matthews; spearman for scores')
    if kind != "images":
        longest = max(source.guess.longest for source in sources)
        length = next((size for size in LENGTHS if size >= longest), LENGTHS[-1])
        lines.append(f"max_length = {length} # tokens of a text at most")
    return "\n".join(lines)


def _model(kind: Kind, sources: Sequence[Source]) -> str:
    experts = max(4, 2 * len(sources))
    if kind == "images":
        channels, side, _ = sources[0].guess.shape_CHW or (3, 32, 32)
        sizes: dict[str, Any] = {"model_type": "conv_moe", "image_size": side, "in_channels": channels, "num_experts": experts}
        sizes["num_experts_per_tok"] = 1
        return _config(sizes)
    sizes = {
        "model_type": "mixtral",
        "vocab_size": VOCABULARY,
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "num_local_experts": experts,
        "num_experts_per_tok": 2,
        "max_position_embeddings": 512,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    return 'tokenizer = "tokenizer" # made of the data\n' + _config(sizes)


def _config(sizes: Mapping[str, Any]) -> str:
    note = "# a small model with random weights: it shows how things go, a checkpoint in its place learns more"
    return f"\n[model.config] {note}\n{tomli_w.dumps(sizes).strip()}"


def _warmup(clusters: Sequence[str], text: bool) -> str:
    data = [next(line for line in cluster.splitlines() if line.startswith("data = ")) for cluster in clusters]
    specs = ", ".join(line.removeprefix("data = ").split(" # ")[0] for line in data)
    return WARMUP.format(data=specs, samples=2000 if text else 200, steps=300 if text else 100)


WARMUP = """
[warmup] # random weights need a start: the whole model learns from a few shared samples; leave it out for a checkpoint
data = [{data}]
samples = {samples}
steps = {steps}
lr = 2e-3
"""

TUNING = """\
# A first scenario, written by `fedexperts init --kind {kind}`. It runs as it is:
#   fedexperts check scenario.toml   what a run would do: rounds, steps, bytes, time
#   fedexperts run scenario.toml     train; the results go to runs/
# Every key: fedexperts explain KEY, for example fedexperts explain train.lr_expert
name = "{name}"
seed = 1
protocol = "ems-fl" # or sync, ems-fl-enhanced, aligned; compare takes several: --protocol sync,ems-fl

[plan] # who can talk when: the clusters in turn; `fedexperts init --kind plan` writes one with a real satellite
kind = "round-robin"
slot_s = 300.0

[model]
# path = "models/mine" # a checkpoint of Hugging Face, in place of config; `fedexperts build` makes an MoE of dense ones
# lora = {{ rank = 8, alpha = 16.0 }} # adapters on the experts instead of all their weights
{model}

[task]
{task}
{warmup}
[train]
cycles = 4 # orbital cycles: each cluster is met once in each
local_steps = 4 # gradient steps of a local round
batch_size = 16
lr_expert = 1e-3
lr_gate = 1e-3
shared = {shared} # parts that whoever is in contact trains, beside the experts that each cluster owns
seconds_per_round = 60.0 # how fast the devices are

[evaluation] # a fifth of each cluster's training data is held out for it; test data are judged once, at the end
target = 0.8

# One cluster for each place: its devices, their data, and which test data it is judged by.
{clusters}"""

PLAN = """\
# A first contact plan, written by `fedexperts init --kind plan`. It runs as it is:
#   fedexperts plan scenario.toml --out plan   contacts, gaps and bytes; a map and all passes in plan/plan.html
# Every key: fedexperts explain satellite, fedexperts explain radio.preset, …
name = "{name}"
seed = 1

[satellite] # a circular orbit; or elements from a file: tle = "elements.txt", satellite_name = "…"
altitude_km = 600
inclination_deg = 97.6 # over the poles; 53.0 stays between 53° south and north

[plan]
kind = "orbit"
start = 2026-01-01T00:00:00Z
days = 2.0
min_elevation_deg = 10.0 # below it a satellite is not used

[radio]
preset = "s-band-handheld" # fedexperts explain radio.preset lists them with their sources

# Your places; min_elevation_deg = 25 for one behind hills.
{towns}"""
