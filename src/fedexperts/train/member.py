"""What a client of a Networked MoE does beyond its own task: contrast (FedSC), its id (RollGate), others' experts (FedGate).

Shapes: B images or latents of a batch, D numbers of a latent, E experts, which are the clients' ids, L labels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ..moe.parts import BACKBONE, CORRELATION, Piece, Tensors, expert, file_B
from ..moe.resnet import all_latents
from ..moe.routing import load_balance_loss
from ..moe.view import Batch, View
from ..seeds import Stream, stream, torch_seed
from .fedsc import Augmentation, both_views, clipped, correlation, local_loss, two_views
from .gating import roll_loss, roll_targets
from .holding import Holding
from .privacy import noisy
from .task import Task

FLOAT32_B = 4
HELD_BACK = 10
"""Every so-manieth sample is held back from a rolling gate, and says when it has learnt enough."""


@dataclass(frozen=True)
class NetworkClient:
    """What a client knows of the network.

    Attributes:
        own: its id, the number of its expert.
        norm: representations are clipped to it (FedSC).
        sigma: noise on the correlation matrix that it shares, in sensitivities; 0: none.
        correlation_samples: images that this matrix is estimated on, two views of each; drawn anew every time.
        home_share: p, the part of its samples that a rolling gate is to keep at home.
        balance: weight of the load-balance loss of a federated gate.
        gate_top_k: experts that a sample meets while a federated gate is trained.
        gate_lr: learning rate of a gate that is trained alone.
        expert_cache: whether other clients' experts are fetched once instead of being asked for every sample.
    """

    own: int
    norm: float = 1.0
    sigma: float = 0.0
    correlation_samples: int = 256
    home_share: float = 0.7
    balance: float = 0.01
    gate_top_k: int = 1
    gate_lr: float = 1e-2
    expert_cache: bool = False


class Member:
    """A device as a client of a network: where its batches come from, what it learns beyond its task, and what that costs.

    Args:
        client: what it knows of the network.
    """

    def __init__(self, client: NetworkClient):
        self.client = client
        self.peer_B = 0  # sent to and from other clients
        self.fetched: set[str] = set()  # experts of other clients that are kept
        self.extracted: tuple[int, bool] | None = None  # whose latents are paid for: version, and whether trained here
        self._latents: tuple[Tensors, Tensor] | None = None  # a cache: the extractor and what it made of the images

    def state(self) -> dict[str, Any]:
        """Everything that changes, for a checkpoint."""
        names = ("peer_B", "fetched", "extracted")
        return {name: getattr(self, name) for name in names}

    def restore(self, state: dict[str, Any]) -> None:
        """Inverse of `state`."""
        vars(self).update(state)

    def source(self, holding: Holding, task: Task) -> Batch:
        """What the task's batches are taken from: latents, where the extractor stays as it is. It must be in the view."""
        if BACKBONE in task.parts:
            return holding.data
        extractor = holding.trained.get(BACKBONE, holding.held[BACKBONE].tensors)
        if self._latents is None or self._latents[0] is not extractor:
            model: Any = holding.view.model
            model.eval()
            self._latents = extractor, all_latents(model, holding.data["pixel_values"])
        found = {"latents": self._latents[1], "labels": holding.data["labels"]}
        ids = own_ids(holding.samples, self.client, holding.view.experts, holding.key) if task.goal == "own-id" else {}
        return found | ids

    @contextmanager
    def asking(self, view: View, task: Task) -> Iterator[None]:
        """While a gate learns which client to ask: how many experts a sample meets, and the bytes that this costs."""
        if not task.peers:
            yield
            return
        router = view.blocks[0].router
        usual, router.top_k = router.top_k, self.client.gate_top_k
        router.counts_E = torch.zeros(view.experts, dtype=torch.long, device=view.device)
        router.keep_logits = True
        try:
            yield
        finally:
            self.peer_B += traffic_B(view, router.counts_E, self.client, self.fetched, view.parts)
            router.top_k, router.counts_E, router.keep_logits, router.logits_TE = usual, None, False, None

    def loss(self, holding: Holding, batch: Batch, goal: str) -> Tensor:
        """Of the goal: contrast, own id, or the task with the load-balance loss."""
        if goal == "contrast":
            return contrast_loss(holding.view, batch, self.client, holding.held)
        if goal == "own-id":
            return roll(holding.view, batch)
        return gate_loss(holding.view, batch, holding.objective.loss(holding.view, batch), self.client)

    def trained(self, holding: Holding, task: Task, source: Batch) -> dict[str, Tensors]:
        """What else a task has made: the correlation matrix to be shared; a rolling gate is judged."""
        if task.goal == "own-id":
            with torch.no_grad():
                there = {key: value.to(holding.view.device) for key, value in source.items()}
                holding.held_loss = float(roll(holding.view, there, held_back=True))
        if CORRELATION not in task.parts:
            return {}
        weight = holding.held[CORRELATION].tensors["weight"]
        holding.view.model.eval()
        key = (*holding.key, holding.steps)
        return {CORRELATION: shared_correlation(holding.view, holding.data, self.client, weight, key)}

    def spent(self, holding: Holding, task: Task) -> int:
        """FLOPs of training by this task beyond its steps: latents, once for each extractor, and the correlation matrix."""
        if CORRELATION in task.parts:
            views = 2 * min(self.client.correlation_samples, holding.samples)
            return views * image_flops(holding.view, holding.data, projected=True)
        which = holding.held[BACKBONE].version, BACKBONE in holding.trained
        if BACKBONE in task.parts or self.extracted == which:
            return 0
        self.extracted = which
        return holding.samples * image_flops(holding.view, holding.data)


