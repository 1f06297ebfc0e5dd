"""Layers below the first that is trained put out the same in every step: computed once for each sample, and kept.

A model takes part if all its MoE layers lie in one list of layers of which each maps hidden states to hidden states, as in
Hugging Face's decoders and encoders. Layers are left out whole: with trained experts or a trained gate in the first layer
there is nothing below, and that layer's attention is computed again.

What is kept is a function of the samples and of the frozen parts, never of when it was asked for: all samples at once, in
batches of similar length. It differs by rounding from what a batch of training would compute. So a run that was resumed, and
computes it again, ends with the same bytes.

Shapes: N samples, T their tokens, B samples of a batch, L its longest sequence, D hidden.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..data.objective import Objective
from ..data.source import ends, first, take, trimmed
from ..moe.parts import HEAD, Piece, Tensors, is_expert
from ..moe.view import Batch, View

AT_ONCE, TRIED = 32, 4
Pieces = Sequence[tuple[Piece, Tensors | None]]


@dataclass(frozen=True)
class FrozenLayers:
    """The layers below the first that holds a trained tensor.

    Attributes:
        modules: they, in order.
        parts: those that decide what they put out.
        route: expert parts that their gates may pick; None: all, or they have no gate.
    """

    modules: tuple[nn.Module, ...]
    parts: frozenset[str]
    route: frozenset[str] | None

    @classmethod
    def of(cls, view: View, trained: Collection[tuple[str, str]], route: frozenset[str] | None) -> Self | None:
        """Found by the (part, name) of trained tensors; ``route`` is the mask of the gates.

        None where nothing can be left out: no layer is below, a tensor that feeds them is trained too, they are random
        (dropout, gate noise), or the model is not a list of layers.
        """
        name, layers = _list_of_layers(view)

        def at(tensor: str) -> int:
            """The tensor's layer; before all of them if it is outside the list."""
            return int(tensor.removeprefix(name).split(".")[1]) if tensor.startswith(f"{name}.") else -1

        depth = min([at(tensor) for part, tensor in trained if part != HEAD], default=len(layers))
        noisy = any(block.router.noise_std > 0 and at(next(iter(block.gate))) < depth for block in view.blocks)
        if depth <= 0 or view.stream or noisy or random_module(view.model, layers[depth:]) is not None:
            return None
        parts = {part for part, names in view.parts.items() if part != HEAD and min(map(at, names)) < depth}
        return cls(tuple(layers[:depth]), frozenset(parts), route if any(map(is_expert, parts)) else None)

    def put_out(self, view: View, objective: Objective, batch: Batch) -> Any:
        """What the last of them puts out for a batch; the rest of the model does not run."""

        def stop(module: nn.Module, args: Any, output: Any) -> None:
            raise _PutOut(output)

        hook = self.modules[-1].register_forward_hook(stop)
        try:
            with torch.no_grad():
                objective.loss(view, batch)
        except _PutOut as reached:
            return reached.args[0]
        finally:
            hook.remove()
        return None

    @contextmanager
    def left_out(self, hidden_BLD: Tensor) -> Iterator[None]:
        """Within the block they put out this, whatever goes in."""
        for module in self.modules:
            module.forward = lambda *args, **options: hidden_BLD  # on this instance alone
        try:
            yield
        finally:
            for module in self.modules:
                del module.forward

    def can_be_left_out(self, view: View, objective: Objective, samples: Batch) -> bool:
        """Whether a few samples get the same loss to the bit without them: else the model is not what it seems."""
        batch = {key: value.to(view.device) for key, value in trimmed(first(samples, TRIED)).items()}
        hidden_BLD = self.put_out(view, objective, batch)
        if not isinstance(hidden_BLD, Tensor) or hidden_BLD.shape[:2] != batch["input_ids"].shape:
            return False
        losses = []
        for way in (nullcontext(), self.left_out(hidden_BLD)):
            torch.manual_seed(0)  # for dropout and noise above
            view.seed_noise(0)
            with torch.no_grad(), way:
                losses.append(objective.loss(view, batch))
        return torch.equal(*losses)


