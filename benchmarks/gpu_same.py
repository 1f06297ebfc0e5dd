"""Part of gpu.py: the same work on the CPU and on the GPU, side by side.

Compared are a small Mixtral's logits, a few steps of one device of each kind of training, experts streamed from a file, and the
whole small runs of tests/fingerprints.py: their ledgers but for what the weights decide (digests, losses, scores), and how far
the final weights are apart. Runs whose clients or experts are chosen by measured losses may choose otherwise on rounding.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from gpu_table import Row, failed, tried
from safetensors.torch import load_file
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))  # fingerprints, and what it imports

import fingerprints
import pictures
from fedexperts import Scenario, run
from fedexperts.data.classify import Classification
from fedexperts.method.elsewhere import partial_view
from fedexperts.moe.auto import new_model
from fedexperts.moe.lora import LoRA
from fedexperts.moe.parts import Piece
from fedexperts.moe.view import View
from fedexperts.train.device import Device, LocalTraining
from fedexperts.train.task import Task

WITHIN = 1e-3
"""Of float32 results on two devices: root mean square of the difference, over that of what is compared."""
WEIGHED = (
    "digest",
    "loss",
    "lost",
    "accuracy",
    "metric",
    "f1",
    "auc",
    "relevance",
    "rewards",
    "personal",
    "by_k",
    "fitness",
    "norm",
    "error",
)
"""Parts of names of a ledger's fields that weights decide on."""
STREAMED = "logits, 2 of 8 experts there, 6 streamed"
FIRST = ("ems-fl", "ems-fl-enhanced", "sync", "ems-fl, adapters, refactor", "networked, fedsc, rolling")
"""Runs that come first, if time is short."""


def small(toy: bool) -> dict[str, Any]:
    wide = 32 if toy else 256
    return {
        "model_type": "mixtral",
        "vocab_size": 1000,
        "hidden_size": wide,
        "intermediate_size": 2 * wide,
        "num_hidden_layers": 2 if toy else 4,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "num_labels": 10,
        "pad_token_id": 0,
    }


