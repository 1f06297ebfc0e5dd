"""What an extractor has learnt, by how it was trained: a logistic regression on its latents, and how many directions it uses.

Runs of examples/nmoe-cifar10.toml, stage 1 alone, with the same images for all: one client that has all data, and ten. The
floor is an extractor that was never trained, the peer cross-entropy. Directions are (Tr R)²/‖R‖² of the representations that
FedSC correlates, clipped, for images as they are: 1 is a representation that has collapsed.
Usage: python benchmarks/extractor.py [--rounds N] [--seeds N] [--out DIR]
"""

import argparse
import os
import statistics
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from transformers import AutoModelForImageClassification

from fedexperts import Scenario, run
from fedexperts.drive.prepare import prepare
from fedexperts.moe.resnet import NetworkedMoEForImageClassification, all_latents
from fedexperts.moe.subset import load_full
from fedexperts.train.fedsc import clipped, correlation

ROOT = Path(__file__).resolve().parents[1]
EXAMPLE = ROOT / "examples" / "nmoe-cifar10.toml"
DATA = Path(os.environ.setdefault("FEDEXPERTS_DATA", str(ROOT.parent / "shared" / "data")))
FITTED = 5000
"""Training images of the regression."""
VARIANTS = {
    "one client, cross-entropy": {"devices": 1, "extractor": "fedce", "projection_size": 0},
    "one client, cross-entropy, stem of stride 1": {"devices": 1, "extractor": "fedce", "projection_size": 0, "stem_stride": 1},
    "one client, contrast of latents": {"devices": 1, "extractor": "fedsc", "projection_size": 0},
    "one client, contrast of projections": {"devices": 1, "extractor": "fedsc"},
    "ten clients, FedCE": {"devices": 10, "extractor": "fedce", "projection_size": 0},
    "ten clients, FedSC, (4) to the letter": {"devices": 10, "extractor": "fedsc", "schedule": "plain"},
    "ten clients, FedSC, the release's schedule": {"devices": 10, "extractor": "fedsc"},
}


def scenario(rounds: int, seed: int, devices: int, extractor: str, schedule: str = "official", **config: int) -> Scenario:
    """Stage 1 with as many images in all for any number of clients, on IID data."""
    base = Scenario.load(EXAMPLE)
    document = base.model_dump(exclude_none=True)
    cluster = {k: v for k, v in document["cluster"][0].items() if k != "tau"} | {"devices": devices, "partition": "iid"}
    steps = document["train"]["local_steps"] * (10 // devices)
    stages = {"extractor": extractor, "schedule": schedule, "extractor_cycles": rounds, "expert_cycles": 0, "gate_cycles": 0}
    document |= {"seed": seed, "cluster": [cluster]}
    document["networked"] |= {**stages, "gate": "random"}
    document["train"] |= {"cycles": rounds, "local_steps": steps}
    document["evaluation"] |= {"every_cycles": rounds}
    document["model"]["config"] |= {"num_experts": devices, **config}
    return Scenario.parse(document, EXAMPLE.parent)


def judged(model: NetworkedMoEForImageClassification, given: Scenario) -> tuple[float, float]:
    """Accuracy of a logistic regression on latents, and the directions of representations."""
    prepared = prepare(given)
    trained = [device.data for group in prepared.devices.values() for device in group]
    x, y = (torch.cat([data[key] for data in trained]) for key in ("pixel_values", "labels"))
    chosen = np.random.default_rng(0).permutation(len(y))[:FITTED]
    tests = list(prepared.tests.own.values())
    z, z_test = (all_latents(model, images).numpy() for images in (x[chosen], torch.cat([t["pixel_values"] for t in tests])))
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)).fit(z, y[chosen].numpy())
    with torch.no_grad():
        r_DD = correlation(clipped(model.representations(x[chosen[:1000]]), given.networked.norm))
    directions = float(r_DD.trace() ** 2 / (r_DD**2).sum())
    return float(probe.score(z_test, torch.cat([t["labels"] for t in tests]).numpy())), directions


def main(rounds: int, seeds: int, out: Path) -> None:
    """One line for each variant: medians over seeds, with the spread of the accuracy."""
    print(f"{rounds} rounds of 5,000 images, seeds {1}…{seeds}, regression on {FITTED:,} latents")
    print(f"{'':46}{'regression, %':>20}{'directions':>12}{'CPU s':>8}")
    floor = []
    for seed in range(1, seeds + 1):
        given = scenario(1, seed, 1, "fedce", projection_size=0)
        model = prepare(given).view.model
        assert isinstance(model, NetworkedMoEForImageClassification)
        floor.append((*judged(model.eval(), given), 0.0))
    show("never trained (floor)", floor)
    for name, options in VARIANTS.items():
        rows = []
        for seed in range(1, seeds + 1):
            given = scenario(rounds, seed, **options)  # type: ignore[arg-type]  # a table of several types
            folder = out / f"{name}-{seed}".replace(" ", "-").replace(",", "")
            start_s = time.process_time()
            run(given, folder)
            spent_s = time.process_time() - start_s
            model = load_full(folder / "model", AutoModelForImageClassification).eval()
            rows.append((*judged(model, given), spent_s))
        show(name, rows)


def show(name: str, rows: list[tuple[float, float, float]]) -> None:
    """Medians, and both ends of the accuracy."""
    accuracy, directions, spent_s = zip(*rows, strict=True)
    spread = f"{100 * statistics.median(accuracy):.1f} ({100 * min(accuracy):.1f}–{100 * max(accuracy):.1f})"
    print(f"{name:46}{spread:>20}{statistics.median(directions):12.1f}{statistics.median(spent_s):8.0f}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    if not (DATA / "cifar10").is_dir():
        sys.exit(f"skipped: no folder cifar10 in {DATA}; set FEDEXPERTS_DATA to the folder of data sets")
    torch.set_num_threads(1)
    with TemporaryDirectory() as temporary:
        main(given.rounds, given.seeds, given.out or Path(temporary))
