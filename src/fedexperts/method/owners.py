"""EMS-FL, its enhanced form and the synchronous baseline: who owns which expert is decided before the first contact.

Relevance comes from a trial pass; Algorithm 1 or a policy splits the experts over the clusters, and a report tells of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from ..assign.policies import owners
from ..assign.relevance import (
    Array,
    advice,
    assignment_probability,
    default_threshold,
    expert_classes,
    relevance,
    relevant_ratios,
    truncate,
)
from ..assign.split import Split, split
from ..errors import InputError
from ..ledger import Ledger
from ..moe.parts import expert, expert_index, in_order, is_expert
from ..protocol.ems_fl import EmsFl, EnhancedEmsFl, Resplit
from ..protocol.link import ServerProtocol, Start
from ..scenario import Scenario
from ..seeds import Stream, stream
from ..setup.prepare import Counts, Prepared, counted, prepare, trial_B
from ..tables import Load
from . import told
from .capacity import most_experts
from .method import Beginning, Method


def check(prepared: Prepared) -> None:
    """Refuse a split that clusters cannot carry, and a plan without a cycle for experts.

    Raises:
        InputError: with the remedy.
    """
    if told.parts(prepared.scenario).disjoint and (most := most_experts(prepared)) is not None:
        check_caps(prepared.scenario.assignment.policy, list(most.values()), sum(map(is_expert, prepared.view.parts)))


def _prepare_enhanced(scenario: Scenario, only: str | None = None) -> Prepared:
    prepared = prepare(scenario, only=only)
    tail, cycles = scenario.train.gate_tail_cycles, len(prepared.plan.cycle_ends_s)
    if tail >= min(scenario.train.cycles, cycles):
        raise InputError(
            f"train.gate_tail_cycles = {tail}: the plan has only {cycles} orbital cycles, so no expert would be trained; make "
            "the plan longer or the tail shorter"
        )
    return prepared


def begin(prepared: Prepared, ledger: Ledger, uploads: bool = True) -> Beginning:
    """Trial pass and Algorithm 1, before round 0 (Algorithms 2 and 3: "Initialize"); ``uploads``: it is done over the link."""
    trials = prepared.trials()
    counts = counted(trials)
    owned = split_experts(prepared.scenario, counts, most_experts(prepared))
    sent_B = sum(trial_B(prepared.scenario, one) for rows in trials.values() for one in rows) if uploads else 0
    ledger.write("assignment", 0, trial_uplink_B=sent_B, **assignment_report(prepared.scenario, counts, owned))
    return Beginning(owned, sent_B)


def resplit(prepared: Prepared) -> Resplit:
    """When and how experts are split again during a run."""
    scenario, table = prepared.scenario, prepared.scenario.assignment

    def again(counts: Counts, number: int) -> dict[str, frozenset[str]]:
        return split_experts(scenario, counts, most_experts(prepared), number)

    return Resplit(again, table.every_cycles, table.trial_samples)


def _ems_fl(prepared: Prepared, start: Start) -> EmsFl:
    scenario = prepared.scenario
    return EmsFl(start, resplit(prepared), told.step(scenario), told.parts(scenario))


def _enhanced(prepared: Prepared, start: Start) -> EnhancedEmsFl:
    scenario, again = prepared.scenario, resplit(prepared)
    return EnhancedEmsFl(start, again, scenario.train.gate_tail_cycles, told.step(scenario), told.parts(scenario))


def _sync(prepared: Prepared, start: Start) -> ServerProtocol:
    return told.whole(prepared.scenario, start)


def _loads(scenario: Scenario) -> tuple[Load, ...]:
    """Behind the masked gate a device needs no others' experts, but for the gate tail and trials, which stream them.

    Ablated, it meets or trains them all.
    """
    there = told.parts(scenario)
    if not (there.mask and there.disjoint):
        return ("all",)
    alone: tuple[Load, ...] = () if scenario.train.gate_tail_cycles or scenario.assignment.every_cycles else ("own",)
    return (*alone, "stream", "all")


def _alike(scenario: Scenario, cycles: int) -> int:
    """In the last cycle no trial for another split is due, in a longer run one may be."""
    return cycles - 1 if scenario.assignment.every_cycles else cycles


def _alike_before_tail(scenario: Scenario, cycles: int) -> int:
    """The gate tail lies at the end of whatever run."""
    return min(_alike(scenario, cycles), cycles - scenario.train.gate_tail_cycles)


def _begin_ems_fl(prepared: Prepared, ledger: Ledger) -> Beginning:
    """Where experts are everybody's, a trial pass has nothing to say, and is not done over the link."""
    return begin(prepared, ledger, told.parts(prepared.scenario).disjoint)


OWNERS = partial(Method, check=check, begin=_begin_ems_fl)
EMS_FL = OWNERS(prepare, _ems_fl, alike=_alike)
ENHANCED = OWNERS(_prepare_enhanced, _enhanced, loads=_loads, alike=_alike_before_tail)
SYNC = Method(prepare, _sync, check, begin=partial(begin, uploads=False))
"""The baseline has no use for the trial; for it the report is only there to be read. With C rounds it is the same method."""


