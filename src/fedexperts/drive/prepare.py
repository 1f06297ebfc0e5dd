"""From a scenario to everything a run needs, with every check that can fail before any work starts."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from ..contact.plan import Contact, ContactPlan, Direction, PlanError
from ..data.classify import Classification
from ..data.images import shape_text
from ..data.objective import Objective
from ..data.partition import TestPartition, deal, deal_test
from ..data.source import Samples, Splits, first
from ..errors import InputError, InputWarning
from ..moe.checkpoint import resolve
from ..moe.load import Kind, load_classifier, load_image_classifier, load_language_model, new_model
from ..moe.lora import LoRA
from ..moe.meta import meta_view, read_config
from ..moe.parts import GATE, Piece, is_expert
from ..moe.view import View
from ..scenario import Network, Scenario, Tasks
from ..tables import Cluster, Model, Task, Warmup
from ..train.codec import payload_B
from ..train.device import Device, LocalTraining
from ..train.host import Host, LocalHost, Trial
from ..train.warmup import WarmUp, warm_up
from .classes import DeviceClass, device_class
from .clients import client_plan, clients
from .network import connect
from .orbit import network_plan
from .samples import Datasets, datasets
from .split import Counts


@dataclass(frozen=True)
class Judges:
    """What models are judged by: the ``own`` data of each link; for a Networked MoE also ``even`` shares, like nobody's own."""

    own: dict[str, Samples]
    even: dict[str, Samples]


@dataclass
class Prepared:
    """A checked scenario with its plan, model, data and devices; the model is not warmed up or adapted yet.

    What is kept by name is kept by link: by cluster, or by client where the protocol treats these one by one. Without
    validation data ``validation`` is the test data. ``owners`` answer for experts that never go to the server.
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
    owners: dict[str, Host]

    @property
    def lora(self) -> LoRA | None:
        """How experts are adapted."""
        return _lora(self.scenario.model)

    def begin(self) -> None:
        """Train the model on the shared set and attach the adapters; the result is θ_0, version 0 everywhere."""
        table, seed = self.scenario.warmup, self.scenario.seed
        if table is not None:
            warm_up(self.view, self.data.shared, self._recipe(table), seed)
        if self.lora is not None:
            self.view.adapt(self.lora, seed)
        if table is None and self.lora is None:
            return
        self.model = {part: Piece(part, 0, self.view.export(part)) for part in self.view.parts}
        for host in self.hosts.values():
            host.begin(self.model)

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


def prepare(scenario: Scenario) -> Prepared:
    """Load and check everything; nothing is trained and nothing is written.

    Raises:
        InputError: with the field, the value, the bound and the remedy.
    """
    names = [cluster.name for cluster in scenario.cluster]
    classes = device_classes(scenario)
    plan = contact_plan(scenario)
    data = datasets(scenario)
    view = _view(scenario, data.outputs)
    for name in names:
        check_fit(view, f"cluster {name!r}", data.splits[name].train, data.objectives[name])
        check_fit(view, f"test data of cluster {name!r}", _test(data.splits[name]), data.objectives[name])
        check_fit(view, f"validation data of cluster {name!r}", _validation(data.splits[name]), data.objectives[name])
    for i, (samples, objective) in enumerate(data.shared):
        check_fit(view, f"warmup.data[{i}]", samples, objective)
    check_forward(view, data.splits[names[0]].train, data.objectives[names[0]])
    _check_time(scenario, plan, classes)
    if scenario.by_client and scenario.assignment.granularity == "layer":
        raise InputError('assignment.granularity = "layer": is for EMS-FL; clients are assigned whole experts, use "global"')
    model = {part: Piece(part, 0, view.export(part)) for part in view.parts}
    local = _local_training(scenario)
    shares = {cluster.name: _deal(cluster, data.splits[cluster.name].train, scenario.seed) for cluster in scenario.cluster}
    devices = {
        cluster.name: [
            Device(
                f"{cluster.name}/{j}",
                view,
                samples,
                model,
                local,
                scenario.seed,
                data.objectives[cluster.name],
                scenario.model.uplink,
            )
            for j, samples in enumerate(shares[cluster.name])
        ]
        for cluster in scenario.cluster
    }
    objectives = data.objectives
    if scenario.by_client:
        group = clients(scenario, classes)
        plan, kinds = client_plan(plan, group, scenario), {client.name: client.kind for client in group}
        every = [device for name in names for device in devices[name]]
        devices = {client.name: [device] for client, device in zip(group, every, strict=True)}
        objectives = {client.name: objectives[names[client.at]] for client in group}
    else:
        kinds = {cluster.name: classes[str(cluster.device)] for cluster in scenario.cluster}
    hosts: dict[str, Host] = {name: LocalHost(group) for name, group in devices.items()}
    owners = connect(scenario, view, devices, hosts) if scenario.protocol == "networked" else {}
    tests = _judges(scenario, {name: _test(data.splits[name]) for name in names}, shares, list(devices), "test")
    validation = tests
    if any(splits.validation is not None for splits in data.splits.values()):
        held = {name: _validation(data.splits[name]) for name in names}
        validation = _judges(scenario, held, shares, list(devices), "validation")
    prepared = Prepared(scenario, plan, view, model, hosts, tests, validation, data, kinds, objectives, owners)
    if prepared.lora:
        view.check(prepared.lora)
    return prepared


def _deal(cluster: Cluster, samples: Samples, seed: int) -> list[Samples]:
    return deal(
        samples,
        cluster.devices,
        cluster.partition,
        seed,
        cluster.name,
        classes_per_device=cluster.classes_per_device or 1,
        tau=cluster.tau or 1.0,
        tau_mode=cluster.tau_mode,
        dirichlet_alpha=cluster.dirichlet_alpha or 1.0,
    )


def _judges(
    scenario: Scenario, held: dict[str, Samples], shares: Mapping[str, list[Samples]], links: list[str], what: str
) -> Judges:
    """Data of clusters as those of their links: dealt to clients like their training data or evenly, or as they are."""
    if not scenario.by_client:
        return Judges(held, {})

    def dealt(how: Callable[[Cluster], TestPartition]) -> dict[str, Samples]:
        pools = [deal_test(held[c.name], shares[c.name], how(c), scenario.seed, c.name, what) for c in scenario.cluster]
        return dict(zip(links, [samples for pool in pools for samples in pool], strict=True))

    def own(cluster: Cluster) -> TestPartition:
        scores = held[cluster.name]["labels"].is_floating_point()  # which have no classes
        return "iid" if scores else cluster.test_partition

    return Judges(dealt(own), dealt(lambda cluster: "iid") if scenario.protocol == "networked" else {})


def device_classes(scenario: Scenario) -> dict[str, DeviceClass]:
    """The classes of devices that a scenario names, built-in or its own.

    Raises:
        InputError: a cluster or a ``[device.<class>]`` table names an unknown class.
    """
    used = [name for c in scenario.cluster for name in ([c.device] if isinstance(c.device, str) else c.device)]
    tables = {name: table.model_dump(exclude_none=True) for name, table in scenario.device.items()}
    return {name: device_class(name, **tables.get(name, {})) for name in dict.fromkeys([*used, *scenario.device])}


def contact_plan(scenario: Scenario) -> ContactPlan:
    """The scenario's contact plan, long enough for the cycles asked for and a final flush; every cluster must be in it."""
    plan = network_plan(scenario, scenario.train.cycles + 1)
    if missing := [cluster.name for cluster in scenario.cluster if cluster.name not in plan.reachable]:
        table = scenario.plan
        where = f"plan.path = {table.path!r}" if table.kind == "file" else f"the {table.days:g} days of the orbital plan"
        raise PlanError(
            f"{where}: no contact for cluster {', '.join(missing)}; add one, use a lower min_elevation_deg, another "
            "inclination_deg or more days, or drop the cluster"
        )
    ways: tuple[Direction, ...] = ("up", "down")
    for way in ways:
        if silent := [name for name in plan.reachable if not any(_carries(c, way) for c in plan.contacts if c.cluster == name)]:
            raise PlanError(
                f"plan.path = {scenario.plan.path!r}: no contact of cluster {', '.join(silent)} carries anything {way}; give "
                f'{way}link_bps, or "unlimited"'
            )
    for note in plan.notes:
        warnings.warn(note, InputWarning, stacklevel=2)
    return plan