class _PutOut(Exception):  # noqa: N818  # no error: it carries a layer's output out of the model
    pass


class Kept:
    """What frozen layers put out for every token of all samples, on the CPU; padding is not kept.

    Args:
        begins_N, ends_N: first row of each sample, and how many it has.
        pieces: what the layers' parts were, and what was trained of them; it holds as long as these are the same objects.
    """

    def __init__(self, layers: FrozenLayers, pieces: Pieces, hidden_TD: Tensor, begins_N: Tensor, ends_N: Tensor):
        self.layers, self.pieces = layers, pieces
        self.hidden_TD, self.begins_N, self.ends_N = hidden_TD, begins_N, ends_N

    def holds(self, layers: FrozenLayers, pieces: Pieces) -> bool:
        """Whether it is what these layers with these pieces put out."""
        if layers != self.layers:
            return False
        return all(a is c and b is d for (a, b), (c, d) in zip(pieces, self.pieces, strict=True))

    def rows(self, chosen_B: Tensor, columns: int = 1) -> Tensor:
        """What is kept of these samples, hidden_BLD with at least so many columns."""
        columns_L = torch.arange(max(columns, int(self.ends_N[chosen_B].max())))
        real_BL = columns_L < self.ends_N[chosen_B][:, None]
        at_BL = (self.begins_N[chosen_B][:, None] + columns_L).masked_fill(~real_BL, 0)
        return self.hidden_TD[at_BL].masked_fill(~real_BL.unsqueeze(-1), 0.0)

    @contextmanager
    def used(self, chosen_B: Tensor, device: torch.device) -> Iterator[None]:
        """Within the block the model runs on a batch of these samples without its frozen layers."""
        with self.layers.left_out(self.rows(chosen_B).to(device)):
            yield


def kept_B(view: View, samples: Batch) -> int:
    """Bytes of what is kept of the samples."""
    gate = next(iter(view.blocks[0].gate.values()))
    return int(ends(samples).sum()) * gate.shape[-1] * gate.element_size()


def compute(view: View, objective: Objective, layers: FrozenLayers, samples: Batch, pieces: Pieces) -> Kept | None:
    """Run the frozen layers over all samples; None if the model cannot do without them. The random state stays as it was."""
    with torch.random.fork_rng(devices=[]):
        if not layers.can_be_left_out(view, objective, samples):
            return None
    ends_N, hidden = ends(samples), []
    order_N = ends_N.argsort(stable=True)
    for chosen_B in torch.split(order_N, AT_ONCE):
        batch = trimmed(take(samples, chosen_B))
        hidden_BLD = layers.put_out(view, objective, {key: value.to(view.device) for key, value in batch.items()})
        real_BL = torch.arange(hidden_BLD.shape[1]) < ends_N[chosen_B][:, None]
        hidden.append(hidden_BLD.cpu()[real_BL])
    begins_N = torch.empty_like(ends_N)
    begins_N[order_N] = ends_N[order_N].cumsum(0) - ends_N[order_N]
    return Kept(layers, pieces, torch.cat(hidden), begins_N, ends_N)


def _list_of_layers(view: View) -> tuple[str, list[nn.Module]]:
    """Name and entries of the outermost list that holds all MoE layers; no entries if there is none."""
    gates = [next(iter(block.gate)) for block in view.blocks]
    for name, module in view.model.named_modules():
        if isinstance(module, nn.ModuleList | nn.Sequential) and all(gate.startswith(f"{name}.") for gate in gates):
            return name, list(module)
    return "", []


def random_module(model: nn.Module, above: Collection[nn.Module] = ()) -> str | None:
    """The first module outside the layers above that draws random numbers in training, or mixes the samples of a batch."""
    skipped = {id(module) for layer in above for module in layer.modules()}
    for name, module in model.named_modules():
        drops = isinstance(module, nn.Dropout) and module.p > 0
        drops = drops or (isinstance(p := getattr(module, "attention_dropout", None), float) and p > 0)
        if id(module) not in skipped and (drops or isinstance(module, _BatchNorm)):
            return name or type(model).__name__
    return None
