"""The driver's overhead over a bare PyTorch loop that makes the same gradient steps on the demo's model.

Runs start from one warmed-up checkpoint. Each repetition times, in random order: (1) a whole EMS-FL or synchronous run from
its evaluation before training to its last meter reading (protocol, contacts, part swapping between devices, ledger on disk,
checkpoints as in `fedexperts run`); (2) the gradient steps that its ledger books, in a bare loop over the same model object:
same trained parts, data of the same devices, batch size and number of steps, one AdamW for each device and set of parts; (3)
as many on an untouched transformers model, all experts and the gate trained, the peer; (4) the steps of (2) as the least that
federated learning is, in the order of the ledger: what of a device is not there yet is copied into the model, what it trains
out of it, its optimiser goes on from where it was, and where the ledger has an aggregation, changes travel in bfloat16, their
mean is added to the part, and that is hashed; no clock, link, gate, ledger or checkpoint. The bare loop is the floor of all,
(4) that of whoever federates its steps.

Asserted: the section of (1) makes exactly these optimiser steps, the run makes no others, and within it no model is judged or
saved (forward passes without gradient are counted in a run that is not timed, and all runs have the same ledger to the byte);
(2) to (4) make as many steps, and the models of (2) and (3) give the same logits. Prints medians and the spread of the ratios,
and the ratio of the fastest of each, as others on the machine only ever add; target: (1)/(2) at most 1.05.
Usage: python benchmarks/simulator.py [--repeats N] [--toy]
"""

import argparse
import hashlib
import random
import statistics
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import torch
import torch.nn.functional as F
from runs import Line, Section, Times, round_robin_steps, times, toy
from torch.optim.optimizer import register_optimizer_step_post_hook
from transformers import MixtralForSequenceClassification

import fedexperts.runs.run as drive_run
from fedexperts import Scenario, run
from fedexperts.cli.demo import demo_jobs, demo_scenario, on_round_robin, warmed_up
from fedexperts.method.methods import prepare
from fedexperts.moe.parts import GATE, is_expert
from fedexperts.setup.prepare import Prepared
from fedexperts.train.device import Device

NAMES = ("ems-fl", "sync")
Work = Counter[tuple[str, tuple[str, ...]]]
"""Gradient steps of each device, by cluster and trained parts."""


@dataclass(frozen=True)
class Driven:
    """One run of the driver."""

    took: Times
    work: Work
    ledger: bytes
    lines: Sequence[Line]


def drive(scenario: Scenario, steps: int, watched: bool = False) -> Driven:
    """A whole run; only that part is timed, and checked, which the docstring above claims."""
    with tempfile.TemporaryDirectory() as name:
        directory, watch = Path(name) / "run", MixtralForSequenceClassification if watched else None
        with Section("energy", directory, watch) as section:
            run(scenario, directory, listener=section)
        section.check(steps)
        trained = [line for line in section.lines if line["event"] == "train"]
        if watched:  # besides steps, FLOPs are measured: of each cluster for each kind of task, or once where they are alike
            all_of = len(prepare(scenario).view.kept)
            kinds = {
                ("gate" in line["parts"], experts := sum(map(is_expert, line["parts"])), experts < all_of and line["cluster"])
                for line in trained
            }
            measured = section.after["training"] - section.before["training"] - steps
            assert measured == len(kinds), f"{measured} forward passes besides {steps} steps, for {len(kinds)} kinds of tasks"
        if section.took.wall_s > 2 * drive_run.CHECKPOINT_EVERY_S:
            assert any((directory / "checkpoints").iterdir()), f"no checkpoint in {section.took.wall_s:.1f} s"
        work: Work = Counter()
        for line in trained:
            work[line["cluster"], tuple(line["parts"])] += line["rounds"] * scenario.train.local_steps
        return Driven(section.took, work, (directory / "ledger.jsonl").read_bytes(), section.lines)


def ours(prepared: Prepared) -> tuple[Callable, Callable]:
    """The model as a function of tokens, and the tensors that are trained of parts."""
    view = prepared.view
    view.model.train()
    return lambda tokens: view({"input_ids": tokens}), lambda parts: [leaf for _, _, leaf in view.freeze(but=parts)]