def split_experts(
    scenario: Scenario, counts: Counts, most: Mapping[str, int] | None = None, number: int = 0
) -> dict[str, frozenset[str]]:
    """Who owns which expert, from the relevance measured by a trial pass; ``number`` tells repeated splits apart.

    ``most`` is how many experts the devices of each cluster can carry; Algorithm 1 knows no such bound.

    Raises:
        InputError: all clusters together cannot carry all experts.
    """
    p = _relevance(scenario, counts)
    owned: dict[str, set[str]] = {name: set() for name in counts}
    rng = stream(Stream.SPLIT, scenario.seed, number)
    per_layer = scenario.assignment.granularity == "layer"
    for layer, p_MC in enumerate(p if per_layer else p[None]):
        most_C = [len(p_MC) if most is None else most[name] // (len(p) if per_layer else 1) for name in counts]
        result = _split(scenario, p_MC, _top_k(counts), most_C, rng)
        for name, group in zip(counts, result.owned, strict=True):
            owned[name] |= {expert(m, layer if per_layer else None) for m in group}
    return {name: frozenset(parts) for name, parts in owned.items()}


def _split(scenario: Scenario, p_MC: Array, top_k: int, most_C: list[int], rng: np.random.Generator) -> Split:
    table = scenario.assignment
    if table.policy == "algorithm-1":
        return split(p_MC, top_k, rng, table.threshold, table.order, table.repair)
    check_caps(table.policy, most_C, len(p_MC))
    return owners(table.policy, p_MC, most_C, rng)


def check_caps(policy: str, most_C: Sequence[int], experts: int) -> None:
    """Whether all clusters together can carry all experts.

    Raises:
        InputError: they cannot.
    """
    if sum(most_C) < experts:
        raise InputError(
            f"assignment.policy = {policy!r}: the clusters can carry {', '.join(map(str, most_C))} experts, and the "
            f"model has {experts}; give devices more memory_B or rate, adapt experts with model.lora, or use more clusters"
        )


def assignment_report(scenario: Scenario, counts: Counts, owned: Mapping[str, frozenset[str]]) -> dict[str, Any]:
    """What ``fedexperts assign`` prints and the ledger keeps: (27)-(29), the groups, the ratios and advice."""
    names, top_k = list(counts), _top_k(counts)
    p = _relevance(scenario, counts)
    layers = scenario.assignment.granularity == "layer"
    p_MC = p.mean(axis=0) if layers else p
    threshold = scenario.assignment.threshold
    threshold = default_threshold(top_k, len(p_MC)) if threshold is None else threshold
    alpha_C, beta_C, gamma_C = _ratios(p, names, owned, top_k, layers)
    return {
        "experts": [expert(m) for m in range(len(p_MC))],
        "clusters": names,
        "top_k": top_k,
        "threshold": threshold,
        "relevance": _rounded(p_MC),
        "truncated": _rounded(truncate(p_MC, threshold)),
        "probability": _rounded(assignment_probability(p_MC, threshold)),
        "classes": expert_classes(p_MC, threshold),
        "assignment": {name: [_label(part) for part in in_order(owned[name])] for name in names},
        "alpha": dict(zip(names, _rounded(alpha_C), strict=True)),
        "beta": dict(zip(names, _rounded(beta_C), strict=True)),
        "gamma": dict(zip(names, _rounded(gamma_C), strict=True)),
        "idle": [name for name in names if not owned[name]],
        "advice": advice(gamma_C),
    }


def _ratios(
    p: Array, names: list[str], owned: Mapping[str, frozenset[str]], top_k: int, layers: bool
) -> tuple[Array, Array, Array]:
    flat = p.reshape(-1, len(names))  # row ℓ·M + m; one grouped layer without layer granularity
    experts = p.shape[-2]
    pairs = {name: [expert_index(part) for part in owned[name]] for name in names}
    rows = [[(ell or 0) * experts + m for ell, m in pairs[name]] for name in names]
    return relevant_ratios(flat, rows, top_k * (len(p) if layers else 1))


def _label(part: str) -> int | str:
    """An expert as a report shows it: its number, or layer.number with layer granularity."""
    layer, m = expert_index(part)
    return m if layer is None else f"{layer}.{m}"


def _rounded(values: Array) -> list[Any]:
    result: list[Any] = np.round(values, 6).tolist()
    return result


def _relevance(scenario: Scenario, counts: Counts) -> Array:
    return relevance(
        np.stack([c for c, _ in counts.values()]),
        np.array([tokens for _, tokens in counts.values()]),
        scenario.assignment.granularity,
    )


def _top_k(counts: Counts) -> int:
    counts_LM, tokens = next(iter(counts.values()))
    return round(int(counts_LM.sum()) / (len(counts_LM) * tokens))
