"""Learning rates of the demo, on a round robin: the same grid for every run of it, controls included, on seeds no report uses.

For each run it prints, for every pair of rates, the cycles to the target on each tuning seed and the mean accuracy over
all cycles, both on validation data; the best pair has the fewest cycles, ties broken by that mean. Finished runs in --out are
not repeated. Usage: python benchmarks/tune.py [--out DIR] [--toy]
"""

import argparse
from itertools import product
from pathlib import Path
from statistics import mean

from fedexperts.cli.demo import demo_jobs, demo_scenario, on_round_robin, warmed_up
from fedexperts.drive.many import run_many

SEEDS = (100, 101)
LR_EXPERT = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
LR_GATE = (1e-3, 3e-3, 1e-2)
NEVER = 99


def score(summaries: list[dict]) -> tuple[float, float]:
    cycles = [row["cycles_to_target"] or NEVER for row in summaries]
    return mean(cycles), -mean(point["accuracy"] for row in summaries for point in row["history"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/tune"))
    out = parser.parse_args().out
    results: dict[tuple, list[dict]] = {}
    for seed in SEEDS:
        scenario = on_round_robin(demo_scenario(seed))
        jobs = {}
        for name, job in demo_jobs(scenario).items():
            for lr_expert, lr_gate in product(LR_EXPERT, LR_GATE):
                rates = {"lr_expert": lr_expert, "lr_gate": lr_gate}
                jobs[f"{name}; {lr_expert:g}; {lr_gate:g}"] = job.changed(train=rates)
        folder = out / str(seed)
        for key, summary in run_many(warmed_up(scenario, jobs, folder), folder, resume=True).items():
            results.setdefault(tuple(key.split("; ")), []).append(summary)
    for name in dict.fromkeys(key[0] for key in results):
        rows = {key: value for key, value in results.items() if key[0] == name}
        best = min(rows, key=lambda key: score(rows[key]))
        for key, summaries in rows.items():
            cycles = [row["cycles_to_target"] for row in summaries]
            marker = "  <- best" if key == best else ""
            rates = f"lr_expert {key[1]:6} lr_gate {key[2]:6}"
            print(f"{name:22} {rates} cycles {cycles} mean accuracy {-score(summaries)[1]:.3f}{marker}")


if __name__ == "__main__":
    main()
