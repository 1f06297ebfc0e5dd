"""Learning rates of the demo, on a round robin: the same grid for every run of it, controls included, on seeds no report uses.

For each run it prints, for every pair of rates, the cycles to the target on each tuning seed and the mean accuracy over
all cycles, both on validation data; the best pair has the fewest cycles, ties broken by that mean. Finished runs in --out are
not repeated.

Asserted: every pair of every run has a finished run with those rates on each seed; all of a seed start from one warmed-up
model; cycles to the target are those of the ledger's lines. Usage: python benchmarks/tune.py [--out DIR] [--toy]
"""

import argparse
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from statistics import mean

from runs import play, toy

from fedexperts.cli.demo import demo_jobs, demo_scenario, on_round_robin, warmed_up

SEEDS = (100, 101)
LR_EXPERT = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
LR_GATE = (1e-3, 3e-3, 1e-2)
NEVER = 99


def score(summaries: list[dict]) -> tuple[float, float]:
    cycles = [NEVER if row["cycles_to_target"] is None else row["cycles_to_target"] for row in summaries]
    return mean(cycles), -mean(point["accuracy"] for row in summaries for point in row["history"])


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/tune"))
    parser.add_argument("--toy", action="store_true", help="smallest size, a part of the grid; the figures mean nothing")
    args = parser.parse_args(argv)
    seeds, grid = SEEDS, list(product(LR_EXPERT, LR_GATE))
    if args.toy:
        seeds, grid = SEEDS[:1], grid[:2]
    results: dict[tuple, list[dict]] = {}
    for seed in seeds:
        scenario = on_round_robin(demo_scenario(seed))
        scenario = toy(scenario) if args.toy else scenario
        names, jobs = demo_jobs(scenario), {}
        names = dict(list(names.items())[:3]) if args.toy else names
        for name, job in names.items():
            for lr_expert, lr_gate in grid:
                rates = {"lr_expert": lr_expert, "lr_gate": lr_gate}
                jobs[f"{name}; {lr_expert:g}; {lr_gate:g}"] = job.changed(train=rates)
        folder = args.out / str(seed)
        jobs = warmed_up(scenario, jobs, folder)
        for key, summary in play(jobs, folder, here=args.toy, resume=True).items():
            name, *rates = key.split("; ")
            train = jobs[key].train
            assert list(map(float, rates)) == [train.lr_expert, train.lr_gate], f"{key}: trained with {train}"
            results.setdefault((name, *rates), []).append(summary)
    whole = {(name, f"{e:g}", f"{g:g}") for name in names for e, g in grid}
    assert set(results) == whole, f"not of the grid: {set(results) ^ whole}"
    assert all([row["seed"] for row in rows] == list(seeds) for rows in results.values()), "a pair lacks a seed"
    for name in names:
        rows = {key: value for key, value in results.items() if key[0] == name}
        best = min(rows, key=lambda key: score(rows[key]))
        for key, summaries in rows.items():
            cycles = [row["cycles_to_target"] for row in summaries]
            marker = "  <- best" if key == best else ""
            rates = f"lr_expert {key[1]:6} lr_gate {key[2]:6}"
            print(f"{name:22} {rates} cycles {cycles} mean accuracy {-score(summaries)[1]:.3f}{marker}")


if __name__ == "__main__":
    main()
