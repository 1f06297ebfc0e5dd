"""What the benchmarks of whole runs share: a toy size, a ledger's books added up again, and a watched section of a run."""

import os
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple, Self
from unittest.mock import patch

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from fedexperts import Scenario, run
from fedexperts.ledger import read, summary
from fedexperts.runs.parallel import folder, run_many

Line = dict[str, Any]
TOY_CONFIG = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}


def toy(scenario: Scenario) -> Scenario:
    """The demo at the smallest size at which every line of a ledger still appears; its figures mean nothing."""
    config = {**(scenario.model.config or {}), **TOY_CONFIG, "num_key_value_heads": 1}
    clusters = [{**cluster.model_dump(exclude_none=True), "devices": 1} for cluster in scenario.cluster]
    train = {"cycles": 2, "local_steps": 1, "max_rounds": 2}
    return scenario.changed(model={"config": config}, warmup={"steps": 1}, train=train, cluster=clusters)


def play(jobs: dict[str, Scenario], out: Path, here: bool = False, resume: bool = False) -> dict[str, Line]:
    """`run_many`, and the runs' books checked; ``here``: in this process, where a worker would spend its time on imports."""
    done = {name: _touched(out / folder(name)) for name in jobs if resume and (out / folder(name) / "model").is_dir()}
    if here:
        for name, job in jobs.items():
            at = out / folder(name)
            run(job, at, resume=resume and (at / "scenario.toml").is_file())
    else:
        run_many(jobs, out, resume)
    for name, touched in done.items():
        assert touched == _touched(out / folder(name)), f"{out / folder(name)}: was finished, and was written again"
    found = {name: booked(out / folder(name), job) for name, job in jobs.items()}
    same_start(found, jobs)
    return found


def one_worker(only: bool) -> Any:
    """Within the block `run_many` has one worker, whatever the machine."""
    return patch.object(os, "cpu_count", return_value=1) if only else ExitStack()


def _touched(directory: Path) -> int:
    return (directory / "ledger.jsonl").stat().st_mtime_ns


def round_robin_steps(scenario: Scenario) -> int:
    """A round for each time that fits into a contact; in EMS-FL also while others are met, from a cluster's first contact on.

    In its gate tail enhanced EMS-FL trains nothing out of contact.
    """
    train, clusters = scenario.train, len(scenario.cluster)
    rounds = train.cycles * clusters * round(scenario.plan.slot_s / train.seconds_per_round)
    if scenario.protocol != "sync":
        away = [min(n, train.max_rounds) for n in range(clusters)]  # rounds of the last cycle, by clusters that come after
        tail = train.gate_tail_cycles if scenario.protocol == "ems-fl-enhanced" else 0
        rounds += (train.cycles - max(tail, 1)) * clusters * away[-1] + (0 if tail else sum(away))
    return rounds * scenario.cluster[0].devices * train.local_steps


def booked(directory: Path, job: Scenario) -> Line:
    """The summary of a finished run of ``job``, its figures added up again from the single lines of the ledger.

    The job has no warm-up: that is over, and in no figure. Targets are judged on validation data, what is final on test data.
    """
    assert (directory / "scenario.toml").read_text().endswith(job.to_toml()), f"{directory}: is the run of another scenario"
    assert job.warmup is None, f"{directory}: warms up by itself"
    found, lines = summary(directory / "ledger.jsonl"), list(read(directory / "ledger.jsonl"))
    of = {event: [line for line in lines if line["event"] == event] for event in {line["event"] for line in lines}}
    (begin,), (end,) = of["run"], of["end"]
    assert found["judged_on"] == "validation", f"{directory}: targets were judged on {found['judged_on']} data"
    for line in of["train"]:
        steps = len(begin["clusters"][line["cluster"]]) * line["rounds"] * job.train.local_steps
        assert line["steps"] == steps, f"{directory}: {line} is not {steps} gradient steps"
    steps = sum(line["steps"] for line in of["train"])
    assert steps == end["steps"] == found["steps"], f"{directory}: {steps} steps in its lines, {end['steps']} at its end"
    up_B = sum(line.get("uplink_B", 0) for event in ("collect", "trial") for line in of.get(event, []))
    up_B += sum(line["trial_uplink_B"] for line in of.get("assignment", []))
    assert up_B == end["uplink_B"] == found["uplink_B"], f"{directory}: {up_B} B in its lines, {end['uplink_B']} at its end"
    judged = [line["cycle"] for line in of["evaluate"]]
    every = job.evaluation.every_cycles
    assert judged == list(range(0, end["cycles"] + 1, every)), f"{directory}: evaluated after cycles {judged}"
    last = {**end, **end["validation"], "cycle": end["cycles"] + end["late"]}
    first = next((x for x in [*of["evaluate"], last] if x["accuracy"] >= begin["target"]), None)
    for key in ("cycle", "steps", "uplink_B"):
        to_target = found[f"{key.replace('cycle', 'cycles')}_to_target"]
        assert to_target == (first and first[key]), f"{directory}: {key} to the target is {to_target}, in its lines {first}"
    assert found["final_accuracy"] == end["accuracy"], f"{directory}: its final accuracy is not that of its end"
    return found


