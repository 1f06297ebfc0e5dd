"""What a round takes of a client, and what each client can carry: for alignment, and for splits with bounds."""

from __future__ import annotations

from collections.abc import Mapping

from ..assign.scores import Capacity, Need, experts_that_fit
from ..moe.parts import in_order, is_expert, tensors_B
from ..setup.clients import capacity_over, default_deadline_s
from ..setup.prepare import Prepared
from ..train.task import Task

ADAMW_FLOATS, FLOAT32_B = 2, 4
"""AdamW keeps two float32 numbers for each trained one."""


def capacity_of(prepared: Prepared, link: str) -> Capacity:
    """What the devices behind a link can carry, over its median contact."""
    return capacity_over(prepared.plan, link, prepared.kinds[link])


def need(prepared: Prepared, shared: frozenset[str]) -> Need:
    """Memory, FLOPs and bytes of a client's round: what it takes without experts, and what each expert adds.

    FLOPs and activations are measured with one expert and with two, on the first device. With ``max_rounds`` a round is so
    many local rounds.
    """
    view, train = prepared.view, prepared.scenario.train
    host = next(iter(prepared.hosts.values()))
    experts = in_order(filter(is_expert, view.parts))
    flops, activations_B = [], []
    for k in (1, min(2, len(experts))):
        task = Task(frozenset(experts[:k]) | shared, route=frozenset(experts[:k]))
        flops.append((train.max_rounds or 1) * train.local_steps * host.flops(task)[0])
        activations_B.append(host.activations_B(task))
    frozen = [part for part in view.parts if not is_expert(part) and part not in shared]
    return Need(
        base_memory_B=2 * activations_B[0]
        - activations_B[1]
        + sum(tensors_B(view.parts[part]) for part in frozen)
        + sum(_trained_B(prepared, part) for part in shared),
        expert_memory_B=_trained_B(prepared, experts[0]) + max(0, activations_B[1] - activations_B[0]),
        base_flops=max(0, 2 * flops[0] - flops[1]),
        expert_flops=max(0, flops[1] - flops[0]),
        base_up_B=sum(host.upload_B(part) for part in shared),
        expert_up_B=host.upload_B(experts[0]),
        base_down_B=sum(prepared.model[part].size_B for part in shared),
        expert_down_B=prepared.model[experts[0]].size_B,
    )


def _trained_B(prepared: Prepared, part: str) -> int:
    """Weights, what is trained of them, its gradients, and what the optimiser keeps."""
    view = prepared.view
    leaves = view.leaves[part]
    numbers = sum(leaf.numel() for leaf in leaves.values())
    kept_B = ADAMW_FLOATS * FLOAT32_B * numbers if prepared.scenario.train.optimizer == "adamw" else 0
    weights_B = tensors_B(view.parts[part]) if leaves is not view.parts[part] else 0
    return weights_B + 2 * tensors_B(leaves) + kept_B


def most_experts(prepared: Prepared) -> Mapping[str, int] | None:
    """EMS-FL with a policy that has bounds: how many experts the devices of each cluster can own, by memory and link."""
    if prepared.scenario.assignment.policy == "algorithm-1":
        return None
    shared = frozenset[str](prepared.scenario.train.shared)
    needed = need(prepared, shared)
    deadline_s = default_deadline_s(prepared.scenario, prepared.plan)
    experts = sum(map(is_expert, prepared.view.parts))  # with layer granularity one of each number in every layer
    return {name: experts_that_fit(capacity_of(prepared, name), needed, deadline_s, experts)[0] for name in prepared.hosts}
