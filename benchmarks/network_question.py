"""Does a self-supervised extractor carry a Networked MoE further than a supervised one where data are skewed?

The rule by which this is decided stands in docs/LOG.md, written down before the first cell was run. A cell is a data set, a
skew τ, a seed, an extractor (never trained, FedCE, FedSC) and its rounds. In each the extractor is trained alone; then experts
start afresh, from the same weights for all extractors of a seed, and make the same steps; then every gate stands on these
experts: random, rolling, federated, and one that is trained centrally. All of it is the product's own runs.

Every finished cell is one JSON file, written whole or not at all; a cell that is there is not run again, and one that was cut
short goes on from its last checkpoint. Cells run in processes of one thread each.

Usage: python benchmarks/network_question.py [--out DIR] [--jobs N] [--device cpu|cuda] [--data fashion|cifar10] [--width W]
       [--rounds 10,100] [--tau 0.2,0.5] [--seeds 3] [--cells TEXT,…] [--order telling|longest|shortest] [--table] [--toy]
"""

import argparse
import json
import os
import shutil
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import active_children, get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("FEDEXPERTS_DATA", ROOT.parent / "shared" / "data"))
FOLDERS = {"fashion": "fashion_mnist", "cifar10": "cifar10"}
EXTRACTORS = ("none", "fedce", "fedsc")
GATES = ("random", "rolling", "federated", "central")
LEAD, GAIN = 5.0, 2.0
"""Points of accuracy by which FedSC must lead, and by which its probe must grow, of the rule in docs/LOG.md."""


@dataclass(frozen=True)
class Cell:
    """One extractor on one partition; ``rounds`` is 0 where it is never trained."""

    data: str
    width: int
    tau: str
    seed: int
    extractor: str
    rounds: int
    device: str = "cpu"
    toy: bool = False

    @property
    def name(self) -> str:
        return f"{self.data}-w{self.width}-tau{self.tau}-{self.extractor}-{self.rounds}-seed{self.seed}"

    @property
    def cost(self) -> float:
        """Of its extractor, in rounds of cross-entropy; two views of each image cost twice as much."""
        return self.rounds * (2.2 if self.extractor == "fedsc" else 1.0)


def cells(args: argparse.Namespace) -> list[Cell]:
    """All that are asked for, in order: those that the rule needs first, the longest of them ahead."""
    found = []
    for tau in args.tau.split(","):
        for seed in range(1, args.seeds + 1):
            for extractor in EXTRACTORS:
                for rounds in [0] if extractor == "none" else map(int, args.rounds.split(",")):
                    found.append(Cell(args.data, args.width, tau, seed, extractor, rounds, args.device, args.toy))
    wanted = [cell for cell in found if not args.cells or any(text in cell.name for text in args.cells.split(","))]
    if args.order != "telling":
        return sorted(wanted, key=lambda cell: cell.cost, reverse=args.order == "longest")
    return sorted(wanted, key=lambda cell: (float(cell.tau), -cell.cost, cell.seed))


def scenario(cell: Cell) -> Any:
    """The example's, with the cell's partition and seed."""
    from fedexperts import Scenario

    base = Scenario.load(ROOT / "examples" / f"nmoe-{cell.data}.toml")
    document = base.model_dump(exclude_none=True)
    cluster = {**document["cluster"][0], "tau": float(cell.tau), "partition": "tau"}
    document |= {"seed": cell.seed, "cluster": [cluster]}
    document["model"] = {**document["model"], "accelerator": cell.device}
    document["model"]["config"] = {**document["model"]["config"], "width": cell.width}
    document["evaluation"] = {**document["evaluation"], "every_cycles": 10**6}
    if cell.toy:
        cluster |= {"samples": 600, "test_samples": 200, "devices": 2}
        document["model"]["config"] |= {"expert_hidden": 8, "projection_size": 8, "num_experts": 2}
        document["networked"] |= {"expert_cycles": 1, "gate_cycles": 2}
        document["train"] |= {"local_steps": 1, "batch_size": 4, "cycles": 3 + document["networked"]["extractor_cycles"]}
    return Scenario.parse(document, base.base)


