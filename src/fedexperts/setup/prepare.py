"""From a scenario to everything a run needs, with every check that can fail before any work starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ..contact.plan import Contact, ContactPlan, Direction, PlanError
from ..data.objective import Objective
from ..data.source import Samples, Splits, size
from ..drive.classes import DeviceClass
from ..drive.cluster import Pace, check_steps
from ..drive.homes import Homes
from ..errors import InputError, warn_input
from ..moe.lora import LoRA, Ranks
from ..moe.parts import Piece, is_expert
from ..moe.view import View
from ..scenario import Scenario
from ..tables import Warmup
from ..train.cohort import why_not
from ..train.device import Device
from ..train.host import Host, LocalHost, Trial
from ..train.warmup import WarmUp, warm_up
from .clients import client_plan, clients, device_classes
from .devices import Judges, dealt, devices, judges
from .model import check_fit, check_forward, lora_of, model_view
from .named import name_outputs
from .plan import network_plan
from .samples import Datasets, datasets

Counts = Mapping[str, tuple[NDArray[np.int64], int]]
"""Per cluster: counts_LM of a trial pass and its number of tokens."""


@dataclass
class Prepared:
    """A checked scenario with its plan, model, data and devices; the model is not warmed up or adapted yet.

    What is kept by name is kept by link: by cluster, or by client where the protocol treats these one by one. Without
    validation data ``validation`` is the test data. ``homes`` has what is known of parts that stay with their clients. ``held``
    are the training samples that each cluster's devices hold. ``at_home``: nothing travels, so that no link can fail.
    """

    scenario: Scenario
    plan: ContactPlan
    view: View
    model: dict[str, Piece]
    hosts: dict[str, Host]
    tests: Judges
    validation: Judges
    data: Datasets
    kinds: dict[str, DeviceClass]
    objectives: dict[str, Objective]
    held: dict[str, int]
    by_client: bool = False
    homes: Homes = field(default_factory=Homes)
    at_home: bool = False

    @property
    def lora(self) -> LoRA | None:
        """How experts are adapted."""
        return lora_of(self.scenario.model)

    @cached_property
    def fitted(self) -> Ranks:
        """What of a piece the devices of a link take: classes may have adapters of a rank of their own."""
        return Ranks({name: kind.lora_rank for name, kind in self.kinds.items() if kind.lora_rank is not None})

    def begin(self) -> None:
        """Train the model on the shared set and attach the adapters; the result is θ_0, version 0 everywhere."""
        table, seed = self.scenario.warmup, self.scenario.seed
        if table is not None:
            warm_up(self.view, self.data.shared, self._recipe(table), seed)
        if self.lora is not None:
            self.view.adapt(self.lora, seed)
        if table is None and self.lora is None:
            return
        self.model = self.homes.model = {part: Piece(part, 0, self.view.export(part)) for part in self.view.parts}
        for name, host in self.hosts.items():
            host.begin(self.model_of(name))

    def model_of(self, link: str) -> dict[str, Piece]:
        """The model as the devices of a link begin with it."""
        return {part: self.fitted(link, piece) for part, piece in self.model.items()}

    def used(self) -> dict[str, list[int]]:
        """Of each cluster the training samples that its devices hold, and all that it has; a partition may leave some over."""
        there = {name: size(splits.train) for name, splits in self.data.splits.items()}
        return {name: [held, there[name]] for name, held in self.held.items()}

    def _recipe(self, table: Warmup) -> WarmUp:
        names = (table.steps, table.batch_size, table.lr, table.weight_decay, table.token_dropout, table.gate_fit)
        chosen = [part for part in self.view.parts if ("experts" if is_expert(part) else part) in table.parts]
        return WarmUp(*names, parts=tuple(chosen))

    def trials(self) -> dict[str, list[Trial]]:
        """Trial pass of every cluster before the run (27), by device."""
        samples = self.scenario.assignment.trial_samples
        return {name: host.trial(samples) for name, host in self.hosts.items()}


def counted(trials: Mapping[str, Sequence[Trial]]) -> Counts:
    """Counts of trial passes, summed over the devices of each cluster."""
    return {
        cluster: (np.sum([one.counts_LM for one in rows], axis=0), sum(one.tokens for one in rows))
        for cluster, rows in trials.items()
    }


def trial_B(scenario: Scenario, trial: Trial) -> int:
    """What a device uploads of a trial pass: counts, or, as the paper may mean, the trial samples themselves."""
    return trial.counts_LM.nbytes if scenario.assignment.trial == "device" else trial.samples_B


def prepare(scenario: Scenario, by_client: bool = False, even: bool = False, only: str | None = None) -> Prepared:
    """Load and check everything; nothing is trained and nothing is written.

    Args:
        scenario: what is to be prepared.
        by_client: whether each device has a link of its own.
        even: whether models are also judged by even shares of all data.
        only: a cluster whose devices alone are wanted, where others' data are not, see `samples.datasets`; nothing is judged.

    Raises:
        InputError: with the field, the value, the bound and the remedy.
    """
    if by_client and scenario.assignment.granularity == "layer":
        raise InputError('assignment.granularity = "layer": is for EMS-FL; clients are assigned whole experts, use "global"')
    classes, plan, data = device_classes(scenario), contact_plan(scenario), datasets(scenario, only)
    view = model_view(scenario, data.outputs)
    name_outputs(view.model.config, scenario, data)
    if scenario.train.cohort == "batched" and (why := why_not(view)):
        raise InputError(f'train.cohort = "batched": {why}; leave it out, or set it to "one-by-one"')
    _check_data(view, data)
    _check_time(scenario, plan, classes)
    model = {part: Piece(part, 0, view.export(part)) for part in view.parts}
    wanted = [cluster for cluster in scenario.cluster if cluster.name in data.splits and only in (None, cluster.name)]
    shares = {cluster.name: dealt(cluster, data.splits[cluster.name].train, scenario.seed) for cluster in wanted}
    held = {name: sum(map(size, group)) for name, group in shares.items()}
    groups = devices(scenario, view, model, data.objectives, shares)
    plan, hosts, kinds, objectives = _links(scenario, plan, groups, classes, data, by_client)

    def judged(held: dict[str, Samples], what: str) -> Judges:
        return judges(scenario, held, shares, list(hosts), even, what) if by_client else Judges(held, {})

    tests = validation = Judges({}, {})
    if only is None:
        tests = validation = judged({name: test_of(splits) for name, splits in data.splits.items()}, "test")
    if only is None and any(splits.validation is not None for splits in data.splits.values()):
        validation = judged({name: validation_of(splits) for name, splits in data.splits.items()}, "validation")
    homes = Homes(model)
    prepared = Prepared(scenario, plan, view, model, hosts, tests, validation, data, kinds, objectives, held, by_client, homes)
    if prepared.lora:
        view.check(prepared.lora)
    return prepared


Links = tuple[ContactPlan, dict[str, Host], dict[str, DeviceClass], dict[str, Objective]]
"""The plan as the links see it, and by link the devices behind it, their class and what they are trained for."""


def _links(
    scenario: Scenario,
    plan: ContactPlan,
    groups: Mapping[str, list[Device]],
    classes: Mapping[str, DeviceClass],
    data: Datasets,
    by_client: bool,
) -> Links:
    """Clusters are links, or each device has one of its own."""
    if not by_client:
        kinds = {cluster.name: classes[str(cluster.device)] for cluster in scenario.cluster if cluster.name in groups}
        return plan, {name: LocalHost(group) for name, group in groups.items()}, kinds, data.objectives
    names = [cluster.name for cluster in scenario.cluster]
    everybody = clients(scenario, classes)
    group = [client for client in everybody if names[client.at] in groups]
    every = [device for name in names if name in groups for device in groups[name]]
    hosts: dict[str, Host] = {client.name: LocalHost([device]) for client, device in zip(group, every, strict=True)}
    kinds = {client.name: client.kind for client in group}
    objectives = {one.name: data.objectives[names[one.at]] for one in group}
    return client_plan(plan, everybody, scenario), hosts, kinds, objectives


def _check_data(view: View, data: Datasets) -> None:
    """Raises: InputError, where the model does not fit the data."""
    for name, splits in data.splits.items():
        check_fit(view, f"cluster {name!r}", splits.train, data.objectives[name])
        if splits.test is not None:
            check_fit(view, f"test data of cluster {name!r}", splits.test, data.objectives[name])
            check_fit(view, f"validation data of cluster {name!r}", validation_of(splits), data.objectives[name])
    for i, (samples, objective) in enumerate(data.shared):
        check_fit(view, f"warmup.data[{i}]", samples, objective)
    name, splits = next(iter(data.splits.items()))
    check_forward(view, splits.train, data.objectives[name])


def contact_plan(scenario: Scenario) -> ContactPlan:
    """The scenario's contact plan, long enough for the cycles asked for and a final flush; every cluster must be in it."""
    plan = network_plan(scenario, scenario.train.cycles + 1)
    if missing := [cluster.name for cluster in scenario.cluster if not plan.by_cluster[cluster.name]]:
        table, lost = scenario.plan, ", ".join(missing)
        if table.kind == "file":
            raise PlanError(
                f"plan.path = {table.path!r}: no contact for cluster {lost}; add one to the file, or drop the cluster"
            )
        raise PlanError(
            f"the {table.days:g} days of the orbital plan: no contact for cluster {lost}; use a lower min_elevation_deg, "
            "another inclination_deg or more days, or drop the cluster"
        )
    ways: tuple[Direction, ...] = ("up", "down")
    for way in ways:
        if silent := [name for name in plan.reachable if not any(_carries(c, way) for c in plan.by_cluster[name])]:
            raise PlanError(
                f"plan.path = {scenario.plan.path!r}: no contact of cluster {', '.join(silent)} carries anything {way}; give "
                f'{way}link_bps, or "unlimited"'
            )
    for note in plan.notes:
        warn_input(note)
    return plan


