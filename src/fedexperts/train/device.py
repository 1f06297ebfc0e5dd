"""The device trains: the very same class works in the simulator and in a client process of a deployment.

One resident model per process: devices hold tensors, the `View` holds the model, and parts are swapped in and out.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..data.objective import Objective
from ..data.source import ends, lengths, take, trimmed
from ..errors import InputError
from ..moe.parts import BESIDE, GATE, MAX_UPDATE_NORM, Piece, Tensors, expert_index, in_order, is_expert
from ..moe.view import Batch, View
from ..seeds import Stream, stream, torch_seed
from .batches import epoch_batches
from .flops import Flops, alike
from .frozen import FrozenLayers, Kept, compute, kept_B
from .gating import normalise_gradients
from .holding import Holding
from .member import Member
from .task import Experts, Task
from .wire import Codec

SEEDS_AHEAD = 64
"""Of local rounds to come, at most so many are drawn at once."""
LocalLoss = Callable[[Tensor, Mapping[str, Tensor], Mapping[str, Tensor]], Tensor]
"""From a batch's loss, what is trained and the same as it was received, both by "part/tensor", to what is minimised."""


@dataclass(frozen=True)
class LocalTraining:
    """How a local round is done.

    ``local_steps = 1``, ``batch_size = None`` and ``optimizer = "sgd"`` is the paper's literal round, one full-batch
    gradient step (4)-(5). ``lr_gate`` is η^U and serves every shared part; ``lr_expert`` is η^E. ``bucketing`` makes batches of
    samples of similar length; it changes nothing where all have one length. ``cache_B`` bounds what a device keeps of the
    outputs of frozen layers (see `frozen`); 0 computes them in every step. ``loss`` makes of a batch's loss what is minimised.
    ``proximal_mu`` is FedProx's μ: this gains μ/2·‖w − w_received‖² over all that is trained.
    What changes a part by more than ``max_update_norm`` has diverged, see `protocol.admission`.
    ``together`` has devices behind one Host train as one batched computation, see `cohort`.
    """

    local_steps: int = 1
    batch_size: int | None = None
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr_expert: float = 1e-3
    lr_gate: float = 1e-3
    weight_decay: float = 0.0
    bucketing: bool = True
    cache_B: int = 10**9
    loss: LocalLoss | None = None
    proximal_mu: float = 0.0
    max_update_norm: float = MAX_UPDATE_NORM
    together: bool = False


