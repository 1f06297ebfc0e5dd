"""Assigning experts to clients: time of `balanced` and `optimal`, beside scipy's plain linear programme and one pass over D.

One expert fits each client best, one is popular with all, the rest is noise; capacities of 0 to 8 experts; exact balance
(slack 0) for `optimal` and for the programme. Repetitions of the tools take turns. The peer is HiGHS on the programme as it
stands, as a sparse matrix built outside the clock; once where it takes long. The floor is one pass over D, a minimum over
all cells: nobody assigns without reading it.

The second table runs ten rounds from usage 0, fitness fixed: mean fitness of the pairs; Σ D of the last round, less that of
the best assignment with the same load on every expert (0: nothing to gain by swapping); the variation (CV) of the experts'
loads in the last round and over all; the longest that an expert went untrained.

Asserted: every assignment gives every client as many experts as it has capacity for, no expert twice; `optimal` keeps its
bounds, and its Σ D is that of the programme, to 1e-6; no policy gains on the best assignment with its own loads, and `optimal`
loses nothing.
Usage: python benchmarks/alignment.py [--repeats N] [--peer-clients N] [--toy]
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence

import numpy as np
from scipy import sparse
from scipy.optimize import linprog

from fedexperts.assign.policies import balanced, greedy, load_bounds, optimal, random_assignment
from fedexperts.assign.scores import desirability, updated_usage

TOY = ((20, 8), (30, 12))
SIZES = ((100, 64), (1000, 8), (1000, 64), (1000, 256), (10000, 64))
CAPACITY = 8
ROUNDS = 10


class Round:
    def __init__(self, clients: int, experts: int) -> None:
        self.rng = rng = np.random.default_rng(0)
        self.fitness_NM = 0.3 * rng.random((clients, experts)) + 0.3 * (np.arange(experts) == 0)
        self.fitness_NM[np.arange(clients), rng.integers(0, experts, clients)] += 0.4 * rng.random(clients)
        self.usage_M = rng.random(experts) / experts
        self.samples_N = rng.integers(10, 500, clients)
        self.capacity_N = np.minimum(rng.integers(0, CAPACITY + 1, clients), experts)
        self.D_NM = desirability(self.fitness_NM, self.usage_M)
        self.bounds = load_bounds(self.capacity_N, experts)

    def random(self) -> np.ndarray:
        return random_assignment(self.capacity_N, len(self.usage_M), self.rng)

    def greedy(self) -> np.ndarray:
        return greedy(self.fitness_NM, self.capacity_N, self.rng)

    def balanced(self) -> np.ndarray:
        return balanced(self.fitness_NM, self.usage_M, self.capacity_N, self.samples_N, self.rng)

    def optimal(self) -> np.ndarray:
        return optimal(self.D_NM, self.capacity_N, *self.bounds)

    def floor(self) -> float:
        return float(self.D_NM.min())

    def peer(self) -> Callable[[], float]:
        """HiGHS's dual simplex on the whole programme; returns Σ D."""
        clients, experts = self.D_NM.shape
        rows = sparse.kron(sparse.eye(clients), np.ones((1, experts)), format="csr")
        columns = sparse.kron(np.ones((1, clients)), sparse.eye(experts), format="csr")
        least_M, most_M = self.bounds
        within = {"A_ub": sparse.vstack([columns, -columns], format="csr"), "b_ub": np.concatenate([most_M, -least_M])}
        exact = {"A_eq": rows, "b_eq": self.capacity_N}
        return lambda: -linprog(-self.D_NM.ravel(), **within, **exact, bounds=(0, 1), method="highs").fun


def check(this: Round, name: str, x_NM: np.ndarray) -> None:
    """That an assignment is one."""
    assert (x_NM.dtype, x_NM.shape) == (bool, this.D_NM.shape), f"{name}: {x_NM.dtype} {x_NM.shape}"
    assert (x_NM.sum(axis=1) == this.capacity_N).all(), f"{name}: a client has more or fewer experts than capacity"
    if name == "optimal":
        least_M, most_M = this.bounds
        load_M = x_NM.sum(axis=0)
        assert ((least_M <= load_M) & (load_M <= most_M)).all(), f"{name}: loads {load_M.min()}-{load_M.max()} break the bounds"


