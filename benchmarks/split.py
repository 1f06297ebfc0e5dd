"""Who owns which expert in EMS-FL: Algorithm 1 against the policies ``balanced`` and ``optimal``, on the demo over five seeds.

Three cases on the round robin: the demo; six experts, which four clusters cannot share evenly; and a gate that is not fitted to
the domains, so that all experts matter to all clusters alike. One warm-up for each case and seed, from which the three policies
start. The rates are those of EMS-FL with Algorithm 1, tuned on other seeds. The target is judged on validation data, the final
accuracy on test data. A run that never reaches the target counts with its whole length, marked >. Finished runs in --out are
not repeated.

Asserted: the three runs differ in their policy alone and begin with one model and one relevance; each gives every expert of the
case one owner, and ``optimal`` owns at least as much relevance as ``balanced``; steps, bytes and cycles to the target are those
of the ledger's lines, and the steps those of the schedule.
Usage: python benchmarks/split.py [--seeds 1 2 3 4 5] [--cases demo uneven unfitted] [--out DIR] [--toy]
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from runs import booked, round_robin_steps, same_start, toy

from fedexperts import Scenario, run
from fedexperts.cli.demo import TUNED, demo_scenario, on_round_robin, warmed_up
from fedexperts.ledger import tail

POLICIES = ("algorithm-1", "balanced", "optimal")
CASES = ("demo", "uneven", "unfitted")


def case(name: str, seed: int, small: bool) -> Scenario:
    scenario = on_round_robin(demo_scenario(seed)).changed(train=TUNED["ems-fl"])
    scenario = toy(scenario) if small else scenario
    if name == "uneven":
        return scenario.changed(model={"config": {**(scenario.model.config or {}), "num_local_experts": 6}})
    return scenario.changed(warmup={"gate_fit": 0.0}) if name == "unfitted" else scenario


def summaries(scenario: Scenario, out: Path) -> dict[str, dict]:
    """One run of each policy, one after the other, from one warm-up."""
    jobs = {policy: scenario.changed(assignment={"policy": policy}) for policy in POLICIES}
    jobs = warmed_up(scenario, jobs, out)
    for policy, job in jobs.items():
        if not (out / policy / "model").is_dir():
            run(job, out / policy, resume=(out / policy / "scenario.toml").is_file())
    found = {policy: booked(out / policy, job) for policy, job in jobs.items()}
    same_start(found, jobs)
    check(scenario, jobs, found, {policy: tail(out / policy / "ledger.jsonl", "assignment") or {} for policy in jobs})
    return found


def check(scenario: Scenario, jobs: dict[str, Scenario], found: dict[str, dict], split: dict[str, dict]) -> None:
    """What the docstring says of the runs of one case and seed."""
    alike = {job.changed(assignment={"policy": POLICIES[0]}).to_toml() for job in jobs.values()}
    assert len(alike) == 1, "the runs differ in more than their policy"
    assert len({str(one["relevance"]) for one in split.values()}) == 1, "the runs differ in relevance"
    experts = range((scenario.model.config or {})["num_local_experts"])
    owned = {}
    for policy, row in found.items():
        numbers = sorted(m for mine in row["assignment"].values() for m in mine)
        assert numbers == list(experts), f"{policy}: experts {numbers} have an owner, of {list(experts)}"
        assert row["steps"] == round_robin_steps(jobs[policy]), f"{policy}: {row['steps']} steps are not those of the schedule"
        relevance = split[policy]["relevance"]
        clusters = split[policy]["clusters"]
        owned[policy] = sum(relevance[m][clusters.index(name)] for name, mine in row["assignment"].items() for m in mine)
    assert owned["optimal"] >= owned["balanced"] - 1e-5, f"optimal owns less relevance than balanced: {owned}"


def spread(values: list[float], digits: int, beyond: int = 0) -> str:
    """Median and range, and how many runs never got there."""
    text = f"{median(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"
    return text + (f" >{beyond}" if beyond else "")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=CASES)
    parser.add_argument("--out", type=Path, default=Path("runs/bench-split"))
    parser.add_argument("--toy", action="store_true", help="smallest size, one seed; the figures mean nothing")
    args = parser.parse_args(argv)
    args.seeds = args.seeds[:1] if args.toy else args.seeds
    print(f"medians of seeds {args.seeds} (min-max); >n: n runs never reached the target")
    print(f"{'case':9} {'policy':11} {'gamma':>19} {'experts':>9} {'to target':>16} {'final %':>19} {'MB up':>19}")
    for name in args.cases:
        rows: dict[str, list[dict]] = {policy: [] for policy in POLICIES}
        for seed in args.seeds:
            for policy, row in summaries(case(name, seed, args.toy), args.out / name / str(seed)).items():
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
