"""Who trains which expert in one round: random, greedy, balanced, optimal (client–expert alignment, Sec. III-B4 and Fig. 3).

The same policies split experts over the clusters of EMS-FL, where every expert has exactly one cluster: the experts are the
rows with room for one, and the clusters the columns (``owners``).

Shapes: N clients, M experts, C clusters. A_NM is an assignment: client i trains expert m. K_i, in capacity_N, is the most
experts that client i can train; above M it means M.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from ..errors import InputError
from .relevance import Array
from .scores import finite, fraction, normed
from .split import Split
from .transport import TIE, Bools, Ints, gap, solve

Policy = Literal["balanced", "optimal"]

PROOF = 2.0
"""In widths of the tie-breaking noise per pair: a larger gap to the dual bound would be an error of ours."""


def random_assignment(capacity_N: ArrayLike, experts: int, rng: np.random.Generator) -> Bools:
    """Every client trains K_i experts drawn uniformly (Fig. 3a).

    Raises:
        InputError: a capacity is negative or no whole number.
    """
    K_N = _capacities(capacity_N, experts)
    return _top(rng.random((len(K_N), experts)), K_N)


def greedy(fitness_NM: Array, capacity_N: ArrayLike, rng: np.random.Generator | None = None) -> Bools:
    """Every client trains the K_i experts that fit it best, whatever the others do (Fig. 3b).

    Ties fall at random with ``rng``. Without it the lowest index wins: the literal reading, under which clients that know
    nothing yet all train the same experts.

    Raises:
        InputError: a capacity is negative or no whole number, there is not one for each client, or a fitness is not finite.
    """
    K_N = _capacities(capacity_N, fitness_NM.shape[1], len(fitness_NM))
    return _top(finite("fitness_NM", fitness_NM), K_N, rng)


def coverage(capacity_N: ArrayLike, experts: int, start: int = 0) -> Bools:
    """Cold start: the experts are dealt out in turn, beginning with expert ``start``.

    Every expert is given to somebody if Σ min(K_i, M) ≥ M, and loads differ by at most one. If there is less room, the next
    round may go on at ``start`` + Σ min(K_i, M).

    Raises:
        InputError: a capacity is negative or no whole number.
    """
    K_N = _capacities(capacity_N, experts)
    first_N = start + np.cumsum(K_N) - K_N
    dealt_NM: Bools = (np.arange(experts) - first_N[:, None]) % experts < K_N[:, None]
    return dealt_NM


def balanced(
    fitness_NM: Array,
    usage_M: Array,
    capacity_N: ArrayLike,
    samples_N: ArrayLike,
    rng: np.random.Generator,
    balance: float = 0.5,
    decay: float = 0.8,
    overdue_M: ArrayLike | None = None,
    least_M: ArrayLike | None = None,
    most_M: ArrayLike | None = None,
) -> Bools:
    """The paper's algorithm (Fig. 3c) without herding: clients one after another, each on the usage that the others leave.

    Clients scored independently would all run to the same idle expert. Here they come in an order drawn from ``rng``; each
    takes the K_i experts with the highest D = λ·norm(F) − (1 − λ)·norm(U'), where U' = βU + (1 − β)·n_e / Σn counts what has
    been assigned in this round so far. Ties fall at random.

    Before that, experts that are overdue, longest-waiting first, go each to the fittest client with capacity left. An
    expert that is overdue once it has waited for more than L rounds never waits for more than L + ⌈M / S⌉, where S is the
    least Σ min(K_i, M) of those rounds: every round takes S off the head of the queue.

    Args:
        fitness_NM: F.
        usage_M: U.
        capacity_N: K_i.
        samples_N: n_i that client i contributes to each expert it trains.
        rng: the only source of chance.
        balance: λ.
        decay: β.
        overdue_M: for how many rounds an expert has been overdue; 0 or less: it is not.
        least_M: clients that an expert gets before anybody chooses, as far as the others have left any; default 0.
        most_M: clients that an expert gets at most; default all. Clients that find every other expert full train fewer.

    Raises:
        InputError: a weight outside [0, 1], capacities or bounds that are negative or no whole numbers, lengths that differ,
            scores or samples that are not finite, an expert whose least is above its most.
    """
    clients, experts = fitness_NM.shape
    room_N = _capacities(capacity_N, experts, clients)
    samples = finite("samples_N", np.asarray(samples_N, dtype=np.float64))
    if samples.shape != (clients,) or np.any(samples < 0):
        raise InputError(f"samples_N = {samples.tolist()[:5]}: must be {clients} counts of 0 or more, one for each client")
    weight, beta = fraction("balance", balance), fraction("decay", decay)
    overdue = finite("overdue_M", np.zeros(experts) if overdue_M is None else np.asarray(overdue_M, dtype=np.float64))
    least = _whole("least_M", 0 if least_M is None else least_M, experts)
    most = _whole("most_M", clients if most_M is None else most_M, experts)
    _ordered(least, most)
    ties_NM = TIE * rng.random((clients, experts))
    fit_NM = weight * normed(finite("fitness_NM", fitness_NM)) + ties_NM
    finite("usage_M", usage_M)
    x_NM = np.zeros((clients, experts), dtype=bool)
    load_M = np.zeros(experts)

    def give(i: int, chosen: Ints) -> None:
        x_NM[i, chosen] = True
        load_M[chosen] += samples[i]
        room_N[i] -= len(chosen)

    wanted_M = np.minimum(np.maximum(least, overdue > 0), most)
    for m in _queue(wanted_M, overdue + TIE * rng.random(experts)):
        open_N = (room_N > 0) & ~x_NM[:, m]
        if open_N.any():
            give(int(np.where(open_N, fitness_NM[:, m] + ties_NM[:, m], -np.inf).argmax()), np.array([m]))
    count_M = x_NM.sum(axis=0)
    for i in rng.permutation(clients):
        if room_N[i] > 0:
            total = load_M.sum()
            usage = beta * usage_M + (1 - beta) * (load_M / total if total > 0 else load_M)
            score_M = fit_NM[i] - (1 - weight) * normed(usage)
            score_M[x_NM[i] | (count_M >= most)] = -np.inf
            best = np.argsort(-score_M)[: room_N[i]]
            best = best[score_M[best] > -np.inf]
            give(i, best)
            count_M[best] += 1
    return x_NM


def optimal(desirability_NM: Array, capacity_N: ArrayLike, least_M: ArrayLike, most_M: ArrayLike) -> Bools:
    """The whole round at once: the assignment with the greatest Σ D among all that keep the bounds.

        max Σ D_im x_im,   Σ_m x_im = min(K_i, M),   least_m ≤ Σ_i x_im ≤ most_m,   x_im ∈ {0, 1}

    A linear programme whose matrix is totally unimodular, so its vertices are whole; ``transport`` solves it and the duality
    gap of its prices is checked here before anything is returned. Σ D is within 1e-9 of D's span per pair of the optimum.

    Where the bounds leave no room for all capacity (Σ most too small, or one place per pair of client and expert too few),
    some clients get fewer than K_i: as many pairs are assigned as the bounds allow, and Σ D is the greatest among those.
    Bounds count clients, not samples. An expert with least_m ≥ 1 is trained in this very round; see ``load_bounds``.

    Raises:
        InputError: capacities or bounds that are negative or no whole numbers, lengths that differ, a desirability that is
            not finite, an expert whose least is above its most or above the number of clients with capacity, leasts that add
            up to more than all capacity or that no assignment can meet.
    """
    clients, experts = desirability_NM.shape
    K_N = _capacities(capacity_N, experts, clients)
    least, most = _whole("least_M", least_M, experts), _whole("most_M", most_M, experts)
    _ordered(least, most)
    able = int(np.count_nonzero(K_N))
    if least.max() > able:
        raise InputError(
            f"least_M[{least.argmax()}] = {least.max()}: only {able} clients have capacity, and each counts once; "
            "lower it or raise capacities"
        )
    if least.sum() > K_N.sum():
        raise InputError(f"least_M: adds up to {least.sum()}, but all capacity is {K_N.sum()}; lower it or raise capacities")
    if able == 0:
        return np.zeros((clients, experts), dtype=bool)
    most = np.minimum(most, able)
    x_NM, price_M = solve(finite("desirability_NM", desirability_NM), K_N, least, most)
    unproved = gap(desirability_NM, K_N, least, most, x_NM, price_M)
    if unproved > PROOF * TIE * (float(np.ptp(desirability_NM)) or 1.0) * int(K_N.sum()):
        raise ArithmeticError(f"the assignment may be {unproved:g} below the optimum")
    return x_NM


def load_bounds(
    capacity_N: ArrayLike, experts: int, slack: float = 0.0, overdue_M: ArrayLike | None = None
) -> tuple[Ints, Ints]:
    """Least and most clients of each expert: the mean load Σ min(K_i, M) / M, less and plus ``slack`` of it.

    Slack 0 is exact balance, ⌊mean⌋ and ⌈mean⌉, and can always be kept. Where the mean is below one, ⌊mean⌋ = 0 would let an
    expert starve: those that are overdue get a least of 1, the longest-waiting first, as many as there is capacity for. Then
    ``optimal`` keeps the same limit on waiting as ``balanced``.

    Raises:
        InputError: slack outside [0, 1], or capacities that are negative or no whole numbers.
    """
    K_N = _capacities(capacity_N, experts)
    slack, pairs = fraction("slack", slack), int(K_N.sum())
    able = int(np.count_nonzero(K_N))
    least_M = np.full(experts, int(np.floor(pairs / experts * (1 - slack) + TIE)))
    most_M = np.full(experts, min(able, int(np.ceil(pairs / experts * (1 + slack) - TIE))))
    if overdue_M is not None and least_M[0] == 0:
        overdue = finite("overdue_M", np.asarray(overdue_M, dtype=np.float64))
        least_M[_queue(overdue > 0, overdue)[:pairs]] = 1
    return least_M, np.maximum(most_M, least_M)


def owners(policy: Policy, p_MC: Array, most_C: ArrayLike | None, rng: np.random.Generator, balance: float = 0.5) -> Split:
    """Split M experts over C clusters, each expert to exactly one: an alternative to Algorithm 1 of EMS-FL.

    With ``"balanced"`` the clusters pick in turn the expert that matters most to them, up to their least; then the experts that
    are left choose, by relevance and by how many a cluster has already. ``"optimal"`` maximises the sum of owned relevance,
    Σ_c α_c of (35), and needs no chance. Both give a cluster between ⌊M / C⌋ and ⌈M / C⌉ experts, or as many as it can hold if
    that is less; then the others share the rest alike. With M ≥ C no cluster that can hold an expert stays without.

    Args:
        policy: ``"balanced"`` or ``"optimal"``.
        p_MC: relevance (27).
        most_C: how many experts each cluster's devices can hold; None: any number.
        rng: turns, order and ties of ``"balanced"``.
        balance: λ of ``"balanced"``.

    Raises:
        InputError: caps that add up to less than M, are negative or no whole numbers; a relevance that is not finite.
    """
    experts, clusters = p_MC.shape
    most = _whole("most_C", experts if most_C is None else most_C, clusters)
    if most.sum() < experts:
        raise InputError(
            f"most_C = {most.tolist()}: adds up to {most.sum()}, but {experts} experts need an owner each; "
            "raise caps, or use fewer experts or more clusters"
        )
    least, most = _even(experts, most)
    one_M = np.ones(experts, dtype=np.int64)
    if policy == "optimal":
        x_MC = optimal(p_MC, one_M, least, most)
    else:
        x_MC = balanced(p_MC, np.zeros(clusters), one_M, one_M, rng, balance, least_M=least, most_M=most)
    return Split(tuple(tuple(int(m) for m in np.flatnonzero(x_MC[:, c])) for c in range(clusters)))


def _even(total: int, cap_C: Ints) -> tuple[Ints, Ints]:
    """Bounds that fill all clusters evenly up to their caps: like water, to a level between two whole numbers."""
    level = next(n for n in range(total + 1) if np.minimum(cap_C, n).sum() >= total)
    least, most = np.minimum(cap_C, max(level - 1, 0)), np.minimum(cap_C, level)
    return (most if most.sum() == total else least), most


def _queue(wanted_M: ArrayLike, overdue_M: Array) -> Ints:
    """Experts that want clients, the longest overdue first; an expert that wants several comes again after the others."""
    wanted = np.asarray(wanted_M, dtype=np.int64)
    first_M = np.argsort(-overdue_M, kind="stable")
    turns = [first_M[wanted[first_M] > turn] for turn in range(int(wanted.max()))]
    return np.concatenate([*turns, np.empty(0, dtype=np.int64)])


def _top(score_NM: Array, K_N: Ints, rng: np.random.Generator | None = None) -> Bools:
    """Each row's K highest scores; ties at random, or to the lowest index."""
    if rng is None:
        order_NM = np.argsort(-score_NM, axis=1, kind="stable")
    else:
        order_NM = np.lexsort((rng.random(score_NM.shape), -score_NM), axis=1)
    x_NM = np.zeros(score_NM.shape, dtype=bool)
    np.put_along_axis(x_NM, order_NM, np.arange(score_NM.shape[1]) < K_N[:, None], axis=1)
    return x_NM


def _capacities(capacity_N: ArrayLike, experts: int, clients: int | None = None) -> Ints:
    """min(K_i, M)."""
    if experts < 1:
        raise InputError(f"experts = {experts}: must be 1 or more; give the model's number of experts")
    return np.minimum(_whole("capacity_N", capacity_N, clients), experts)


def _whole(name: str, values: ArrayLike, count: int | None) -> Ints:
    """Whole numbers of 0 or more; a single one stands for all."""
    given = np.asarray(values, dtype=np.float64)
    if count is not None and given.ndim == 0:
        given = np.full(count, given)
    if given.ndim != 1 or (count is not None and len(given) != count) or not len(given):
        raise InputError(f"{name}: has shape {given.shape}; give one number for each of {count or 'the clients'}")
    wrong = np.flatnonzero(~((given >= 0) & (given == np.floor(given)) & np.isfinite(given)))
    if len(wrong):
        raise InputError(f"{name}[{wrong[0]}] = {given[wrong[0]]:g}: must be a whole number of 0 or more; correct it")
    return given.astype(np.int64)


def _ordered(least_M: Ints, most_M: Ints) -> None:
    wrong = np.flatnonzero(least_M > most_M)
    if len(wrong):
        m = wrong[0]
        raise InputError(f"least_M[{m}] = {least_M[m]}: is above most_M[{m}] = {most_M[m]}; lower it or raise the other")
