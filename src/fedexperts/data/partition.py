"""How a cluster's data are dealt to its devices, and its test data after them.

Shapes: N samples, D devices, C classes (different labels).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import InputError
from ..seeds import Stream, stream
from .source import Samples, size, take

Partition = Literal["iid", "by-label", "classes", "tau", "dirichlet"]
TestPartition = Literal["same", "iid"]
TauMode = Literal["table", "prose"]
Shares = list[NDArray[np.int64]]
"""Numbers of the samples of each device."""
DRAWS = 100
"""How often Dirichlet shares are drawn until no device is left without data."""


def deal(
    samples: Samples,
    devices: int,
    how: Partition,
    seed: int,
    cluster: str,
    *,
    classes_per_device: int = 1,
    tau: float = 1.0,
    tau_mode: TauMode = "table",
    dirichlet_alpha: float = 1.0,
) -> list[Samples]:
    """Deal samples to devices, no sample to two.

    Args:
        samples: with ``labels`` among them.
        devices: D.
        how: ``"iid"`` shuffles. ``"by-label"`` gives each device a run of the sorted labels. ``"classes"`` gives a device
            ``classes_per_device`` classes, in turn, and every class to somebody. ``"tau"`` gives device i all classes, of
            which class i mod C is dominant, and equally many samples to all, as many as there are; what is left over is not
            used. ``"dirichlet"`` deals each class by shares from Dirichlet(``dirichlet_alpha``).
        seed: decides on which samples go where.
        cluster: names the cluster in errors.
        classes_per_device: of ``"classes"`` (the shards of McMahan et al., arXiv:1602.05629, by classes).
        tau: Non-IID(τ) of the Networked MoE paper, Sec. IV: dominant to the rest is 1 : τ (``tau_mode = "table"``, what its
            tables show), or the dominant class has the share 1 − τ (``"prose"``, what its text says).
        tau_mode: see ``tau``.
        dirichlet_alpha: α, the same for all devices (Yurochkin et al., arXiv:1905.12022).

    Raises:
        InputError: the data do not hold enough samples or classes, or a device is left without data.
    """
    n, where = size(samples), f"cluster {cluster!r}"
    if n < devices:
        raise InputError(
            f"{where}: devices = {devices} but its data hold only {n} samples; "
            "every device needs at least one sample: use fewer devices or more data"
        )
    rng = stream(Stream.DEAL, seed)
    order = rng.permutation(n)
    labels = samples["labels"].numpy()
    if how in ("iid", "by-label"):
        order = order if how == "iid" else order[np.argsort(labels[order], kind="stable")]
        return _taken(samples, np.array_split(order, devices))
    pools = [order[labels[order] == label] for label in np.unique(labels)]
    if how == "classes":
        return _taken(samples, _by_classes(pools, devices, classes_per_device, where))
    if how == "dirichlet":
        return _taken(samples, _by_dirichlet(pools, devices, dirichlet_alpha, rng, where))
    return _taken(samples, _by_tau(pools, devices, tau, tau_mode, where))


def deal_test(
    test: Samples, trained: Sequence[Samples], how: TestPartition, seed: int, cluster: str, what: str = "test"
) -> list[Samples]:
    """Deal a cluster's test samples to its devices, no sample to two; ``trained`` are the devices' training samples.

    ``"same"`` gives a device the class proportions of its training samples, to the nearest sample, and equally many samples to
    all devices, as many as there are. ``"iid"`` shuffles; shares differ by one sample at most.

    Raises:
        InputError: there are fewer samples than devices, or a class that a device trains on is missing or too rare.
    """
    n, devices, where = size(test), len(trained), f"{what} data of cluster {cluster!r}"
    if n < devices:
        raise InputError(f"{where}: only {n} samples for {devices} devices; use fewer devices or more {what} data")
    order = stream(Stream.DEAL_TEST, seed).permutation(n)
    if how == "iid":
        return _taken(test, np.array_split(order, devices))
    labels, learnt = test["labels"].numpy(), [samples["labels"].numpy() for samples in trained]
    classes = np.unique(np.concatenate(learnt))
    pools = [order[labels[order] == label] for label in classes]
    if missing := [label for label, pool in zip(classes.tolist(), pools, strict=True) if not len(pool)]:
        raise InputError(
            f'{where}: label {missing[0]} is missing, and devices train on it; add samples of it, or use test_partition = "iid"'
        )
    shares_DC = np.stack([[np.mean(own == label) for label in classes] for own in learnt])
    counts_DC = _largest(shares_DC, _sizes(pools))
    if not counts_DC.any():
        raise InputError(
            f"{where}: too few samples to give each of {devices} devices the class proportions that it trains on; use more "
            f'{what} data, fewer devices or test_partition = "iid"'
        )
    return _taken(test, _cut(pools, counts_DC))


def _taken(samples: Samples, shares: Sequence[NDArray[np.int64]]) -> list[Samples]:
    return [take(samples, torch.from_numpy(np.sort(share))) for share in shares]


def _sizes(pools: Shares) -> NDArray[np.int64]:
    return np.array([len(pool) for pool in pools])


def _by_classes(pools: Shares, devices: int, each: int, where: str) -> Shares:
    """Group g holds the ``each`` classes from number g·each on, going round; device i is of group i mod G."""
    classes = len(pools)
    groups = -(-classes // each)
    what = f"{where}: classes_per_device = {each}"
    if each > classes:
        raise InputError(f"{what}: its data hold only {classes} classes; use that many at most")
    if devices < groups:
        raise InputError(
            f"{what}: {devices} devices would leave some of the {classes} classes to nobody; "
            f"use at least {groups} devices, or at least {-(-classes // devices)} classes per device"
        )
    shares: Shares = [np.empty(0, dtype=np.int64) for _ in range(devices)]
    for c, pool in enumerate(pools):
        holders = [i for i in range(devices) if (c - i % groups * each) % classes < each]
        if len(pool) < len(holders):
            raise InputError(
                f"{what}: a class of {len(pool)} samples cannot be split among {len(holders)} devices; use fewer devices or "
                "more data"
            )
        for i, part in zip(holders, np.array_split(pool, len(holders)), strict=True):
            shares[i] = np.concatenate([shares[i], part])
    return shares


def _by_tau(pools: Shares, devices: int, tau: float, mode: TauMode, where: str) -> Shares:
    classes, what = len(pools), f"{where}: tau = {tau:g}"
    if not 0 < tau <= 1:
        raise InputError(f"{what}: must be above 0 and at most 1")
    if classes < 2:
        raise InputError(f"{what}: its data hold one class alone, beside which none can be dominant; use other data")
    dominant = 1 / (1 + tau) if mode == "table" else 1 - tau
    if dominant < 1 / classes - 1e-9:
        raise InputError(
            f'{what}: with tau_mode = "prose" a share of {dominant:g} of {classes} classes is not dominant; use at most '
            f'{1 - 1 / classes:g}, or tau_mode = "table"'
        )
    shares_DC = np.full((devices, classes), (1 - dominant) / (classes - 1))
    shares_DC[np.arange(devices), np.arange(devices) % classes] = dominant
    counts_DC = _largest(shares_DC, _sizes(pools))
    if not counts_DC.all():
        raise InputError(
            f"{what}: its data are too few for each of {devices} devices to hold all {classes} classes (the rarest has "
            f"{_sizes(pools).min()} samples); use fewer devices, a larger tau or more data"
        )
    return _cut(pools, counts_DC)


def _by_dirichlet(pools: Shares, devices: int, alpha: float, rng: np.random.Generator, where: str) -> Shares:
    for _ in range(DRAWS):
        cuts = [(rng.dirichlet([alpha] * devices).cumsum()[:-1] * len(pool)).round().astype(np.int64) for pool in pools]
        parts = [np.split(pool, cut) for pool, cut in zip(pools, cuts, strict=True)]
        shares = [np.concatenate(of_device) for of_device in zip(*parts, strict=True)]
        if all(len(share) for share in shares):
            return shares
    raise InputError(
        f"{where}: dirichlet_alpha = {alpha:g}: a device was left without data in each of {DRAWS} draws; use a larger "
        "dirichlet_alpha, fewer devices or more data"
    )


def _largest(shares_DC: NDArray[np.float64], supply_C: NDArray[np.int64]) -> NDArray[np.int64]:
    """Samples by device and class, equally many for every device, as many as the supply allows; zeros if it allows none."""
    devices = len(shares_DC)
    most = min(int(supply_C.sum()) // devices, *((supply_C + devices) / np.maximum(shares_DC.sum(axis=0), 1e-12)).astype(int))
    for n in range(most, 0, -1):
        counts_DC = np.stack([_rounded(n * shares_C, i) for i, shares_C in enumerate(shares_DC)])
        if np.all(counts_DC.sum(axis=0) <= supply_C):
            return counts_DC
    return np.zeros(shares_DC.shape, dtype=np.int64)


def _rounded(wanted_C: NDArray[np.float64], first: int) -> NDArray[np.int64]:
    """Whole numbers of the same sum, by largest remainders; ties go round from the class after ``first``.

    So that devices with the same remainders do not all ask for the same class.
    """
    whole_C = np.floor(wanted_C + 1e-9).astype(np.int64)
    rest_C = (wanted_C - whole_C).round(9)
    turn_C = (np.arange(len(wanted_C)) - first - 1) % len(wanted_C)
    chosen = np.lexsort((turn_C, -rest_C))[: round(wanted_C.sum()) - int(whole_C.sum())]
    whole_C[chosen] += 1
    return whole_C


def _cut(pools: Shares, counts_DC: NDArray[np.int64]) -> Shares:
    """The devices' samples: of every class's pool one run after another."""
    parts = [np.split(pool, counts_D.cumsum())[:-1] for pool, counts_D in zip(pools, counts_DC.T, strict=True)]
    return [np.concatenate(of_device) for of_device in zip(*parts, strict=True)]
