"""One handle over Hugging Face MoE families and our own layer: a model as named parts with observable routing.

Each expert has its own ``requires_grad`` and ``grad``, see `blocks`.

Shapes: T tokens, E experts, K picks, L MoE layers.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..errors import InputError
from .blocks import Routing, block_of
from .checkpoint import Checkpoint
from .families import check_family
from .last_token import lacks_padding, last_by_mask
from .lora import A, Adapter, LoRA
from .outline import part_of
from .parts import GATE, NotMoEError, Tensors, expert, expert_index, is_expert
from .routing import Mask, Top1
from .stream import Stream

Batch = Mapping[str, Tensor]


class View:
    """A resident model whose parts can be frozen, swapped in and out, masked and watched.

    Args:
        model: a Hugging Face model with fused experts (Mixtral and its relatives) or a module with `MoELayer` inside.
        top1, mask, noise_std: routing options, see `Router`; None keeps those of our own layers, and its defaults elsewhere.
        granularity: ``"global"`` groups expert m across layers into one part, ``"layer"`` makes a part of each.
        kept: global numbers of the experts that the model holds in each layer, in its order (see `subset`); None: all.
        stream: the checkpoint from which experts that are not kept are read when tokens meet them (see `load_streamed`).
        cache: so many streamed experts of each layer are kept in memory.
        dense: whether a model without an MoE layer will do, which can be run and judged, but has no gate and no experts.

    Raises:
        NotMoEError: no MoE layer was found, or one of another kind (see `families`).
        InputError: ``kept`` names more or fewer experts than the model holds, or the gate knows others and none are streamed.
    """

    def __init__(
        self,
        model: nn.Module,
        top1: Top1 | None = None,
        mask: Mask | None = None,
        noise_std: float | None = None,
        granularity: str = "global",
        kept: Sequence[int] | None = None,
        stream: Checkpoint | None = None,
        cache: int = 0,
        dense: bool = False,
    ):
        if config := getattr(model, "config", None):
            check_family(config, type(model).__name__)
        self.model = model
        self._modules = tuple(model.modules())
        self._no_padding = lacks_padding(model)
        self.stream = None if stream is None else Stream(stream, cache)
        routing = Routing(top1, mask, noise_std)
        self.blocks = [s for s in (block_of(n, m, routing, kept, self.stream) for n, m in model.named_modules()) if s]
        if not self.blocks and not dense:
            raise NotMoEError(
                f"{type(model).__name__}: no Mixture-of-Experts layer found; build one of a dense model with fedexperts build"
            )
        sizes = {len(block.experts) for block in self.blocks}
        if len(sizes) > 1:
            raise NotMoEError(f"{type(model).__name__}: layers with different numbers of experts, {sorted(sizes)}")
        self.kept = tuple(range(max(sizes, default=0)) if kept is None else kept)
        """Global numbers of the experts that the model holds."""
        if self.blocks:
            self._check_kept()
        self.parts: dict[str, dict[str, Tensor]] = {}
        """What the pieces of each part hold."""
        for layer, block in enumerate(self.blocks):
            self.parts.setdefault(GATE, {}).update(block.gate)
            for m, tensors in zip(self.kept, block.experts, strict=True):
                name = expert(m) if granularity == "global" else expert(m, layer)
                self.parts.setdefault(name, {}).update(tensors)
        self._add_rest()
        self.leaves = dict(self.parts)
        """What training changes in each part: the same tensors, or adapters."""
        self._fresh: dict[str, Tensors] = {}  # adapters as they start, where pieces do not hold them
        self._resident: dict[str, tuple[Tensors, Tensors | None]] = {}  # which tensors a part was last copied from
        self._dirty: set[str] = set()  # parts that may have been trained since
        self._fixed: list[Tensor] = []  # what is no leaf, a cache
        self.granularity = granularity
        self.flops: dict[Hashable, int] = {}  # of a step, by what decides them, see `train.flops.alike`
        self.lora: LoRA | None = None
        self.freeze()

    def _add_rest(self) -> None:
        taken = {name for block in self.blocks for part in (block.gate, *block.experts) for name in part}
        own = {id(leaf) for block in self.blocks for tensors in block.experts for leaf in tensors.values()}  # globally named
        for name, parameter in self.model.named_parameters():
            if name not in taken and id(parameter) not in own and parameter.numel():
                self.parts.setdefault(part_of(name), {})[name] = parameter

    def _check_kept(self) -> None:
        held = len(self.blocks[0].experts)
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
        return self.blocks[0].router.experts

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
        return self.blocks[0].router.top_k

    @property
    def device(self) -> torch.device:
        """Where the model is computed."""
        return next(iter(self.blocks[0].gate.values()) if self.blocks else self.model.parameters()).device

    @property
    def layers(self) -> int:
        """L."""
        return len(self.blocks)

    def adapt(self, lora: LoRA, seed: int, only: Collection[str] | None = None) -> None:
        """From here on experts are trained through adapters; their weights stay as they are.

        Pieces of experts then hold adapters; with ``average = "merge"`` they hold weights, and training starts from fresh
        adapters. ``only`` names the experts that carry adapters; the others are frozen for good and cost nothing.

        Raises:
            InputError: see `check`.
        """
        self.check(lora)
        for layer, block in enumerate(self.blocks):
            for m, group in zip(self.kept, block.projections, strict=True):
                part = self._part(m, layer)
                if only is not None and part not in only:
                    continue
                generator = torch.Generator().manual_seed(zlib.crc32(f"{seed}/{layer}/{part}".encode()))
                for p in group:
                    p.adapter[:] = [Adapter(p.name, (p.weight, p.rows), p.weight_OI, lora, generator)]
        for part in filter(is_expert, list(self.parts)):
            self.leaves[part] = {name: leaf for a in self._adapters(part) for name, leaf in a.leaves.items()}
            if lora.average == "merge":
                self._fresh[part] = {name: leaf.cpu().clone() for name, leaf in self.leaves[part].items()}
            else:
                self.parts[part] = self.leaves[part]
        self.lora, self._resident, self._fixed = lora, {}, []
        if self.stream:
            self.stream.lora = lora

    def check(self, lora: LoRA) -> None:
        """Whether all experts can be adapted like this.

        Raises:
            InputError: an expert has no linear layer, or the rank is above one of its dimensions.
        """
        for m, group in [pair for block in self.blocks for pair in zip(self.kept, block.projections, strict=True)]:
            if not group:
                raise InputError(
                    f"model.lora: expert {m} has no linear layer to adapt; leave out lora to train full parameters"
                )
            for p in group:
                if lora.rank > min(p.weight_OI.shape):
                    raise InputError(
                        f"model.lora.rank = {lora.rank}: must be at most {min(p.weight_OI.shape)}, the smaller dimension of "
                        f"{p.name} {tuple(p.weight_OI.shape)}; lower it, or leave out lora to train full parameters"
                    )

    def start(self, part: str, piece: Tensors) -> Tensors:
        """Where training of a part starts from when it holds this piece: its tensors, or fresh adapters."""
        return self._fresh.get(part, piece)

    def merge(self) -> None:
        """Add all adapters to the weights, so that the model can be saved without them; they start again at zero."""
        for part in filter(is_expert, self.parts):
            for adapter in self._adapters(part):
                adapter.merge()
        self._resident = {}

    def merged(self, part: str, weights: Tensors, adapters: Tensors) -> Tensors:
        """Remark 1: the local expert as the server reconstructs it, weights plus products of the adapters."""
        full = dict(weights)
        for adapter in self._adapters(part):
            adapter.add(full, adapters)
        return full

    def _part(self, m: int, layer: int) -> str:
        return expert(m) if self.granularity == "global" else expert(m, layer)

    def _adapters(self, part: str) -> list[Adapter]:
        at, m = expert_index(part)
        blocks = self.blocks if at is None else [self.blocks[at]]
        return [a for block in blocks for p in block.projections[self.kept.index(m)] for a in p.adapter]

    def in_training(self) -> None:
        """All modules behave as in training, whatever somebody has put in eval mode."""
        if not all(module.training for module in self._modules):
            self.model.train()

    def freeze(self, but: Collection[str] = ()) -> list[tuple[str, str, Tensor]]:
        """Freeze every part except ``but``; return the trainable leaves as (part, tensor name, tensor).

        Raises:
            KeyError: the model has no such part.
        """
        free = frozenset(but)
        if unknown := free - set(self.parts):
            raise KeyError(f"parts {sorted(unknown)}: the model has {sorted(self.parts)}")
        for tensor in self._fixed or self._never_trained():
            if tensor.requires_grad:
                tensor.requires_grad_(False)
        leaves = []
        for part, tensors in self.leaves.items():
            for name, leaf in tensors.items():
                if leaf.requires_grad is not (part in free):
                    leaf.requires_grad_(part in free)
                if part in free:
                    leaves.append((part, name, leaf))
        for block in self.blocks:
            block.router.gate_trained = GATE in free
        self._dirty |= free
        return leaves

    def _never_trained(self) -> list[Tensor]:
        """Found once: whoever walks through a model's modules before each small step pays for it."""
        leaves = {id(leaf) for tensors in self.leaves.values() for leaf in tensors.values()}
        held = [tensor for tensors in self.parts.values() for tensor in tensors.values()]
        self._fixed = [tensor for tensor in (*self.model.parameters(), *held) if id(tensor) not in leaves]
        return self._fixed

    def install(self, part: str, piece: Tensors, trained: Tensors | None = None) -> None:
        """Copy a piece's tensors into the model, and over them what was trained of it, unless they are there already.

        Adapters that neither holds start afresh. Of a full gate, a subset takes its rows. The tensors of a streamed expert
        are used in place of the file's.
        """
        if self.stream and part not in self.parts and is_expert(part) and expert_index(part)[1] < self.experts:
            return self.stream.install(part, piece)
        held = self._resident.get(part)
        if held is not None and held[0] is piece and held[1] is trained and part not in self._dirty:
            return None
        self._resize(part, piece)
        tensors, sources = self._tensors(part), self.sources(part, piece, trained)
        with torch.no_grad():
            for name, source in sources.items():
                tensors[name].copy_(source)
        self._resident[part] = piece, trained
        self._dirty.discard(part)
        return None

    def sources(self, part: str, piece: Tensors, trained: Tensors | None = None) -> dict[str, Tensor]:
        """From which tensors `install` copies, by name.

        Raises:
            InputError: one is missing, or has another shape than the model's.
        """
        found: dict[str, Tensor] = {}
        for name, tensor in self._tensors(part).items():
            source = next((t[name] for t in (trained, piece, self._fresh.get(part)) if t is not None and name in t), None)
            if source is not None and part == GATE and len(source) > len(tensor):
                source = source[list(self.kept)]
            if source is None or source.shape != tensor.shape:
                raise InputError(
                    f"{part}: {name} {'is missing' if source is None else f'has shape {tuple(source.shape)}'} where the "
                    f"model has shape {tuple(tensor.shape)}; it belongs to another model"
                )
            found[name] = source
        return found

    def _tensors(self, part: str) -> Mapping[str, Tensor]:
        """Of a part what pieces hold, and what training changes."""
        held, leaves = self.parts[part], self.leaves[part]
        return held if held is leaves else held | leaves

    def _resize(self, part: str, piece: Tensors) -> None:
        """Adapters get the rank of a piece's, where a class of devices has one of its own."""
        if self.lora is None or not is_expert(part):
            return
        for adapter in self._adapters(part):
            rank = len(piece[adapter.name + A]) if adapter.name + A in piece else adapter.rank
            if rank != adapter.rank and 0 < rank <= self.lora.rank:  # another is that of another model
                adapter.resize(rank)
                self.leaves[part].update(adapter.leaves)

    def export(self, part: str) -> dict[str, Tensor]:
        """A copy of a part's tensors, as pieces hold them."""
        return {name: tensor.detach().cpu().clone() for name, tensor in self.parts[part].items()}

    def trained(self, part: str) -> dict[str, Tensor]:
        """A copy of what training has changed of a part; installing it again over the same piece costs nothing."""
        copy = {name: leaf.detach().cpu().clone() for name, leaf in self.leaves[part].items()}
        if part in self._resident:
            self._resident[part] = self._resident[part][0], copy
            self._dirty.discard(part)
        return copy

    def __call__(self, batch: Batch) -> Tensor:
        """Run the model on every entry of the batch but ``labels``; return its logits.

        Hugging Face classifiers find a sequence's last token by the padding token and not by the mask, so masked tokens are
        given that token's number; where there is none, see `last_token`.
        """
        inputs = {key: value for key, value in batch.items() if key != "labels"}
        padding = getattr(getattr(self.model, "config", None), "pad_token_id", None)
        if padding is not None and "attention_mask" in inputs and "input_ids" in inputs:
            inputs["input_ids"] = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, padding)
        with last_by_mask(self.model, inputs.get("attention_mask")) if self._no_padding else nullcontext():
            output: Any = self.model(**inputs)
        logits: Tensor = getattr(output, "logits", output)
        return logits

    def route(self, allowed: Collection[str] | None) -> None:
        """Mask the gate (39) so that only the expert parts in ``allowed`` can be picked; None removes the mask.

        With layer granularity, a layer of which ``allowed`` names no expert stays unmasked.
        """
        if allowed is not None and not allowed:
            raise ValueError("allowed = (): the gate would be left without any expert")
        for layer, block in enumerate(self.blocks):
            mine = self._rows(allowed or (), layer)
            if not mine:
                block.router.allowed_E = None
                continue
            device = next(iter(block.gate.values())).device
            block.router.allowed_E = torch.zeros(self.experts, dtype=torch.bool, device=device)
            block.router.allowed_E[mine] = True

    def observe(self, batches: Iterable[Batch], free: bool = False) -> tuple[NDArray[np.int64], int]:
        """Trial pass: how often each layer's gate picks each expert (counts_LM) over how many tokens, without padding.

        What a token is the routing says: a word, or a whole image. ``free`` counts what the gate would pick without a mask,
        along the path that tokens take with it.

        The gate of a subset without a stream knows only the kept experts: its columns are those of ``kept``.
        """
        self.model.eval()
        for block in self.blocks:
            block.router.counts_E = torch.zeros(self.experts, dtype=torch.long, device=next(iter(block.gate.values())).device)
            block.router.tokens, block.router.count_free = 0, free
        with torch.no_grad():
            for batch in batches:
                mask = batch.get("attention_mask")
                for block in self.blocks:
                    block.router.valid_T = None if mask is None else mask.flatten().bool()
                self(batch)
        counts = [block.router.counts_E for block in self.blocks]
        for block in self.blocks:
            block.router.counts_E = block.router.valid_T = None
            block.router.count_free = False
        return torch.stack([c for c in counts if c is not None]).cpu().numpy(), self.blocks[0].router.tokens

    @contextmanager
    def gate_logits(self) -> Iterator[Callable[[], list[Tensor]]]:
        """Within the block, the yielded function returns the last forward pass's gate logits_TE, layer by layer."""
        for block in self.blocks:
            block.router.keep_logits = True
        try:
            yield lambda: [block.router.logits_TE for block in self.blocks if block.router.logits_TE is not None]
        finally:
            for block in self.blocks:
                block.router.keep_logits, block.router.logits_TE = False, None

    def seed_noise(self, seed: int) -> None:
        """Make the noise ℰ of (9) repeatable from here on."""
        for layer, block in enumerate(self.blocks):
            if block.router.noise_std > 0:
                block.router.generator = torch.Generator().manual_seed(seed + layer)
