"""Which of its data a cluster takes: ``samples`` and ``test_samples``, drawn from the seed, of every kind of data alike."""

from __future__ import annotations

from typing import Literal

from ..data.source import some
from ..errors import InputError
from ..scenario import Tasks


def taken(scenario: Tasks, i: int, n: int, key: Literal["samples", "test_samples"], what: str = "rows") -> list[int]:
    """Numbers, from 0 and ascending, of those that the i-th cluster takes of ``n`` ``what``.

    The draw depends on the seed, ``n`` and the clusters alone, so that all protocols of a comparison take the same. Of training
    data clusters that name the same take different ones, each after those before it.

    Raises:
        InputError: there are not so many.
    """
    cluster = scenario.cluster[i]
    count = cluster.samples if key == "samples" else cluster.test_samples
    if count is None:
        return list(range(n))
    first, spec = 0, cluster.test or cluster.data
    if key == "samples":
        spec = cluster.data
        first = sum(other.samples or 0 for other in scenario.cluster[:i] if other.data == spec)
    if first + count > n:
        also = f", and clusters before it take {first}" if first else ""
        raise InputError(
            f"cluster {cluster.name!r}: {key} = {count}: {spec!r} holds {n} {what}{also}; take fewer, or name more files"
        )
    return some(n, first, count, scenario.seed)