def peer(prepared: Prepared) -> tuple[Callable, Callable]:
    """The same of transformers' model, which knows no parts: experts are fused, and all are trained."""
    view, model = prepared.view, MixtralForSequenceClassification.from_pretrained(str(prepared.scenario.model.path))
    some = next(iter(next(iter(prepared.hosts.values())).group.values())).data["input_ids"][:8]
    with torch.no_grad():
        expected, found = view.model.eval()(input_ids=some).logits, model.eval()(input_ids=some).logits
    assert torch.allclose(found, expected, atol=1e-4), f"the models differ by {(found - expected).abs().max():.1e}"
    model.train()
    leaves = []
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".mlp.experts." in name or ".mlp.gate." in name)
        leaves += [parameter] if parameter.requires_grad else []
    tensors = [tensor for part in view.parts if is_expert(part) or part == GATE for tensor in view.parts[part].values()]
    assert sum(t.numel() for t in tensors) == sum(t.numel() for t in leaves), "the peer trains not all experts and the gate"
    return lambda tokens: model(input_ids=tokens).logits, lambda parts: leaves


def loop(scenario: Scenario, work: Work, kind: Callable[[Prepared], tuple[Callable, Callable]]) -> Times:
    """What a plain training loop over the same work takes, device by device."""
    prepared = prepare(scenario)
    model, trained = kind(prepared)
    size, spent, made = scenario.train.batch_size, [], []
    hook = register_optimizer_step_post_hook(lambda *_: made.append(torch.is_grad_enabled()))
    for (cluster, parts), steps in work.items():
        for device in prepared.hosts[cluster].group.values():
            data, leaves = device.data, trained(parts)
            assert set(data) == {"input_ids", "labels"}, f"{device.name}: samples have {set(data)}"
            optimizer = torch.optim.AdamW(leaves, lr=1e-3, weight_decay=0.0)
            chosen = torch.randint(0, device.samples, (steps, size), generator=torch.Generator().manual_seed(0))
            began = times()
            for rows in chosen:
                optimizer.zero_grad(set_to_none=True)
                F.cross_entropy(model(data["input_ids"][rows]), data["labels"][rows]).backward()
                optimizer.step()
            spent.append(times() - began)
    hook.remove()
    steps = round_robin_steps(scenario)
    assert len(made) == steps, f"{len(made)} steps in the bare loop, {steps} in the driver"
    return Times(*map(sum, zip(*spent, strict=True)))


class Plain:
    """Federated learning with nothing around it: what devices have trained, and how their optimisers stand."""

    def __init__(self, prepared: Prepared):
        self.model, self.trained = ours(prepared)
        self.train, self.steps = prepared.scenario.train, 0
        self.groups = {name: host.group.values() for name, host in prepared.hosts.items()}
        self.leaves = prepared.view.leaves
        self.central = {part: copies(self.leaves[part]) for part in self.leaves}
        self.own: dict[str, dict[str, dict[str, torch.Tensor]]] = defaultdict(dict)
        self.moments: dict[str, dict[str, list]] = defaultdict(dict)
        self.resident = dict(self.central)  # what the model holds

    def play(self, line: Line) -> None:
        if line["event"] == "train":
            for device in self.groups[line["cluster"]]:
                self.turn(device, line["parts"], line["rounds"] * self.train.local_steps)
        elif line["event"] == "aggregate":
            self.mean(line["part"], [self.own[device.name].pop(line["part"]) for device in self.groups[line["cluster"]]])

    def turn(self, device: Device, parts: Sequence[str], steps: int) -> None:
        leaves, own, moments = self.trained(frozenset(parts)), self.own[device.name], self.moments[device.name]
        with torch.no_grad():
            for part in self.central:
                if (source := own.get(part, self.central[part])) is not self.resident[part]:
                    self.resident[part] = source
                    for name, value in source.items():
                        self.leaves[part][name].copy_(value)
        optimizer = torch.optim.AdamW(leaves, lr=1e-3, weight_decay=0.0)
        for part in parts:
            optimizer.state.update(zip(self.leaves[part].values(), moments.get(part, ()), strict=False))
        sizes = (steps, self.train.batch_size)
        for rows in torch.randint(0, device.samples, sizes, generator=torch.Generator().manual_seed(0)):
            optimizer.zero_grad(set_to_none=True)
            F.cross_entropy(self.model(device.data["input_ids"][rows]), device.data["labels"][rows]).backward()
            optimizer.step()
            self.steps += 1
        for part in parts:
            own[part] = self.resident[part] = copies(self.leaves[part])
            moments[part] = [optimizer.state[leaf] for leaf in self.leaves[part].values()]

    def mean(self, part: str, all_of: Sequence[dict[str, torch.Tensor]]) -> None:
        mean = {}
        for name, value in self.central[part].items():
            arrived = [value + (one[name] - value).bfloat16().float() for one in all_of]
            mean[name] = sum(arrived[1:], arrived[0]) / len(arrived)
            hashlib.sha256(mean[name].numpy().data).hexdigest()
        self.central[part] = mean


