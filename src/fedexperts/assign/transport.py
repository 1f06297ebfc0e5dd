"""The transportation problem of an optimal assignment: clients to experts under bounds on the experts' loads, solved exactly.

    max Σ V_im x_im   with   Σ_m x_im = K_i,   least_m ≤ Σ_i x_im ≤ most_m,   x_im ∈ {0, 1}

Experts are few and clients many, so the dual is small: given one price per expert, each client takes its K_i best values
less prices. Prices come near the optimum by Jacobi steps on the dual; what then still misses its bounds is moved client by
client along shortest paths between experts (successive shortest paths: Ahuja, Magnanti & Orlin, Network Flows, 1993, Sec. 9.7).
Values are whole multiples of a small unit, so that sums are exact and no tolerance is needed for 3,000 experts and fewer.

An idle column, as wide as a client's capacity and worth less than any chain of moves, takes what the bounds leave no room for.

Shapes: N clients; M experts and, behind them, the idle column; V nodes: the experts, the idle column and the sink.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .relevance import Array

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

UNIT = 2.0**-42
"""Of values, over their span. Paths add up to less than 2^53 units."""
TIE = 2.0**-30
"""Width of the noise that breaks ties, over the span of the values: among equal values prices have nothing to tell apart."""
NOISE_SEED = 0
STEPS = 60
PATIENCE = 8
"""Jacobi steps without a better fit after which paths are the cheaper way on, once no more clients than experts are missed."""
DAMPING = 0.7
"""Share of the way that a Jacobi step goes: all prices move at once, and whole steps overshoot."""


class Problem(NamedTuple):
    """Values in whole units, and bounds."""

    value_NM: Array
    width_NM: Ints
    """How often a client can take a column: once an expert, the idle one as often as it has capacity."""
    capacity_N: Ints
    least_M: Ints
    most_M: Ints
    unit: float


def solve(value_NM: Array, capacity_N: Ints, least_M: Ints, most_M: Ints) -> tuple[Bools, Array]:
    """The best assignment, and the prices that prove it (see ``gap``).

    Where the bounds leave no room for Σ K pairs, as many are assigned as they allow, and the best such assignment is found.
    Ties are broken by noise of 1e-9 of the values' span, so Σ V x is within that of the optimum per pair.

    Raises:
        InputError: no assignment keeps the bounds.
    """
    problem = _problem(value_NM, capacity_N, least_M, most_M)
    price_M = _near_prices(problem)
    moves = _Moves(problem, _best_at(problem, price_M))
    load_M = moves.x_NM.sum(axis=0)
    sink_M = _wanted(problem, price_M, load_M)
    while True:
        moves.bound(sink_M)
        surplus_V = np.append(load_M - sink_M, sink_M.sum() - load_M.sum())
        if not surplus_V.any():
            break
        path = _shortest_path(moves.cost_VV, surplus_V > 0, surplus_V < 0)
        if not path:
            raise InputError("least_M: no assignment gives every expert that many clients; lower it, or raise capacities")
        moves.make(path, sink_M)
        load_M = moves.x_NM.sum(axis=0)
    potential_V, _ = _distances(moves.cost_VV, np.zeros(len(moves.cost_VV)))
    return moves.x_NM[:, :-1] > 0, (potential_V[-1] - potential_V[:-2]) * problem.unit


def gap(value_NM: Array, capacity_N: Ints, least_M: Ints, most_M: Ints, x_NM: Bools, price_M: Array) -> float:
    """How far Σ V x may lie below the optimum; 0 proves ``x_NM`` optimal, whoever found it and the prices.

    The dual bound at ``price_M`` less Σ V x: the sum of all reduced costs of the wrong sign, over clients and bounds.
    """
    problem = _problem(value_NM, capacity_N, least_M, most_M, tie=0.0)
    price_M = np.append(price_M / problem.unit, 0.0)
    full_NM = np.column_stack([x_NM, capacity_N - x_NM.sum(axis=1)])
    clients = (_best_at(problem, price_M) - full_NM) * (problem.value_NM - price_M)
    bounds_M = np.where(price_M > 0, problem.most_M, problem.least_M) - full_NM.sum(axis=0)
    return float(clients.sum() + price_M @ bounds_M) * problem.unit


def _problem(value_NM: Array, capacity_N: Ints, least_M: Ints, most_M: Ints, tie: float = TIE) -> Problem:
    clients, experts = value_NM.shape
    span = float(np.ptp(value_NM)) or 1.0
    noise_NM = tie * np.random.default_rng(NOISE_SEED).random(value_NM.shape)
    idle_N = np.full(clients, -(experts + 3) / UNIT)
    return Problem(
        np.column_stack([np.rint(((value_NM - value_NM.min()) / span + noise_NM) / UNIT), idle_N]),
        np.column_stack([np.ones(value_NM.shape, dtype=np.int64), capacity_N]),
        capacity_N,
        np.append(least_M, 0),
        np.append(most_M, capacity_N.sum()),
        span * UNIT,
    )


def _best_at(problem: Problem, price_M: Array) -> Ints:
    """What each client takes at these prices: its K_i best values less prices, and idleness where that is worth more."""
    reduced_NM = problem.value_NM - price_M
    order_NM = np.argsort(-reduced_NM[:, :-1], axis=1, kind="stable")
    first_NM = np.arange(order_NM.shape[1]) < problem.capacity_N[:, None]
    x_NM = np.zeros(order_NM.shape, dtype=bool)
    np.put_along_axis(x_NM, order_NM, first_NM, axis=1)
    x_NM &= reduced_NM[:, :-1] >= reduced_NM[:, -1:]
    return np.column_stack([x_NM, problem.capacity_N - x_NM.sum(axis=1)])


def _wanted(problem: Problem, price_M: Array, load_M: Ints) -> Ints:
    """Complementary slackness: a dear expert is full, one with a negative price has its least, a free one either or between."""
    _, _, _, least_M, most_M, _ = problem
    wanted_M: Ints = np.where(price_M > 0, most_M, np.where(price_M < 0, least_M, np.clip(load_M, least_M, most_M)))
    return wanted_M


def _near_prices(problem: Problem) -> Array:
    """Prices at which the loads nearly fit: of all Jacobi steps, those that miss the fewest clients."""
    price_M = np.zeros(problem.value_NM.shape[1])
    best_M, fewest, since = price_M, np.inf, 0
    for _ in range(STEPS):
        ranked_NM = np.sort(problem.value_NM[:, :-1] - price_M[:-1], axis=1)[:, ::-1]
        shift = _level(problem, price_M, ranked_NM)
        price_M = np.append(price_M[:-1] + shift, 0.0)
        margin_NM = _margins(problem, problem.value_NM - price_M, ranked_NM - shift)
        load_M = np.append(np.count_nonzero(margin_NM > 0, axis=0), 0)
        missed = np.abs(load_M - _wanted(problem, price_M, load_M)).sum()
        since = 0 if missed < fewest else since + 1
        if missed < fewest:
            best_M, fewest = price_M, missed
        if missed == 0 or (since >= PATIENCE and fewest < len(price_M)):
            break
        price_M = _jacobi(problem, price_M, margin_NM)
    return best_M


def _level(problem: Problem, price_M: Array, ranked_NM: Array) -> float:
    """The best shift of all prices at once. It changes no choice between experts, and Jacobi steps would be slow to find it."""
    least_M, most_M = problem.least_M[:-1], problem.most_M[:-1]
    pairs, room = int(problem.capacity_N.sum()), int(most_M.sum())
    if room >= pairs:  # dear experts full, cheap ones at their least; a price of 0 where that makes up all pairs
        dear = np.argsort(-price_M[:-1], kind="stable")
        filled = least_M.sum() + np.cumsum((most_M - least_M)[dear])
        return -float(price_M[dear[np.searchsorted(filled, pairs)]])
    taken = np.sort(ranked_NM[np.arange(len(most_M)) < problem.capacity_N[:, None]])[::-1]
    return float(taken[room] - problem.value_NM[0, -1])  # the pairs without room prefer idleness


def _margins(problem: Problem, reduced_NM: Array, ranked_NM: Array) -> Array:
    """By how much an expert's price must rise until a client leaves it (> 0), or fall until it joins; idle clients left out."""
    able = problem.capacity_N > 0
    capacity_N, rows = problem.capacity_N[able], np.arange(np.count_nonzero(able))
    idle_N = reduced_NM[able, -1]
    ranked_NM = np.column_stack([ranked_NM[able], idle_N])  # with capacity for all experts, idleness comes next
    last_N = np.maximum(ranked_NM[rows, capacity_N - 1], idle_N)[:, None]
    next_N = np.maximum(ranked_NM[rows, capacity_N], idle_N)[:, None]
    reduced_NM = reduced_NM[able, :-1]
    margin_NM: Array = reduced_NM - np.where(reduced_NM >= last_N, next_N, last_N)
    return margin_NM


