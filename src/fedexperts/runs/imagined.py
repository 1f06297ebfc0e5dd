"""A scenario's model and devices as a plan imagines them: sizes from the config alone, no numbers, no data, no torch.

Experts are dealt to clusters in turn, devices have samples alike, and every cluster is met: what only data tell is assumed.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from ..assign.scores import Need, experts_that_fit
from ..contact.plan import ContactPlan
from ..drive.classes import DeviceClass
from ..errors import InputError
from ..method import told
from ..moe.document import HUB_NAME
from ..moe.kinds import FOR_TASK
from ..moe.outline import Outline, Shapes, count
from ..moe.parts import BACKBONE, CORRELATION, GATE, STATISTICS, Piece, expert, is_expert, shapes_B
from ..moe.size import ADAMW_B, FLOAT32_B, PRECISION_B, Held, Phase, Training, Work, activations_B, step_flops
from ..moe.sized import described, named
from ..protocol.aligned import Aligned, Alignment, Client
from ..protocol.ems_fl import EmsFl, EnhancedEmsFl
from ..protocol.link import ServerProtocol
from ..protocol.networked import Networked
from ..scenario import Prospect
from ..setup.clients import capacity_over
from ..tables import Model, Train
from ..tables.protocols import AT_HOME, BY_CLIENT
from ..train.dry import Blank
from ..train.task import Task
from ..train.wire import Typed, wire_B

LENGTHS = ("extractor_cycles", "expert_cycles", "gate_cycles")
"""Of the stages of a Networked MoE."""


def outline_of(model: Model, scenario: Prospect) -> Outline:
    """The outline of the scenario's model, with a head for its task; of a model on the hub nothing but the config is fetched.

    Raises:
        InputError: there is no such model, or its config is wrong.
    """
    task, labels = scenario.task, scenario.task.labels
    trains = scenario.train is not None or "task" in scenario.model_fields_set
    kind = FOR_TASK[task.kind] if trains else None
    outputs = None if labels is None or not task.classifies else len(labels)
    if model.config is not None:
        return described({**model.config, "dtype": model.precision}, kind, outputs)
    path = scenario.file(model.path or "")
    if os.path.exists(path):
        return named(str(path), kind, outputs)
    if not HUB_NAME.fullmatch(model.path or ""):
        raise InputError(
            f"model.path = {model.path!r}: no such file or folder; build it first (fedexperts build), or give a checkpoint "
            "folder, a config.json or a hub name, owner/name"
        )
    return named(model.path or "", kind, outputs)


def imagined(scenario: Prospect, cycles: int = 1) -> Imagined:
    """A scenario's model and training, checked; without ``[train]`` its defaults hold, and so many cycles.

    Raises:
        InputError: see `outline_of` and `Imagined.check`.
    """
    assert scenario.model is not None  # whoever asks has looked
    world = Imagined(scenario, scenario.model, outline_of(scenario.model, scenario), scenario.train or Train(cycles=cycles))
    world.check()
    return world


@dataclass(frozen=True)
class Imagined:
    """A scenario's model by its sizes, and how it is trained."""

    scenario: Prospect
    table: Model
    model: Outline
    train: Train

    @property
    def rank(self) -> int:
        """Of adapters; 0: experts are trained in full."""
        return self.table.lora.rank if self.table.lora else 0

    def having(self, kind: DeviceClass) -> Imagined:
        """As devices of a class have it, whose adapters may have a rank of their own."""
        return self if kind.lora_rank is None else self._at_rank(kind.lora_rank)

    def _at_rank(self, rank: int) -> Imagined:
        if rank not in self._ranked:
            lora = self.table.lora.model_copy(update={"rank": rank}) if self.table.lora else None
            self._ranked[rank] = replace(self, table=self.table.model_copy(update={"lora": lora}))
        return self._ranked[rank]

    @cached_property
    def _ranked(self) -> dict[int, Imagined]:
        return {self.rank: self}

    @property
    def shared(self) -> frozenset[str]:
        """Shared parts that are trained."""
        return frozenset(self.train.shared)

    @cached_property
    def leaves(self) -> dict[str, Shapes]:
        """What is trained of each part: adapters, or the part itself."""
        split = self.model.split(self.scenario.assignment.granularity)
        return {**split, **(self.model.adapters(self.rank, self.scenario.assignment.granularity) if self.rank else {})}

    @cached_property
    def pieces(self) -> dict[str, Piece]:
        """Version 0 of every part, with its size on the link."""
        merged = self.table.lora is not None and self.table.lora.average == "merge"
        held = {**self.leaves, **(self.model.split(self.scenario.assignment.granularity) if merged else {})}
        return {part: Blank(part, 0, {}, shapes_B(self._typed(part, tensors, merged))) for part, tensors in held.items()}

    def _typed(self, part: str, tensors: Shapes, weights: bool = False) -> Typed:
        exact = self.rank and is_expert(part) and not weights
        return {name: ("float32" if exact else self.table.precision, size) for name, size in tensors.items()}

    @cached_property
    def upload_B(self) -> dict[str, int]:
        """Bytes of a device's upload of each part."""
        if self.scenario.protocol in AT_HOME:
            return dict.fromkeys(self.leaves, 0)
        sizes = {part: wire_B(self._typed(part, tensors), self.table.uplink) for part, tensors in self.leaves.items()}
        if self.scenario.protocol == "networked":
            D = self.representation_size
            matrix: Typed = {"matrix": ("float32", (D, D)), "weight": ("float32", ())}
            sizes[CORRELATION] = wire_B(matrix, self.table.uplink)
            told = {"mean": (self.latent_size,), "spread": (self.latent_size,), "load": (self.model.experts,)}
            sizes[STATISTICS] = wire_B({name: ("float32", size) for name, size in told.items()}, self.table.uplink)
        return sizes

    @property
    def representation_size(self) -> int:
        """Numbers that FedSC contrasts, of a Networked MoE's model."""
        projected = self.model.rest.get("projection.2.weight")
        return projected[0] if projected else self.latent_size

    @property
    def latent_size(self) -> int:
        """Numbers that the gate of a Networked MoE sees."""
        return next(size[1] for size in self.model.layers[0].gate.values() if len(size) == 2)

    @property
    def work(self) -> Work:
        """What a device computes at once; a batch is as wide as the task's texts may be."""
        batch, table = self.train.batch_size, self.scenario.task
        document: Mapping[str, Any] = self.table.config or {}
        most = document.get("max_position_embeddings", table.max_length)
        size = 1 if batch == "full" else batch
        return Work(size, min(table.max_length, most), self.table.precision, padded=size > 1)

    def flops(self, task: Task) -> int:
        """About the FLOPs of a device's gradient step; 0 where they are not known."""
        own = len([part for part in task.parts if is_expert(part)])
        own = -(-own // len(self.model.layers)) if self.scenario.assignment.granularity == "layer" else own
        masked, gate = task.route is not None, GATE in task.parts
        token = step_flops(self.model, self.work.length, own, masked, self.rank, gate)
        return 0 if token is None or self.train.batch_size == "full" else token * self.work.tokens

    def owned(self, clusters: Sequence[str]) -> dict[str, frozenset[str]]:
        """Experts dealt in turn."""
        experts = [part for part in self.pieces if is_expert(part)]
        return {name: frozenset(experts[i :: len(clusters)]) for i, name in enumerate(clusters)}

    def protocol(self, links: Sequence[str], cycles: int, alignment: Alignment | None, short: bool) -> ServerProtocol:
        """The server's side for these links; ``short``: stages of a few cycles, to see one of each."""
        samples = dict.fromkeys(links, 1)
        start = told.start(self.scenario, self.train, dict(self.pieces), self.owned(links), cycles, samples)
        match self.scenario.protocol:
            case "ems-fl":
                return EmsFl(start, there=told.parts(self.scenario))
            case "ems-fl-enhanced":
                tail = min(self.train.gate_tail_cycles, 2 if short else cycles)
                return EnhancedEmsFl(start, gate_tail_cycles=tail, there=told.parts(self.scenario))
            case "aligned":
                assert alignment is not None
                return Aligned(start, alignment)
            case "networked":
                stages = told.stages(self.scenario, samples, self.representation_size, self.latent_size)
                few = {name: min(2, getattr(stages, name)) for name in LENGTHS}
                return Networked(start, replace(stages, **few) if short else stages)
        return told.whole(self.scenario, start)

    def short_cycles(self) -> int:
        """Cycles of a protocol with short stages: enough to see each contact that differs from the last."""
        table = self.scenario.networked
        if self.scenario.protocol == "networked":
            return 3 if table.control else sum(min(2, getattr(table, name)) for name in LENGTHS) or 1
        tail = self.scenario.protocol == "ems-fl-enhanced" and min(2, self.train.gate_tail_cycles)
        return 4 + int(tail)

    def need(self, shared: frozenset[str]) -> Need:
        """What a client's round takes: without experts, and for each; as `method.capacity.need`, which measures it."""
        steps = (self.train.max_rounds or 1) * self.train.local_steps
        sizes = [frozenset(map(expert, range(k))) for k in (1, min(2, self.model.experts))]
        flops = [steps * self.flops(Task(mine | shared, route=mine)) for mine in sizes]
        saved = [self._saved_B(len(mine), shared) for mine in sizes]
        frozen = [part for part in self.model.parts if not is_expert(part) and part not in shared]
        first = expert(0)
        return Need(
            base_memory_B=max(0, 2 * saved[0] - saved[1])
            + sum(PRECISION_B[self.table.precision] * count(self.model.parts[part]) for part in frozen)
            + sum(self._trained_B(part) for part in shared),
            expert_memory_B=self._trained_B(first) + max(0, saved[1] - saved[0]),
            base_flops=max(0, 2 * flops[0] - flops[1]),
            expert_flops=max(0, flops[1] - flops[0]),
            base_up_B=sum(self.upload_B[part] for part in shared),
            expert_up_B=self.upload_B[first],
            base_down_B=sum(self.pieces[part].size_B for part in shared),
            expert_down_B=self.pieces[first].size_B,
        )

    def _saved_B(self, k: int, shared: frozenset[str]) -> int:
        s = self.model.shape
        if s is None:
            return 0
        return sum(activations_B(replace(s, K=min(k, s.K)), self.work, 1.0, self.rank, GATE in shared).values())

    def _trained_B(self, part: str) -> int:
        e = FLOAT32_B if self.rank and is_expert(part) else PRECISION_B[self.table.precision]
        numbers = count(self.leaves[part])
        weights_B = PRECISION_B[self.table.precision] * count(self.model.parts[part]) if self.rank and is_expert(part) else 0
        return weights_B + 2 * e * numbers + (ADAMW_B * numbers if self.train.optimizer == "adamw" else 0)

    def alignment(self, plan: ContactPlan, kinds: Mapping[str, DeviceClass]) -> Alignment:
        """What a server of alignment is told; capacities follow the plan's contacts."""
        clients = {name: Client(capacity_over(plan, name, kind), 1) for name, kind in kinds.items()}
        return told.alignment(self.scenario, plan, clients, self.need(told.aligned_shared(self.scenario, self.train)))

    def memory(self, experts: int, load: str | None, cache: int = 0) -> dict[str, Phase]:
        """Peak bytes of a device with so many experts, by phase of the scenario's protocol, as far as they are known."""
        how = Training(self.rank, load, self.train.optimizer == "adamw", cache)
        held = Held(self.model, max(1, experts), self.work, how)
        M, gate = self.model.experts, GATE in self.shared
        beside = sum(count(self.model.parts[part]) for part in self.shared - {GATE})
        match self.scenario.protocol:
            case "ems-fl":
                training = held.training(held.complete, M, experts, gate, beside=beside)
                return {"trial": held.trial(held.complete), "training": training}
            case "ems-fl-enhanced":
                masked = told.parts(self.scenario).mask
                training = held.training(
                    held.loaded if masked else held.complete, experts if masked else M, experts, masked=masked
                )
                found = {"trial": held.trial(held.apart), "training": training}
                tail = {"gate_tail": held.training(held.apart, M, 0, gate, beside=beside)}
                return {**found, **(tail if self.train.gate_tail_cycles else {})}
            case "aligned":
                gate = GATE in told.aligned_shared(self.scenario, self.train)
                return {"training": held.training(held.loaded, experts, experts, gate, masked=True, beside=beside)}
            case "networked":
                backbone = count(self.model.parts[BACKBONE])
                return {
                    "extractor": held.training(held.loaded, 1, 1, masked=True, beside=backbone),
                    "experts": held.training(held.loaded, 1, 1, masked=True),
                    "gate": held.training(held.loaded, 1, 0, gate=True),
                }
        return {"training": held.training(held.complete, M, M, gate, beside=beside)}

    def carries(self, alignment: Alignment | None, link: str) -> int:
        """Experts that a link's devices are to hold at once."""
        if self.scenario.protocol == "networked":
            return 1
        if alignment is None:
            owners = self.scenario.protocol.startswith("ems-fl") and told.parts(self.scenario).disjoint
            return -(-self.model.experts // len(self.scenario.cluster)) if owners else self.model.experts
        most = min(self.model.experts, alignment.max_experts or self.model.experts)
        return experts_that_fit(alignment.clients[link].capacity, alignment.need, alignment.deadline_s, most)[0]

    def check(self) -> None:
        """Whether the method can be played.

        Raises:
            InputError: the model is of another kind than the method needs, has not the parts that are to be trained, or not an
                expert for each client; adapters do not fit.
        """
        if self.scenario.protocol in BY_CLIENT and self.scenario.assignment.granularity == "layer":
            raise InputError(
                'assignment.granularity = "layer": is for EMS-FL; clients are assigned whole experts, use "global"'
            )
        if self.scenario.protocol == "networked":
            self._check_networked()
        if unknown := self.shared - set(self.model.parts):
            raise InputError(f"train.shared = {sorted(unknown)}: the model has no such part; it has {sorted(self.model.parts)}")
        sizes = self.model.projections
        if self.rank and not sizes:
            raise InputError("model.lora: expert 0 has no linear layer to adapt; leave out lora to train full parameters")
        for name, size in sizes.items():
            if self.rank > min(size):
                raise InputError(
                    f"model.lora.rank = {self.rank}: must be at most {min(size)}, the smaller dimension of {name} {size}; "
                    "lower it, or leave out lora to train full parameters"
                )

    def _check_networked(self) -> None:
        if self.model.model_type != "networked_moe":
            raise InputError(
                f'protocol = "networked": needs a model of model_type "networked_moe" with an extractor, not '
                f"{self.model.model_type!r}; set model.config or another model.path"
            )
        told.check_experts(self.scenario, self.model.experts, sum(place.devices for place in self.scenario.cluster))
