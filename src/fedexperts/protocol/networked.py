"""Networked MoE (third paper): every client has one expert, and all share a feature extractor and a gate.

Three stages (Sec. III), each so many rounds: the extractor by FedCE or FedSC, the experts on their clients, the gate by
RollGate or FedGate; RanGate needs no training. Stages are tasks in rounds, so they run on any contact plan. Experts never go to
the server; while a federated gate is trained, clients ask each other.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..moe.parts import BACKBONE, CORRELATION, GATE, STATISTICS, Piece, Tensors, in_order, is_expert
from ..seeds import Stream, stream
from ..train.task import Task, Update
from .aggregate import picked
from .link import Link, Start
from .rounds import Rounds

if TYPE_CHECKING:
    from ..train.fedsc import Schedule

TURN = 0.3
"""What a turn of a rolling gate steps by, of `networked.gate_lr`: it is one client's alone, and must not undo the others'."""


@dataclass(frozen=True)
class Stages:
    """What the server is told; the fields are those of the scenario's ``[networked]``, where they are explained."""

    samples: Mapping[str, int]
    representation_size: int
    seed: int
    latent_size: int = 1
    extractor: str = "fedce"
    extractor_cycles: int = 1
    expert_cycles: int = 1
    gate: str = "federated"
    gate_cycles: int = 1
    gate_participation: float = 0.7
    gate_patience: int = 2
    control: str | None = None
    schedule: str = "falling"


