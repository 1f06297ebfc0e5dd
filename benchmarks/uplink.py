"""Bytes per contact and final accuracy by how uploads are coded, on the demo, against the paper's baseline scheme.

The baseline uploads every expert and the gate in bf16 in every contact (Table I). All rows of a seed start from the same
warmed-up model and have their protocol's tuned learning rates, which were chosen with exact uploads. Bytes are those of the
files that travelled, per device and contact; points are percentage points of final accuracy against the same protocol's
bf16. Usage: python benchmarks/uplink.py [--plan round-robin|orbit] [--seeds 1 2 3 4 5] [--out DIR]
"""

import argparse
from pathlib import Path
from statistics import median

from fedexperts.cli.demo import demo_jobs, demo_scenario, on_round_robin, warmed_up
from fedexperts.drive.many import folder, run_many
from fedexperts.ledger import read

PROTOCOLS = ("sync", "ems-fl", "ems-fl-enhanced")
CODECS = ("exact", "bf16", "int8")
BASELINE = "sync bf16"


def bytes_per_contact(ledger: Path, devices: int) -> float:
    lines = list(read(ledger))
    contacts = sum(x["event"] == "contact" for x in lines)
    return sum(x["uplink_B"] for x in lines if x["event"] == "collect") / contacts / devices


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--out", type=Path, default=Path("runs/bench-uplink"))
    parser.add_argument("--plan", choices=["round-robin", "orbit"], default="round-robin")
    arguments = parser.parse_args()
    size_B: dict[str, list[float]] = {}
    accuracy: dict[str, list[float]] = {}
    for seed in arguments.seeds:
        scenario = demo_scenario(seed) if arguments.plan == "orbit" else on_round_robin(demo_scenario(seed))
        out = arguments.out / str(seed)
        tuned = demo_jobs(scenario)
        jobs = {f"{p} {c}": tuned[p].changed(model={"uplink": c}) for p in PROTOCOLS for c in CODECS}
        for name, summary in run_many(warmed_up(scenario, jobs, out), out).items():
            devices = scenario.cluster[0].devices
            size_B.setdefault(name, []).append(bytes_per_contact(out / folder(name) / "ledger.jsonl", devices))
            accuracy.setdefault(name, []).append(summary["final_accuracy"])
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