def _carries(contact: Contact, way: Direction) -> bool:
    return any((piece.uplink_bps if way == "up" else piece.downlink_bps) > 0 for piece in contact.rates or (contact,))


def upload_B(model: Model, network: Network) -> int:
    """Bytes that a device uploads in a contact of EMS-FL: its share of the experts and the gate; from the config alone.

    Of a model on the hub nothing but the config is fetched.
    """
    path = model.path or ""
    document = model.config or read_config(str(network.file(path)) if network.file(path).exists() else path)
    view = meta_view({**document, "dtype": model.precision})
    if lora := _lora(model):
        view.adapt(lora, network.seed)
    size_B = {part: payload_B(leaves, model.uplink) for part, leaves in view.leaves.items()}
    experts = [size_B[part] for part in filter(is_expert, size_B)]
    return math.ceil(len(experts) / len(network.cluster)) * max(experts) + size_B[GATE]


def _test(splits: Splits) -> Samples:
    assert splits.test is not None  # filled by _splits
    return splits.test


def _validation(splits: Splits) -> Samples:
    return _test(splits) if splits.validation is None else splits.validation


def _lora(table: Model) -> LoRA | None:
    return LoRA(table.lora.rank, table.lora.alpha, table.lora.average) if table.lora else None


def load_model(scenario: Tasks, outputs: int | None) -> nn.Module:
    """The scenario's model, where it is computed; ``outputs`` is what the data need of a classifier's head.

    Raises:
        InputError: there is no such model or accelerator.
    """
    table, seed, kind = scenario.model, scenario.seed, _kind(scenario.task)
    dtype = getattr(torch, table.precision)
    if table.accelerator == "cuda" and not torch.cuda.is_available():
        raise InputError("model.accelerator = 'cuda': no GPU that torch can use is here; use \"cpu\" or install torch for CUDA")
    if table.path is None:
        return new_model(table.config or {}, seed, dtype, kind, outputs).to(table.accelerator)
    path = resolve(table.path, scenario.base)
    if kind == "language-model":
        return load_language_model(path, dtype).to(table.accelerator)
    load = load_classifier if kind == "classifier" else load_image_classifier
    return load(path, dtype, seed, outputs).to(table.accelerator)