def copies(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def federated(scenario: Scenario, lines: Sequence[Line]) -> Times:
    """What a plain federated loop over the same work takes, in the order of a ledger's lines."""
    assert scenario.model.uplink == "bf16", "the loop sends changes in bfloat16"
    plain, began = Plain(prepare(scenario)), times()
    for line in lines:
        plain.play(line)
    took = times() - began
    assert plain.steps == round_robin_steps(scenario), f"{plain.steps} steps in the federated loop"
    return took


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--toy", action="store_true", help="smallest size, one repetition; the figures mean nothing")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    scenario, repeats = on_round_robin(demo_scenario()), args.repeats
    if args.toy:
        scenario, repeats = toy(scenario), 1
    never = {"every_cycles": scenario.train.cycles + 1}
    jobs = {name: demo_jobs(scenario)[name].changed(evaluation=never) for name in NAMES}
    often = patch.object(drive_run, "CHECKPOINT_EVERY_S", 0.0 if args.toy else drive_run.CHECKPOINT_EVERY_S)
    with tempfile.TemporaryDirectory() as folder, often:
        heads = (
            "driver ms/step",
            "bare loop",
            "transformers",
            "federated",
            "driver/bare",
            "of the fastest",
            "driver/federated",
        )
        print("{:8} {:>6} {:>15} {:>10} {:>13} {:>10} {:>20} {:>15} {:>20} {:>15}".format("run", "steps", *heads, heads[5]))
        for name, job in warmed_up(scenario, jobs, Path(folder)).items():
            steps = round_robin_steps(job)
            first = drive(job, steps, watched=True)  # also warms up
            took: dict[str, list[float]] = {"driver": [], "bare": [], "peer": [], "federated": []}
            for _ in range(repeats):
                for key in random.sample(sorted(took), len(took)):
                    if key == "driver":
                        driven = drive(job, steps)
                        assert driven.ledger == first.ledger, f"{name}: a run with another ledger"
                        took[key].append(driven.took.wall_s)
                    elif key == "federated":
                        took[key].append(federated(job, first.lines).wall_s)
                    else:
                        took[key].append(loop(job, first.work, ours if key == "bare" else peer).wall_s)
            cells = []
            for floor in ("bare", "federated"):
                ratios = sorted(a / b for a, b in zip(took["driver"], took[floor], strict=True))
                cells.append(f"{statistics.median(ratios):.3f} ({ratios[0]:.3f}-{ratios[-1]:.3f})")
                cells.append(f"{min(took['driver']) / min(took[floor]):.3f}")
            ms = [1e3 * statistics.median(took[key]) / steps for key in ("driver", "bare", "peer", "federated")]
            row = "{:8} {:6d} {:15.2f} {:10.2f} {:13.2f} {:10.2f}".format(name, steps, *ms)
            print("{} {:>20} {:>15} {:>20} {:>15}".format(row, *cells), flush=True)


if __name__ == "__main__":
    main()
