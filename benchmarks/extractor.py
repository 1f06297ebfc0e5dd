"""What an extractor has learnt, by how it was trained: a logistic regression on its latents, and how many directions it uses.

Runs of examples/nmoe-cifar10.toml, stage 1 alone, with the same images for all: one client that has all data, and ten. The
floor is an extractor that was never trained, the peer cross-entropy. Directions are (Tr R)²/‖R‖² of the representations that
FedSC correlates, clipped, for images as they are: 1 is a representation that has collapsed. CPU seconds are those of training,
between the evaluation before it and the last meter reading.

Asserted: these are as many optimiser steps as show 5,000 images a round, all of stage 1, and nothing is judged or saved within;
one client and ten have the same images; the extractor moved and the gate did not; the floor is the model that runs start from.
Data: CIFAR-10 in $FEDEXPERTS_DATA; with --toy a few pictures are made.
Usage: python benchmarks/extractor.py [--rounds N] [--seeds N] [--out DIR] [--toy]
"""

import argparse
import hashlib
import os
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from runs import Section
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from transformers import AutoModelForImageClassification

from fedexperts import Scenario, run
from fedexperts.method.methods import prepare
from fedexperts.moe.parts import BACKBONE, GATE
from fedexperts.moe.resnet import NetworkedMoEForImageClassification, all_latents
from fedexperts.moe.subset import load_full
from fedexperts.train.fedsc import clipped, correlation

ROOT = Path(__file__).resolve().parents[1]
EXAMPLE = ROOT / "examples" / "nmoe-cifar10.toml"
DATA = Path(os.environ.get("FEDEXPERTS_DATA", ROOT.parent / "shared" / "data"))
CLIENTS, IMAGES = 10, 5000
"""Clients at most, and images that a round shows in all."""
FITTED = 5000
"""Training images of the regression, at most."""
TOY_MODEL = {"image_size": 8, "expert_hidden": 8, "projection_size": 8}
VARIANTS = {
    "one client, cross-entropy": {"devices": 1, "extractor": "fedce", "projection_size": 0},
    "one client, cross-entropy, stem of stride 1": {"devices": 1, "extractor": "fedce", "projection_size": 0, "stem_stride": 1},
    "one client, contrast of latents": {"devices": 1, "extractor": "fedsc", "projection_size": 0},
    "one client, contrast of projections": {"devices": 1, "extractor": "fedsc"},
    "ten clients, FedCE": {"devices": 10, "extractor": "fedce", "projection_size": 0},
    "ten clients, FedSC, (4) to the letter": {"devices": 10, "extractor": "fedsc", "schedule": "plain"},
    "ten clients, FedSC, the release's schedule": {"devices": 10, "extractor": "fedsc"},
}


