"""Adam's moments when adapters are factored again: should a device keep them, or start afresh with the factors that come down?

The server factors the mean of the products anew, so the factors that a device gets may be turned against those that its moments
belong to. The demo's model and data on the round robin, LoRA of rank 4 on the owned experts (`refactor`), the same warm-up for
all runs of a seed. Both ways get the same grid of learning rates on the tuning seeds; the table has the other seeds at each
way's best rate. A run that never reaches the target counts with its whole length, marked >. Finished runs in --out are not
repeated.

Asserted: moments were there to be kept; all runs of a seed begin with one loss and make the steps of their schedule; steps,
bytes and cycles to the target are those of the ledger's lines; no seed of the table chose a rate.
Usage: python benchmarks/moments.py [--seeds 1 2 3 4 5] [--out DIR] [--toy]
"""

import argparse
from collections.abc import Collection, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import mean, median

from runs import booked, round_robin_steps, toy

from fedexperts import Scenario, run
from fedexperts.cli.demo import TUNED, demo_scenario, on_round_robin, warmed_up
from fedexperts.moe.parts import Piece
from fedexperts.train.device import Device

TUNING = (100, 101)
LR_EXPERT = (3e-3, 1e-2, 3e-2)
PROTOCOLS = ("sync", "ems-fl", "ems-fl-enhanced")
WAYS = ("kept", "afresh")


@contextmanager
def moments(way: str):
    """The product starts afresh; the other way puts back what a download takes away."""
    receive, put_back = Device.receive, []

    def kept(device: Device, pieces: Collection[Piece]) -> None:
        before = dict(device.optimizer_state)
        receive(device, pieces)
        gone = {part: state for part, state in before.items() if part not in device.optimizer_state}
        device.optimizer_state |= gone
        put_back.append(len(gone))

    Device.receive = kept if way == "kept" else receive
    try:
        yield
        assert way == "afresh" or any(put_back), "no moments were there to be kept"
    finally:
        Device.receive = receive


def job(seed: int, small: bool) -> Scenario:
    scenario = on_round_robin(demo_scenario(seed)).changed(model={"lora": {"rank": 4, "alpha": 8.0}})
    return toy(scenario) if small else scenario


def finished(seed: int, protocol: str, way: str, lr: float, out: Path, small: bool) -> dict:
    """The summary of a run, which is made if it is not there."""
    folder, initial = out / str(seed) / f"{protocol}-{way}-{lr:g}", out / str(seed) / "initial"
    scenario = job(seed, small)
    if not initial.is_dir():
        plain = Scenario.parse({**scenario.model_dump(exclude_none=True), "model": {"config": scenario.model.config}})
        warmed_up(plain, {}, out / str(seed))  # the model below the adapters
    document = scenario.model_dump(exclude_none=True, exclude={"warmup"})
    document["model"] = {"path": str(initial.resolve()), "lora": document["model"]["lora"]}
    document["train"] |= {**TUNED[protocol], "lr_expert": lr}
    scenario = Scenario.parse({**document, "protocol": protocol})
    if not (folder / "model").is_dir():
        with moments(way):
            run(scenario, folder, resume=(folder / "scenario.toml").is_file())
    row = booked(folder, scenario)
    assert row["steps"] == round_robin_steps(scenario), f"{folder}: {row['steps']} steps are not those of the schedule"
    return row


def cycles(row: dict) -> int:
    return row["cycles"] if row["cycles_to_target"] is None else row["cycles_to_target"]


def score(rows: Sequence[dict]) -> tuple[float, float]:
    """Fewest cycles to the target, then the highest curve; both on validation data."""
    never = [row["cycles_to_target"] is None for row in rows]
    return mean(cycles(r) + n for r, n in zip(rows, never, strict=True)), -mean(
        p["accuracy"] for r in rows for p in r["history"]
    )


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--out", type=Path, default=Path("runs/bench-moments"))
    parser.add_argument("--toy", action="store_true", help="everything once, at the smallest size; no claim follows from it")
    args = parser.parse_args(argv)
    seeds, tuning, rates = (args.seeds[:1], TUNING[:1], LR_EXPERT[1:2]) if args.toy else (args.seeds, TUNING, LR_EXPERT)
    assert not set(seeds) & set(tuning), f"--seeds {seeds}: the rates are chosen on {tuning}"
    starts: dict[int, set[float]] = {}
    print(f"seeds {seeds}; medians (min-max); rates chosen on seeds {list(tuning)}")
    print(f"{'protocol':16} {'moments':7} {'lr_expert':>9} {'to target':>16} {'final %':>20}")
    for protocol in PROTOCOLS[:1] if args.toy else PROTOCOLS:
        finals = {}
        for way in WAYS:
            tried = {lr: [finished(s, protocol, way, lr, args.out, args.toy) for s in tuning] for lr in rates}
            best = min(tried, key=lambda lr: score(tried[lr]))
            rows = [finished(s, protocol, way, best, args.out, args.toy) for s in seeds]
            for row in [*rows, *(row for some in tried.values() for row in some)]:
                starts.setdefault(row["seed"], set()).add(row["history"][0]["loss"])
            assert all(len(losses) == 1 for losses in starts.values()), f"runs of a seed begin with several losses: {starts}"
            finals[way] = [100 * row["final_accuracy"] for row in rows]
            found, late = [cycles(row) for row in rows], sum(row["cycles_to_target"] is None for row in rows)
            to_target = f"{median(found):g} ({min(found)}-{max(found)})" + (f" >{late}" if late else "")
            final = f"{median(finals[way]):.1f} ({min(finals[way]):.1f}-{max(finals[way]):.1f})"
            print(f"{protocol:16} {way:7} {best:9g} {to_target:>16} {final:>20}", flush=True)
            print(f"{'':24} by seed: {' '.join(map(str, found))}; {' '.join(f'{x:.1f}' for x in finals[way])}", flush=True)
        points = [b - a for a, b in zip(*finals.values(), strict=True)]
        print(f"{'':24} afresh − kept, points: {median(points):+.2f} ({min(points):+.2f}–{max(points):+.2f})", flush=True)


if __name__ == "__main__":
    main()
