"""The driver's overhead over a bare PyTorch loop that makes the same gradient steps on the demo's model.

Each repetition times, in random order: (1) a whole EMS-FL and a whole synchronous run (protocol, contacts, part swapping
between devices, ledger on disk, checkpoints as in `fedexperts run`, no evaluation); (2) a bare loop over
the same model object, same trainable tensors, same batch size and number of steps, one AdamW; (3) the same bare loop on an
untouched transformers model, the peer. The bare loop is the floor: nobody does the steps without doing them.
Prints medians and the spread of the ratios; target: (1)/(2) at most 1.05. Usage: python benchmarks/simulator.py [--repeats N]
"""

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F

import fedexperts.drive.run as drive_run
from fedexperts.cli.demo import demo_jobs, demo_scenario, on_round_robin
from fedexperts.drive.prepare import Prepared, prepare
from fedexperts.drive.run import PROTOCOLS
from fedexperts.moe.load import new_model
from fedexperts.moe.parts import is_expert
from fedexperts.scenario import Scenario

CYCLES = 12  # the whole demo on the round robin


def driver_s(scenario: Scenario, folder: Path) -> tuple[float, int]:
    """Seconds of the simulated part of a run, and its gradient steps."""
    prepared = prepare(scenario)
    owned = {name: frozenset({f"expert:{2 * i}", f"expert:{2 * i + 1}"}) for i, name in enumerate(prepared.devices)}
    run = drive_run._Run(prepared, PROTOCOLS[scenario.protocol], scenario.protocol, folder, None)
    run._begin = lambda: owned  # no warm-up and no trial: they are not the driver's
    run._evaluate = lambda model, cycle: {}
    run._save_model = lambda model: None
    began_s = time.perf_counter()
    run.play()
    return time.perf_counter() - began_s, run.simulator.totals["steps"]


def bare_s(model: Callable, leaves: list[torch.Tensor], prepared: Prepared, steps: int) -> float:
    """Seconds of a plain training loop."""
    data = next(iter(prepared.devices.values()))[0].data
    size = prepared.scenario.train.batch_size
    optimizer = torch.optim.AdamW(leaves, lr=1e-3, weight_decay=0.0)
    chosen = torch.randint(0, len(data["labels"]), (steps, size), generator=torch.Generator().manual_seed(0))
    began_s = time.perf_counter()
    for rows in chosen:
        optimizer.zero_grad(set_to_none=True)
        logits = model(data["input_ids"][rows])
        F.cross_entropy(logits, data["labels"][rows]).backward()
        optimizer.step()
    return time.perf_counter() - began_s


def view_loop_s(scenario: Scenario, steps: int, parts: set[str]) -> float:
    """EMS-FL trains the gate beside the experts in one round of C, so the bare loop does the same share of steps with it."""
    prepared = prepare(scenario)
    prepared.view.model.train()
    joint = steps if scenario.protocol == "sync" else steps // len(scenario.cluster)
    total_s = 0.0
    for trained, n in ((parts | {"gate"}, joint), (parts, steps - joint)):
        if n:
            leaves = [leaf for _, _, leaf in prepared.view.freeze(but=trained)]
            total_s += bare_s(lambda tokens: prepared.view({"input_ids": tokens}), leaves, prepared, n)
    return total_s


def plain_loop_s(scenario: Scenario, steps: int) -> float:
    prepared = prepare(scenario)
    model = new_model(scenario.model.config, scenario.seed).train()
    leaves = []
    for name, parameter in model.named_parameters():
        trained = ".mlp.experts." in name or ".mlp.gate." in name
        parameter.requires_grad_(trained)
        leaves += [parameter] if trained else []
    return bare_s(lambda tokens: model(input_ids=tokens).logits, leaves, prepared, steps)


def measure_s(key: str, scenario: Scenario, steps: int, parts: set[str]) -> float:
    if key == "driver":
        with tempfile.TemporaryDirectory() as folder:
            return driver_s(scenario, Path(folder))[0]
    return view_loop_s(scenario, steps, parts) if key == "bare" else plain_loop_s(scenario, steps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    jobs = {
        name: demo_jobs(on_round_robin(demo_scenario()))[name].changed(train={"cycles": CYCLES}) for name in ("ems-fl", "sync")
    }
    everything = {part for part in prepare(jobs["sync"]).view.parts if is_expert(part)} | {"gate"}
    parts = {"ems-fl": {"expert:0", "expert:1"}, "sync": everything}
    print(f"{'run':8} {'steps':>6} {'driver ms/step':>15} {'bare loop':>10} {'transformers':>13} {'driver/bare':>24}")
    for name, scenario in jobs.items():
        with tempfile.TemporaryDirectory() as folder:
            _, steps = driver_s(scenario, Path(folder))  # also warms up
        times: dict[str, list[float]] = {"driver": [], "bare": [], "plain": []}
        for _ in range(repeats):
            for key in random.sample(sorted(times), 3):
                times[key].append(measure_s(key, scenario, steps, parts[name]) / steps * 1e3)
        ratios = sorted(a / b for a, b in zip(times["driver"], times["bare"], strict=True))
        ms = {key: statistics.median(values) for key, values in times.items()}
        ratio = f"{statistics.median(ratios):.3f} ({ratios[0]:.3f}-{ratios[-1]:.3f})"
        print(f"{name:8} {steps:6d} {ms['driver']:15.2f} {ms['bare']:10.2f} {ms['plain']:13.2f} {ratio:>24}")


if __name__ == "__main__":
    main()