def scenario(
    rounds: int, seed: int, data: Path, toy: bool, devices: int, extractor: str, schedule: str = "falling", **config: int
) -> Scenario:
    """Stage 1 with as many images in all for any number of clients, on IID data."""
    base = Scenario.load(EXAMPLE)
    document = base.model_dump(exclude_none=True)
    cluster = {k: v for k, v in document["cluster"][0].items() if k != "tau"} | {"devices": devices, "partition": "iid"}
    cluster |= {"data": str(data / "train-*-of-5.parquet"), "test": str(data / "test.parquet")}
    steps = document["train"]["local_steps"] * (CLIENTS // devices)
    stages = {"extractor": extractor, "schedule": schedule, "extractor_cycles": rounds, "expert_cycles": 0, "gate_cycles": 0}
    document |= {"seed": seed, "cluster": [cluster]}
    document["networked"] |= {**stages, "gate": "random"}
    document["train"] |= {"cycles": rounds, "local_steps": steps}
    document["evaluation"] |= {"every_cycles": rounds + 1}
    document["model"]["config"] |= {"num_experts": devices, **config}
    if toy:
        document["model"]["config"] |= TOY_MODEL if "projection_size" not in config else {**TOY_MODEL, **config}
        document["train"] |= {"local_steps": CLIENTS // devices, "batch_size": 4}
        cluster |= {"samples": 100, "test_samples": 40}
    return Scenario.parse(document, EXAMPLE.parent)


def pictures_in(folder: Path) -> Path:
    """A few pictures in files named like CIFAR-10's."""
    sys.path.insert(0, str(ROOT / "tests"))
    import pictures  # the tests' own

    for name, count, seed in (("train-0-of-5", 100, 0), ("test", 40, 1)):
        x, y = pictures.images(count, seed)
        pictures.parquet(folder / f"{name}.parquet", [pictures.encoded(image) for image in x], y.tolist())
    return folder


def trained(given: Scenario, folder: Path, images: int) -> tuple[NetworkedMoEForImageClassification, float]:
    """Its model, and the CPU seconds of its training."""
    with Section("energy", folder) as section:
        run(given, folder, listener=section)
    section.check(given.train.cycles * images // int(given.train.batch_size))
    for line in section.lines:
        extractor = line["event"] != "train" or (BACKBONE in line["parts"] and GATE not in line["parts"])
        assert extractor, f"{folder}: {line} is not stage 1"
    stages = {line["stage"] for line in section.lines if line["event"] == "stage"}
    assert stages <= {given.networked.extractor, "rest"}, f"{folder}: stages {stages}"
    return load_full(folder / "model", AutoModelForImageClassification).eval(), section.took.cpu_s


def judged(model: NetworkedMoEForImageClassification, given: Scenario, moved: bool) -> tuple[float, float, str]:
    """Accuracy of a logistic regression on latents, the directions of representations, and what images there were."""
    prepared = prepare(given)
    held = dict(model.named_parameters())
    for part, changed in ((BACKBONE, moved), (GATE, False)):
        start = {name: tensor for name, tensor in prepared.view.parts[part].items() if not name.startswith("projection")}
        same = [name for name, tensor in start.items() if torch.equal(held[name], tensor)]
        assert len(same) == (0 if changed else len(start)), f"{part}: {len(same)} of {len(start)} tensors are as they began"
    own = [device.data for host in prepared.hosts.values() for device in host.group.values()]
    x, y = (torch.cat([data[key] for data in own]) for key in ("pixel_values", "labels"))
    images = hashlib.sha256(b"".join(sorted(image.numpy().tobytes() for image in x))).hexdigest()
    chosen = np.random.default_rng(0).permutation(len(y))[:FITTED]
    tests = list(prepared.tests.own.values())
    z, z_test = (all_latents(model, images).numpy() for images in (x[chosen], torch.cat([t["pixel_values"] for t in tests])))
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)).fit(z, y[chosen].numpy())
    with torch.no_grad():
        r_DD = correlation(clipped(model.representations(x[chosen[:1000]]), given.networked.norm))
    directions = float(r_DD.trace() ** 2 / (r_DD**2).sum())
    return float(probe.score(z_test, torch.cat([t["labels"] for t in tests]).numpy())), directions, images


def table(args: argparse.Namespace, data: Path, out: Path) -> None:
    """One line for each variant: medians over seeds, with the spread of the accuracy."""
    images, seeds = 4 * CLIENTS if args.toy else IMAGES, range(1, args.seeds + 1)
    print(f"{args.rounds} rounds of {images:,} images, seeds 1…{args.seeds}, regression on {FITTED:,} latents at most")
    print(f"{'':46}{'regression, %':>20}{'directions':>12}{'CPU s':>8}")
    seen: dict[int, set[str]] = {seed: set() for seed in seeds}

    def row(name: str, options: dict[str, Any], rounds: int) -> None:
        rows = []
        for seed in seeds:
            given = scenario(max(1, rounds), seed, data, args.toy, **options)
            folder = out / f"{name}-{seed}".replace(" ", "-").replace(",", "")
            model, spent_s = trained(given, folder, images) if rounds else (prepare(given).view.model.eval(), 0.0)
            accuracy, directions, pictures = judged(model, given, moved=bool(rounds))
            seen[seed].add(pictures)
            rows.append((accuracy, directions, spent_s))
        show(name, rows)

    row("never trained (floor)", {"devices": 1, "extractor": "fedce", "projection_size": 0}, 0)
    for name, options in VARIANTS.items():
        row(name, options, args.rounds)
    assert all(len(sets) == 1 for sets in seen.values()), "clients of several variants have other images"


def show(name: str, rows: list[tuple[float, float, float]]) -> None:
    """Medians, and both ends of the accuracy."""
    accuracy, directions, spent_s = zip(*rows, strict=True)
    spread = f"{100 * statistics.median(accuracy):.1f} ({100 * min(accuracy):.1f}–{100 * max(accuracy):.1f})"
    print(f"{name:46}{spread:>20}{statistics.median(directions):12.1f}{statistics.median(spent_s):8.0f}", flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--toy", action="store_true", help="smallest size, on pictures made here; the figures mean nothing")
    args = parser.parse_args(argv)
    if not args.toy and not (DATA / "cifar10").is_dir():
        sys.exit(f"skipped: no folder cifar10 in {DATA}; set FEDEXPERTS_DATA to the folder of data sets")
    torch.set_num_threads(1)
    with TemporaryDirectory() as temporary:
        data = DATA / "cifar10"
        if args.toy:
            args.rounds, args.seeds, data = 1, 1, pictures_in(Path(temporary))
        table(args, data, args.out or Path(temporary))


if __name__ == "__main__":
    main()
