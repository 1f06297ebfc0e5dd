"""Devices of a cluster that train the same parts, as one batched computation: ``[train] cohort = "batched"``.

Their batches lie one after the other in one. What all devices hold alike is there once, and computes for all of them at once.
Each tensor that they train, or hold in different states, is a stack with an entry for each device, and what is computed with
one is mapped over devices (`apart`). An MoE layer gives each expert equally many rows of each device
(`moe.layer`). The sum of all losses then has each device's own gradient in its entry.

What comes out is what comes out of one device after the other, but for rounding; the first losses of each kind of task are
compared. Nothing may be drawn at random in training, and samples of a batch must not be mixed (`why_not`).

Shapes: J devices, B samples of a batch of each, L its longest sequence.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise
from typing import Any, Final

import torch
from torch import Tensor

from ..data.source import Samples, ends, trimmed
from ..errors import InputError
from ..moe.layer import COHORT, Cohort
from ..moe.parts import Tensors, is_expert
from ..moe.stacked import Stacked, norms
from ..moe.view import View
from .apart import REMEDY, Apart, Stack
from .device import Device
from .frozen import Kept, random_module
from .task import Task

AT_ONCE_B: Final = 2 * 10**9
"""At most so many bytes of stacks, their gradients and moments, and activations; beyond them, fewer devices at once."""
CACHED_B, MANY = 12 * 10**6, 64
"""What a processor's cache holds, about; as many devices beyond it amortise what a step costs beside its numbers."""
HEAP_B: Final = 31 * 2**20
"""glibc keeps for the next user what is no larger than the largest that was ever freed, below 32 MiB; what is larger goes back
to the system, and each page of it costs a fault in every step. So a piece of this size is taken and freed once."""
TOLERANCE: Final = 1e-3
BETAS, EPSILON = (0.9, 0.999), 1e-8  # of torch.optim.AdamW


def why_not(view: View) -> str | None:
    """Why a model cannot be trained like this, in words; None if it can."""
    if view.stream is not None:
        return "streamed experts are read one after the other"
    if any(block.router.noise_std > 0 for block in view.blocks):
        return "its gate draws noise, which each device draws for itself"
    if (name := random_module(view.model)) is not None:
        return f"{name} draws at random in training, or mixes the samples of a batch"
    return None