def _kind(task: Task) -> Kind:
    kinds: dict[str, Kind] = {"classification": "classifier", "image": "image-classifier"}
    return kinds.get(task.kind, "language-model")


def _view(scenario: Scenario, outputs: int | None) -> View:
    table = scenario.model
    view = View(load_model(scenario, outputs), table.top1, table.mask, table.noise_std, scenario.assignment.granularity)
    if unknown := scenario.train.shared - set(view.parts):
        raise InputError(f"train.shared = {sorted(unknown)}: the model has no such part; it has {sorted(view.parts)}")
    if scenario.warmup and scenario.warmup.gate_fit > 0 and len(scenario.warmup.data) > view.experts:
        raise InputError(
            f"warmup.data has {len(scenario.warmup.data)} domains but the model only {view.experts} experts; "
            "gate_fit needs at least one expert for each domain"
        )
    return view


def check_fit(view: View, what: str, samples: Samples, objective: Objective) -> None:
    """Whether the model has an output for every label, and an input for every image, token and position.

    Raises:
        InputError: with ``what``, the value and the remedy.
    """
    config: Any = view.model.config
    if isinstance(objective, Classification) and not samples["labels"].is_floating_point():
        outputs = min(objective.labels, config.num_labels - objective.first)
        if wrong := [int(label) for label in torch.unique(samples["labels"]) if not 0 <= int(label) < outputs]:
            raise InputError(
                f"{what}: label {wrong[0]} is outside 0…{outputs - 1}, the model's head; set num_labels or correct the labels"
            )
    if "pixel_values" in samples:
        _check_images(config, what, samples["pixel_values"].shape[1:])
        return
    sequences = [samples[name] for name in ("input_ids", "question", "option") if name in samples]
    length = _longest(samples)
    most = getattr(config, "max_position_embeddings", length)
    if length > most:
        raise InputError(
            f"{what}: up to {length} tokens, but the model has seen at most {most} (max_position_embeddings); "
            f"lower task.max_length to {most} or shorten the data"
        )
    for tokens in sequences:
        if wrong := [int(token) for token in torch.unique(tokens) if not 0 <= int(token) < config.vocab_size]:
            raise InputError(
                f"{what}: token {wrong[0]} is outside the model's vocabulary of {config.vocab_size}; "
                "use the model's own tokenizer or a model with a larger vocab_size"
            )


def _check_images(config: Any, what: str, shape_CHW: torch.Size) -> None:
    wanted = (config.in_channels, config.image_size, config.image_size)
    if tuple(shape_CHW) != wanted:
        raise InputError(
            f"{what}: images of {shape_text(shape_CHW)}, but the model takes {shape_text(wanted)}; "
            "set in_channels and image_size of model.config, or use images of that size"
        )


def _longest(samples: Samples) -> int:
    """Tokens of the longest sequence; a question and one of its options are read as one."""
    if "question" in samples:
        return int((samples["question_mask"].sum(dim=-1) + samples["option_mask"].sum(dim=-1).amax(dim=-1)).max())
    return samples["input_ids"].shape[1]


def check_forward(view: View, samples: Samples, objective: Objective) -> None:
    """Two samples through the model: what a config gets wrong shows here and not after work has begun."""
    try:
        with torch.no_grad():
            objective.loss(view, {key: value.to(view.device) for key, value in first(samples, 2).items()})
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        raise InputError(f"model: cannot run two samples ({error}); correct model.config or the checkpoint") from error


def _check_time(scenario: Scenario, plan: ContactPlan, classes: Mapping[str, DeviceClass]) -> None:
    """Rounds must fit the slots, and the plan must leave enhanced EMS-FL cycles before its gate tail."""
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
    cycles = min(train.cycles, len(plan.cycle_ends_s))
    if scenario.protocol == "ems-fl-enhanced" and train.gate_tail_cycles >= cycles:
        raise InputError(
            f"train.gate_tail_cycles = {train.gate_tail_cycles}: the plan has only {cycles} orbital cycles, so no expert would "
            "be trained; make the plan longer or the tail shorter"
        )


def _local_training(scenario: Scenario) -> LocalTraining:
    table = scenario.train
    return LocalTraining(
        local_steps=table.local_steps,
        batch_size=None if table.batch_size == "full" else table.batch_size,
        optimizer=table.optimizer,
        lr_expert=table.lr_expert,
        lr_gate=table.lr_gate,
        weight_decay=table.weight_decay,
        bucketing=table.bucketing,
        cache_B=int(table.cache_MB * 1e6) // sum(cluster.devices for cluster in scenario.cluster),
    )
