"""How fast updates are averaged, beside what this machine's memory carries.

    python benchmarks/aggregate.py [--updates 1000] [--held 64] [--repeats 5] [--toy]

An update has 14 MB in float32. "held" updates lie in memory of their own and are given as a list; "one by one" they come from
a generator, which goes round sixteen that no cache holds together, or makes each anew. Rates count the bytes of updates
alone, each once. What memory carries is measured in the same process with the same thread, as STREAM does: copy and add by
numpy and torch over arrays of 64 MB, of which two and three count; rates are divided by the best of these. "As STREAM" counts
an addition to the sum as STREAM would, two numbers read and one written, wherever they lie. The peak is what the resident set
grows by at most, in a call that is not timed. Peers: a new tensor for each term, `torch.stack(…).mean(0)` and, where Flower
is installed, its two averages of clients' results (the second deserialises them first, as it has to).

Asserted: ours is the plain sum to the bit, both ways and with any weights; peers agree to 1e-5; where each update is made
anew, ours takes the memory of two (its result, and the one that is held) and half of a third.
"""

from __future__ import annotations

import argparse
import ctypes
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from fedexperts.moe.parts import Tensors, tensors_B
from fedexperts.protocol.aggregate import Term, mean

RING = 16
"""Different updates that a generator goes round: 224 MB."""


def an_update(seed: int, toy: bool) -> Tensors:
    """Matrices and vectors as a model of 3.5 million numbers has them."""
    size, layers = (32, 2) if toy else (512, 13)
    generator = torch.Generator().manual_seed(seed)
    shapes = {f"layer.{i}.{kind}": shape for i in range(layers) for kind, shape in (("w", (size, size)), ("b", (size,)))}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def plain(terms: Sequence[Term]) -> Tensors:
    """Σ w θ / Σ w with a new tensor for each product and each sum."""
    weight, tensors = terms[0]
    total = {name: weight * value for name, value in tensors.items()}
    for more, other in terms[1:]:
        total = {name: value + more * other[name] for name, value in total.items()}
        weight += more
    return {name: value / weight for name, value in total.items()}


def stacked(terms: Sequence[Term]) -> Tensors:
    return {name: torch.stack([tensors[name] for _, tensors in terms]).mean(0) for name in terms[0][1]}


def around(terms: Sequence[Term], updates: int, anew: bool) -> Iterator[Term]:
    """So many updates one by one, as they would arrive."""
    for i in range(updates):
        weight, tensors = terms[i % RING]
        yield weight, ({name: value.clone() for name, value in tensors.items()} if anew else tensors)


def flower(terms: Sequence[Term]) -> dict[str, Callable[[], Tensors]]:
    """Flower's own averages over the same numbers; none where it is not installed."""
    try:
        from flwr.common import Code, FitRes, Status, ndarrays_to_parameters
        from flwr.server.strategy.aggregate import aggregate, aggregate_inplace
    except ImportError:
        return {}
    names = list(terms[0][1])
    arrays = [([tensors[name].numpy() for name in names], int(weight)) for weight, tensors in terms]
    results = [(None, FitRes(Status(Code.OK, ""), ndarrays_to_parameters(one), n, {})) for one, n in arrays]

    def as_tensors(found: list[np.ndarray]) -> Tensors:
        return {name: torch.from_numpy(np.asarray(value, dtype=np.float32)) for name, value in zip(names, found, strict=True)}

    return {
        "Flower, aggregate": lambda: as_tensors(aggregate(arrays)),
        "Flower, aggregate_inplace": lambda: as_tensors(aggregate_inplace(results)),
    }


def spent_s(work: Callable[[], object], repeats: int) -> float:
    """Median seconds of the processor, which others on the machine disturb less, after a first call that does not count."""
    work()
    found = []
    for _ in range(repeats):
        began = time.process_time()
        work()
        found.append(time.process_time() - began)
    return statistics.median(found)


