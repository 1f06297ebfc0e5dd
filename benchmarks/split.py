"""Who owns which expert in EMS-FL: Algorithm 1 against the policies ``balanced`` and ``optimal``, on the demo over five seeds.

Three cases on the round robin: the demo; six experts, which four clusters cannot share evenly; and a gate that is not fitted to
the domains, so that all experts matter to all clusters alike. One warm-up for each case and seed, from which the three policies
start. The rates are those of EMS-FL with Algorithm 1, tuned on other seeds. A run that never reaches the target counts with its
whole length, marked >. Finished runs in --out are not repeated.
Usage: python benchmarks/split.py [--seeds 1 2 3 4 5] [--cases demo uneven unfitted] [--out DIR]
"""

import argparse
from pathlib import Path
from statistics import median

from fedexperts import Scenario, run
from fedexperts.cli.demo import TUNED, demo_scenario, on_round_robin, warmed_up
from fedexperts.ledger import summary

POLICIES = ("algorithm-1", "balanced", "optimal")


def case(name: str, seed: int) -> Scenario:
    scenario = on_round_robin(demo_scenario(seed)).changed(train=TUNED["ems-fl"])
    if name == "uneven":
        return scenario.changed(model={"config": {**(scenario.model.config or {}), "num_local_experts": 6}})
    return scenario.changed(warmup={"gate_fit": 0.0}) if name == "unfitted" else scenario


def summaries(scenario: Scenario, out: Path) -> dict[str, dict]:
    """One run of each policy, one after the other, from one warm-up."""
    jobs = {policy: scenario.changed(assignment={"policy": policy}) for policy in POLICIES}
    if not all((out / policy / "model").is_dir() for policy in jobs):
        jobs = warmed_up(scenario, jobs, out)
    for policy, job in jobs.items():
        if not (out / policy / "model").is_dir():
            run(job, out / policy, resume=(out / policy / "scenario.toml").is_file())
    return {policy: summary(out / policy / "ledger.jsonl") for policy in jobs}


def spread(values: list[float], digits: int, beyond: int = 0) -> str:
    """Median and range, and how many runs never got there."""
    text = f"{median(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"
    return text + (f" >{beyond}" if beyond else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--cases", nargs="+", default=["demo", "uneven", "unfitted"], choices=["demo", "uneven", "unfitted"])
    parser.add_argument("--out", type=Path, default=Path("runs/bench-split"))
    args = parser.parse_args()
    print(f"medians of seeds {args.seeds} (min-max); >n: n runs never reached the target")
    print(f"{'case':9} {'policy':11} {'gamma':>19} {'experts':>9} {'to target':>16} {'final %':>19} {'MB up':>19}")
    for name in args.cases:
        rows: dict[str, list[dict]] = {policy: [] for policy in POLICIES}
        for seed in args.seeds:
            for policy, row in summaries(case(name, seed), args.out / name / str(seed)).items():
                rows[policy].append(row)
        for policy, group in rows.items():
            late = sum(row["cycles_to_target"] is None for row in group)
            cycles = [row["cycles"] if row["cycles_to_target"] is None else row["cycles_to_target"] for row in group]
            sizes = [len(owned) for row in group for owned in row["assignment"].values()]
            cells = (
                f"{spread([sum(row['gamma'].values()) / len(row['gamma']) for row in group], 2):>19}",
                f"{min(sizes)}-{max(sizes)}".rjust(9),
                f"{spread(cycles, 0, late):>16}",
                f"{spread([100 * row['final_accuracy'] for row in group], 1):>19}",
                f"{spread([row['uplink_B'] / 1e6 for row in group], 1):>19}",
            )
            print(f"{name:9} {policy:11} {' '.join(cells)}", flush=True)
            each = [f"{'>' if r['cycles_to_target'] is None else ''}{n}" for r, n in zip(group, cycles, strict=True)]
            final = [f"{row['final_accuracy']:.1%}" for row in group]
            print(f"{'':21} by seed: cycles {' '.join(each)}; final {' '.join(final)}", flush=True)


if __name__ == "__main__":
    main()