def samples(n: int, length: int) -> dict[str, Tensor]:
    """Padded sequences of several lengths."""
    draw = torch.Generator().manual_seed(1)
    ids = torch.randint(1, 1000, (n, length), generator=draw)
    lengths = torch.randint(length // 2, length + 1, (n, 1), generator=draw)
    mask = (torch.arange(length) < lengths).long()
    return {"input_ids": ids * mask, "attention_mask": mask, "labels": torch.randint(0, 10, (n,), generator=draw)}


def apart(found: Tensor, wanted: Tensor) -> tuple[float, float]:
    """Largest difference, and the root mean square of all, over that of what was wanted."""
    gap = (found.double().cpu() - wanted.double().cpu()).flatten()
    return float(gap.abs().max()), float(gap.norm() / wanted.double().norm().clamp_min(1e-30))


def near(what: str, found: Tensor, wanted: Tensor, unit: str) -> Row:
    most, share = apart(found, wanted)
    assert share <= WITHIN, f"{what}: differs by {share:.1e} of itself, more than {WITHIN:g}"
    return Row(what, f"max |Δ| {most:.1e}", f"rms {share:.1e} of {unit}", data={"max": most, "rms": share})


def rows(device: str, toy: bool, until: float) -> Iterator[Row]:
    """All comparisons; whole runs for as long as there is time."""
    yield from on_one_model(device, toy)
    with tempfile.TemporaryDirectory() as name:
        yield tried(STREAMED, lambda: streamed(device, toy, Path(name)))
    with tempfile.TemporaryDirectory() as name:
        yield from whole_runs(device, toy, until, Path(name))


def on_one_model(device: str, toy: bool) -> Iterator[Row]:
    config, batch = small(toy), samples(8, 16 if toy else 64)

    def view(where: str, dtype: torch.dtype = torch.float32) -> View:
        return View(new_model(config, 0).to(where, dtype))  # rounded, as drawing in bf16 gives other numbers

    def logits(where: str, dtype: torch.dtype = torch.float32) -> Tensor:
        with torch.no_grad():
            of = view(where, dtype)
            of.model.eval()
            return of({key: value.to(where) for key, value in batch.items()}).float().cpu()

    def in_bf16() -> Row:
        here, there = (apart(logits(where, torch.bfloat16), exact)[1] for where in ("cpu", device))
        assert there <= 3 * here + WITHIN, f"{there:.1e} from float32 on {device}, {here:.1e} on the CPU"
        return Row("small Mixtral, logits, bf16", f"rms {there:.1e} off float32", f"CPU in bf16: {here:.1e}")

    exact, what = logits("cpu"), "small Mixtral, logits, float32"
    yield tried(what, lambda: near(what, logits(device), exact, "the logits"))
    yield tried("small Mixtral, logits, bf16", in_bf16)

    def trained(where: str, lora: LoRA | None, optimizer: Any, parts: frozenset[str], steps: int) -> dict[str, Tensor]:
        of = view(where)
        if lora:
            of.adapt(lora, seed=0)
        pieces = {part: Piece(part, 0, of.export(part)) for part in of.parts}
        local = LocalTraining(local_steps=steps, batch_size=4, optimizer=optimizer, lr_expert=1e-2, lr_gate=1e-2)
        one = Device("one/0", of, samples(32, 16 if toy else 64), pieces, local, 0, Classification(0, 10))
        route = frozenset(part for part in parts if part.startswith("expert"))
        one.train(Task(parts, route=route if lora else None), rounds=1)
        return {
            f"{part}/{name}": tensor - pieces[part].tensors[name]
            for part in one.trained
            for name, tensor in one.trained[part].items()
        }

    everything = frozenset({*(f"expert:{m}" for m in range(8)), "gate", "backbone", "head"})

    def steps_of(what: str, *recipe: Any) -> Row:
        wanted, found = (trained(where, *recipe) for where in ("cpu", device))
        assert wanted.keys() == found.keys()
        flat = [torch.cat([change[key].flatten() for key in wanted]) for change in (found, wanted)]
        return near(what, *flat, unit="the change")

    for recipe in (
        ("1 step, all weights, SGD", None, "sgd", everything, 1),
        ("5 steps, all weights, SGD", None, "sgd", everything, 5),
        ("5 steps, adapters on 2 of 8, AdamW", LoRA(4, 8.0), "adamw", frozenset({"expert:2", "expert:5"}), 5),
    ):
        yield tried(recipe[0], partial(steps_of, *recipe))


def streamed(device: str, toy: bool, folder: Path) -> Row:
    """A model of which two experts are on the device and six are read when tokens meet them, against the whole one."""
    new_model(small(toy), 0).save_pretrained(folder / "model")
    cluster = [{"name": "a", "devices": 1, "data": "digits:plain"}]
    model = {"path": str(folder / "model"), "accelerator": device}
    tables = {"model": model, "train": {"cycles": 1}, "cluster": cluster}
    scenario = Scenario.parse({"name": "streamed", "seed": 0, **tables}, folder)
    part, whole = partial_view(scenario, ["expert:2", "expert:5"], "stream"), View(new_model(small(toy), 0))
    assert part.device.type == device, f"load = stream: the model is on {part.device}"
    batch = samples(8, 16 if toy else 64)
    for of in (part, whole):
        of.model.eval()
    with torch.no_grad():
        found, wanted = (of({key: value.to(of.device) for key, value in batch.items()}) for of in (part, whole))
    return near(STREAMED, found, wanted, "the logits")


def whole_runs(device: str, toy: bool, until: float, base: Path) -> Iterator[Row]:
    pictures.npz(base / "train.npz", 120)
    pictures.npz(base / "test.npz", 60, seed=1)
    jobs = {name: Scenario.parse(document, base) for name, document in fingerprints.scenarios()}
    others = [name for name in jobs if name not in FIRST]
    mixed = [name for k in range(7) for name in others[k::7]]  # of every kind some, if time is short
    jobs = {name: jobs[name] for name in [*FIRST, *mixed]}
    jobs = {"examples/digits-small.toml": Scenario.load(fingerprints.EXAMPLES / "digits-small.toml"), **jobs}
    if toy:
        jobs = {name: jobs[name] for name in ("ems-fl", "networked, fedsc, rolling")}
    there = {name: job.changed(model={"accelerator": device}) for name, job in jobs.items()}
    yield tried("run: repeated on this device", lambda: repeats(there["ems-fl"], base))
    done, other, refused = [], [], []
    worst = (0.0, "")
    for name, job in jobs.items():
        if done and time.monotonic() > until:
            break
        try:
            a, b = run(job, base / "cpu").directory, run(there[name], base / "gpu").directory
            most, share = weights_apart(a, b)
            differs = ledgers_differ(a, b)
        except Exception as error:  # a run that breaks is a finding, and the others are wanted
            refused.append(failed(name, error))
            done.append(name)
            continue
        finally:
            for folder in ("cpu", "gpu"):
                shutil.rmtree(base / folder, ignore_errors=True)
        done.append(name)
        if differs:
            other.append(f"{name} ({differs})")
        worst = max(worst, (share, name)) if not differs else worst
        if name in (*FIRST[:4], "examples/digits-small.toml"):
            yield Row(
                f"run: {name}", f"max |Δ weight| {most:.1e}", f"rms {share:.1e}", "ledger differs" if differs else "same ledger"
            )
    yield Row(
        f"{len(done)} of {len(jobs)} whole small runs",
        f"{len(done) - len(other) - len(refused)} with the same ledger",
        f"weights rms {worst[0]:.1e} at most",
        f"worst: {worst[1]}" + "".join(f"; other choices: {name}" for name in other),
        {"other": other},
    )
    yield from refused


def repeats(job: Scenario, base: Path) -> Row:
    """Whether a run, and one that is interrupted and resumed, ends with the same bytes on this device."""
    ways: dict[str, Callable[[], Path]] = {
        "once": lambda: run(job, base / "once").directory,
        "again": lambda: run(job, base / "again").directory,
        "resumed": lambda: fingerprints.resumed(job, base / "resumed"),
    }
    prints = {name: fingerprints.fingerprint(way()) for name, way in ways.items()}
    said = {name: "same bytes" if prints[name] == prints["once"] else "OTHER bytes" for name in ("again", "resumed")}
    return Row("run: repeated on this device", said["again"], f"resumed: {said['resumed']}", data=prints)


def weights_apart(a: Path, b: Path) -> tuple[float, float]:
    """Largest difference of the final weights, and the root mean square over that of the weights."""
    files = [path for path in sorted(a.rglob("*.safetensors")) if "checkpoints" not in path.parts]
    wanted, found = (
        [tensor.flatten().double() for p in files for _, tensor in sorted(load_file(at(p)).items())]
        for at in (lambda p: p, lambda p: b / p.relative_to(a))
    )
    return apart(torch.cat(found), torch.cat(wanted))


def ledgers_differ(a: Path, b: Path) -> str:
    """The first difference of two ledgers in what weights do not decide, if there is one."""
    lines = [[json.loads(line) for line in (at / "ledger.jsonl").read_text().splitlines()] for at in (a, b)]
    for x, y in zip(*lines, strict=False):
        for key in x:
            if (
                not any(word in key for word in WEIGHED)
                and key not in ("validation", "even_test", "routing")
                and x[key] != y.get(key)
            ):
                return f"{x['event']} at {x.get('t_s', 0):g} s: {key}"
    return "" if len(lines[0]) == len(lines[1]) else "its length"
