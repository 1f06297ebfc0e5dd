"""Bytes per contact and final accuracy by how uploads are coded, on the demo, against the paper's baseline scheme.

The baseline uploads every expert and the gate in bf16 in every contact (Table I). All rows of a seed start from the same
warmed-up model and have their protocol's tuned learning rates, which were chosen with exact uploads. Bytes are those of the
files that travelled, per device and contact; points are percentage points of final accuracy (on test data) against the same
protocol's bf16.

Asserted: uploads are as long as safetensors files of their parts, with 4, 2 or 1 byte for a number, a header and in int8 one
scale a row; the baseline uploads every expert and the gate in every contact; with any coding a protocol makes the same contacts
and steps on the round robin; all runs of a seed start from one model.
Usage: python benchmarks/uplink.py [--plan round-robin|orbit] [--seeds 1 2 3 4 5] [--out DIR] [--toy]
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from runs import play, toy

from fedexperts import Scenario
from fedexperts.cli.demo import demo_jobs, demo_scenario, on_round_robin, warmed_up
from fedexperts.ledger import read
from fedexperts.method.methods import prepare
from fedexperts.moe.parts import GATE, is_expert
from fedexperts.runs.parallel import folder
from fedexperts.train.codec import encode

PROTOCOLS = ("sync", "ems-fl", "ems-fl-enhanced")
NUMBER_B = {"exact": 4, "bf16": 2, "int8": 1}
HEADER_B = 250  # at most, of a tensor
BASELINE = "sync bf16"


def files_B(job: Scenario) -> dict[str, int]:
    """Bytes of a file of each part, encoded here."""
    found = {}
    for part, tensors in prepare(job).view.parts.items():
        found[part] = len(encode({name: tensor.detach() for name, tensor in tensors.items()}, job.model.uplink))
        numbers_B = NUMBER_B[job.model.uplink] * sum(tensor.numel() for tensor in tensors.values())
        most_B = 8 + sum(2 * HEADER_B + 4 * max(tensor.shape) for tensor in tensors.values())
        assert numbers_B < found[part] < numbers_B + most_B, f"{part}: {numbers_B} B of numbers in a file of {found[part]} B"
    return found


def bytes_per_contact(ledger: Path, devices: int, part_B: dict[str, int], whole: bool) -> tuple[float, int]:
    """Per device, and how many contacts; ``whole``: every contact uploads all that is trained."""
    lines = list(read(ledger))
    uploads, contacts = ([line for line in lines if line["event"] == event] for event in ("collect", "contact"))
    for line in uploads:
        size_B = devices * sum(part_B[part] for part in line["parts"])
        assert line["uplink_B"] == size_B, f"{ledger}: {line}, but the files of its parts have {size_B} B"
    if whole:
        trained = {part for part in part_B if is_expert(part) or part == GATE}
        order = [line["event"] for line in lines if line["event"] in ("contact", "collect")]
        assert order == ["contact", "collect"] * len(contacts), f"{ledger}: not one upload in each contact: {order}"
        assert all(set(line["parts"]) == trained for line in uploads), f"{ledger}: an upload is not of {sorted(trained)}"
    return sum(line["uplink_B"] for line in uploads) / len(contacts) / devices, len(contacts)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--out", type=Path, default=Path("runs/bench-uplink"))
    parser.add_argument("--plan", choices=["round-robin", "orbit"], default="round-robin")
    parser.add_argument("--toy", action="store_true", help="smallest size, one seed; the figures mean nothing")
    arguments = parser.parse_args(argv)
    arguments.seeds = arguments.seeds[:1] if arguments.toy else arguments.seeds
    size_B: dict[str, list[float]] = {}
    accuracy: dict[str, list[float]] = {}
    for seed in arguments.seeds:
        scenario = demo_scenario(seed) if arguments.plan == "orbit" else on_round_robin(demo_scenario(seed))
        scenario = toy(scenario) if arguments.toy else scenario
        out = arguments.out / str(seed)
        tuned = demo_jobs(scenario)
        jobs = {f"{p} {c}": tuned[p].changed(model={"uplink": c}) for p in PROTOCOLS for c in NUMBER_B}
        jobs = warmed_up(scenario, jobs, out)
        part_B = {codec: files_B(jobs[f"{PROTOCOLS[0]} {codec}"]) for codec in NUMBER_B}
        made: dict[str, set[tuple[int, int]]] = {}
        for name, summary in play(jobs, out, here=arguments.toy).items():
            protocol, codec = name.rsplit(" ", 1)
            ledger, whole = out / folder(name) / "ledger.jsonl", protocol == "sync"
            mean_B, contacts = bytes_per_contact(ledger, scenario.cluster[0].devices, part_B[codec], whole)
            size_B.setdefault(name, []).append(mean_B)
            accuracy.setdefault(name, []).append(summary["final_accuracy"])
            made.setdefault(protocol, set()).add((contacts, summary["steps"]))
        if arguments.plan == "round-robin":  # on an orbit larger files leave less time for training
            assert all(len(values) == 1 for values in made.values()), f"contacts and steps by protocol: {made}"
    print(f"plan {arguments.plan}; seeds {arguments.seeds}; medians (min-max)")
    print(f"{'':24}{'kB a contact':>14}{'baseline /':>12}{'final accuracy':>24}{'points to bf16':>24}")
    for name in size_B:
        ratio = median(size_B[BASELINE]) / median(size_B[name])
        same = accuracy[f"{name.rsplit(' ', 1)[0]} bf16"]
        points = [100 * (a - b) for a, b in zip(accuracy[name], same, strict=True)]
        final = f"{median(accuracy[name]):.1%} ({min(accuracy[name]):.1%}-{max(accuracy[name]):.1%})"
        lost = f"{median(points):+.2f} ({min(points):+.2f}-{max(points):+.2f})"
        print(f"{name:24}{median(size_B[name]) / 1e3:14.1f}{ratio:12.2f}{final:>24}{lost:>24}")


if __name__ == "__main__":
    main()
