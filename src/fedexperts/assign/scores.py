"""Fitness, usage, desirability and capacity: what an assignment weighs (client–expert alignment, Sec. III-B).

The paper describes these scores in words; the formulas are ours, with the paper's sentence beside each.

Shapes: N clients, M experts. A pair that was not trained in a round is NaN in that round's rewards.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from ..errors import InputError
from ..units import BITS_PER_BYTE
from .relevance import Array

Limit = Literal["memory", "uplink", "downlink", "compute", "experts"]

ROUNDING = 1e-9
"""Of an expert: a quotient this close below a whole number is that number."""


def reward(loss_NM: Array, share_NM: Array, loss_weight: float = 0.5) -> Array:
    """r = w·(1 − loss) + (1 − w)·share: "low error, frequent client-side expert selection" (Sec. III-B1).

    Args:
        loss_NM: a pair's loss over that of a uniform guess, clipped to [0, 1] here; NaN where the pair was not trained.
        share_NM: share of the client's tokens that its gate sends to the expert.
        loss_weight: w.

    Returns:
        r_NM in [0, 1]; NaN where the pair was not trained.

    Raises:
        InputError: w, or the share of a trained pair, lies outside [0, 1].
    """
    w = fraction("loss_weight", loss_weight)
    share_NM = np.where(np.isnan(loss_NM), np.nan, share_NM)
    if np.any((share_NM < 0) | (share_NM > 1)):
        raise InputError("share_NM: a routing share lies outside [0, 1]; divide an expert's tokens by all tokens routed")
    if np.any(np.isnan(share_NM) & ~np.isnan(loss_NM)):
        raise InputError("share_NM: is NaN where loss_NM is a number; give both for every pair that was trained")
    r_NM: Array = w * (1 - np.clip(loss_NM, 0, 1)) + (1 - w) * share_NM
    return r_NM


def updated_fitness(fitness_NM: Array, reward_NM: Array, rate: float = 0.3, drift: float = 0.05, prior: float = 0.5) -> Array:
    """F ← (1 − α)F + αr for trained pairs; F ← F + drift·(prior − F) for the others (Sec. III-B1).

    The paper's score "may gradually decrease" without interaction. A drift to the prior also lets a pair that once did badly
    be tried again.

    Raises:
        InputError: α, drift or prior lies outside [0, 1], or fitness is not finite.
    """
    alpha, drift, prior = fraction("rate", rate), fraction("drift", drift), fraction("prior", prior)
    finite("fitness_NM", fitness_NM)
    trained_NM = (1 - alpha) * fitness_NM + alpha * reward_NM
    return np.where(np.isnan(reward_NM), fitness_NM + drift * (prior - fitness_NM), trained_NM)


def updated_usage(usage_M: Array, load_M: ArrayLike, decay: float = 0.8) -> Array:
    """U ← βU + (1 − β)·n_e / Σn: "an averaging technique that gives more weight to recent activity" (Sec. III-B2).

    ``load_M`` is what the round's clients contributed to each expert, in samples or FLOPs. A round without any load decays.

    Raises:
        InputError: β lies outside [0, 1], or a load or usage is negative or not finite.
    """
    beta = fraction("decay", decay)
    load = np.asarray(load_M, dtype=np.float64)
    for name, values in (("load_M", load), ("usage_M", usage_M)):
        if np.any(finite(name, values) < 0):
            raise InputError(f"{name} = {values.min():g}: must be 0 or more; count the samples that trained each expert")
    total = load.sum()
    return beta * usage_M + (1 - beta) * (load / total if total > 0 else load)


def desirability(fitness_NM: Array, usage_M: Array, balance: float = 0.5) -> Array:
    """D = λ·norm(F) − (1 − λ)·norm(U): "positively influenced by fitness, negatively by usage" (Sec. III-B4).

    norm is min–max: over the experts of each client for F, over all experts for U; a constant vector becomes 0.

    Returns:
        D_NM in [λ − 1, λ].

    Raises:
        InputError: λ lies outside [0, 1], or a score is not finite.
    """
    weight = fraction("balance", balance)
    D_NM: Array = weight * normed(finite("fitness_NM", fitness_NM)) - (1 - weight) * normed(finite("usage_M", usage_M))
    return D_NM


def normed(values: Array) -> Array:
    """Min–max over the last axis; a constant vector becomes 0."""
    low, high = values.min(axis=-1, keepdims=True), values.max(axis=-1, keepdims=True)
    scaled: Array = (values - low) / np.where(high > low, high - low, 1.0)
    return scaled


@dataclass(frozen=True)
class Capacity:
    """A client's profile (Sec. III-B3), reported or estimated; ``math.inf`` where nothing limits it.

    Raises:
        InputError: a field is zero, negative or NaN.
    """

    memory_B: float = math.inf
    flops_per_s: float = math.inf
    up_bps: float = math.inf
    down_bps: float = math.inf

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not value > 0:
                raise InputError(f"{field.name} = {value}: must be above 0; give the client's own figure, or inf for no limit")


@dataclass(frozen=True)
class Need:
    """What a round takes of a client: a base (backbone, gate, head) and as much again for each expert.

    Memory at its peak, all FLOPs of local training, bytes up and down.

    Raises:
        InputError: a field is negative or not finite.
    """

    base_memory_B: float
    expert_memory_B: float
    base_flops: float
    expert_flops: float
    base_up_B: float
    expert_up_B: float
    base_down_B: float
    expert_down_B: float

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not 0 <= value < math.inf:
                raise InputError(f"{field.name} = {value}: must be 0 or more and finite; take it from the model's size")


def experts_that_fit(capacity: Capacity, need: Need, deadline_s: float, experts: int) -> tuple[int, Limit]:
    """K_i, "the maximum number of experts trained in each client per round" (Sec. III-B3), and what limits it.

    K_i = min(memory fit, uplink × deadline, downlink × deadline, compute × deadline, M), each limit by itself: transfer and
    computation may overlap. Of limits that bind alike the first is named; ``"experts"`` says that all M fit. A client whose
    base does not fit has K_i = 0 and sits the round out, for the reason named.

    Raises:
        InputError: the deadline is not above 0, or there is no expert.
    """
    if not deadline_s > 0:
        raise InputError(f"deadline_s = {deadline_s}: must be above 0; give the seconds from sending to collecting")
    if experts < 1:
        raise InputError(f"experts = {experts}: must be 1 or more; give the model's number of experts")
    fits: list[tuple[float, Limit]] = [
        (_fit(capacity.memory_B, need.base_memory_B, need.expert_memory_B), "memory"),
        (_fit(capacity.up_bps * deadline_s / BITS_PER_BYTE, need.base_up_B, need.expert_up_B), "uplink"),
        (_fit(capacity.down_bps * deadline_s / BITS_PER_BYTE, need.base_down_B, need.expert_down_B), "downlink"),
        (_fit(capacity.flops_per_s * deadline_s, need.base_flops, need.expert_flops), "compute"),
    ]
    fit, limit = min(fits, key=lambda pair: pair[0])
    return (experts, "experts") if fit >= experts else (int(fit), limit)


def _fit(budget: float, base: float, each: float) -> float:
    """Whole experts within a budget after the base."""
    if budget < base:
        return 0.0
    if each == 0 or math.isinf(budget):
        return math.inf
    return float(np.floor((budget - base) / each + ROUNDING))


def estimated_rate(tasks: Sequence[tuple[float, float]], window: int = 9) -> float:
    """A client's speed, "estimated by the server from historical performance (e.g., task completion times)" (Sec. III-B3).

    The median of work over seconds of the last ``window`` tasks: FLOP/s for FLOPs done, bit/s for bits moved. A median, since
    a single task that stalled (a lost contact, a busy machine) would drag a moving average for rounds, and the median does
    not notice up to half of them; the window lets it follow a client that changes.

    Args:
        tasks: (work done, seconds), oldest first.
        window: how many of the last tasks count.

    Raises:
        InputError: there is no task, the window is below 1, or work or seconds are not above 0 and finite.
    """
    if not tasks:
        raise InputError("tasks = []: needs at least one completed task; until then take what the client reports of itself")
    if window < 1:
        raise InputError(f"window = {window}: must be 1 or more; 9 follows a client within a few rounds")
    recent = np.array(tasks[-window:], dtype=np.float64)
    if not np.all((recent > 0) & np.isfinite(recent)):
        raise InputError("tasks: work and seconds must be above 0 and finite; leave out tasks that did not complete")
    return float(np.median(recent[:, 0] / recent[:, 1]))


def fraction(name: str, value: float) -> float:
    """``value``, if it lies in [0, 1].

    Raises:
        InputError: it does not.
    """
    if not 0 <= value <= 1:
        raise InputError(f"{name} = {value}: must lie in [0, 1]; correct it or leave it out for the default")
    return value


def finite(name: str, values: Array) -> Array:
    """``values``, if all are finite.

    Raises:
        InputError: one is NaN or infinite.
    """
    if not np.all(np.isfinite(values)):
        raise InputError(f"{name}: holds NaN or an infinite value; every score must be finite, start it at the prior")
    return values
