"""The same tiny work in four simulators: how many client rounds each makes in a second.

A client's round: the global model comes to it, it makes one step of plain descent on its own 32 samples, and what it has made
is averaged with that of all others. The model is a perceptron of 32-64-10; for us it is the one expert of an MoE layer. Ours
goes the way of a run, in simulated time: `Simulator`, the synchronous baseline, a link, the gate for updates, a ledger on disk;
devices one after the other (the default), and as one batch (``train.cohort = "batched"``), to which peers are compared.
Beside it: a plain loop over one resident model in torch, the floor without any simulator; pfl; and Flower with Ray, whose
clients run in as many workers as there are processors. pfl and Flower are installed by pip into environments of their own
(--envs keeps them); where that fails, or with --toy, their line says why they were not compared.

Asserted: everybody made one step for each client and round, the weights moved, and after each round they are those of the
plain loop. The first round is left out: it measures FLOPs (ours), judges (pfl) and starts workers (Flower). Of ours and the
plain loop, which take turns, the median of the repetitions is told, of all the median of the rounds.
Usage: python benchmarks/simulator_peers.py [--clients N] [--rounds N] [--repeats N] [--envs FOLDER] [--toy]
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from simulator_same import BATCH, RATE, Rounds, make, perceptron, plain, work
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from fedexperts.contact.plan import always_on
from fedexperts.data.classify import Classification
from fedexperts.drive.cluster import Pace
from fedexperts.drive.simulate import Simulator
from fedexperts.ledger import Ledger
from fedexperts.moe.layer import MoELayer
from fedexperts.moe.parts import Piece, expert
from fedexperts.moe.view import View
from fedexperts.protocol.link import Start
from fedexperts.protocol.sync import Sync
from fedexperts.train.cohort import Joint, Together
from fedexperts.train.device import Device, LocalTraining
from fedexperts.train.host import LocalHost
from fedexperts.train.task import Task

PEERS = {"pfl": ["pfl==0.6.0"], "flower": ["flwr[simulation]==1.42.0"]}
"""What is installed for each, beside this environment's own version of torch."""
NAMES = {"one": "ours, one by one", "ours": "ours, batched", "plain": "plain loop", "pfl": "pfl", "flower": "Flower"}
SLOT_S, TOLERANCE, LONGEST_S = 60.0, 1e-5, 1800.0


class Missing(Exception):  # noqa: N818  # no error: a peer that is not here
    pass


class OneExpert(nn.Module):
    """The perceptron as the one expert of an MoE layer, with a gate that has nothing to choose."""

    def __init__(self, body: nn.Module):
        super().__init__()
        self.moe = MoELayer(32, [body], top_k=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.moe(x)


def devices(path: str, together: bool) -> tuple[list[Device], dict[str, Piece]]:
    """One for each client, and the model that they start from."""
    x_NBD, y_NB, first = work(path)
    body = perceptron()
    body.load_state_dict(first.state_dict())
    view = View(OneExpert(body))
    model = {part: Piece(part, 0, view.export(part)) for part in view.parts}
    local, task = LocalTraining(lr_expert=RATE, lr_gate=RATE, together=together), Classification(0, 10)
    pairs = enumerate(zip(x_NBD, y_NB, strict=True))
    return [Device(f"all/{j}", view, {"x": x, "labels": y}, model, local, 0, task) for j, (x, y) in pairs], model


def steps_alone(path: str, rounds: int) -> float:
    """Seconds of one step of all clients in batches, from the same weights, and of nothing else: the floor of the batched."""
    (group, _), task = devices(path, together=True), Task(frozenset({expert(0)}))
    joints, took = [Joint(some, task, 1) for some in Together().split(group, task)], []
    for _ in range(rounds):
        began_s = time.perf_counter()
        for joint in joints:
            joint.step()
        took.append(time.perf_counter() - began_s)
    return statistics.median(took[1:])


def ours(path: str, rounds: int, together: bool = False) -> Rounds:
    """A run of the synchronous baseline over slots that hold one local round; devices one after the other, or in one batch."""
    group, model = devices(path, together)
    names = list(work(path)[2].state_dict())
    ended_s: list[float] = []
    seen: list[dict[str, Tensor]] = []
    made: list[bool] = []

    def ended(model: dict[str, Piece], cycle: int | None) -> dict[str, object]:
        if cycle is not None:
            ended_s.append(time.perf_counter())
            tensors = {name.removeprefix("moe.experts.0."): value for name, value in model[expert(0)].tensors.items()}
            seen.append({name: tensors[name].clone() for name in names})
        return {}

    hook = register_optimizer_step_post_hook(lambda *_: made.append(True))
    with tempfile.TemporaryDirectory() as folder, closing(Ledger(Path(folder) / "ledger.jsonl")) as ledger:
        plan = always_on(["all"], rounds, SLOT_S)
        run = Simulator(plan, {"all": LocalHost(group)}, Pace(SLOT_S), rounds, ledger, ended, final_flush=False)
        ended(model, 0)
        run.run(Sync(Start(model, ("all",), frozenset(), {}, rounds)))
    hook.remove()
    return ended_s, seen, sum(device.steps for device in group) if together else len(made)


def per_s(clients: int, ended_s: Sequence[float]) -> float:
    """Client rounds in a second: the median over all rounds but the first."""
    return clients / statistics.median(b - a for a, b in pairwise(ended_s[1:]))


def check(name: str, found: Rounds, wanted: Sequence[dict[str, Tensor]], clients: int) -> None:
    """That the work was done: all steps, and each round's weights."""
    ended_s, seen, steps = found
    assert len(ended_s) == len(seen) >= 3, f"{name}: {len(ended_s)} rounds, too few to leave out the first"
    assert steps == clients * (len(seen) - 1), f"{name}: {steps} steps of {clients} clients in {len(seen) - 1} rounds"
    for i, (one, other) in enumerate(zip(seen, wanted, strict=False)):
        gap = max(float((one[key] - other[key]).abs().max()) for key in other)
        assert gap <= TOLERANCE, f"{name}: weights after round {i} are {gap:.1e} from those of the plain loop"
        moved = max(float((one[key] - seen[0][key]).abs().max()) for key in one)
        assert not i or moved > 100 * TOLERANCE, f"{name}: weights did not move"


def environment(folder: Path, name: str) -> Path:
    """A Python with the peer installed; raises `Missing` where it cannot be had."""
    python = folder / name / "bin" / "python"
    try:
        if not python.exists():
            subprocess.run([sys.executable, "-m", "venv", folder / name], check=True, capture_output=True)
        wanted = [f"torch=={torch.__version__.partition('+')[0]}", "numpy", *PEERS[name]]
        command = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *wanted]
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=900)
    except (OSError, subprocess.SubprocessError) as error:
        said = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
        raise Missing(f"cannot be installed ({said[-1][:120] if said else type(error).__name__})") from error
    return python


