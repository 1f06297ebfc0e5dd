"""One run in several processes beside the same run in one, and the bound on what that can gain.

EMS-FL on a Mixtral of 4 experts over digits, round-robin contacts, so that all clusters but one train out of contact. Each
repetition makes the run in one process and in N (`run(..., jobs=N)`), in random order. "whole" is all that `run` takes, with
the loading of processes, weights and data; "training" goes from the first ledger line of a training to the last meter reading.
The bound is the sum of the seconds that clusters train in one process, over those of the process of N that has most of them.

Asserted: ledger and model are the same to the byte. Prints medians, the range of the ratios, and the most that one of the N
had in memory.
Usage: python benchmarks/jobs.py [--jobs N] [--clusters N] [--hidden N] [--cycles N] [--repeats N] [--toy]
"""

import argparse
import multiprocessing
import os
import random
import resource
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

from fedexperts import Scenario, run
from fedexperts.data.digits import DOMAINS, VOCABULARY
from fedexperts.train.host import LocalHost

FILES = ("ledger.jsonl", "model/model.safetensors")


@dataclass(frozen=True)
class Took:
    """Of a run: seconds by the clock, of its training, of processors, and of calls to train, by the first device of those that
    did; and the most memory of another process.
    """

    whole_s: float
    training_s: float
    cpu_s: float
    calls_s: Counter[str]
    most_MiB: float


def scenario(clusters: int, hidden: int, cycles: int) -> Scenario:
    """The run."""
    config = {
        "model_type": "mixtral",
        "vocab_size": VOCABULARY,
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "num_labels": 10,
        "pad_token_id": VOCABULARY - 1,
        "max_position_embeddings": 64,
    }
    places = [{"name": f"c{i}", "devices": 2, "data": f"digits:{DOMAINS[i % len(DOMAINS)]}"} for i in range(clusters)]
    return Scenario.parse(
        {
            "name": "jobs",
            "protocol": "ems-fl",
            "model": {"config": config},
            "train": {"cycles": cycles, "local_steps": 2, "batch_size": 16, "optimizer": "adamw"},
            "assignment": {"trial_samples": 8},
            "evaluation": {"every_cycles": cycles + 1},
            "cluster": places,
        }
    )


def timed(given: Scenario, out: Path, jobs: int) -> Took:
    """A run by the clock."""
    at: dict[str, float] = {}
    calls_s: Counter[str] = Counter()
    most_MiB = [0.0]
    train = LocalHost.train

    def listener(line: dict[str, Any]) -> None:
        if line["event"] in ("train", "energy"):
            at.setdefault("first", time.perf_counter())
            at["last"] = time.perf_counter()
            most_MiB.extend(peak_MiB(one.pid) for one in multiprocessing.active_children())

    def watched(self: LocalHost, *order: Any) -> Any:
        began = time.perf_counter()
        done = train(self, *order)
        if at:  # not the first, which is over before the clock runs
            calls_s[self.devices[0]] += time.perf_counter() - began
        return done

    began, cpu_s = time.perf_counter(), processors_s()
    with patch.object(LocalHost, "train", watched):
        run(given, out, listener=listener, jobs=jobs)
    return Took(time.perf_counter() - began, at["last"] - at["first"], processors_s() - cpu_s, calls_s, max(most_MiB))


def peak_MiB(pid: int | None) -> float:
    """The most that a process had in memory so far; what `getrusage` says of children is what their parent had, at least."""
    (line,) = (line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def processors_s() -> float:
    """Of this process and of those that it has started and that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--clusters", type=int, default=4)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--cycles", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--toy", action="store_true", help="smallest size, once; the figures mean nothing")
    args = parser.parse_args(argv)
    if args.toy:
        args.clusters, args.hidden, args.cycles, args.repeats = 2, 8, 2, 1
    given = scenario(args.clusters, args.hidden, args.cycles)
    took: dict[int, list[Took]] = {1: [], args.jobs: []}
    found: set[tuple[bytes, ...]] = set()
    for _ in range(args.repeats):
        for jobs in random.sample(sorted(took), len(took)):
            with tempfile.TemporaryDirectory() as name:
                took[jobs].append(timed(given, Path(name) / "run", jobs))
                found.add(tuple((Path(name) / "run" / file).read_bytes() for file in FILES))
    assert len(found) == 1, "runs differ"
    print(f"{'processes':10}{'whole, s':>10}{'of CPUs':>9}{'training, s':>13}{'one over this':>20}{'load':>8}")
    for jobs, rows in took.items():
        whole_s, training_s, cpu_s = map(
            statistics.median, zip(*((t.whole_s, t.training_s, t.cpu_s) for t in rows), strict=True)
        )
        ratios = sorted(one.training_s / mine.training_s for one, mine in zip(took[1], rows, strict=True))
        ratio = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f}-{ratios[-1]:.2f})"
        print(f"{jobs:<10}{whole_s:10.2f}{cpu_s:9.2f}{training_s:13.2f}{ratio:>20}{os.getloadavg()[0]:8.1f}")
    sums_s, most_s = zip(*(shares(one.calls_s, args.clusters, args.jobs) for one in took[1]), strict=True)
    print(f"bound     {statistics.median(a / b for a, b in zip(sums_s, most_s, strict=True)):.2f}: ", end="")
    print(f"{statistics.median(sums_s):.2f} s of training, {statistics.median(most_s):.2f} s in the process that has most")
    print(f"memory    {max(one.most_MiB for one in took[args.jobs]):.0f} MiB in each of {min(args.jobs, args.clusters)} more")


def shares(calls_s: Counter[str], clusters: int, jobs: int) -> tuple[float, float]:
    """All seconds of training, and those of the process that would have most of them."""
    by_cluster = [calls_s[f"c{i}/0"] for i in range(clusters)]
    return sum(by_cluster), max(sum(by_cluster[i::jobs]) for i in range(jobs))


if __name__ == "__main__":
    main()
