"""The constants of Theorems 1 and 2, estimated on a scenario's own model and data.

Gradients are taken at the points of a short walk: θ_0, and after each of some full-gradient steps on the global loss, for all
experts and the gate at once. At each point every device's gradient is that of the loss over its samples; ∇F is their mean. Then

    G_E, G_U   the largest ‖∇_e F‖ and ‖∇_u F‖
    L          the largest ‖∇F(θ') − ∇F(θ)‖ / ‖θ' − θ‖ of two points that follow each other
    σ_U²       the largest mean over devices of ‖g^U − ∇_u F‖²
    σ_E²       the largest mean over devices of ‖g^E − γ_c·∇F‖² over the cluster's own experts, over γ²
    ζ_E²       the largest mean over devices of ‖g^E − ∇_e F‖² over all experts, less σ_E²
    F₀ − F*    F at θ_0: losses here are not below 0

Maxima over a few points are below the suprema that the assumptions name, so the bounds with them are estimates, not bounds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..data.source import first
from ..moe.parts import GATE, is_expert
from ..setup.prepare import Prepared
from ..theory import Constants
from ..train.device import Device
from ..train.host import LocalHost

STEPS = 4
"""Of the walk."""
SAMPLES = 64
"""Of each device, at most."""
Gradient = dict[tuple[str, str], Tensor]
"""By part and tensor."""


def estimated(prepared: Prepared, owned: Mapping[str, frozenset[str]], gammas: Mapping[str, float]) -> Constants:
    """Constants by the estimators above, with Algorithm 1's owners and their γ_c; the model is left as it was.

    Args:
        prepared: a scenario that has begun.
        owned: expert parts by cluster.
        gammas: γ_c by cluster.
    """
    devices = [
        (name, device) for name, host in prepared.hosts.items() if isinstance(host, LocalHost) for device in host.group.values()
    ]
    parts = {part for part in prepared.view.parts if is_expert(part) or part == GATE}
    found = dict.fromkeys(("grad_expert", "grad_gate", "smoothness", "sigma_expert", "sigma_gate", "zeta_expert"), 0.0)
    before: Gradient | None = None
    gamma, gap, rate = max(gammas.values()), 0.0, prepared.scenario.train.lr_expert
    for part, piece in prepared.model.items():
        prepared.view.install(part, piece.tensors)
    leaves = {(part, name): leaf for part, name, leaf in prepared.view.freeze(parts)}
    for step in range(STEPS + 1):
        each = [_gradient(device, leaves) for _, device in devices]
        loss, mean = sum(value for value, _ in each) / len(each), _mean([gradient for _, gradient in each])
        gap = loss if step == 0 else gap
        own = [
            _square(g, {k: gammas[name] * v for k, v in mean.items()}, owned[name])
            for (name, _), (_, g) in zip(devices, each, strict=True)
        ]
        spread = [_square(g, mean, {p for p in parts if is_expert(p)}) for _, g in each]
        now = {
            "grad_expert": math.sqrt(sum(_norm2(v) for (part, _), v in mean.items() if is_expert(part))),
            "grad_gate": math.sqrt(sum(_norm2(v) for (part, _), v in mean.items() if part == GATE)),
            "sigma_expert": math.sqrt(sum(own) / len(own)) / gamma,
            "sigma_gate": math.sqrt(sum(_square(g, mean, {GATE}) for _, g in each) / len(each)),
            "zeta_expert": math.sqrt(max(0.0, sum(spread) / len(spread) - sum(own) / len(own) / gamma**2)),
        }
        if before is not None and (moved := rate * math.sqrt(sum(map(_norm2, before.values())))) > 0:
            now["smoothness"] = math.sqrt(_square(mean, before, parts)) / moved
        found = {name: max(value, now.get(name, 0.0)) for name, value in found.items()}
        before = mean
        with torch.no_grad():
            for at, leaf in leaves.items():
                leaf -= rate * mean[at].to(leaf.dtype)
    for part, piece in prepared.model.items():
        prepared.view.install(part, piece.tensors)
    return Constants(gap=gap, **found)


def _gradient(device: Device, leaves: Mapping[tuple[str, str], Tensor]) -> tuple[float, Gradient]:
    """Of the loss over a device's samples; the gate is free."""
    device.view.route(None)
    batch: dict[str, Any] = {key: value.to(device.view.device) for key, value in first(device.data, SAMPLES).items()}
    loss = device.objective.loss(device.view, batch)
    found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    zeros = (torch.zeros_like(leaf) if g is None else g for g, leaf in zip(found, leaves.values(), strict=True))
    return float(loss.detach()), {at: g.detach().double() for at, g in zip(leaves, zeros, strict=True)}


def _mean(gradients: list[Gradient]) -> Gradient:
    return {at: sum((g[at] for g in gradients[1:]), gradients[0][at]) / len(gradients) for at in gradients[0]}


def _norm2(tensor: Tensor) -> float:
    return float((tensor**2).sum())


def _square(a: Gradient, b: Gradient, parts: frozenset[str] | set[str]) -> float:
    return sum(_norm2(a[at] - b[at]) for at in a if at[0] in parts)
