"""Devices with their shares of the data, each link's own data to be judged by, and classes of devices."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ..data.objective import Objective
from ..data.partition import TestPartition, deal, deal_test
from ..data.source import Samples
from ..errors import InputError
from ..moe.parts import MAX_UPDATE_NORM, Piece
from ..moe.view import View
from ..own import imported, label
from ..scenario import Scenario
from ..tables import Cluster
from ..train.device import Device, LocalLoss, LocalTraining


@dataclass(frozen=True)
class Judges:
    """What models are judged by: the ``own`` data of each link; for a Networked MoE also ``even`` shares, like nobody's own."""

    own: dict[str, Samples]
    even: dict[str, Samples]


def dealt(cluster: Cluster, samples: Samples, seed: int) -> list[Samples]:
    """A cluster's samples as shares of its devices."""
    return deal(
        samples,
        cluster.devices,
        cluster.partition,
        seed,
        cluster.name,
        classes_per_device=cluster.classes_per_device or 1,
        tau=cluster.tau or 1.0,
        tau_mode=cluster.tau_mode,
        dirichlet_alpha=cluster.dirichlet_alpha or 1.0,
    )


def judges(
    scenario: Scenario, held: dict[str, Samples], shares: Mapping[str, list[Samples]], links: list[str], even: bool, what: str
) -> Judges:
    """Data of clusters as those of their clients: dealt like their training data, and evenly."""

    def pooled(how: Callable[[Cluster], TestPartition]) -> dict[str, Samples]:
        pools = [deal_test(held[c.name], shares[c.name], how(c), scenario.seed, c.name, what) for c in scenario.cluster]
        return dict(zip(links, [samples for pool in pools for samples in pool], strict=True))

    def own(cluster: Cluster) -> TestPartition:
        scores = held[cluster.name]["labels"].is_floating_point()  # which have no classes
        return "iid" if scores else cluster.test_partition

    return Judges(pooled(own), pooled(lambda cluster: "iid") if even else {})


def devices(
    scenario: Scenario,
    view: View,
    model: dict[str, Piece],
    objectives: Mapping[str, Objective],
    shares: Mapping[str, list[Samples]],
) -> dict[str, list[Device]]:
    """The devices of each cluster, with their shares of its data."""
    local, seed, uplink = _local_training(scenario), scenario.seed, scenario.model.uplink
    return {
        name: [
            Device(f"{name}/{j}", view, samples, model, local, seed, objectives[name], uplink)
            for j, samples in enumerate(group)
        ]
        for name, group in shares.items()
    }


def _local_training(scenario: Scenario) -> LocalTraining:
    table = scenario.train
    return LocalTraining(
        local_steps=table.local_steps,
        batch_size=None if table.batch_size == "full" else table.batch_size,
        optimizer=table.optimizer,
        lr_expert=table.lr_expert,
        lr_gate=table.lr_gate,
        weight_decay=table.weight_decay,
        bucketing=table.bucketing,
        loss=_local_loss(scenario),
        proximal_mu=table.proximal_mu or 0.0,
        max_update_norm=table.max_update_norm or MAX_UPDATE_NORM,
        together=table.cohort == "batched",
        cache_B=int(table.cache_MB * 1e6) // sum(cluster.devices for cluster in scenario.cluster),
    )


def _local_loss(scenario: Scenario) -> LocalLoss | None:
    """The user's own, if there is one.

    Raises:
        InputError: there is none of this name, or it is no function of three arguments.
    """
    if (name := scenario.train.local_loss) is None:
        return None
    found: LocalLoss = imported("train.local_loss", name, scenario.base)
    if not callable(found):
        raise InputError(f"train.local_loss = {name!r}: is no function; name module:function, as fedprox:proximal")
    try:
        inspect.signature(found).bind(None, None, None)
    except TypeError as error:
        raise InputError(
            f"train.local_loss = {name!r}: must take three arguments, the batch's loss, what is trained and what was received "
            f"({error}); write def {label(name)}(loss, trained, received)"
        ) from error
    except ValueError:
        pass  # of C, and says nothing of what it takes
    return found