def _jacobi(problem: Problem, price_M: Array, margin_NM: Array) -> Array:
    """Every price part of the way to where its own expert's load would fit if the others stood still."""
    experts = margin_NM.shape[1]
    down_NM = np.sort(margin_NM, axis=0)[::-1]
    down_NM = np.vstack([down_NM[:1] + 1, down_NM, down_NM[-1:] - 1])
    columns = np.arange(experts)

    def between(load_M: Ints) -> Array:  # the price at which ``load_M`` clients stay
        near_M = np.minimum(load_M, len(margin_NM))
        middle_M: Array = price_M[:-1] + (down_NM[near_M, columns] + down_NM[near_M + 1, columns]) / 2
        return middle_M

    fit_M = np.clip(0.0, between(problem.most_M[:-1]), between(problem.least_M[:-1]))
    damped_M = np.rint(price_M[:-1] + DAMPING * (fit_M - price_M[:-1]))
    return np.append(np.where(fit_M == 0, 0.0, damped_M), 0.0)


class _Moves:
    """An assignment, and for each pair of experts the cheapest move of one client from the one to the other.

    ``cost_VV[a, b]`` is what the move loses and ``client_VV[a, b]`` who makes it. The sink, the last node, is nobody's: an arc
    to it raises an expert's load and one from it lowers a load, as far as the bounds allow.
    """

    def __init__(self, problem: Problem, x_NM: Ints) -> None:
        columns = x_NM.shape[1]
        self.problem, self.x_NM = problem, x_NM
        self.cost_VV = np.full((columns + 1, columns + 1), np.inf)
        self.client_VV = np.full((columns + 1, columns + 1), -1)
        for a in range(columns):
            self._search(a, np.arange(columns))

    def bound(self, sink_M: Ints) -> None:
        """Open and close the sink's arcs, when it carries ``sink_M``."""
        self.cost_VV[:-1, -1] = np.where(sink_M < self.problem.most_M, 0.0, np.inf)
        self.cost_VV[-1, :-1] = np.where(sink_M > self.problem.least_M, 0.0, np.inf)

    def make(self, path: list[tuple[int, int]], sink_M: Ints) -> None:
        """Move one unit along ``path``, in ``sink_M`` too."""
        sink, changed = len(sink_M), []
        for a, b in path:
            if b == sink:
                sink_M[a] += 1
            elif a == sink:
                sink_M[b] -= 1
            else:
                i = int(self.client_VV[a, b])
                self.x_NM[i, a] -= 1
                self.x_NM[i, b] += 1
                changed.append(i)
        self._refresh(changed)

    def _search(self, a: int, to: Ints) -> None:
        """Cheapest moves from ``a`` to the columns ``to``, over all clients."""
        givers = np.flatnonzero(self.x_NM[:, a])
        self.cost_VV[a, to], self.client_VV[a, to] = np.inf, -1
        if len(givers):
            at = np.ix_(givers, to)
            room = (self.x_NM[at] < self.problem.width_NM[at]) & (to != a)
            loss = np.where(room, self.problem.value_NM[givers, a][:, None] - self.problem.value_NM[at], np.inf)
            best = loss.argmin(axis=0)
            self.cost_VV[a, to], self.client_VV[a, to] = loss[best, np.arange(len(to))], givers[best]

    def _refresh(self, changed: list[int]) -> None:
        """What clients that changed used to offer is searched anew; what they offer now is compared with the rest."""
        value_NM, width_NM, *_ = self.problem
        stale_VV = np.isin(self.client_VV, changed)
        for a in np.flatnonzero(stale_VV.any(axis=1)):
            self._search(int(a), np.flatnonzero(stale_VV[a]))
        for i in changed:
            gives, takes = np.flatnonzero(self.x_NM[i]), np.flatnonzero(self.x_NM[i] < width_NM[i])
            at = np.ix_(gives, takes)
            loss = np.where(gives[:, None] == takes, np.inf, value_NM[i, gives][:, None] - value_NM[i, takes])
            better = loss < self.cost_VV[at]
            self.cost_VV[at] = np.where(better, loss, self.cost_VV[at])
            self.client_VV[at] = np.where(better, i, self.client_VV[at])


def _distances(cost_VV: Array, start_V: Array) -> tuple[Array, Ints]:
    """Shortest distances from nodes that start at ``start_V`` (Bellman and Ford), and each node's predecessor."""
    distance_V, before_V, nodes = start_V, np.full(len(start_V), -1), np.arange(len(start_V))
    for _ in nodes:
        via_VV = distance_V[:, None] + cost_VV
        from_V = via_VV.argmin(axis=0)
        shorter_V = via_VV[from_V, nodes] < distance_V
        if not shorter_V.any():
            break
        distance_V = np.where(shorter_V, via_VV[from_V, nodes], distance_V)
        before_V = np.where(shorter_V, from_V, before_V)
    return distance_V, before_V


def _shortest_path(cost_VV: Array, from_V: Bools, to_V: Bools) -> list[tuple[int, int]]:
    """Arcs of a shortest path from the one set of nodes to the other; none where there is no way."""
    distance_V, before_V = _distances(cost_VV, np.where(from_V, 0.0, np.inf))
    node = int(np.where(to_V, distance_V, np.inf).argmin())
    path: list[tuple[int, int]] = []
    while before_V[node] >= 0:
        path.append((int(before_V[node]), node))
        node = int(before_V[node])
    return path[::-1]