class Networked(Rounds):
    """The server's side of the training; inference needs no server."""

    def __init__(self, start: Start, told: Stages):
        super().__init__(start, dict(told.samples))
        self._told = told
        self.own = dict(zip(self.clients, in_order(filter(is_expert, start.model)), strict=False))
        self.correlations: dict[str, Tensors] = {}  # client -> R_i, as it shared it last
        self.statistics: dict[str, Tensors] = {}  # client -> of its latents and its gate's picks, as it told them last
        self.exchanges = 0
        self.held_losses: dict[str, float] = {}  # client -> the loss, on what it holds back, of the gate that a roll ended with
        self.best = math.inf
        self.stalled = 0  # rolls without a gain
        self.rolled = 0  # turns taken
        self.judged = -1  # of them, when all have judged the gate
        self._schedule: Schedule | None = None
        if told.control is None and self.own:
            self._nothing_told()
        if told.extractor == "fedsc":
            self._contrast()

    def _nothing_told(self) -> None:
        """Stage 3: nobody has told what its latents are like."""
        import torch

        nothing = {"mean": torch.zeros(self._told.latent_size), "spread": torch.ones(self._told.latent_size)}
        load_E = torch.full((len(self.own),), 1 / len(self.own))
        self.model[STATISTICS] = Piece(STATISTICS, 0, {**nothing, "load": load_E})

    def _contrast(self) -> None:
        """FedSC: no matrix is known yet."""
        import torch

        from ..train.fedsc import OFFICIAL

        told, size = self._told, self._told.representation_size
        zero = {"matrix": torch.zeros(size, size), "weight": torch.zeros(())}
        self.model[CORRELATION] = Piece(CORRELATION, 0, zero)
        if told.schedule != "plain":
            self._schedule = replace(OFFICIAL, lr=1.0, rounds=told.extractor_cycles)

    @property
    def uploads(self) -> frozenset[str]:
        """Experts stay where they are; as a control, FedAvg shares the only one there is."""
        shared = {self.own[self.clients[0]]} if self._told.control == "fedavg" else set()
        return frozenset(part for part in self.model if not is_expert(part)) | shared

    def begin(self, link: Link) -> dict[str, Task]:
        """The stage that this round belongs to, and who takes part."""
        told, present = self._told, [client for client in self.clients if client in link.expected]
        if told.control is not None:
            stage, tasks = told.control, {client: self.whole(client) for client in present}
        elif self.round < told.extractor_cycles:
            stage, tasks = told.extractor, {client: self.extractor(client) for client in present}
        elif self.round < told.extractor_cycles + told.expert_cycles:
            stage, tasks = "experts", {client: self.expert(client) for client in present}
        elif told.gate == "federated":
            who = self.drawn(present) if self.statistics else present
            stage, tasks = "federated", dict.fromkeys(who, self.federated())
        elif told.gate == "rolling" and present and self.stalled < told.gate_patience:
            judging = self.rolled % len(self.clients) == 0 and self.judged < self.rolled
            stage = "rolling"
            turn = {} if judging else {self.turn(present): self.rolling(TURN * self.falling())}
            tasks = turn or dict.fromkeys(present, self.rolling(0.0))
        else:
            stage, tasks = "rest", {}
        link.log("stage", cycle=self.round, stage=stage, clients=list(tasks))
        return tasks

    def whole(self, client: str) -> Task:
        """Controls: a whole classifier of one's own, or one that is averaged (FedAvg)."""
        if self._told.control == "fedavg":
            only = self.own[self.clients[0]]
            return Task(frozenset({BACKBONE, only}), route=frozenset({only}))
        mine = frozenset({self.own[client]})
        return Task(mine | {BACKBONE}, route=mine, keeps=mine | {BACKBONE})

    def extractor(self, client: str) -> Task:
        """Stage 1. FedCE (2): the extractor is shared, its predictor is the client's own expert. FedSC: (4)."""
        if self._told.extractor == "fedsc":
            rate = self._schedule.rate(self.round) if self._schedule else 1.0
            return Task(frozenset({BACKBONE, CORRELATION}), goal="contrast", rate=rate)
        mine = frozenset({self.own[client]})
        return Task(mine | {BACKBONE}, route=mine, keeps=mine)

    def expert(self, client: str) -> Task:
        """Stage 2 (5): the client's own expert on the frozen extractor."""
        mine = frozenset({self.own[client]})
        return Task(mine, route=mine, keeps=mine)

    def federated(self) -> Task:
        """Stage 3, FedGate: the gate on everybody's experts, with normalised gradients.

        In its first round everybody tells what its latents are like, and nobody moves the gate.
        """
        rate = self.falling() if self.statistics else 0.0
        return Task(frozenset({GATE, STATISTICS}), goal="gate", peers=True, unit_gradient=True, rate=rate)

    def rolling(self, rate: float) -> Task:
        """Stage 3, RollGate; at rate 0, which is before the first roll and after each, all clients judge the gate."""
        return Task(frozenset({GATE, STATISTICS}), goal="own-id", unit_gradient=True, rate=rate)

    def falling(self) -> float:
        """Of stage 3 the learning rate: a cosine to 0, as averages of clients that pull apart, and turns, need."""
        done = self.round - self._told.extractor_cycles - self._told.expert_cycles
        return (1 + math.cos(math.pi * done / self._told.gate_cycles)) / 2

    def drawn(self, present: list[str]) -> list[str]:
        """FedGate's client scheduling: ⌈0.7 m⌉ of them in a round."""
        rng = stream(Stream.GATE_PARTICIPANTS, self._told.seed, self.round)
        count = math.ceil(self._told.gate_participation * len(present))
        return sorted((str(c) for c in rng.permutation(present)[:count]), key=self.clients.index)

    def turn(self, present: list[str]) -> str:
        """RollGate: the gate goes from client to client in a seeded order, again and again."""
        order = stream(Stream.TURNS, self._told.seed).permutation(self.clients)
        turns = [str(order[(self.rolled + i) % len(order)]) for i in range(len(order))]
        self.rolled += 1
        return next(client for client in turns if client in present)

    def afterwards(self, task: Task) -> Task:
        """The same, but no other matrix is shared: more than one in a round, and the privacy that was stated would not hold."""
        return replace(task, parts=task.parts - {CORRELATION})

    def pieces(self, client: str, task: Task) -> list[Piece]:
        """The extractor goes along with every task; with FedSC, the others' correlation matrix R̄_{−i}.

        That also where none is shared, to a client that has none: the contact that should have brought it was lost.
        """
        wanted = task.parts - task.keeps - {CORRELATION}
        pieces = picked(self.model, wanted if self._told.control else wanted | {BACKBONE, GATE})
        lacks = task.goal == "contrast" and CORRELATION not in self.has.get(client, {})
        if CORRELATION in task.parts or lacks:
            pieces.append(self.of_the_others(client))
        return pieces

    def of_the_others(self, client: str) -> Piece:
        """R̄_{−i} and q_i; version 0, before anything was shared, tells the client to contrast with itself alone.

        The release weighs a client's own matrix by the round instead of by q_i, and the others' alike.
        """
        import torch

        from ..train.fedsc import others

        samples = self._samples if self._schedule is None else dict.fromkeys(self._samples, 1)
        q_i = samples[client] / sum(samples[c] for c in self.clients)
        weight = torch.tensor(q_i if self._schedule is None else self._schedule.own_weight(q_i, self.round))
        known = [c for c in self.clients if c in self.correlations]
        if not [c for c in known if c != client]:
            return Piece(CORRELATION, 0, {**self.model[CORRELATION].tensors, "weight": weight})
        group = known if client in known else [client, *known]
        matrices = [self.correlations.get(c, self.model[CORRELATION].tensors)["matrix"] for c in group]
        q = [samples[c] / sum(samples[g] for g in group) for c in group]
        return Piece(CORRELATION, self.exchanges, {"matrix": others(matrices, q, group.index(client)), "weight": weight})

    def takes(self, update: Update) -> bool:
        """An extractor that is late for its stage is refused: experts and gate rest on the one that ended it."""
        told = self._told
        return update.piece.part != BACKBONE or told.control is not None or self.round < told.extractor_cycles

    def note(self, client: str, update: Update, task: Task, counted: bool) -> None:
        """Correlation matrices and statistics are kept by client; all tell how a roll has ended."""
        if update.piece.part == CORRELATION:
            self.correlations[client] = update.piece.tensors
        if update.piece.part == STATISTICS:
            self.statistics[client] = update.piece.tensors
        if update.held_loss is not None and task.rate == 0:
            self.held_losses[client] = update.held_loss

    def after(self, link: Link) -> None:
        """At the end of a round: the next exchange of matrices; what all have told; has a roll still gained?"""
        self.exchanges += 1
        if STATISTICS in {part for task in self.tasks.values() for part in task.parts} and self.statistics:
            self.model[STATISTICS] = self.of_all()
        if self.held_losses:
            loss = sum(self.held_losses.values()) / len(self.held_losses)
            self.stalled = 0 if loss < self.best else self.stalled + 1
            self.best, self.judged = min(self.best, loss), self.rolled
            link.log("roll", held_loss=round(loss, 6), stalled=self.stalled)
            self.held_losses = {}

    def of_all(self) -> Piece:
        """Statistics over all clients that have told theirs, each as it told them last."""
        import torch

        from ..train.gating import pooled

        known = [c for c in self.clients if c in self.statistics]
        shares = [self._samples[c] / sum(self._samples[k] for k in known) for c in known]
        told = [self.statistics[c] for c in known]
        mean_D, spread_D = pooled(shares, [t["mean"] for t in told], [t["spread"] for t in told])
        load_E = torch.stack([q * t["load"] for q, t in zip(shares, told, strict=True)]).sum(dim=0)
        version = self.model[STATISTICS].version + 1
        return Piece(STATISTICS, version, {"mean": mean_D, "spread": spread_D, "load": load_E})
