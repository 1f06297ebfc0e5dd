"""One handle over Hugging Face MoE families and our own layer: a model as named parts with observable routing.

transformers 5 fuses a layer's experts into 3-D parameters (``gate_up_proj [E, 2F, D]``, ``down_proj [E, D, F]``). The view
keeps those as storage, so that ``save_pretrained`` works, and computes with one leaf tensor per expert that shares the
storage: each expert has its own ``requires_grad`` and ``grad``.

Shapes: T tokens, D hidden, F intermediate, E experts, K picks, L MoE layers.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from ..errors import InputError
from .checkpoint import Checkpoint
from .layer import MoELayer, combine
from .parts import BACKBONE, GATE, HEAD, NotMoEError, Tensors, expert, expert_index, is_expert
from .routing import Mask, Router, Top1
from .stream import Stream

ROUTERS = ("Mixtral", "Qwen2Moe", "Qwen3Moe", "Olmoe", "MiniMax")
"""Families whose gate is a softmax, a Top-K and, by the config, a renormalisation."""
HEADS = ("score", "classifier", "lm_head", "head")
Batch = Mapping[str, Tensor]


@dataclass(frozen=True)
class MoEBlock:
    """One MoE layer of a model: its router, and the tensors of its gate and of each expert by parameter name."""

    router: Router
    gate: dict[str, Tensor]
    experts: list[dict[str, Tensor]]


class View:
    """A resident model whose parts can be frozen, swapped in and out, masked and watched.

    Args:
        model: a Hugging Face model with fused experts (Mixtral and its relatives) or a module with `MoELayer` inside.
        top1, mask, noise_std: routing options for Hugging Face models, see `Router`; our own layers carry theirs.
        granularity: ``"global"`` groups expert m across layers into one part, ``"layer"`` makes a part of each.
        kept: global numbers of the experts that the model holds in each layer, in its order (see `subset`); None: all.
        stream: the checkpoint from which experts that are not kept are read when tokens meet them (see `load_streamed`).

    Raises:
        NotMoEError: no MoE layer was found.
        InputError: ``kept`` names more or fewer experts than the model holds, or the gate knows others and none are streamed.
    """

    def __init__(
        self,
        model: nn.Module,
        top1: Top1 = "straight-through",
        mask: Mask = "-inf",
        noise_std: float = 0.0,
        granularity: str = "global",
        kept: Sequence[int] | None = None,
        stream: Checkpoint | None = None,
    ):
        self.model = model
        self.stream = None if stream is None else Stream(stream)
        options = (top1, mask, noise_std, kept, self.stream)
        self.sites = [site for site in (_site(n, m, *options) for n, m in model.named_modules()) if site]
        if not self.sites:
            raise NotMoEError(f"{type(model).__name__}: no Mixture-of-Experts layer found; build one from a dense model first")
        sizes = {len(site.experts) for site in self.sites}
        if len(sizes) > 1:
            raise NotMoEError(f"{type(model).__name__}: layers with different numbers of experts, {sorted(sizes)}")
        self.kept = tuple(range(*sizes) if kept is None else kept)
        """Global numbers of the experts that the model holds."""
        self._check_kept()
        self.parts: dict[str, dict[str, Tensor]] = {}
        for layer, site in enumerate(self.sites):
            self.parts.setdefault(GATE, {}).update(site.gate)
            for m, tensors in zip(self.kept, site.experts, strict=True):
                name = expert(m) if granularity == "global" else expert(m, layer)
                self.parts.setdefault(name, {}).update(tensors)
        self._add_rest()
        self._resident: dict[str, Tensors] = {}  # which tensors a part was last copied from or to
        self.freeze()

    def _add_rest(self) -> None:
        taken = {name for site in self.sites for part in (site.gate, *site.experts) for name in part}
        own = {id(leaf) for site in self.sites for tensors in site.experts for leaf in tensors.values()}  # globally named
        for name, parameter in self.model.named_parameters():
            if name not in taken and id(parameter) not in own and parameter.numel():
                part = HEAD if name.split(".")[0] in HEADS else BACKBONE
                self.parts.setdefault(part, {})[name] = parameter

    def _check_kept(self) -> None:
        held = len(self.sites[0].experts)
        if len(set(self.kept)) != len(self.kept) or len(self.kept) != held:
            raise InputError(f"kept = {self.kept}: the model holds {held} experts in each layer; name those, each once")
        if self.stream is None and self.experts != held:
            raise InputError(f"kept = {self.kept}: the gate has {self.experts} rows; give stream, or load a subset")
        if self.stream and not set(self.kept) <= set(range(self.experts)) == set(range(self.stream.experts)):
            raise InputError(
                f"kept = {self.kept}: the gate has {self.experts} rows, the stream's checkpoint {self.stream.experts} experts; "
                "load the model with load_streamed from the same checkpoint"
            )

    @property
    def experts(self) -> int:
        """How many experts the gate can pick: M, or of a subset without a stream those that are kept."""
        return self.sites[0].router.experts

    def _rows(self, parts: Iterable[str], layer: int) -> list[int]:
        """The gate's rows of those expert parts that are in a layer."""
        rows = range(self.experts) if self.stream else self.kept
        numbers = [m for at, m in map(expert_index, parts) if at in (None, layer)]
        if unknown := set(numbers) - set(rows):
            raise KeyError(f"experts {sorted(unknown)}: the gate knows {list(rows)}")
        return [rows.index(m) for m in numbers]

    @property
    def top_k(self) -> int:
        """K."""
        return self.sites[0].router.top_k

    @property
    def layers(self) -> int:
        """L."""
        return len(self.sites)

    def freeze(self, but: Collection[str] = ()) -> list[tuple[str, str, Tensor]]:
        """Freeze every part except ``but``; return the trainable leaves as (part, tensor name, tensor).

        Raises:
            KeyError: the model has no such part.
        """
        for parameter in self.model.parameters():
            parameter.requires_grad_(False)
        if unknown := set(but) - set(self.parts):
            raise KeyError(f"parts {sorted(unknown)}: the model has {sorted(self.parts)}")
        leaves = []
        for part, tensors in self.parts.items():
            for name, leaf in tensors.items():
                leaf.requires_grad_(part in but)
                if part in but:
                    leaves.append((part, name, leaf))
        for part in but:
            self._resident.pop(part, None)
        return leaves

    def install(self, part: str, tensors: Tensors) -> None:
        """Copy a part's tensors into the model, unless they are there already.

        Of a full gate, a subset takes its rows. The tensors of a streamed expert are used in place of the file's.
        """
        if self.stream and part not in self.parts and is_expert(part) and expert_index(part)[1] < self.experts:
            return self.stream.install(part, tensors)
        if self._resident.get(part) is tensors:
            return None
        with torch.no_grad():
            for name, leaf in self.parts[part].items():
                rows = part == GATE and len(tensors[name]) > len(leaf)
                leaf.copy_(tensors[name][list(self.kept)] if rows else tensors[name])
        self._resident[part] = tensors
        return None

    def export(self, part: str) -> dict[str, Tensor]:
        """A copy of a part's tensors."""
        tensors = {name: leaf.detach().clone() for name, leaf in self.parts[part].items()}
        self._resident[part] = tensors
        return tensors

    def __call__(self, batch: Batch) -> Tensor:
        """Run the model on every entry of the batch but ``labels``; return its logits.

        Hugging Face classifiers find a sequence's last token by the padding token and not by the mask, so masked tokens are
        given that token's number.
        """
        inputs = {key: value for key, value in batch.items() if key != "labels"}
        padding = getattr(getattr(self.model, "config", None), "pad_token_id", None)
        if padding is not None and "attention_mask" in inputs and "input_ids" in inputs:
            inputs["input_ids"] = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, padding)
        output: Any = self.model(**inputs)
        logits: Tensor = getattr(output, "logits", output)
        return logits

    def route(self, allowed: Collection[str] | None) -> None:
        """Mask the gate (39) so that only the expert parts in ``allowed`` can be picked; None removes the mask.

        With layer granularity, a layer of which ``allowed`` names no expert stays unmasked.
        """
        if allowed is not None and not allowed:
            raise ValueError("allowed = (): the gate would be left without any expert")
        for layer, site in enumerate(self.sites):
            mine = self._rows(allowed or (), layer)
            if not mine:
                site.router.allowed_E = None
                continue
            device = next(iter(site.gate.values())).device
            site.router.allowed_E = torch.zeros(self.experts, dtype=torch.bool, device=device)
            site.router.allowed_E[mine] = True

    def observe(self, batches: Iterable[Batch]) -> tuple[NDArray[np.int64], int]:
        """Trial pass: how often each layer's gate picks each expert (counts_LM) over how many tokens, without padding.

        The gate of a subset without a stream knows only the kept experts: its columns are those of ``kept``.
        """
        self.model.eval()
        tokens = 0
        for site in self.sites:
            site.router.counts_E = torch.zeros(self.experts, dtype=torch.long, device=next(iter(site.gate.values())).device)
        with torch.no_grad():
            for batch in batches:
                mask = batch.get("attention_mask")
                for site in self.sites:
                    site.router.valid_T = None if mask is None else mask.flatten().bool()
                self(batch)
                tokens += int(mask.sum()) if mask is not None else _tokens(batch)
        counts = [site.router.counts_E for site in self.sites]
        for site in self.sites:
            site.router.counts_E = site.router.valid_T = None
        return torch.stack([c for c in counts if c is not None]).cpu().numpy(), tokens

    @contextmanager
    def gate_logits(self) -> Iterator[Callable[[], list[Tensor]]]:
        """Within the block, the yielded function returns the last forward pass's gate logits_TE, layer by layer."""
        for site in self.sites:
            site.router.keep_logits = True
        try:
            yield lambda: [site.router.logits_TE for site in self.sites if site.router.logits_TE is not None]
        finally:
            for site in self.sites:
                site.router.keep_logits, site.router.logits_TE = False, None

    def seed_noise(self, seed: int) -> None:
        """Make the noise ℰ of (9) repeatable from here on."""
        for layer, site in enumerate(self.sites):
            if site.router.noise_std > 0:
                site.router.generator = torch.Generator().manual_seed(seed + layer)