def spread(seconds: list[float]) -> str:
    return " ".join(f"{1e3 * t:9.2f}" for t in (statistics.median(seconds), min(seconds), max(seconds)))


def times(clients: int, experts: int, repeats: int, peer: bool) -> None:
    this = Round(clients, experts)
    tools: dict[str, Callable[[], object]] = {"balanced": this.balanced, "optimal": this.optimal, "one pass over D": this.floor}
    seconds: dict[str, list[float]] = {name: [] for name in tools}
    for repeat in range(repeats + 1):  # the first is for warm-up
        for name, tool in tools.items():
            begin = time.perf_counter()
            result = tool()
            if repeat:
                seconds[name].append(time.perf_counter() - begin)
            if isinstance(result, np.ndarray):
                check(this, name, result)
            else:
                assert result == np.sort(this.D_NM, axis=None)[0], f"{name}: {result} is not the least D"
    found = None
    if peer:
        programme, seconds["HiGHS, plain"] = this.peer(), []
        for _ in range(repeats if clients * experts < 10**5 else 1):
            begin = time.perf_counter()
            found = programme()
            seconds["HiGHS, plain"].append(time.perf_counter() - begin)
    for name, taken in seconds.items():
        print(f"{clients:7} {experts:7}  {name:16} {len(taken):3} {spread(taken)}")
    if found is not None:
        ours = float((this.optimal() * this.D_NM).sum())
        assert abs(ours - found) <= 1e-6 * abs(found), f"sum of D: optimal {ours}, the programme {found}"
        print(f"{'':17}sum of D: ours {ours:.6f}, HiGHS {found:.6f}, difference {ours - found:+.1e}")


def worth(clients: int, experts: int) -> None:
    for name in ("random", "greedy", "balanced", "optimal"):
        this = Round(clients, experts)
        this.usage_M, waited_M, longest, loads = np.zeros(experts), np.zeros(experts, dtype=int), 0, []
        for _ in range(ROUNDS):
            this.D_NM = desirability(this.fitness_NM, this.usage_M)
            x_NM = getattr(this, name)()
            check(this, name, x_NM)
            loads.append(x_NM.sum(axis=0))
            this.usage_M = updated_usage(this.usage_M, this.samples_N @ x_NM)
            waited_M = np.where(loads[-1] > 0, 0, waited_M + 1)
            longest = max(longest, int(waited_M.max()))
        best_NM = optimal(this.D_NM, this.capacity_N, loads[-1], loads[-1])
        short = float((x_NM * this.D_NM).sum() - (best_NM * this.D_NM).sum())
        assert short <= 1e-6, f"{name}: {short} above the best assignment with the same loads"
        assert name != "optimal" or short >= -1e-6, f"{name}: {short} to the best assignment with the same loads"
        last, total = (load_M.std() / load_M.mean() for load_M in (loads[-1], np.sum(loads, axis=0)))
        fitness = this.fitness_NM[x_NM].mean()
        print(f"{clients:7} {experts:7}  {name:8} {fitness:8.3f} {short:9.2f} {last:8.3f} {total:8.3f} {longest:6}")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--peer-clients", type=int, default=10000, help="largest number of clients to give to HiGHS")
    parser.add_argument("--toy", action="store_true", help="smallest sizes, one repetition; the figures mean nothing")
    args = parser.parse_args(argv)
    sizes, args.repeats = (TOY, 1) if args.toy else (SIZES, args.repeats)
    print(f"{'clients':>7} {'experts':>7}  {'tool':16} {'n':>3} {'median ms':>9} {'least':>9} {'most':>9}")
    for clients, experts in sizes:
        times(clients, experts, args.repeats, clients <= args.peer_clients)
    print()
    print(
        f"{'clients':>7} {'experts':>7}  {'policy':8} {'fitness':>8} {'to best':>9} {'CV last':>8} {'CV all':>8} {'waited':>8}"
    )
    for clients, experts in sizes:
        worth(clients, experts)


if __name__ == "__main__":
    main()