def memory_Bps(repeats: int, toy: bool) -> dict[str, float]:
    """Bytes per second of memory, as STREAM counts them."""
    numbers = 2**12 if toy else 2**24
    a, b, c = (np.ones(numbers, dtype=np.float32) for _ in range(3))
    ta, tb, tc = map(torch.from_numpy, (a, b, c))
    ways: dict[str, tuple[int, Callable[[], object]]] = {
        "copy, numpy": (2, lambda: np.copyto(c, a)),
        "copy, torch": (2, lambda: tc.copy_(ta)),
        "add, numpy": (3, lambda: np.add(a, b, out=c)),
        "add, torch": (3, lambda: torch.add(ta, tb, out=tc)),
    }
    return {name: arrays * a.nbytes / spent_s(work, repeats) for name, (arrays, work) in ways.items()}


def peak_B(work: Callable[[], object]) -> int:
    """By how much the resident set grows at most."""
    ctypes.CDLL(None).malloc_trim(0)  # what was freed is given back, or it would serve again unseen
    Path("/proc/self/clear_refs").write_text("5")
    before = _resident_B("VmRSS")
    work()
    return max(0, _resident_B("VmHWM") - before)


def _resident_B(name: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return 1024 * int(line.split()[1])


def same(found: Tensors, expected: Tensors, apart: float = 0.0) -> bool:
    return all(bool((found[name] - value).abs().max() <= apart) for name, value in expected.items())


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=1000)
    parser.add_argument("--held", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--toy", action="store_true", help="smallest size; the figures mean nothing")
    args = parser.parse_args(argv)
    if args.toy:
        args.updates, args.held, args.repeats = 2 * RING, RING, 1
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    updates = [an_update(seed, args.toy) for seed in range(max(args.held, RING))]
    by_samples: list[Term] = [(float(rng.integers(1, 1000)), tensors) for tensors in updates]
    alike: list[Term] = [(1.0, tensors) for tensors in updates]
    size_B = tensors_B(updates[0])
    for terms in (alike, by_samples):
        assert same(mean(terms), plain(terms)), "ours is not the plain sum"
        assert same(mean(iter(terms)), plain(terms)), "one by one ours is not the plain sum"
    rates = memory_Bps(args.repeats, args.toy)
    carries_Bps = max(rates.values())
    many, held = args.updates, len(updates)
    print(f"{held} updates of {size_B / 1e6:.1f} MB held, {many} one by one; one thread, median of {args.repeats}")
    print(f"{'':34}{'GB/s':>7}{'of memory':>11}{'as STREAM':>11}{'ms/update':>11}{'peak MB':>9}")
    for name, rate_Bps in rates.items():
        print(f"{'memory, ' + name:34}{rate_Bps / 1e9:7.2f}{'':11}{rate_Bps / carries_Bps:11.2f}")
    rows: dict[str, tuple[int, Callable[[], object]]] = {
        "ours, held, alike": (held, lambda: mean(alike)),
        "ours, held, by samples": (held, lambda: mean(by_samples)),
        "ours, one by one, alike": (many, lambda: mean(around(alike, many, anew=False))),
        "ours, one by one, by samples": (many, lambda: mean(around(by_samples, many, anew=False))),
        "ours, each made anew": (many, lambda: mean(around(by_samples, many, anew=True))),
        "a new tensor for each term": (held, lambda: plain(by_samples)),
        "torch.stack, mean": (held, lambda: stacked(alike)),
    }
    peers = flower(by_samples)
    for name, peer in peers.items():
        assert same(peer(), plain(by_samples), 1e-5), f"{name} has another mean"
        rows[name] = held, peer
    assert same(stacked(alike), plain(alike), 1e-5), "torch.stack has another mean"
    for name, (count, work) in rows.items():
        took_s, peak = spent_s(work, args.repeats if count == held else 1), peak_B(work)
        rate_Bps = count * size_B / took_s
        shares = f"{rate_Bps / carries_Bps:11.2f}{3 * rate_Bps / carries_Bps:11.2f}"
        print(f"{name:34}{rate_Bps / 1e9:7.2f}{shares}{1e3 * took_s / count:11.3f}{peak / 1e6:9.1f}", flush=True)
        if name == "ours, each made anew" and not args.toy:
            assert peak < 2.5 * size_B, f"{peak / size_B:.2f} updates of memory"


if __name__ == "__main__":
    main()
