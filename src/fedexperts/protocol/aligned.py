"""Dynamic client-expert alignment (second paper, Sec. III-B): in every round the server assigns experts to clients by how
well they fit (fitness), what each expert still needs (usage) and what a client can carry (capacity).

A client is a link of its own. A round is an orbital cycle; with an always-on plan, a slot. Shapes: N clients, M experts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from ..assign.policies import balanced, coverage, greedy, load_bounds, optimal, random_assignment
from ..assign.scores import (
    Capacity,
    Need,
    desirability,
    estimated_rate,
    experts_that_fit,
    reward,
    updated_fitness,
    updated_usage,
)
from ..assign.transport import Bools, Ints
from ..moe.parts import GATE, Piece, in_order, is_expert
from ..seeds import Stream, stream
from ..train.task import Task, Update
from .aggregate import picked
from .link import Link, Start
from .rounds import Rounds, experts_of


@dataclass(frozen=True)
class Client:
    """What the server knows of a client: what it can carry, and how many samples it has."""

    capacity: Capacity
    samples: int


@dataclass(frozen=True)
class Alignment:
    """What the server is told; the first fields are those of the scenario's ``[alignment]``, where they are explained.

    Attributes:
        clients: by name.
        need: what a round takes of a client, by the number of its experts.
        deadline_s: how long a client has for each of download, training and upload.
        estimated: whether speeds are learnt from how long clients took.
    """

    clients: Mapping[str, Client]
    need: Need
    deadline_s: float
    seed: int
    policy: str = "balanced"
    fitness_weight: float = 0.5
    fitness_rate: float = 0.3
    usage_decay: float = 0.8
    loss_weight: float = 0.5
    drift: float = 0.05
    prior: float = 0.5
    usage: str = "samples"
    gate: str = "rows"
    ties: str = "random"
    cold_start: bool = True
    patience: int = 3
    participation: float = 1.0
    max_experts: int | None = None
    min_load: int | None = None
    max_load: int | None = None
    estimated: bool = False
    appraisal_samples: int = 64


class Aligned(Rounds):
    """The server's side: scores, the round's assignment, and aggregation over those who trained an expert."""

    def __init__(self, start: Start, told: Alignment):
        super().__init__(start, {name: client.samples for name, client in told.clients.items()})
        self._told, self._shared = told, start.shared
        self.experts = tuple(in_order(filter(is_expert, start.model)))
        self.fitness_NM = np.full((len(self.clients), len(self.experts)), told.prior)
        self.prior = told.prior  # what is expected of a pair that nobody tried: the mean of rewards so far
        self.usage_M = np.zeros(len(self.experts))
        self.untrained_M = np.zeros(len(self.experts), dtype=np.int64)  # rounds since an expert was trained last
        self.speeds: dict[str, list[tuple[float, float]]] = {}  # client -> (FLOPs, seconds) of its rounds
        self.loads: dict[str, float] = {}  # expert -> samples or FLOPs that arrived since the last round's end
        self.rewards: dict[tuple[str, str], tuple[float, float]] = {}  # (client, expert) -> loss and share

    @property
    def uploads(self) -> frozenset[str]:
        """Experts, and the shared parts that are averaged."""
        return frozenset(self.experts) | self.shared

    def afterwards(self, task: Task) -> Task:
        """Out of contact a client goes on with the same."""
        return task

    def pieces(self, client: str, task: Task) -> list[Piece]:
        """Its experts, and the shared parts."""
        return picked(self.model, task.parts - task.keeps)

    def takes(self, update: Update) -> bool:
        """Late updates move the model too."""
        return True

    @property
    def shared(self) -> frozenset[str]:
        """Shared parts that are averaged."""
        return self._shared if self._told.gate == "rows" else self._shared - {GATE}

    def task(self, mine: frozenset[str]) -> Task:
        """What a client does with its experts: the gate picks among these alone."""
        own = frozenset({GATE}) if self._told.gate == "per-client" else frozenset()
        return Task(mine | self.shared | own, route=mine, keeps=own, appraisal=self._told.appraisal_samples)

    def begin(self, link: Link) -> dict[str, Task]:
        """Fig. 2, step 2: assign experts to the clients that this round can expect."""
        capacity_N, sat_out = self.capacities(link)
        table_NM = self.assign(capacity_N)
        assigned = {
            client: frozenset(part for part, chosen in zip(self.experts, row, strict=True) if chosen)
            for client, row in zip(self.clients, table_NM, strict=True)
            if row.any()
        }
        sat_out |= {c: "no expert to spare" for c, k in zip(self.clients, capacity_N, strict=True) if k and c not in assigned}
        numbers = {client: [self.experts.index(part) for part in in_order(parts)] for client, parts in assigned.items()}
        link.log("align", cycle=self.round, assigned=numbers, sat_out=sat_out)
        return {client: self.task(mine) for client, mine in assigned.items()}

    def capacities(self, link: Link) -> tuple[Ints, dict[str, str]]:
        """K_i of those who take part in this round, 0 for the others, and why these sit out."""
        told, sat_out = self._told, {}
        rng = stream(Stream.PARTICIPANTS, told.seed, self.round)
        capacity_N = np.zeros(len(self.clients), dtype=np.int64)
        expected = frozenset(link.expected)
        present = [client for client in self.clients if client in expected]
        drawn = set(rng.permutation(present)[: max(1, round(told.participation * len(present)))])
        for i, client in enumerate(self.clients):
            if client not in drawn:
                sat_out[client] = "not drawn" if client in expected else "away"
                continue
            capacity_N[i], limit = self.carries(client)
            if not capacity_N[i]:
                sat_out[client] = limit
        return capacity_N, sat_out

    def carries(self, client: str) -> tuple[int, str]:
        """K_i, and what bounds it."""
        told = self._told
        most = min(len(self.experts), told.max_experts or len(self.experts))
        capacity = told.clients[client].capacity
        if told.estimated:
            if client not in self.speeds:
                most = 1  # something must be done before it can be timed
            else:
                capacity = replace(capacity, flops_per_s=estimated_rate(self.speeds[client]))
        return experts_that_fit(capacity, told.need, told.deadline_s, most)

    def assign(self, capacity_N: Ints) -> Bools:
        """The round's assignment A_NM."""
        told, M = self._told, len(self.experts)
        rng = stream(Stream.TIES, told.seed, self.round)
        if told.cold_start and self.round == 0:
            order_N = rng.permutation(len(capacity_N))  # neighbours in a scenario may have data alike
            return coverage(capacity_N[order_N], M)[np.argsort(order_N)]
        if told.policy == "random":
            return random_assignment(capacity_N, M, rng)
        if told.policy == "greedy":
            return greedy(self.fitness_NM, capacity_N, rng if told.ties == "random" else None)
        overdue_M = np.where(self.untrained_M >= told.patience, self.untrained_M, 0)
        samples_N = np.array([told.clients[client].samples for client in self.clients])
        if told.policy == "balanced":
            return balanced(
                self.fitness_NM,
                self.usage_M,
                capacity_N,
                samples_N,
                rng,
                balance=told.fitness_weight,
                decay=told.usage_decay,
                overdue_M=overdue_M,
                most_M=None if told.max_load is None else np.full(M, told.max_load),
            )
        least_M, most_M = self.bounds(capacity_N, overdue_M)
        return optimal(desirability(self.fitness_NM, self.usage_M, told.fitness_weight), capacity_N, least_M, most_M)

    def bounds(self, capacity_N: Ints, overdue_M: Ints) -> tuple[Ints, Ints]:
        """Clients of each expert, at least and at most; what a round cannot meet is lowered."""
        told, M = self._told, len(self.experts)
        least_M, most_M = load_bounds(capacity_N, M, overdue_M=overdue_M)
        if told.max_load is not None:
            most_M = np.full(M, told.max_load)
            least_M = np.minimum(least_M, most_M)
        if told.min_load is not None:
            least_M = np.minimum(np.maximum(told.min_load, overdue_M > 0), int((capacity_N > 0).sum()))
            while least_M.sum() > np.minimum(capacity_N, M).sum():  # a thin round: the longest untrained come first
                least_M[np.lexsort((self.untrained_M, -least_M))[0]] -= 1
        return least_M, np.maximum(most_M, least_M)

    def note(self, client: str, update: Update, task: Task, counted: bool) -> None:
        """What the scores and the estimates of speed need of an update; samples count once for an order, FLOPs always."""
        part = update.piece.part
        if not is_expert(part):
            return
        held = len(experts_of(task))
        flops = (self._told.need.base_flops + held * self._told.need.expert_flops) / (self._max_rounds or 1)  # of a local round
        effort = update.rounds * flops / held if self._told.usage == "flops" else 0.0 if counted else float(update.samples)
        self.loads[part] = self.loads.get(part, 0.0) + effort
        if update.loss is not None and update.pick_share is not None:
            self.rewards[client, part] = update.loss, update.pick_share
        if update.round_s > 0:
            self.speeds[client] = [*self.speeds.get(client, ())[-8:], (flops, update.round_s)]

    def after(self, link: Link) -> None:
        """Fitness and usage after a round, from all that arrived since the last."""
        told = self._told
        loss_NM = np.full(self.fitness_NM.shape, np.nan)
        share_NM = loss_NM.copy()
        rows, columns = ({name: i for i, name in enumerate(names)} for names in (self.clients, self.experts))
        for (client, part), (loss, share) in self.rewards.items():
            at = rows[client], columns[part]
            loss_NM[at], share_NM[at] = loss, share
        load_M = np.array([self.loads.get(part, 0.0) for part in self.experts])
        reward_NM = reward(loss_NM, share_NM, told.loss_weight)
        if self.rewards:
            self.prior += told.fitness_rate * (float(np.nanmean(reward_NM)) - self.prior)
        self.fitness_NM = updated_fitness(self.fitness_NM, reward_NM, told.fitness_rate, told.drift, self.prior)
        self.usage_M = updated_usage(self.usage_M, load_M, told.usage_decay)
        self.untrained_M = np.where(load_M > 0, 0, self.untrained_M + 1)
        self.loads, self.rewards = {}, {}
        link.log("round", cycle=self.round, load=load_M.tolist(), usage=np.round(self.usage_M, 6).tolist())

    def placement(self) -> dict[str, frozenset[str]]:
        """Which experts a client has at inference: as many as it can carry, those with the highest fitness."""
        placed = {}
        for i, client in enumerate(self.clients):
            best_M = np.argsort(-self.fitness_NM[i], kind="stable")[: self.carries(client)[0]]
            placed[client] = frozenset(self.experts[m] for m in best_M)
        return placed