def staged(given: Any, model: Path | None = None, **stages: Any) -> Any:
    """The scenario with these stages alone, from a model if one is given."""
    from fedexperts import Scenario

    document = given.model_dump(exclude_none=True)
    if model is not None:
        kept = {key: value for key, value in document["model"].items() if key != "config"}
        document["model"] = {**kept, "path": str(model)}
    document["networked"] |= {"extractor_cycles": 0, "expert_cycles": 0, "gate_cycles": 0, "gate": "random", **stages}
    table = document["networked"]
    cycles = table["extractor_cycles"] + table["expert_cycles"] + table["gate_cycles"]
    document["train"] |= {"cycles": cycles}
    return Scenario.parse(document, given.base)


def played(given: Any, at: Path) -> dict[str, Any]:
    """A run's end, from where it stopped if it did."""
    from fedexperts import run
    from fedexperts.ledger import tail

    run(given, at, resume=(at / "scenario.toml").is_file())
    end = tail(at / "ledger.jsonl", "end")
    assert end is not None, f"{at}: has no end"
    return end


def start(given: Any, trained: Path | None, to: Path) -> Path:
    """A model with fresh experts and gate, alike for all extractors of a seed, on the extractor that was trained, if any."""
    import torch
    from safetensors.torch import load_file

    from fedexperts.moe.auto import new_model

    if to.is_dir():
        return to
    config = {**given.model.config, "projection_size": 0}
    model = new_model(config, given.seed, kind="image-classifier", outputs=10)
    if trained is not None:
        tensors = load_file(trained / "model.safetensors")
        extractor = {name: tensor.float() for name, tensor in tensors.items() if name.startswith("extractor.")}
        assert extractor, f"{trained}: no extractor"
        missing = model.load_state_dict(extractor, strict=False)
        assert not missing.unexpected_keys, missing.unexpected_keys
    partial = to.with_suffix(".part")
    shutil.rmtree(partial, ignore_errors=True)
    with torch.no_grad():
        model.save_pretrained(partial)
    os.replace(partial, to)
    return to


def facts(end: dict[str, Any]) -> dict[str, Any]:
    """Of a gate: on data like each client's own, and on even shares."""
    names = ("accuracy", "macro_f1", "macro_auc", "local_ratio", "accuracy_by_k")
    return {name: end[name] for name in names} | {"even": {name: end["even_test"][name] for name in names}}


def play(cell: Cell, out: Path) -> Path:
    """Do a cell, and write its file."""
    import torch

    torch.set_num_threads(1)
    began_s, cpu_s = time.time(), time.process_time()
    work, given = out / "work" / cell.name, scenario(cell)
    work.mkdir(parents=True, exist_ok=True)
    spent: dict[str, float] = {}

    def timed(name: str, job: Any, at: Path) -> dict[str, Any]:
        before_s = time.process_time()
        end = played(job, at)
        spent[name] = round(time.process_time() - before_s, 1)
        return end

    trained = None
    if cell.rounds:
        options = {} if cell.extractor == "fedsc" else {"projection_size": 0}
        own = given.changed(model={"config": {**given.model.config, **options}})
        timed("extractor", staged(own, extractor=cell.extractor, extractor_cycles=cell.rounds), work / "extractor")
        trained = work / "extractor" / "model"
    first = start(given, trained, work / "start")
    table = given.networked
    ends = {"random": timed("experts", staged(given, first, expert_cycles=table.expert_cycles), work / "experts")}
    for gate in ("rolling", "federated"):
        job = staged(given, work / "experts" / "model", gate=gate, gate_cycles=table.gate_cycles)
        ends[gate] = timed(gate, job, work / gate)
    ladder, even = ends["random"]["ladder"], ends["random"]["even_test"]["ladder"]
    found = {
        **asdict(cell),
        "name": cell.name,
        "gates": {gate: facts(end) for gate, end in ends.items()} | {"central": {**ladder["central"], "even": even["central"]}},
        "ladder": {name: {**rung, "even": even[name]} for name, rung in ladder.items()},
        "personal_accuracy": ends["random"]["personal_accuracy"],
        "peer_B": ends["federated"].get("peer_B", 0),
        "cpu_s": {**spent, "all": round(time.process_time() - cpu_s, 1)},
        "wall_s": round(time.time() - began_s, 1),
        "torch": torch.__version__,
    }
    path = out / f"{cell.name}.json"
    partial = path.with_suffix(".json.part")
    partial.write_text(json.dumps(found, indent=1) + "\n")
    os.replace(partial, path)
    shutil.rmtree(work)
    return path


