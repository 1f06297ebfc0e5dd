"""Which samples make the batches of an epoch.

Shapes: N samples, K batches of B samples.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

POOL = 16
"""Batches that are sorted together: more of them leave less padding, fewer mix the samples better."""


def epoch_batches(rng: np.random.Generator, samples: int, size: int, lengths_N: Tensor | None = None) -> Tensor:
    """The batches of one epoch in a random order: chosen_KB, whole batches only, each sample once at most.

    With ``lengths_N`` a batch holds samples of similar length. Pools of batches are drawn first and sorted within, so that
    batches differ from epoch to epoch; then the batches are shuffled.
    """
    order_N = torch.from_numpy(rng.permutation(samples))[: samples // size * size]
    if lengths_N is None:
        return order_N.view(-1, size)
    pools = [pool[lengths_N[pool].argsort(stable=True)] for pool in torch.split(order_N, POOL * size)]
    batches_KB = torch.cat(pools).view(-1, size)
    return batches_KB[torch.from_numpy(rng.permutation(len(batches_KB)))]
