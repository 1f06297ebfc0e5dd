"""Cycles, gradient steps and uplink MB to the target on the demo, over five seeds that were not tuned on.

For γ ≥ 2 and for the γ ≈ 1 control it prints every seed's figures, then the median and the spread of the ratios EMS-FL / sync
and EMS-FL / sync given C local rounds per contact. The paper reports 0.25 (training, Fig. 8) and 0.5 (tuning, Fig. 5) for
the cycles ratio to sync. The target is judged on validation data, the final accuracy on test data. A run that never reaches
the target within its cycles counts with its whole length and is marked >.

Asserted: the ledgers' steps, bytes and cycles to the target are those of their single lines; all runs of a seed start from one
warmed-up model; no seed was tuned on; γ is on its side of 2; on the round robin all runs make the steps of their schedule, and
the baseline with C rounds C times as many as without.
Usage: python benchmarks/demo.py [--plan round-robin|orbit] [--seeds 1 2 3 4 5] [--out DIR] [--toy]
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import tune
from runs import Line, one_worker, play, round_robin_steps, toy

from fedexperts import Scenario
from fedexperts.cli.demo import demo_jobs, demo_scenario, on_round_robin, warmed_up

MEASURES = {"cycles": "cycles_to_target", "steps": "steps_to_target", "MB": "uplink_B_to_target"}
WHOLE = {"cycles": "cycles", "steps": "steps", "MB": "uplink_B"}
PAIRS = [
    ("ems-fl", "sync"),
    ("ems-fl-enhanced", "sync"),
    ("ems-fl", "sync, C rounds"),
    ("ems-fl, γ ≈ 1", "sync, γ ≈ 1"),
    ("ems-fl, γ ≈ 1", "sync, C rounds, γ ≈ 1"),
]


def cost(row: dict, measure: str) -> float:
    value = row[MEASURES[measure]]
    value = row[WHOLE[measure]] if value is None else value
    return value / 1e6 if measure == "MB" else value


def check(jobs: dict[str, Scenario], found: dict[str, Line], round_robin: bool, small: bool) -> None:
    """What the table's rows and their names say of the runs of one seed."""
    for name, job in jobs.items():
        gamma = sum(found[name]["gamma"].values()) / len(found[name]["gamma"])
        assert small or (gamma < 2) == ("γ ≈ 1" in name), f"{name}: γ is {gamma:.2f}"
        steps = round_robin_steps(job) if round_robin else found[name]["steps"]
        assert found[name]["steps"] == steps, f"{name}: {found[name]['steps']} steps, the schedule has room for {steps}"
        if ", C rounds" in name:
            steps = len(job.cluster) * found[name.replace(", C rounds", "")]["steps"]
            assert not round_robin or found[name]["steps"] == steps, f"{name}: {found[name]['steps']} steps, not {steps}"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--out", type=Path, default=Path("runs/bench-demo"))
    parser.add_argument("--plan", choices=["round-robin", "orbit"], default="round-robin")
    parser.add_argument("--toy", action="store_true", help="smallest size, one seed; the figures mean nothing")
    arguments = parser.parse_args(argv)
    arguments.seeds = arguments.seeds[:1] if arguments.toy else arguments.seeds
    assert not set(arguments.seeds) & set(tune.SEEDS), f"--seeds {arguments.seeds}: the rates were tuned on {tune.SEEDS}"
    rows: dict[str, list[dict]] = {}
    for seed in arguments.seeds:
        scenario = demo_scenario(seed) if arguments.plan == "orbit" else on_round_robin(demo_scenario(seed))
        scenario = toy(scenario) if arguments.toy else scenario
        out = arguments.out / str(seed)
        jobs = warmed_up(scenario, demo_jobs(scenario), out)
        with one_worker(only=arguments.toy):
            found = play(jobs, out)
        check(jobs, found, arguments.plan == "round-robin", arguments.toy)
        for name, summary in found.items():
            rows.setdefault(name, []).append(summary)
    print(f"plan {arguments.plan}; seeds {arguments.seeds}; target accuracy {scenario.evaluation.target:.0%}")
    for name, summaries in rows.items():
        gamma = median(sum(s["gamma"].values()) / len(s["gamma"]) for s in summaries)
        figures = " ".join(
            f"{measure} "
            + " ".join(f"{'' if s[MEASURES[measure]] is not None else '>'}{cost(s, measure):.4g}" for s in summaries)
            + ";"
            for measure in MEASURES
        )
        final = " ".join(f"{s['final_accuracy']:.1%}" for s in summaries)
        print(f"{name:22} γ {gamma:.2f}  {figures} final {final}")
    print(f"\n{'ratio to the target':44} {'cycles':>20} {'steps':>20} {'MB':>20}   median (min-max)")
    for ours, other in PAIRS:
        cells = []
        for measure in MEASURES:
            ratios = [cost(a, measure) / cost(b, measure) for a, b in zip(rows[ours], rows[other], strict=True)]
            cells.append(f"{median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})")
        print(f"{ours + ' / ' + other:44} " + " ".join(f"{cell:>20}" for cell in cells))


if __name__ == "__main__":
    main()