def same_start(found: dict[str, Line], jobs: dict[str, Scenario]) -> None:
    """All runs begin with one checkpoint; those with the same data also with one accuracy and loss."""
    assert len({job.model.path for job in jobs.values()}) == 1, "runs start from several checkpoints"
    starts: dict[tuple[str, ...], set[tuple[float, float]]] = {}
    for name, job in jobs.items():
        begin = found[name]["history"][0]
        data = tuple(str(cluster.data) for cluster in job.cluster)
        starts.setdefault(data, set()).add((begin["accuracy"], begin["loss"]))
    assert all(len(values) == 1 for values in starts.values()), f"runs on the same data start from several models: {starts}"


class Times(NamedTuple):
    """Seconds of a clock on the wall, and of this process on its processors, which others on the machine disturb less."""

    wall_s: float
    cpu_s: float

    def __sub__(self, other: "Times") -> "Times":
        return Times(self.wall_s - other.wall_s, self.cpu_s - other.cpu_s)


def times() -> Times:
    return Times(time.perf_counter(), time.process_time())


class Section:
    """A run from its evaluation before training to its last ledger line ``until``, timed; give it to `run` as its listener.

    Within the block all optimiser steps are counted, and with ``watch`` all calls of models of that class; those without
    gradient are no training. Nothing but ledger lines decides where the section begins: warm-up, trial and first evaluation
    are before it, or `check` fails.
    """

    def __init__(self, until: str, directory: Path, watch: type[nn.Module] | None = None):
        self.until, self.directory, self.watch = until, directory, watch
        self.lines: list[Line] = []
        self.began: Times | None = None
        self.ended: Times | None = None
        self.seen: list[Line] = []
        self.made = {"steps": 0, "training": 0, "judging": 0}
        self.before = self.after = dict(self.made)

    def __enter__(self) -> Self:
        self._hooks = [register_optimizer_step_post_hook(self._stepped)]
        if self.watch:
            self._hooks.append(nn.modules.module.register_module_forward_pre_hook(self._called))
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _stepped(self, *_: object) -> None:
        self.made["steps"] += 1

    def _called(self, module: nn.Module, _: object) -> None:
        if self.watch and isinstance(module, self.watch):
            self.made["training" if torch.is_grad_enabled() else "judging"] += 1

    def __call__(self, line: Line) -> None:
        now = times()
        self.seen.append(line)
        if self.began is None and line["event"] == "evaluate":
            self.before, self.seen = dict(self.made), []
            self.began = times()
        elif self.began and line["event"] == self.until:
            self.ended, self.after, self.lines = now, dict(self.made), list(self.seen)
            assert not (self.directory / "model").exists(), f"{self.directory}: saved its model before an end"

    @property
    def took(self) -> Times:
        assert self.began, f"{self.directory}, timed section: has not begun"
        assert self.ended, f"{self.directory}, timed section: has not ended"
        return self.ended - self.began

    def check(self, steps: int) -> None:
        """That the section is so many gradient steps of its ``train`` lines and nothing besides, and the run has no other."""
        what = f"{self.directory}, timed section"
        assert self.took.wall_s > 0, f"{what}: took no time"
        booked = sum(line["steps"] for line in self.lines if line["event"] == "train")
        inside = {key: self.after[key] - self.before[key] for key in self.made}
        assert booked == inside["steps"] == steps, f"{what}: {inside['steps']} steps made, {booked} booked, {steps} expected"
        assert self.made["steps"] == steps, f"{what}: {self.made['steps'] - steps} optimiser steps outside of it"
        others = {line["event"] for line in self.lines} & {"run", "assignment", "baselines", "trial", "evaluate", "end"}
        assert not others, f"{what}: holds {sorted(others)}"
        assert not inside["judging"], f"{what}: {inside['judging']} forward passes without gradient"
