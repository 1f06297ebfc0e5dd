"""The driver's overhead over a bare PyTorch loop that makes the same gradient steps on the demo's model.

Runs start from one warmed-up checkpoint. Each repetition times, in random order: (1) a whole EMS-FL or synchronous run from its
evaluation before training to its last meter reading (protocol, contacts, part swapping between devices, ledger on disk,
checkpoints as in `fedexperts run`); (2) the gradient steps that its ledger books, in a bare loop over the same model object:
same trained parts, data of the same devices, batch size and number of steps, one AdamW for each device and set of parts; (3) as
many on an untouched transformers model, all experts and the gate trained, the peer. The bare loop is the floor: nobody does the
steps without doing them.

Asserted: the section of (1) makes exactly these optimiser steps, the run makes no others, and within it no model is judged or
saved (forward passes without gradient are counted in a run that is not timed, and all runs have the same ledger to the byte);
(2) and (3) make as many steps, and their models give the same logits. Prints medians and the spread of the ratios, by the clock
on the wall and by that of the processor, which others on the machine disturb less; target: (1)/(2) at most 1.05.
Usage: python benchmarks/simulator.py [--repeats N] [--toy]
"""

import argparse
import random
import statistics
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import torch
import torch.nn.functional as F
from runs import Section, Times, round_robin_steps, times, toy
from torch.optim.optimizer import register_optimizer_step_post_hook
from transformers import MixtralForSequenceClassification

import fedexperts.runs.run as drive_run
from fedexperts import Scenario, run
from fedexperts.cli.demo import demo_jobs, demo_scenario, on_round_robin, warmed_up
from fedexperts.method.methods import prepare
from fedexperts.moe.parts import GATE, is_expert
from fedexperts.setup.prepare import Prepared

NAMES = ("ems-fl", "sync")
Work = Counter[tuple[str, tuple[str, ...]]]
"""Gradient steps of each device, by cluster and trained parts."""


@dataclass(frozen=True)
class Driven:
    """One run of the driver."""

    took: Times
    work: Work
    ledger: bytes


def drive(scenario: Scenario, steps: int, watched: bool = False) -> Driven:
    """A whole run; only that part is timed, and checked, which the docstring above claims."""
    with tempfile.TemporaryDirectory() as name:
        directory, watch = Path(name) / "run", MixtralForSequenceClassification if watched else None
        with Section("energy", directory, watch) as section:
            run(scenario, directory, listener=section)
        section.check(steps)
        trained = [line for line in section.lines if line["event"] == "train"]
        if watched:  # besides steps, FLOPs are measured: of each cluster for each kind of task
            kinds = {(line["cluster"], "gate" in line["parts"], len(line["parts"])) for line in trained}
            measured = section.after["training"] - section.before["training"] - steps
            assert measured == len(kinds), f"{measured} forward passes besides {steps} steps, for {len(kinds)} kinds of tasks"
        if section.took.wall_s > 2 * drive_run.CHECKPOINT_EVERY_S:
            assert any((directory / "checkpoints").iterdir()), f"no checkpoint in {section.took.wall_s:.1f} s"
        work: Work = Counter()
        for line in trained:
            work[line["cluster"], tuple(line["parts"])] += line["rounds"] * scenario.train.local_steps
        return Driven(section.took, work, (directory / "ledger.jsonl").read_bytes())


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
        heads = ("driver ms/step", "bare loop", "transformers", "driver/bare", "driver/bare, CPU")
        print(f"{'run':8} {'steps':>6} {heads[0]:>15} {heads[1]:>10} {heads[2]:>13} {heads[3]:>22} {heads[4]:>22}")
        for name, job in warmed_up(scenario, jobs, Path(folder)).items():
            steps = round_robin_steps(job)
            first = drive(job, steps, watched=True)  # also warms up
            took: dict[str, list[Times]] = {"driver": [], "bare": [], "peer": []}
            for _ in range(repeats):
                for key in random.sample(sorted(took), 3):
                    if key == "driver":
                        driven = drive(job, steps)
                        assert driven.ledger == first.ledger, f"{name}: a run with another ledger"
                        took[key].append(driven.took)
                    else:
                        took[key].append(loop(job, first.work, ours if key == "bare" else peer))
            cells = []
            for pick in ("wall_s", "cpu_s"):
                ratios = sorted(getattr(a, pick) / getattr(b, pick) for a, b in zip(took["driver"], took["bare"], strict=True))
                cells.append(f"{statistics.median(ratios):.3f} ({ratios[0]:.3f}-{ratios[-1]:.3f})")
            ms = {key: 1e3 * statistics.median(one.wall_s for one in all_of) / steps for key, all_of in took.items()}
            row = f"{name:8} {steps:6d} {ms['driver']:15.2f} {ms['bare']:10.2f} {ms['peer']:13.2f}"
            print(f"{row} {cells[0]:>22} {cells[1]:>22}", flush=True)


if __name__ == "__main__":
    main()