def _tokens(batch: Batch) -> int:
    first = next(value for key, value in batch.items() if key != "labels")
    return first.numel() if not first.is_floating_point() else first.numel() // first.shape[-1]


def _site(
    name: str,
    module: nn.Module,
    top1: Top1,
    mask: Mask,
    noise_std: float,
    kept: Sequence[int] | None,
    stream: Stream | None,
) -> MoEBlock | None:
    if isinstance(module, MoELayer):
        if stream is not None:
            raise NotMoEError(f"{name}: a MoELayer of our own cannot be streamed; load a subset with load_into")
        numbers = kept if kept is not None and len(kept) == len(module.experts) else range(len(module.experts))
        experts: list[dict[str, Tensor]] = [
            {f"{name}.experts.{m}.{k}": p for k, p in body.named_parameters()}
            for m, body in zip(numbers, module.experts, strict=True)
        ]
        return MoEBlock(module.router, {f"{name}.gate.{k}": p for k, p in module.gate.named_parameters()}, experts)
    fused, gate = getattr(module, "experts", None), getattr(module, "gate", None)
    if not isinstance(getattr(fused, "gate_up_proj", None), nn.Parameter) or not isinstance(gate, nn.Module):
        return None
    return _fused_site(name, fused, gate, top1, mask, noise_std, kept, stream)