def held(out: Path) -> list[dict[str, Any]]:
    """The cells that are there."""
    return [json.loads(path.read_text()) for path in sorted(out.glob("*.json"))]


def _of(found: Sequence[dict[str, Any]], **wanted: Any) -> list[dict[str, Any]]:
    return sorted((one for one in found if all(one[k] == v for k, v in wanted.items())), key=lambda one: one["seed"])


def _cell(values: Sequence[float]) -> str:
    shown = [100 * value for value in values]
    return f"{statistics.median(shown):.1f} ({min(shown):.1f}–{max(shown):.1f})" if shown else "–"


def rows(found: Sequence[dict[str, Any]]) -> list[str]:
    """A line for each partition, extractor and number of rounds: medians over seeds, with the lowest and highest."""
    lines = [
        "| data, τ, extractor, rounds (seeds) | probe | RanGate | RollGate | FedGate | central | at home: roll/fed/central "
        "| all ten: fed | macro F1: fed | majority |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    keys = sorted({(o["data"], o["width"], o["tau"], EXTRACTORS.index(o["extractor"]), o["rounds"]) for o in found})
    for data, width, tau, extractor, rounds in keys:
        group = _of(found, data=data, width=width, tau=tau, extractor=EXTRACTORS[extractor], rounds=rounds)
        gates = [_cell([one["gates"][gate]["accuracy"] for one in group]) for gate in GATES]
        home = "/".join(f"{100 * statistics.median(o['gates'][g]['local_ratio'] for o in group):.0f}" for g in GATES[1:])
        most = [one["gates"]["federated"]["accuracy_by_k"] for one in group]
        name = f"{data} w{width}, {tau}, {EXTRACTORS[extractor]}, {rounds} ({len(group)})"
        columns = [
            _cell([one["ladder"]["probe"]["accuracy"] for one in group]),
            *gates,
            home,
            _cell([by_k[max(by_k, key=int)] for by_k in most]),
            _cell([one["gates"]["federated"]["macro_f1"] for one in group]),
            _cell([one["ladder"]["majority"]["accuracy"] for one in group]),
        ]
        lines.append(f"| {name} | {' | '.join(columns)} |")
    return lines


def verdict(found: Sequence[dict[str, Any]], seeds: int, rounds: Sequence[int]) -> list[str]:
    """By the rule, at τ = 0.2, on test data like each client's own, with one expert an image."""
    few, many = min(rounds), max(rounds)
    ours, theirs = (_of(found, tau="0.2", extractor=name, rounds=many) for name in ("fedsc", "fedce"))
    early = _of(found, tau="0.2", extractor="fedsc", rounds=few)
    if not len(ours) == len(theirs) == len(early) == seeds:
        return [
            f"verdict: open; of {seeds} seeds there are {len(ours)} and {len(theirs)} at {many} rounds, {len(early)} at {few}"
        ]
    leads = {
        gate: [100 * (a["gates"][gate]["accuracy"] - b["gates"][gate]["accuracy"]) for a, b in zip(ours, theirs, strict=True)]
        for gate in ("federated", "central")
    }
    probes = [
        100 * (a["ladder"]["probe"]["accuracy"] - b["ladder"]["probe"]["accuracy"]) for a, b in zip(ours, early, strict=True)
    ]
    ahead = all(lead >= LEAD for values in leads.values() for lead in values)
    behind = all(statistics.mean(values) <= 0 for values in leads.values())
    word = "confirmed" if ahead else "refuted at this scale" if behind and statistics.mean(probes) < GAIN else "undecided"
    shown = "; ".join(f"{gate} {', '.join(f'{lead:+.1f}' for lead in values)}" for gate, values in leads.items())
    return [
        f"FedSC ahead of FedCE at τ = 0.2 and {many} rounds, points by seed: {shown}",
        f"FedSC's probe from {few} to {many} rounds, points by seed: {', '.join(f'{gain:+.1f}' for gain in probes)}",
        f"verdict: {word}",
    ]


@contextmanager
def stopped_at_once() -> Iterator[None]:
    """Ctrl-C, or a limit of time, ends the cells under way too: their checkpoints are there to go on from."""
    try:
        yield
    except KeyboardInterrupt:
        for process in active_children():
            process.kill()
        raise


def run_all(wanted: Sequence[Cell], out: Path, jobs: int) -> int:
    """Do what is not there yet; how many cells failed."""
    todo = [cell for cell in wanted if not (out / f"{cell.name}.json").exists()]
    print(f"{len(wanted) - len(todo)} of {len(wanted)} cells are there; {len(todo)} to do, {jobs} at once", flush=True)
    began_s = time.time()

    def failed(cell: Cell, done: Callable[[], Path]) -> bool:
        try:
            done()
        except Exception:  # the others go on; a second call does this one again
            print(f"{time.time() - began_s:6.0f} s  {cell.name} FAILED", flush=True)
            traceback.print_exc()
            return True
        print(f"{time.time() - began_s:6.0f} s  {cell.name}", flush=True)
        return False

    if jobs == 1:
        return sum(failed(cell, partial(play, cell, out)) for cell in todo)
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool, stopped_at_once():
        waiting = {pool.submit(play, cell, out): cell for cell in todo}
        return sum(failed(waiting[done], done.result) for done in as_completed(waiting))


def pictures_in(folder: Path) -> None:
    """A few pictures like Fashion-MNIST's, in a folder of that name."""
    import numpy as np

    rng = np.random.default_rng(0)
    (folder / "fashion_mnist").mkdir()
    for name, count in (("train", 600), ("test", 300)):
        y = np.arange(count) % 10
        x = rng.integers(0, 60, (count, 28, 28), dtype=np.uint8)
        for i, label in enumerate(y):
            x[i, 2 * label : 2 * label + 6] += 150
        np.savez(folder / "fashion_mnist" / f"{name}.npz", x=x, y=y)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--data", choices=tuple(FOLDERS), default="fashion")
    parser.add_argument("--width", type=int, default=8)
    parser.add_argument("--rounds", default="10,100")
    parser.add_argument("--tau", default="0.2,0.5")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--cells", default="", help="parts of names, by commas; all cells whose name has one of them")
    parser.add_argument("--order", choices=("telling", "longest", "shortest"), default="telling")
    parser.add_argument("--table", action="store_true", help="only print what is there")
    parser.add_argument("--toy", action="store_true", help="smallest size, on pictures made here; the figures mean nothing")
    args = parser.parse_args(argv)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"  # for the processes
    with TemporaryDirectory() as temporary:
        if args.toy:
            pictures_in(Path(temporary))
            os.environ["FEDEXPERTS_DATA"] = temporary
            args.rounds, args.tau, args.seeds = "1", "0.2", 1
        elif not args.table and not (DATA / FOLDERS[args.data]).is_dir():
            sys.exit(f"skipped: no folder {FOLDERS[args.data]} in {DATA}; set FEDEXPERTS_DATA to the folder of data sets")
        out = args.out or Path(temporary) / "cells"
        out.mkdir(parents=True, exist_ok=True)
        failed = 0 if args.table else run_all(cells(args), out, args.jobs)
        found = [one for one in held(out) if one["data"] == args.data and one["width"] == args.width]
        print("\n".join([*rows(found), "", *verdict(found, args.seeds, [int(n) for n in args.rounds.split(",")])]))
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    main()