def _carries(contact: Contact, way: Direction) -> bool:
    return any((piece.uplink_bps if way == "up" else piece.downlink_bps) > 0 for piece in contact.rates or (contact,))


def test_of(splits: Splits) -> Samples:
    """Test data, which a scenario's data always have."""
    assert splits.test is not None  # filled by _splits
    return splits.test


def validation_of(splits: Splits) -> Samples:
    """Validation data, or where there are none the test data."""
    return test_of(splits) if splits.validation is None else splits.validation


def _check_time(scenario: Scenario, plan: ContactPlan, classes: Mapping[str, DeviceClass]) -> None:
    """Rounds must fit the slots, and come to an end."""
    table, train = scenario.plan, scenario.train
    if train.seconds_per_round == "device":
        if slow := [name for name, kind in classes.items() if not np.isfinite(kind.flops_per_s)]:
            raise InputError(
                f'train.seconds_per_round = "device": the speed of {", ".join(slow)} is not known; give '
                f"[device.{slow[0]}] flops_per_s"
            )
    elif table.kind in ("round-robin", "always-on") and train.seconds_per_round > table.slot_s:
        raise InputError(
            f"train.seconds_per_round = {train.seconds_per_round:g}: no local round fits a slot of plan.slot_s = "
            f"{table.slot_s:g}; make the slots longer or the devices faster"
        )
    if train.seconds_per_round != "device":
        a_round = train.local_steps * sum(cluster.devices for cluster in scenario.cluster)
        cycles = min(train.cycles, len(plan.cycle_ends_s))
        check_steps(Pace(train.seconds_per_round, train.max_rounds), plan, cycles, a_round)