class Device(Holding):
    """Device j of a cluster: what it has (see `Holding`), and how it trains (``local``)."""

    def __init__(
        self,
        name: str,
        view: View,
        data: Batch,
        model: dict[str, Piece],
        local: LocalTraining,
        seed: int,
        objective: Objective,
        codec: Codec = "exact",
    ):
        super().__init__(name, view, data, model, seed, objective, codec)
        self.local, self.max_update_norm = local, local.max_update_norm
        self.member: Member | None = None  # what it is in a Networked MoE, if it is a client of one
        self.loss: float | None = None  # of the last call of `train`
        self.flops: dict[tuple[frozenset[str], frozenset[str] | None, str, int], int] = {}  # see `flops_per_step`
        self.batch_size = min(local.batch_size or self.samples, self.samples)
        self.lengths_vary = lengths(data) is not None
        self._lengths_N = lengths(data) if local.bucketing else None
        self._kept: Kept | None = None  # see `frozen`, a cache
        self._source = data  # what batches are taken from: the data, or what the frozen extractor makes of them
        self._epoch: tuple[int, Tensor] | None = None  # number and batches, a cache
        self._seeds: dict[int, int] = {}  # by gradient steps before, a cache

    @cached_property
    def kind(self) -> tuple[Any, ...]:
        """Devices with equal ones have batches of one shape."""
        return self.batch_size, tuple((key, value.shape[1:]) for key, value in self.data.items())

    def train(self, task: Task, rounds: int, round_s: float = 0.0, peers: Experts | None = None) -> int:
        """Do ``rounds`` local rounds of the task, each of which takes ``round_s``; return the gradient steps made.

        Where the task has the gate pick experts of other clients, ``peers`` are these. Afterwards ``loss`` is the mean of what
        the steps began with, each on its batch; None where nothing was done.
        """
        self.appraise_fresh(task)
        beside = {} if self.member is None else self.member.shares(self, task)
        leaves = self.enter(task.parts, task.route, task, peers)
        term = self._local_loss(leaves)
        optimizer = self._optimizer(leaves, task.rate)
        kept = self.frozen_layers(task, leaves, rounds)
        first, losses = self.steps, torch.zeros((), dtype=torch.float64, device=self.view.device)
        asking = nullcontext() if self.member is None else self.member.gate_alone(self, task)
        with torch.random.fork_rng(devices=[]), asking:  # dropout and gate noise repeat after a resume
            for _ in range(rounds):
                self._seed_round()
                for _ in range(self.local.local_steps):
                    chosen_B = self.chosen(self.steps)
                    optimizer.zero_grad(set_to_none=True)
                    with kept.used(chosen_B, self.view.device) if kept else nullcontext():
                        loss = self._backward(self.batch(chosen_B), task.goal, term)
                    losses += loss.detach()
                    if loss.requires_grad:  # else no token of the batch met a trained expert: nothing to learn from it
                        if task.unit_gradient:
                            normalise_gradients(leaf for _, _, leaf in leaves)
                        optimizer.step()
                    self.steps += 1
        self._leave(task, leaves, optimizer, rounds, beside)
        self.loss = float(losses) / (self.steps - first) if self.steps > first else None
        self.round_s = round_s
        return self.steps - first

    def appraise_fresh(self, task: Task) -> None:
        """Appraise what the task asks for and nobody has trained here yet, see `appraise`."""
        if task.appraisal:
            fresh = [part for part in filter(is_expert, task.parts) if part not in self.trained]
            self.appraisals |= self.appraise(fresh, task)

    def appraise(self, experts: Iterable[str], task: Task) -> dict[str, tuple[float, float]]:
        """Loss and share of experts on at most ``task.appraisal`` own samples, as `Update` has them, before training.

        Afterwards any expert would fit: a few steps on a device's own data tell more of the data than of the expert. So a part
        that was trained since it arrived is not appraised again, and what was found travels once.

        The loss is that of the expert alone; the share counts what the gate would pick if it were free, layer by layer, along
        the path that samples take through the experts which the task allows: others need not be there.
        """
        chosen = stream(Stream.TRIAL, self.key).permutation(self.samples)[: task.appraisal]
        samples = take(self.data, torch.from_numpy(np.sort(chosen)))
        self.enter(frozenset(), task.route)
        counts_LM, tokens = self.view.observe(
            _chunks(self.objective.inputs(samples), torch.arange(len(chosen)), self.view.device), free=True
        )
        guess = self.objective.guess(self.view, samples)
        found = {}
        for part in in_order(experts):
            layer, m = expert_index(part)
            rows_L = counts_LM[:, m] if layer is None else counts_LM[layer : layer + 1, m]
            self.view.route({part})
            loss = self.objective.judge(self.view, samples).loss
            found[part] = min(1.0, loss / guess), float(rows_L.mean() / tokens)
        return found

    def flops_per_step(self, task: Task) -> int:
        """FLOPs of one gradient step of the task: measured once on the device's next batch, then kept.

        Where sequences differ in length they are scaled from that batch's padded length to the mean over the epoch.

        Counted (`torch.utils.flop_counter`) are matrix products at 2·m·n·k and convolutions, forward and backward, attention
        as its products; not element-wise work, softmax, sorting, the optimiser. Every token has K picks, so batches differ
        only by how many tokens meet a trained expert. Nothing else changes: not the parts, the optimiser, or the random state.
        """
        key = (task.parts, task.route, task.goal, self.batch_size)
        if key not in self.flops:
            clients = self.member is not None  # each with models of its own
            same = None if clients else alike(self.view, task, self.data, self.batch_size, self.objective)
            known = None if same is None else self.view.flops.get(same)
            self.flops[key] = self._measured_flops(task) if known is None else known
            if same is not None:
                self.view.flops[same] = self.flops[key]
        return self.flops[key]

    def _measured_flops(self, task: Task) -> int:
        leaves = self.enter(task.parts, task.route, task)
        math = sdpa_kernel(SDPBackend.MATH)  # torch 2.13 counts nothing for its fused attention on CPU
        with torch.random.fork_rng(devices=[]), math, Flops() as counter:
            self._seed_round()
            self._backward(self.batch(self.chosen(self.steps)), task.goal)
        for _, _, leaf in leaves:
            leaf.grad = None
        return self._mean_over_epoch(counter.total)

    def activations_B(self, task: Task) -> int:
        """Bytes that autograd saves in one step of the task, on the device's next batch; parameters are not counted."""
        leaves = self.enter(task.parts, task.route, task)
        own = {leaf.untyped_storage().data_ptr() for tensors in self.view.parts.values() for leaf in tensors.values()}
        saved: dict[int, int] = {}

        def save(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                saved[storage.data_ptr()] = storage.nbytes()
            return tensor.detach()  # one that a graph has made and holds would keep the graph, and all in it, for good

        with torch.random.fork_rng(devices=[]), torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
            self._seed_round()
            loss = self._loss(self.batch(self.chosen(self.steps)), task.goal)
        del loss
        for _, _, leaf in leaves:
            leaf.grad = None
        return sum(saved.values())

    def _mean_over_epoch(self, flops: int) -> int:
        """From the next batch's FLOPs to the mean over its epoch, in proportion to the columns of the batches."""
        if "attention_mask" not in self.data:
            return flops
        epoch, at = divmod(self.steps, self.samples // self.batch_size)
        columns_K = ends(self.data)[self._batches(epoch)].amax(dim=1).tolist()
        return int(flops * sum(columns_K) // (len(columns_K) * columns_K[at]))

    def observe(self, samples: int) -> tuple[NDArray[np.int64], int]:
        """Trial pass (27) over at most ``samples`` of its own samples: counts_LM and the number of tokens.

        On the model as it came down: what the device has trained since is left out.
        """
        for part, piece in self.held.items():
            if part in self.view.parts:
                self.view.install(part, piece.tensors)
        self.view.route(None)
        chosen = stream(Stream.TRIAL, self.key).permutation(self.samples)[:samples]
        return self.view.observe(_chunks(self.objective.inputs(self.data), torch.from_numpy(chosen), self.view.device))

    def state(self) -> dict[str, Any]:
        """Everything that changes, for a checkpoint."""
        lent = self.lent
        return {
            "held": {part: piece for part, piece in self.held.items() if part not in lent},
            "trained": self.trained,
            "pending": self.pending,
            "frozen": self.frozen,
            "snapshots": self.snapshots,
            "lost": self.lost,
            "residual": self.residual,
            "optimizer_state": self.optimizer_state,
            "steps": self.steps,
            "round_s": self.round_s,
            "appraisals": self.appraisals,
            "held_loss": self.held_loss,
            "member": None if self.member is None else self.member.state(),
            "flops": self.flops,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Inverse of `state`."""
        member = state.pop("member")
        if self.member is not None:
            self.member.restore(member)
        held = self.lent | state.pop("held")
        vars(self).update(state, held=held)

    def enter(
        self,
        parts: Collection[str],
        route: Collection[str] | None,
        task: Task | None = None,
        peers: Experts | None = None,
    ) -> list[tuple[str, str, Tensor]]:
        """Put what the device has into the model, and all else that a task asks of it; returns the trainable leaves."""
        for part, piece in self.held.items():
            if part in self.view.parts:
                self.view.install(part, piece.tensors, self.trained.get(part))
        for part, piece in (peers or {}).items():
            self.view.install(part, piece.tensors)
        self.view.route(route)
        self._source = self.data if self.member is None or task is None else self.member.source(self, task, peers)
        self.view.in_training()
        return self.view.freeze(but=[part for part in parts if part not in BESIDE])

    def _local_loss(self, leaves: list[tuple[str, str, Tensor]]) -> Callable[[Tensor], Tensor]:
        """What is made of a batch's loss, from the leaves and what they were received as: by an own function, FedProx."""
        own, mu = self.local.loss, self.local.proximal_mu
        if own is None and not mu:
            return lambda loss: loss
        started = {part for part, _, _ in leaves if part in self.trained}
        for part in started:
            self.view.install(part, self.held[part].tensors)
        received = {f"{part}/{name}": leaf.detach().clone() for part, name, leaf in leaves}
        for part in started:
            self.view.install(part, self.held[part].tensors, self.trained[part])
        trained = {f"{part}/{name}": leaf for part, name, leaf in leaves}

        def term(loss: Tensor) -> Tensor:
            made = loss if own is None else own(loss, trained, received)
            if not isinstance(made, Tensor) or made.dim():
                raise InputError(f"train.local_loss: returned {type(made).__name__}; it must return a tensor of one number")
            if not mu:
                return made
            apart = sum((leaf.float() - received[name].float()).square().sum() for name, leaf in trained.items())
            return made + mu / 2 * apart

        return term

    def _loss(self, batch: Batch, goal: str) -> Tensor:
        return self.objective.loss(self.view, batch) if self.member is None else self.member.loss(self, batch, goal)

    def _backward(self, batch: Batch, goal: str, term: Callable[[Tensor], Tensor] = lambda loss: loss) -> Tensor:
        loss = term(self._loss(batch, goal))
        if loss.requires_grad:
            loss.backward()  # type: ignore[no-untyped-call]  # torch ships it untyped
        return loss

    def _optimizer(self, leaves: list[tuple[str, str, Tensor]], rate: float) -> torch.optim.Optimizer:
        alone = self.member is not None and all(part == GATE for part, _, _ in leaves)
        lr_shared = self.member.client.gate_lr if self.member is not None and alone else self.local.lr_gate
        rates = {True: self.local.lr_expert, False: lr_shared}
        if self.member is not None and alone:  # gradients of unit norm mean something under plain descent
            return torch.optim.SGD([leaf for _, _, leaf in leaves], lr=lr_shared * rate)
        groups: list[dict[str, Any]] = [
            {"params": [leaf for part, _, leaf in leaves if is_expert(part) is kind], "lr": lr * rate}
            for kind, lr in rates.items()
        ]
        groups = [group for group in groups if group["params"]]
        common: dict[str, Any] = {"lr": self.local.lr_expert, "weight_decay": self.local.weight_decay}
        if self.local.optimizer == "adamw" and self.member is not None and self.view.device.type == "cpu":
            common["fused"] = True  # an extractor has many small tensors
        kind = torch.optim.SGD if self.local.optimizer == "sgd" else torch.optim.AdamW
        optimizer = kind(groups, **common)
        for part, name, leaf in leaves:
            if saved := self.optimizer_state.get(part, {}).get(name):
                optimizer.state[leaf] = {key: _to(value, leaf) for key, value in saved.items()}
        return optimizer

    def _leave(
        self,
        task: Task,
        leaves: list[tuple[str, str, Tensor]],
        optimizer: torch.optim.Optimizer,
        rounds: int,
        beside: Mapping[str, Tensors],
    ) -> None:
        if self.member is not None:
            self.member.pay(self, task)
            self.member.judge(self, task, self._source)
        for part in task.parts:
            self.trained[part] = beside[part] if part in beside else self.view.trained(part)
            if part not in task.keeps:
                self.pending[part] = self.pending.get(part, 0) + rounds
        for part, name, leaf in leaves:
            leaf.grad = None
            if leaf in optimizer.state:
                saved = optimizer.state[leaf]
                if leaf.device.type != "cpu":  # kept where the parts are: a GPU holds one model, and not all devices
                    saved = {key: value.cpu() if isinstance(value, Tensor) else value for key, value in saved.items()}
                self.optimizer_state.setdefault(part, {})[name] = saved

    def _seed_round(self) -> None:
        if self.steps not in self._seeds:  # one more than the rounds so far: after steps of a model the first takes long
            apart = max(1, self.local.local_steps)
            rounds = min(self.steps // apart + 1, SEEDS_AHEAD)
            ahead = range(self.steps, self.steps + rounds * apart, apart)
            self._seeds = {at: torch_seed(Stream.ROUND, self.key, at) for at in ahead}
        seed = self._seeds[self.steps]
        if self.view.device.type == "cpu":
            torch.default_generator.manual_seed(seed)  # to seed all devices' takes a quarter of a small step
        else:
            torch.manual_seed(seed)
        self.view.seed_noise(seed)

    def frozen_layers(self, task: Task, leaves: list[tuple[str, str, Tensor]], rounds: int) -> Kept | None:
        """What the layers below the first trained one put out for the samples, if that pays and fits.

        It pays if these layers are still those of the checkpoint that everybody has, and likely to stay so, or if the
        rounds ahead see every sample once. All of this, as what is kept, repeats when a run is resumed.
        """
        if "input_ids" not in self.data:
            return None
        layers = FrozenLayers.of(self.view, [(part, name) for part, name, _ in leaves], task.route)
        if layers is None or kept_B(self.view, self.data) > self.local.cache_B:
            return None
        pieces = [(self.held[part], self.trained.get(part)) for part in in_order(layers.parts)]
        untouched = all(piece.version == 0 and trained is None for piece, trained in pieces)
        if not untouched and rounds * self.local.local_steps * self.batch_size < self.samples:
            return None
        if self._kept is None or not self._kept.holds(layers, pieces):
            self._kept = None  # before its successor needs the memory
            self._kept = compute(self.view, self.objective, layers, self.data, pieces)
        return self._kept

    def chosen(self, step: int) -> Tensor:
        """Numbers of the samples of a step's batch, chosen_B."""
        epoch, at = divmod(step, self.samples // self.batch_size)
        return self._batches(epoch)[at]

    def batch(self, chosen_B: Tensor) -> dict[str, Tensor]:
        """These samples, where the model is."""
        return {key: value.to(self.view.device) for key, value in trimmed(take(self._source, chosen_B)).items()}

    def _batches(self, epoch: int) -> Tensor:
        """The epoch's batches chosen_KB; a full batch keeps the samples' order."""
        if self.batch_size == self.samples:
            return torch.arange(self.samples)[None]
        if self._epoch is None or self._epoch[0] != epoch:
            rng = stream(Stream.BATCHES, self.key, epoch)
            self._epoch = epoch, epoch_batches(rng, self.samples, self.batch_size, self._lengths_N)
        return self._epoch[1]


def _to(value: Any, leaf: Tensor) -> Any:
    if not isinstance(value, Tensor) or not value.dim():
        return value  # Adam's step counter stays put
    if value.stride() == leaf.stride():
        return value.to(leaf.device)
    return torch.empty_like(leaf).copy_(value)  # from a file: a fused optimiser goes through memory as it lies


def _chunks(data: Batch, chosen: Tensor, device: torch.device, size: int = 64) -> Iterator[dict[str, Tensor]]:
    for part in torch.split(chosen, size):
        yield {key: value.to(device) for key, value in trimmed(take(data, part)).items()}
