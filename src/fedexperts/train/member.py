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

from ..moe.parts import BACKBONE, CORRELATION, GATE, STATISTICS, Piece, Tensors, expert, file_B, in_order, is_expert
from ..moe.resnet import all_latents
from ..moe.view import Batch, View
from ..seeds import Stream, stream, torch_seed
from .fedsc import Augmentation, both_views, clipped, correlation, local_loss, two_views
from .flops import Flops
from .gating import answers_loss, balance_loss, roll_loss, roll_targets, spread_of
from .holding import Holding
from .privacy import noisy
from .task import Experts, Task

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
        gate_top_k: experts that a sample meets while a federated gate is trained; None: all.
        gate_lr: learning rate of a gate that is trained alone, by plain descent along gradients of unit norm.
        expert_cache: whether other clients' experts are fetched once instead of being asked for every sample.
    """

    own: int
    norm: float = 1.0
    sigma: float = 0.0
    correlation_samples: int = 256
    home_share: float = 0.7
    balance: float = 0.0
    gate_top_k: int | None = None
    gate_lr: float = 0.1
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
        self.asked_NE: Tensor | None = None  # which expert has said what it makes of which sample
        self.of = ""  # address of the extractor and the experts that were asked
        self._latents: tuple[Tensors, Tensor] | None = None  # a cache: the extractor and what it made of the images
        self._answers: tuple[list[Tensors], Tensor] | None = None  # a cache: extractor and experts, and log q of the labels

    def state(self) -> dict[str, Any]:
        """Everything that changes, for a checkpoint."""
        names = ("peer_B", "fetched", "extracted", "asked_NE", "of")
        return {name: getattr(self, name) for name in names}

    def restore(self, state: dict[str, Any]) -> None:
        """Inverse of `state`."""
        vars(self).update(state)

    def source(self, holding: Holding, task: Task, peers: Experts | None = None) -> Batch:
        """What the task's batches are taken from: latents, where the extractor stays as it is. It must be in the view.

        For a gate that is trained alone they are standardised; with FedGate all experts' answers are with them.
        """
        if BACKBONE in task.parts:
            return holding.data
        latents_TD, labels_T = self.latents(holding), holding.data["labels"]
        if task.goal == "task":
            return {"latents": latents_TD, "labels": labels_T}
        mean_D, spread_D = standard(holding)
        found = {"standard": (latents_TD - mean_D) / spread_D}
        if task.goal == "own-id":
            return found | own_ids(holding.samples, self.client, holding.view.experts, holding.key)
        measured = peers is None
        at_T = torch.full((len(labels_T),), -1) if measured else torch.arange(len(labels_T))
        return found | {"answers": self.answers(holding, peers), "at": at_T}

    def latents(self, holding: Holding) -> Tensor:
        """Of all its images, by the extractor that it has; this must be in the view."""
        extractor = holding.latest(BACKBONE)
        if self._latents is None or self._latents[0] is not extractor:
            model: Any = holding.view.model
            model.eval()
            self._latents = extractor, all_latents(model, holding.data["pixel_values"])
        return self._latents[1]

    @torch.no_grad()
    def answers(self, holding: Holding, peers: Experts | None) -> Tensor:
        """log q_NE of each sample's label by every expert, which is asked once: it is frozen, as the extractor is.

        Where a step is only measured, without peers, nobody is asked.
        """
        view = holding.view
        if peers is None:
            return torch.zeros(holding.samples, view.experts)
        experts = in_order(filter(is_expert, view.parts))
        latest = [peers[part].tensors if part in peers else holding.latest(part) for part in experts]
        asked = [holding.latest(BACKBONE), *latest]
        if self._answers is None or any(new is not old for new, old in zip(asked, self._answers[0], strict=True)):
            model: Any = view.model
            model.eval()
            latents_TD, labels_T = self.latents(holding).to(view.device), holding.data["labels"].to(view.device)
            q_NE = torch.stack([body(latents_TD).gather(1, labels_T[:, None])[:, 0] for body in model.moe.experts], dim=1)
            self._answers = asked, q_NE.cpu()
            of = "".join(Piece(BACKBONE, 0, tensors).digest for tensors in asked)
            if of != self.of:
                self.of, self.asked_NE = of, torch.zeros(holding.samples, view.experts, dtype=torch.bool)
        if self.picks(view) == view.experts:
            self.ask(view, torch.arange(holding.samples), torch.arange(view.experts).expand(holding.samples, -1))
        return self._answers[1]

    def picks(self, view: View) -> int:
        """Experts that a sample meets while a federated gate is trained."""
        return self.client.gate_top_k or view.experts

    def ask(self, view: View, at_B: Tensor, indices_BK: Tensor) -> None:
        """Count what it costs to ask these experts of these samples, where they have not been asked before."""
        assert self.asked_NE is not None
        wanted_NE = torch.zeros_like(self.asked_NE)
        wanted_NE[at_B[:, None], indices_BK] = True
        new_NE = wanted_NE & ~self.asked_NE
        self.asked_NE = self.asked_NE | wanted_NE
        self.peer_B += traffic_B(view, new_NE.sum(dim=0), self.client, self.fetched, view.parts)

    @contextmanager
    def gate_alone(self, holding: Holding, task: Task) -> Iterator[None]:
        """While a gate is trained alone: its weights are those of standardised latents, w·spread and b + w·mean.

        As pieces have them they are those of latents as they are, so that a checkpoint needs no statistics.
        """
        if task.goal not in ("gate", "own-id"):
            yield
            return
        model: Any = holding.view.model
        gate = model.moe.gate
        mean_D, spread_D = (value.to(gate.weight) for value in standard(holding))
        with torch.no_grad():
            if gate.bias is not None:
                gate.bias += gate.weight @ mean_D
            gate.weight *= spread_D
        try:
            yield
        finally:
            with torch.no_grad():
                gate.weight /= spread_D
                if gate.bias is not None:
                    gate.bias -= gate.weight @ mean_D

    def loss(self, holding: Holding, batch: Batch, goal: str) -> Tensor:
        """Of the goal: contrast, own id, all experts' answers, or the task."""
        view = holding.view
        if goal == "contrast":
            return contrast_loss(view, batch, self.client, holding.held)
        if goal == "own-id":
            return roll(view, batch)
        if goal == "task":
            return holding.objective.loss(view, batch)
        model: Any = view.model
        logits_TE, k = model.moe.gate(batch["standard"]), self.picks(view)
        if k < view.experts and int(batch["at"][0]) >= 0:
            self.ask(view, batch["at"].cpu(), logits_TE.detach().topk(k, dim=-1).indices.cpu())
        loss = answers_loss(logits_TE, batch["answers"], k, int(model.config.num_labels))
        if self.client.balance == 0 or STATISTICS not in holding.held:
            return loss
        load_E = holding.held[STATISTICS].tensors["load"].to(logits_TE.device)
        return loss + self.client.balance * balance_loss(logits_TE, load_E)

    def shares(self, holding: Holding, task: Task) -> dict[str, Tensors]:
        """What a client shares beside what it trains, all of it of the model that came down.

        A correlation matrix of a model that it has trained on the very images would let one of them move it without a bound
        (`privacy`). Of a gate it tells the latents' mean and spread and how often its images are sent to each expert.
        """
        view, model = holding.view, holding.view.model
        found: dict[str, Tensors] = {}
        if CORRELATION in task.parts:
            view.install(BACKBONE, holding.held[BACKBONE].tensors)
            model.eval()
            weight, key = holding.held[CORRELATION].tensors["weight"], (*holding.key, holding.steps)
            found[CORRELATION] = shared_correlation(view, holding.data, self.client, weight, key)
        if STATISTICS in task.parts:
            view.install(BACKBONE, holding.held[BACKBONE].tensors, holding.trained.get(BACKBONE))
            view.install(GATE, holding.held[GATE].tensors)
            found[STATISTICS] = statistics(view, self.latents(holding))
        return found

    def judge(self, holding: Holding, task: Task, source: Batch) -> None:
        """A rolling gate is judged on what its client holds back: as it is once the task is done."""
        view = holding.view
        if task.goal == "own-id":
            with self.gate_alone(holding, task), torch.no_grad():
                there = {key: value.to(view.device) for key, value in source.items()}
                holding.held_loss = float(roll(view, there, held_back=True))

    def spent(self, holding: Holding, task: Task) -> int:
        """FLOPs of training by this task beyond its steps: latents and answers, once for each extractor, and the matrix."""
        if CORRELATION in task.parts:
            views = 2 * min(self.client.correlation_samples, holding.samples)
            return views * image_flops(holding.view, holding.data, projected=True)
        return holding.samples * image_flops(holding.view, holding.data) if due(task, extractor(holding), self.extracted) else 0

    def pay(self, holding: Holding, task: Task) -> None:
        """The task is trained, so that its latents need not be made again."""
        if due(task, extractor(holding), self.extracted):
            self.extracted = extractor(holding)