def check_layout(fused: Any, gate: Any) -> None:
    """Refuse a transformers MoE block whose routing or expert layout the view does not know.

    Raises:
        NotMoEError: with the name of its class.
    """
    if type(gate).__name__.removesuffix("TopKRouter") not in ROUTERS:
        raise NotMoEError(f"{type(gate).__name__}: this kind of routing is not supported yet; {', '.join(ROUTERS)} are")
    if fused.is_transposed or fused.has_bias or not fused.is_concatenated or not fused.has_gate:
        raise NotMoEError(f"{type(fused).__name__}: this expert layout is not supported yet (Mixtral, Qwen3-MoE and OLMoE are)")


def _fused_site(
    name: str,
    fused: Any,
    gate: Any,
    top1: Top1,
    mask: Mask,
    noise_std: float,
    kept: Sequence[int] | None,
    stream: Stream | None,
) -> MoEBlock:
    """Take over the router and the experts of one transformers MoE block."""
    check_layout(fused, gate)
    router = Router(
        len(gate.weight),  # all experts, also where only some are resident
        gate.top_k,
        top1,
        mask,
        renormalise=getattr(gate, "norm_topk_prob", True),
        noise_std=noise_std,
    )
    ups = [fused.gate_up_proj.detach()[m] for m in range(fused.num_experts)]
    downs = [fused.down_proj.detach()[m] for m in range(fused.num_experts)]

    def route(hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits_TE = F.linear(hidden.reshape(-1, hidden.shape[-1]), gate.weight)
        weights_TK, indices_TK = router(logits_TE, gate.training)
        return logits_TE, weights_TK, indices_TK

    def expert_forward(up_FD: Tensor, down_DF: Tensor) -> Callable[[Tensor], Tensor]:
        def run(x_TD: Tensor) -> Tensor:
            gate_TF, up_TF = F.linear(x_TD, up_FD).chunk(2, dim=-1)
            return F.linear(fused.act_fn(gate_TF) * up_TF, down_DF)

        return run

    bodies = [expert_forward(up, down) for up, down in zip(ups, downs, strict=True)]
    if stream is not None:
        resident = dict(zip(kept if kept is not None else range(len(bodies)), bodies, strict=False))
        streamed = (stream.body(name, m, expert_forward, gate.weight.detach()) for m in range(router.experts))
        bodies = [resident.get(m, body) for m, body in enumerate(streamed)]

    def run_experts(hidden_TD: Tensor, indices_TK: Tensor, weights_TK: Tensor) -> Tensor:
        return combine(hidden_TD, weights_TK, indices_TK, bodies)

    gate.forward, fused.forward = route, run_experts
    experts = [
        {f"{name}.experts.gate_up_proj": up, f"{name}.experts.down_proj": down} for up, down in zip(ups, downs, strict=True)
    ]
    return MoEBlock(router, {f"{name}.gate.weight": gate.weight}, experts)
