"""What a round takes of a client, and what each client can carry: for alignment, and for splits with bounds."""

from __future__ import annotations

from collections.abc import Mapping

from ..assign.scores import Capacity, Need, experts_that_fit
from ..moe.lora import projections
from ..moe.parts import Piece, in_order, is_expert, tensors_B
from ..setup.clients import capacity_over, default_deadline_s
from ..setup.prepare import Prepared
from ..train.task import Task

ADAMW_FLOATS, FLOAT32_B = 2, 4
"""AdamW keeps two float32 numbers for each trained one."""


def capacity_of(prepared: Prepared, link: str) -> Capacity:
    """What the devices behind a link can carry, over its median contact."""
    return capacity_over(prepared.plan, link, prepared.kinds[link])


def need(prepared: Prepared, shared: frozenset[str], link: str | None = None) -> Need:
    """Memory, FLOPs and bytes of a client's round: what it takes without experts, and what each expert adds.

    FLOPs and activations are measured with one expert and with two, on the first device of a link, the first if none is
    given. With ``max_rounds`` a round is so many local rounds.
    """
    view, train = prepared.view, prepared.scenario.train
    link = link or next(iter(prepared.hosts))
    host, pieces = prepared.hosts[link], prepared.model_of(link)
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
        + sum(_trained_B(prepared, pieces[part]) for part in shared),
        expert_memory_B=_trained_B(prepared, pieces[experts[0]]) + max(0, activations_B[1] - activations_B[0]),
        base_flops=max(0, 2 * flops[0] - flops[1]),
        expert_flops=max(0, flops[1] - flops[0]),
        base_up_B=sum(host.upload_B(part) for part in shared),
        expert_up_B=host.upload_B(experts[0]),
        base_down_B=sum(pieces[part].size_B for part in shared),
        expert_down_B=pieces[experts[0]].size_B,
    )


def _trained_B(prepared: Prepared, piece: Piece) -> int:
    """Weights, what is trained of them, its gradients, and what the optimiser keeps."""
    view, part = prepared.view, piece.part
    leaves = piece.tensors if projections(piece.tensors) else view.leaves[part]
    numbers = sum(leaf.numel() for leaf in leaves.values())
    kept_B = ADAMW_FLOATS * FLOAT32_B * numbers if prepared.scenario.train.optimizer == "adamw" else 0
    weights_B = tensors_B(view.parts[part]) if view.leaves[part] is not view.parts[part] else 0
    return weights_B + 2 * tensors_B(leaves) + kept_B


def most_experts(prepared: Prepared) -> Mapping[str, int] | None:
    """EMS-FL with a policy that has bounds: how many experts the devices of each cluster can own, by memory and link."""
    if prepared.scenario.assignment.policy == "algorithm-1":
        return None
    shared = frozenset[str](prepared.scenario.train.shared)
    ranks = {name: prepared.fitted.ranks.get(name) for name in prepared.hosts}
    first = {rank: name for name, rank in reversed(ranks.items())}  # clusters of one rank need the same
    needed = {rank: need(prepared, shared, name) for rank, name in first.items()}
    deadline_s = default_deadline_s(prepared.scenario, prepared.plan)
    experts = sum(map(is_expert, prepared.view.parts))  # with layer granularity one of each number in every layer
    return {
        name: experts_that_fit(capacity_of(prepared, name), needed[ranks[name]], deadline_s, experts)[0]
        for name in prepared.hosts
    }