Extractor = tuple[int, bool]
"""The version of an extractor that a client has, and whether it has trained it."""


def extractor(holding: Holding) -> Extractor:
    """That which a client has now."""
    return holding.held[BACKBONE].version, BACKBONE in holding.trained


def due(task: Task, extractor: Extractor, paid: Extractor | None) -> bool:
    """Whether a task needs latents that are not paid for."""
    return BACKBONE not in task.parts and paid != extractor


def standard(holding: Holding) -> tuple[Tensor, Tensor]:
    """Mean and spread of all clients' latents, as the server has told them; 0 and 1 before, and no mean without a bias."""
    model: Any = holding.view.model
    gate = model.moe.gate
    if STATISTICS not in holding.held:
        return torch.zeros(gate.in_features), torch.ones(gate.in_features)
    told = holding.held[STATISTICS].tensors
    return (torch.zeros_like(told["mean"]) if gate.bias is None else told["mean"]), told["spread"]


@torch.no_grad()
def statistics(view: View, latents_TD: Tensor) -> Tensors:
    """Mean and spread of latents, and the share of them that the gate in the view sends to each expert."""
    model: Any = view.model
    mean_D, spread_D = spread_of(latents_TD.float())
    picks_T = model.moe.gate(latents_TD.to(view.device)).argmax(dim=-1).cpu()
    return {"mean": mean_D, "spread": spread_D, "load": torch.bincount(picks_T, minlength=view.experts) / len(picks_T)}


@torch.no_grad()
def image_flops(view: View, data: Batch, projected: bool = False) -> int:
    """FLOPs of one image's latent, or of its projection, counted as `Device.flops_per_step` counts."""
    model: Any = view.model
    with Flops() as counter:
        (model.representations if projected else model.latents)(data["pixel_values"][:1].to(view.device))
    return int(counter.total)


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
    return roll_loss(model.moe.gate(batch["standard"][keep].to(view.device)), batch["ids"][keep].to(view.device))


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