class Together:
    """Trains the devices of a cluster, as many at once as fit and go together."""

    def __init__(self) -> None:
        torch.empty(HEAP_B, dtype=torch.uint8)
        self.compared: set[tuple[Any, ...]] = set()  # kinds of tasks whose first losses were
        self.activations_B: dict[tuple[Any, ...], int] = {}  # of a device's step, by kind of task

    def train(self, group: Sequence[Device], task: Task, rounds: int, round_s: float) -> tuple[int, set[str]]:
        """As `Device.train` of one after the other; returns the gradient steps of all, and of whom it must be asked whether
        they have diverged.

        Raises:
            InputError: the model cannot be computed like this.
        """
        steps, doubtful = 0, set[str]()
        kinds: dict[tuple[Any, ...], list[Device]] = {}
        for device in group:
            kinds.setdefault(device.kind, []).append(device)
        for devices in kinds.values():
            for some in self.split(devices, task):
                steps += self._train(some, task, rounds, round_s, doubtful)
        return steps, doubtful

    def split(self, devices: Sequence[Device], task: Task) -> list[Sequence[Device]]:
        """Devices of one kind in groups of about the same size, no larger than `at_once` has it."""
        groups = -(-len(devices) // self.at_once(devices[0], task))
        bounds = [len(devices) * i // groups for i in range(groups + 1)]
        return [devices[begin:end] for begin, end in pairwise(bounds)]

    def at_once(self, device: Device, task: Task) -> int:
        """How many devices like this one go together: those that `CACHED_B` holds, or `MANY`, if `AT_ONCE_B` holds these.

        On a GPU as many as `AT_ONCE_B` holds: a step costs it what its calls cost, and they are as many for fewer devices.
        """
        kind = (task.parts, task.route, *device.kind)
        if kind not in self.activations_B:
            self.activations_B[kind] = device.activations_B(task)
        leaves = [leaf for part in task.parts for leaf in device.view.leaves[part].values()]
        each_B = max(1, self.activations_B[kind] + 4 * sum(leaf.numel() * leaf.element_size() for leaf in leaves))
        fit = AT_ONCE_B // each_B
        return max(1, min(fit, max(MANY, CACHED_B // each_B)) if device.view.device.type == "cpu" else fit)

    def _train(self, group: Sequence[Device], task: Task, rounds: int, round_s: float, doubtful: set[str]) -> int:
        if len(group) == 1:
            doubtful.add(group[0].name)
            return group[0].train(task, rounds, round_s)
        for device in group:
            device.appraise_fresh(task)
        joint = Joint(group, task, rounds)
        if (kind := (task.parts, task.route, *group[0].kind)) not in self.compared:
            joint.compare()
            self.compared.add(kind)
        steps = rounds * group[0].local.local_steps
        losses_J = sum((joint.step() for _ in range(steps)), torch.zeros(len(group), dtype=torch.float64))
        joint.leave(rounds, round_s, (losses_J / max(1, steps)).tolist(), steps)
        doubtful |= joint.doubtful()
        return steps * len(group)


class Joint:
    """Devices that train a task from where they stand; the model is theirs meanwhile."""

    def __init__(self, group: Sequence[Device], task: Task, rounds: int):
        self.group, self.task, self.view, self.local = group, task, group[0].view, group[0].local
        kept = [_kept(device, task, rounds) for device in group] if "input_ids" in group[0].data else [None]
        self.kept = [one for one in kept if one is not None] if None not in kept else []
        self.leaves = group[0].enter(task.parts, task.route)
        self.trained = {id(leaf) for _, _, leaf in self.leaves}
        self.stacks = list(self._stacks())
        self.moments = {id(one.leaf): self._moments(one) for one in self.stacks if id(one.leaf) in self.trained}
        mu = self.local.proximal_mu
        self.received = {id(one.leaf): self._received(one) for one in self.stacks if id(one.leaf) in self.trained and mu}

    def _stacks(self) -> Iterator[Stack]:
        """Of all that is trained, and of what some devices hold in another state than others."""
        J, first = len(self.group), self.group[0]
        for part in filter(self.view.parts.__contains__, first.held):
            states = [(device.held[part].tensors, device.trained.get(part)) for device in self.group]
            held = _same([tensors for tensors, _ in states])
            same = held and _same([trained for _, trained in states])
            leaves, sources = self.view.leaves[part], [self.view.sources(part, *one) for one in states[: 1 if same else None]]
            for name, leaf in (self.view.parts[part] | leaves).items():
                if id(leaf) not in self.trained and (same or (held and name not in leaves)):
                    continue
                values = [one[name] for one in sources]
                value_J = values[0].expand(J, *leaf.shape) if same else torch.stack(values)
                value_J = value_J.to(leaf.device, leaf.dtype, copy=True, memory_format=torch.contiguous_format)
                value_J.requires_grad_(id(leaf) in self.trained)
                yield Stack(part, name, leaf, value_J, torch.zeros(J, dtype=torch.bool, device=leaf.device))

    def _received(self, one: Stack) -> Tensor:
        values = [self.view.sources(one.part, device.held[one.part].tensors)[one.name] for device in self.group]
        return torch.stack(values).to(one.leaf.device, torch.float32)

    def losses(self) -> Tensor:
        """losses_J of the devices' next batches, all together."""
        chosen = [None if d.batch_size == d.samples and not self.kept else d.chosen(d.steps) for d in self.group]
        batch = {key: value.to(self.view.device) for key, value in _batch(self.group, chosen).items()}
        cohort = Cohort(len(self.group), _own(batch, len(self.group)))
        own = (tensor for tensors in self.view.parts.values() for tensor in tensors.values())
        fixed = [*self.view.model.parameters(), *self.view.model.buffers(), *own]
        token = COHORT.set(cohort)
        try:
            with Apart(self.stacks, fixed, cohort), self._without_frozen(chosen, batch):
                return self.group[0].objective.losses(self.view, batch, len(self.group))
        finally:
            COHORT.reset(token)

    def _without_frozen(self, chosen: Sequence[Tensor | None], batch: Mapping[str, Tensor]) -> AbstractContextManager[None]:
        if not self.kept:
            return nullcontext()
        columns = batch["input_ids"].shape[1]
        hidden = []
        for kept, chosen_B in zip(self.kept, chosen, strict=True):
            assert chosen_B is not None
            hidden.append(kept.rows(chosen_B, columns))
        return self.kept[0].layers.left_out(torch.cat(hidden).to(self.view.device))

    def compare(self) -> None:
        """The first and the last device's loss beside that of the device alone.

        Raises:
            InputError: they differ by more than rounding.
        """
        with torch.no_grad():
            losses_J = self.losses()
            tolerance = max(TOLERANCE, 4 * torch.finfo(losses_J.dtype).eps)
            for j in (0, len(self.group) - 1):
                device = self.group[j]
                device.enter(self.task.parts, self.task.route)
                alone = device.objective.loss(self.view, device.batch(device.chosen(device.steps)))
                apart = abs(float(losses_J[j]) - float(alone))
                if not apart <= tolerance * max(1.0, abs(float(alone))) and math.isfinite(float(alone)):
                    raise InputError(
                        f'train.cohort = "batched": {device.name} has a loss of {float(losses_J[j]):.6g} among others, and of '
                        f"{float(alone):.6g} alone; its model is not made of rows of samples only; {REMEDY}"
                    )
        self.group[0].enter(self.task.parts, self.task.route)

    def step(self) -> Tensor:
        """One gradient step of every device; returns what they began with, losses_J, on the CPU."""
        for one in self.stacks:
            one.value_J.grad = None
            one.met_J.zero_()
        losses_J = self.losses()
        total = losses_J.sum()
        for one in self.stacks:
            if id(one.leaf) in self.received:
                apart_J = (one.value_J.float() - self.received[id(one.leaf)]).square()[:, None].flatten(1).sum(dim=1)
                total, losses_J = (
                    total + self.local.proximal_mu / 2 * apart_J.sum(),
                    losses_J + self.local.proximal_mu / 2 * apart_J,
                )
                one.met_J.fill_(value=True)
        if total.requires_grad:
            total.backward()  # type: ignore[no-untyped-call]  # torch ships it untyped
            with torch.no_grad():
                for one in self.stacks:
                    if one.value_J.grad is not None:
                        self._update(one, one.value_J.grad)
        for device in self.group:
            device.steps += 1
        return losses_J.detach().double().cpu()

    def _moments(self, one: Stack) -> dict[str, Tensor]:
        """AdamW's of each device; zeros where it has none yet."""
        if self.local.optimizer == "sgd":
            return {}
        saved = [device.optimizer_state.get(one.part, {}).get(one.name, {}) for device in self.group]
        like = torch.zeros(one.leaf.shape, dtype=one.leaf.dtype)  # moments are kept where pieces are, not on a GPU
        zeros = {"exp_avg": like, "exp_avg_sq": like, "step": torch.zeros(())}
        return {key: torch.stack([state.get(key, zero) for state in saved]).to(one.leaf.device) for key, zero in zeros.items()}

    def _update(self, one: Stack, grad_J: Tensor) -> None:
        """A step of `torch.optim.SGD` or ``AdamW``, which know no entries that have made fewer steps than others."""
        met = slice(None) if bool(one.met_J.all()) else one.met_J.nonzero().squeeze(1)
        lr = (self.local.lr_expert if is_expert(one.part) else self.local.lr_gate) * self.task.rate
        values, decay, grad = one.value_J.detach(), self.local.weight_decay, grad_J[met]
        if self.local.optimizer == "sgd":
            down = grad.add(values[met], alpha=decay) if decay else grad
            values[met] = values[met].sub_(down, alpha=lr)  # in place where all have met it
            return
        value = values[met]
        moments = self.moments[id(one.leaf)]
        each = (-1,) + (1,) * one.leaf.dim()
        step = moments["step"][met] + 1
        m = moments["exp_avg"][met].lerp(grad, 1 - BETAS[0])
        v = (moments["exp_avg_sq"][met] * BETAS[1]).addcmul(grad, grad, value=1 - BETAS[1])
        rate, root = lr / (1 - BETAS[0] ** step.double()), (1 - BETAS[1] ** step.double()).sqrt()
        spread = v.sqrt() / root.to(v.dtype).view(each) + EPSILON
        values[met] = value * (1 - lr * decay) - rate.to(v.dtype).view(each) * m / spread
        moments["step"][met], moments["exp_avg"][met], moments["exp_avg_sq"][met] = step, m, v

    def leave(self, rounds: int, round_s: float, losses: Sequence[float], steps: int) -> None:
        """Give each device what it has trained."""
        for part in self.task.parts:
            mine = [one for one in self.stacks if one.part == part and id(one.leaf) in self.trained]
            made = Stacked({one.name: one.value_J.detach().cpu() for one in mine}, len(self.group)).entries()
            for device, entry in zip(self.group, made, strict=True):
                device.trained[part] = entry if mine else {}
                if part not in self.task.keeps:
                    device.pending[part] = device.pending.get(part, 0) + rounds
            for one in mine:
                self._keep_moments(one)
        for device, loss in zip(self.group, losses, strict=True):
            device.loss, device.round_s = (loss if steps else None), round_s

    def doubtful(self) -> set[str]:
        """Those who may have gone `too_far`."""
        if self.view.lora is not None and self.view.lora.average == "merge":
            return {device.name for device in self.group}  # judged by weights
        found: set[str] = set()
        for part in self.task.parts:
            for device, norm in zip(self.group, norms([device.trained[part] for device in self.group]), strict=True):
                if norm is not None and not device.held[part].near(norm, device.max_update_norm):
                    found.add(device.name)
        return found

    def _keep_moments(self, one: Stack) -> None:
        if not (moments := {key: value.cpu() for key, value in self.moments[id(one.leaf)].items()}):
            return
        entries = Stacked(moments, len(self.group)).entries()
        for device, entry, steps in zip(self.group, entries, moments["step"].tolist(), strict=True):
            if steps:
                device.optimizer_state.setdefault(one.part, {})[one.name] = entry


def _same(many: Sequence[Tensors | None]) -> bool:
    """Whether all are the same tensors, or none; from a checkpoint each device has them by a piece of its own."""
    first = many[0]
    return all(one is first or _of_the_same(one, first) for one in many)


def _of_the_same(one: Tensors | None, other: Tensors | None) -> bool:
    if one is None or other is None or len(one) != len(other):
        return False
    return all(tensor is other.get(name) for name, tensor in one.items())


def _kept(device: Device, task: Task, rounds: int) -> Kept | None:
    return device.frozen_layers(task, device.enter(task.parts, task.route), rounds)


def _batch(group: Sequence[Device], chosen: Sequence[Tensor | None]) -> Samples:
    """All their batches in one; a full batch keeps the samples' order."""
    pairs = [(d.data, None if d.batch_size == d.samples else rows_B) for d, rows_B in zip(group, chosen, strict=True)]
    rows = {key: [data[key] if at is None else data[key][at] for data, at in pairs] for key in group[0].data}
    return trimmed({key: torch.cat(of) for key, of in rows.items()})


def _own(batch: Mapping[str, Tensor], devices: int) -> Tensor | None:
    """Tokens own_T that batches of one device alone would have."""
    if "input_ids" not in batch or "attention_mask" not in batch:
        return None
    width_J = ends(batch).view(devices, -1).amax(dim=1).clamp(min=1)
    columns_L = torch.arange(batch["input_ids"].shape[1], device=width_J.device)
    own_JL = columns_L < width_J[:, None]
    return own_JL[:, None].expand(-1, len(batch["labels"]) // devices, -1).flatten()