@torch.no_grad()
def image_flops(view: View, data: Batch, projected: bool = False) -> int:
    """FLOPs of one image's latent, or of its projection, counted as `Device.flops_per_step` counts."""
    model: Any = view.model
    with FlopCounterMode(display=False) as counter:
        (model.representations if projected else model.latents)(data["pixel_values"][:1].to(view.device))
    return int(counter.get_total_flops())


def contrast_loss(view: View, batch: Batch, client: NetworkClient, held: Mapping[str, Piece]) -> Tensor:
    """(4) on two augmented views of each image, from torch's own random state."""
    model: Any = view.model
    one, other = two_views(batch["pixel_values"], Augmentation(), torch.default_generator)
    z_BD, plus_BD = model.representations(torch.cat([one, other])).float().chunk(2)
    shared = held[CORRELATION].tensors
    known = held[CORRELATION].version > 0  # before the first exchange there is nothing to contrast with but oneself
    others_DD = shared["matrix"].to(z_BD.device) if known else None
    return local_loss(z_BD, plus_BD, float(shared["weight"]), others_DD, client.norm)


@torch.no_grad()
def shared_correlation(view: View, data: Batch, client: NetworkClient, weight: Tensor, key: tuple[int, ...]) -> Tensors:
    """R_i estimated on some of a device's images, two views of each, with noise on it if asked for.

    The part `CORRELATION` holds a ``matrix``, R̄_{−i} on its way down and R_i on its way up, and the client's ``weight`` q_i.
    """
    model: Any = view.model
    generator = torch.Generator().manual_seed(torch_seed(Stream.VIEWS, key))
    chosen = stream(Stream.CORRELATION, key).permutation(len(data["labels"]))[: client.correlation_samples]
    views = []
    for chunk in torch.split(data["pixel_values"][torch.from_numpy(np.sort(chosen))], 250):
        one, other = two_views(chunk.to(view.device), Augmentation(), generator)
        z_BD = clipped(model.representations(torch.cat([one, other])).float(), client.norm)  # bf16 would round past the norm
        views.append(both_views(*z_BD.chunk(2)))
    r_DD = correlation(torch.cat(views)).cpu()
    if client.sigma > 0:
        rng = stream(Stream.PRIVACY, key)
        noised = noisy(r_DD.double().numpy(), client.sigma, client.norm, len(chosen), rng)
        r_DD = torch.from_numpy(noised).to(r_DD.dtype)
    return {"matrix": r_DD, "weight": weight}


def own_ids(samples: int, client: NetworkClient, experts: int, key: tuple[int, ...]) -> dict[str, Tensor]:
    """RollGate's pseudo labels of a client's samples, and which of them are held back."""
    targets = roll_targets(stream(Stream.ROLL_TARGETS, key), samples, client.own, experts, client.home_share)
    held = torch.zeros(samples, dtype=torch.bool)
    count = min(max(1, samples // HELD_BACK), samples - 1)
    held[torch.from_numpy(stream(Stream.ROLL_HELD, key).permutation(samples)[:count])] = True
    return {"ids": targets, "held": held}


def roll(view: View, batch: Batch, held_back: bool = False) -> Tensor:
    """Cross-entropy of the gate against the pseudo labels of the samples that it may learn from, or of those held back."""
    model: Any = view.model
    keep = batch["held"] if held_back else ~batch["held"]
    return roll_loss(model.moe.gate(batch["latents"][keep]), batch["ids"][keep])


def gate_loss(view: View, batch: Batch, loss: Tensor, client: NetworkClient) -> Tensor:
    """The task's loss and the load-balance loss of the batch (Sec. II-A, in the Switch form)."""
    model: Any = view.model
    router = model.moe.router
    logits_TE = router.logits_TE
    if client.balance == 0 or logits_TE is None:
        return loss
    return loss + client.balance * load_balance_loss(logits_TE, logits_TE.topk(router.top_k, dim=-1).indices)


def call_B(view: View) -> int:
    """Bytes of asking another client's expert about one sample: its latent there, probabilities back, in float32."""
    config: Any = view.model.config
    return FLOAT32_B * (int(config.latent_size) + int(config.num_labels))


def traffic_B(view: View, picks_E: Tensor, client: NetworkClient, cached: set[str], tensors: Mapping[str, Tensors]) -> int:
    """Bytes between clients for these picks; ``cached`` grows by the experts that are fetched."""
    picks_E = picks_E.clone()
    picks_E[client.own] = 0
    if not client.expert_cache:
        return int(picks_E.sum()) * call_B(view)
    fetched = [expert(int(m)) for m in torch.nonzero(picks_E).flatten() if expert(int(m)) not in cached]
    cached.update(fetched)
    return sum(file_B(tensors[part]) for part in fetched)