def beside(name: str, python: Path, path: Path, rounds: int) -> tuple[Rounds, dict[str, str]]:
    """The peer's rounds, in a process of its environment, and its versions."""
    weights = path.with_name(f"{name}.npz")
    script = Path(__file__).with_name("simulator_same.py")
    quiet = {"FLWR_TELEMETRY_ENABLED": "0", "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}
    given = {**os.environ, **quiet, "PYTHONPATH": str(script.parent)}
    command = [python, script, name, path, weights, str(rounds)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=given, check=False, timeout=LONGEST_S)
    except subprocess.TimeoutExpired as error:
        raise Missing(f"did not end in {LONGEST_S:.0f} s") from error
    if done.returncode:
        raise Missing(f"failed ({done.stderr.strip().splitlines()[-1][:160]})")
    told, file = json.loads(done.stdout.strip().splitlines()[-1]), np.load(weights)
    seen: list[dict[str, Tensor]] = [{} for _ in told["ended_s"]]
    for key in file.files:
        number, _, leaf = key.partition("/")
        seen[int(number)][leaf] = torch.from_numpy(file[key])
    return (told["ended_s"], seen, told["steps"]), told["versions"]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--envs", type=Path, help="where the peers' environments are kept; a temporary folder if left out")
    parser.add_argument("--toy", action="store_true", help="smallest size, no peers; the figures mean nothing")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    clients, rounds, repeats = (8, 3, 1) if args.toy else (args.clients, args.rounds, args.repeats)
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "work.npz"
        np.savez(path, **make(clients))
        work.cache_clear()
        wanted = plain(str(path), rounds)[1]
        programs: dict[str, Callable[[str, int], Rounds]] = {"one": ours, "ours": partial(ours, together=True), "plain": plain}
        took: dict[str, list[float]] = {which: [] for which in programs}
        for _ in range(repeats):
            for which, program in programs.items():
                work.cache_clear()  # the plain loop trains the very model that was read
                found = program(str(path), rounds)
                check(NAMES[which], found, wanted, clients)
                took[which].append(per_s(clients, found[0]))
        mine, alone = statistics.median(took["ours"]), clients / steps_alone(str(path), rounds)
        ratios = sorted(a / b for a, b in zip(took["ours"], took["plain"], strict=True))
        print(f"{clients} clients, {rounds - 1} rounds, one step on {BATCH} samples, perceptron 32-64-10")
        print(f"{'':16} {'client rounds/s':>15} {'batched is':>11}")
        one = statistics.median(took["one"])
        print(f"{NAMES['ours']:16} {mine:15,.0f} {'':11} torch {torch.__version__}")
        print(f"{NAMES['one']:16} {one:15,.0f} {mine / one:10.1f}×")
        print(f"{'  its steps':16} {alone:15,.0f} {mine / alone:10.2f}× the limit: no model goes anywhere")
        floor, spread = statistics.median(took["plain"]), f"({ratios[0]:.2f}-{ratios[-1]:.2f})"
        print(f"{NAMES['plain']:16} {floor:15,.0f} {statistics.median(ratios):10.2f}× {spread}", flush=True)
        for peer in PEERS:
            try:
                if args.toy:
                    raise Missing("--toy installs nothing")
                python = environment((args.envs or Path(name)).resolve(), peer)
                found, versions = beside(peer, python, path, rounds)
                check(NAMES[peer], found, wanted, clients)
                rate = per_s(clients, found[0])
                told = ", ".join(f"{package} {number}" for package, number in versions.items())
                print(f"{NAMES[peer]:16} {rate:15,.0f} {mine / rate:10.1f}× {told}", flush=True)
            except Missing as reason:
                print(f"{NAMES[peer]:16} not compared: {reason}", flush=True)


if __name__ == "__main__":
    main()
