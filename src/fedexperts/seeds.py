"""Random streams by name: each use of chance draws from a stream of its own, so that one more draw here changes nothing there.

A stream starts from a key, which is the scenario's seed or a device's (the seed and its name), and from whatever tells its uses
apart, as a round or an epoch. The numbers are part of what a seed means: they stay as they are, and none is used twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum, unique

import numpy as np


@unique
class Stream(IntEnum):
    """What is drawn. After a number stands what follows it in the seed."""

    BATCHES = 0  # epoch
    TRIAL = 1  # samples of a trial pass, and of an appraisal
    ROUND = 2  # gradient steps before; dropout and noise of the gate
    DEAL = 3  # a cluster's samples to its devices
    WARM_UP = 4
    SPLIT = 5  # number of the split; ties of Algorithm 1
    EARLY_CLOSE = 6
    SENDS = 7  # what is sent; how often it takes
    DEAL_TEST = 8
    SAMPLES = 9  # which of a cluster's data are taken
    CLASS = 11  # cluster, device; its class of devices
    AWAY = 12  # client
    PARTICIPANTS = 13  # round
    TIES = 14  # round; of an assignment
    GATE_PARTICIPANTS = 15  # round
    TURNS = 16  # the order of clients in which a gate rolls
    VIEWS = 21  # gradient steps before; augmentation for a shared correlation matrix
    PRIVACY = 22  # gradient steps before; noise on that matrix
    ROLL_TARGETS = 23
    ROLL_HELD = 24
    CORRELATION = 25  # gradient steps before; which images the matrix is of
    HOLD_OUT = 26  # validation data


def stream(name: Stream, key: int | Sequence[int], *more: int) -> np.random.Generator:
    """The generator of one use; ``more`` tells uses of the same name apart."""
    return np.random.default_rng([*([key] if isinstance(key, int) else key), int(name), *more])


def torch_seed(name: Stream, key: int | Sequence[int], *more: int) -> int:
    """A seed for torch from such a stream."""
    return int(stream(name, key, *more).integers(2**62))
