"""The MoE layers of a model, taken over: their router, and one tensor per expert instead of fused ones.

transformers 5 fuses a layer's experts into 3-D parameters (``gate_up_proj [E, 2F, D]``, ``down_proj [E, D, F]``). These stay as
storage, so that ``save_pretrained`` works; computed with is one leaf tensor per expert that shares the storage.

Shapes: T tokens, D hidden, F intermediate, O features out, I features in, E experts, K picks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .families import check_layout, fused_block, in_float32, renormalises
from .layer import MoELayer, combine
from .lora import A, Adapter, B
from .parts import NotMoEError, Tensors
from .routing import Mask, Router, Top1
from .stream import Stream


@dataclass(frozen=True)
class Projection:
    """A matrix of an expert that can be adapted: x ↦ x Wᵀ.

    ``rows`` is the slice of the tensor ``weight`` that holds W. ``adapter`` is asked for in every forward pass.
    """

    name: str
    weight: str
    rows: slice
    weight_OI: Tensor
    adapter: list[Adapter]  # empty or one: set by `View.adapt`


@dataclass(frozen=True)
class MoEBlock:
    """One MoE layer: its router, the tensors of its gate and of each expert by parameter name, and what LoRA can adapt."""

    router: Router
    gate: dict[str, Tensor]
    experts: list[dict[str, Tensor]]
    projections: list[list[Projection]]


@dataclass(frozen=True)
class Routing:
    """Options of a router; None leaves it as it is."""

    top1: Top1 | None
    mask: Mask | None
    noise_std: float | None

    def set(self, router: Router) -> None:
        """Change the router."""
        for name, value in vars(self).items():
            if value is not None:
                setattr(router, name, value)


def block_of(
    name: str,
    module: nn.Module,
    routing: Routing,
    kept: Sequence[int] | None,
    stream: Stream | None,
) -> MoEBlock | None:
    """The MoE layer that a module is, with its router and experts taken over; None if it is none.

    Raises:
        NotMoEError: a kind of MoE layer that is not known, or cannot be streamed.
    """
    if isinstance(module, MoELayer):
        if stream is not None:
            raise NotMoEError(f"{name}: a MoELayer of our own cannot be streamed; load a subset with load_into")
        routing.set(module.router)
        return _own_block(name, module, kept)
    block = fused_block(module)
    return None if block is None else _fused_block_parts(name, *block, routing, kept, stream)


def _own_block(name: str, layer: MoELayer, kept: Sequence[int] | None) -> MoEBlock:
    """Our own layer: adapters hang on the linear layers of its experts, which are named by their global numbers."""
    numbers = kept if kept is not None and len(kept) == len(layer.experts) else range(len(layer.experts))
    experts: list[dict[str, Tensor]] = []
    groups: list[list[Projection]] = []
    for m, body in zip(numbers, layer.experts, strict=True):
        prefix = f"{name}.experts.{m}"
        experts.append({f"{prefix}.{k}": p for k, p in body.named_parameters()})
        linears = [(f"{prefix}.{k}".rstrip("."), f) for k, f in body.named_modules() if isinstance(f, nn.Linear)]
        groups.append([Projection(at, f"{at}.weight", slice(None), f.weight.detach(), []) for at, f in linears])
        for (_, linear), projection in zip(linears, groups[-1], strict=True):
            _hook(linear, projection)
    return MoEBlock(layer.router, {f"{name}.gate.{k}": p for k, p in layer.gate.named_parameters()}, experts, groups)


def _hook(linear: nn.Linear, projection: Projection) -> None:
    def forward(x: Tensor) -> Tensor:
        return _adapted(F.linear(x, linear.weight, linear.bias), x, projection)

    linear.forward = forward  # type: ignore[assignment, method-assign]  # on this instance alone


def _adapted(y_TO: Tensor, x_TI: Tensor, projection: Projection) -> Tensor:
    for adapter in projection.adapter:
        y_TO = y_TO + adapter(x_TI)
    return y_TO


def _fused_block_parts(
    name: str,
    fused: Any,
    gate_name: str,
    gate: Any,
    routing: Routing,
    kept: Sequence[int] | None,
    stream: Stream | None,
) -> MoEBlock:
    """Take over the router and the experts of one transformers MoE block."""
    check_layout(fused, gate)
    router = Router(
        len(gate.weight),  # all experts, also where only some are resident
        gate.top_k,
        renormalise=renormalises(gate),
    )
    routing.set(router)
    exact = in_float32(gate)
    ups = [fused.gate_up_proj.detach()[m] for m in range(fused.num_experts)]
    downs = [fused.down_proj.detach()[m] for m in range(fused.num_experts)]

    def route(hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x_TD, w_ED = hidden.reshape(-1, hidden.shape[-1]), gate.weight
        logits_TE = F.linear(x_TD.float(), w_ED.float()) if exact else F.linear(x_TD, w_ED)
        weights_TK, indices_TK = router(logits_TE, gate.training)
        return logits_TE, weights_TK, indices_TK

    groups = [_fused_projections(f"{name}.experts", up, down) for up, down in zip(ups, downs, strict=True)]

    def expert_forward(up_FD: Tensor, down_DF: Tensor, group: list[Projection]) -> Callable[[Tensor], Tensor]:
        gate, up, down = group

        def run(x_TD: Tensor) -> Tensor:
            gate_TF, up_TF = F.linear(x_TD, up_FD).chunk(2, dim=-1)
            h_TF = fused.act_fn(_adapted(gate_TF, x_TD, gate)) * _adapted(up_TF, x_TD, up)
            return _adapted(F.linear(h_TF, down_DF), h_TF, down)

        return run

    def streamed(up_FD: Tensor, down_DF: Tensor, over: Tensors) -> Callable[[Tensor], Tensor]:
        group = _fused_projections(f"{name}.experts", up_FD, down_DF)
        for p in group:
            if p.name + A in over and stream is not None and stream.lora is not None:
                adapter = Adapter(p.name, (p.weight, p.rows), p.weight_OI, stream.lora, torch.Generator())
                adapter.a_RI, adapter.b_OR = (over[p.name + factor].to(p.weight_OI.device) for factor in (A, B))
                p.adapter.append(adapter)
        return expert_forward(up_FD, down_DF, group)

    bodies = [expert_forward(*of) for of in zip(ups, downs, groups, strict=True)]
    if stream is not None:
        resident = dict(zip(kept if kept is not None else range(len(bodies)), bodies, strict=False))
        bodies = [resident.get(m) or stream.body(name, m, streamed, gate.weight.detach()) for m in range(router.experts)]

    def run_experts(hidden_TD: Tensor, indices_TK: Tensor, weights_TK: Tensor) -> Tensor:
        return combine(hidden_TD, weights_TK, indices_TK, bodies)

    gate.forward, fused.forward = route, run_experts
    experts = [
        {f"{name}.experts.gate_up_proj": up, f"{name}.experts.down_proj": down} for up, down in zip(ups, downs, strict=True)
    ]
    return MoEBlock(router, {f"{name}.{gate_name}.weight": gate.weight}, experts, groups)


def _fused_projections(name: str, up_FD: Tensor, down_DF: Tensor) -> list[Projection]:
    """Gate, up and down projection of one expert; the first two lie in one tensor."""
    half = up_FD.shape[0] // 2
    gate, up = slice(0, half), slice(half, None)
    return [
        Projection(f"{name}.gate_proj", f"{name}.gate_up_proj", gate, up_FD[gate], []),
        Projection(f"{name}.up_proj", f"{name}.gate_up_proj", up, up_FD[up], []),
        Projection(f"{name}.down_proj", f"{name}.down_proj", slice(None), down_DF, []),
    ]
