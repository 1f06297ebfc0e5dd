"""How a cluster's data are dealt to its devices."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch

from ..errors import InputError
from .source import Samples, size, take

Partition = Literal["iid", "by-label"]


def deal(samples: Samples, devices: int, how: Partition, seed: int, cluster: str) -> list[Samples]:
    """Deal samples to devices: ``"iid"`` shuffles, ``"by-label"`` gives each device a run of the sorted labels.

    Raises:
        InputError: there are fewer samples than devices.
    """
    n = size(samples)
    if n < devices:
        raise InputError(
            f"cluster {cluster!r}: devices = {devices} but its data hold only {n} samples; "
            "every device needs at least one sample: use fewer devices or more data"
        )
    order = np.random.default_rng([seed, 3]).permutation(n)
    if how == "by-label":
        order = order[np.argsort(samples["labels"].numpy()[order], kind="stable")]
    return [take(samples, torch.from_numpy(np.sort(part))) for part in np.array_split(order, devices)]
