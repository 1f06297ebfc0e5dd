"""A link's devices as they are built where they live, in a process or on a node of their own, with as much of the model as
``[device.<class>] load`` says.
"""

from __future__ import annotations

from collections.abc import Collection

import torch

from ..errors import InputError, warn_input
from ..moe.auto import AUTO
from ..moe.checkpoint import Checkpoint, resolve
from ..moe.kinds import FOR_TASK
from ..moe.lora import Ranks
from ..moe.parts import Piece, expert, expert_index, is_expert
from ..moe.subset import load_streamed, load_subset
from ..moe.view import View
from ..scenario import Scenario
from ..setup.clients import cluster_kinds
from ..setup.devices import dealt, devices
from ..setup.model import accelerator, lora_of
from ..setup.samples import datasets
from ..tables import Device as ClassTable
from ..tables import Load
from ..tables.protocols import PROTOCOLS
from ..train.device import Device
from ..train.host import LocalHost
from .method import Method
from .methods import of, prepare


def check_loads(scenario: Scenario, method: Method, here: bool = True) -> None:
    """Refuse what the method cannot do; say that devices in this process share the whole model.

    Raises:
        InputError: with the table, the value and what is allowed.
    """
    allowed = method.loads(scenario)
    for name, table in scenario.device.items():
        if table.cache_experts and table.load != "stream":
            raise InputError(
                f'device.{name}.cache_experts = {table.cache_experts}: is for load = "stream" alone, and load is '
                f"{table.load!r}; set both, or leave it out"
            )
        if table.load is not None and table.load not in allowed:
            raise InputError(
                f"device.{name}.load = {table.load!r}: protocol = {scenario.protocol!r} lets devices load "
                f"{' or '.join(allowed)} here; experts alone need the masked gate of ems-fl-enhanced, and no gate tail or new "
                "split that meets others"
            )
        if here and table.load not in (None, "all"):
            warn_input(
                f"device.{name}.load = {table.load!r}: counts for devices in processes of their own; those of a simulation "
                "share the whole model"
            )


def host(scenario: Scenario, link: str, owned: Collection[str] | None = None) -> LocalHost:
    """The devices behind a link, for the process that calls this: θ_0 is theirs, as everybody's. Others' data are not read.

    Args:
        scenario: as the server has it.
        link: a cluster, or a client where the protocol treats devices one by one.
        owned: the link's experts, which are those that are loaded where not all are; None: not known yet. Then experts
            are streamed, as for a trial pass, until it is told which to train.

    Raises:
        InputError: as `methods.prepare`; or experts alone are to be loaded of a model that is in no checkpoint.
    """
    check_loads(scenario, of(scenario), here=False)
    at = cluster_of(scenario, link)
    load = load_of(scenario, at)
    if load == "all":
        prepared = prepare(scenario, at)
        prepared.begin()
        found = prepared.hosts[link]
        assert isinstance(found, LocalHost)
        lend(scenario, found.group.values())
        return found
    (cluster,) = (cluster for cluster in scenario.cluster if cluster.name == at)
    data = datasets(scenario, at)
    shares = {at: dealt(cluster, data.splits[at].train, scenario.seed)}
    rank = cluster_kinds(scenario)[at].lora_rank
    fitted = Ranks({} if rank is None else {at: rank})
    number = Checkpoint(resolve(scenario.model.path, scenario.base)).experts if scenario.model.path else 0

    def group(experts: Collection[str]) -> list[Device]:
        view = partial_view(scenario, experts, load if experts else "stream", cache_of(scenario, at))
        if lora := lora_of(scenario.model):
            view.adapt(lora, scenario.seed)
        layers = range(len(view.blocks)) if view.granularity == "layer" else (None,)
        model = {name: Piece(name, 0, {}) for m in range(number) for name in (expert(m, layer) for layer in layers)}
        model |= {
            part: Piece(part, 0, tensors if stays(scenario, part) else view.export(part))
            for part, tensors in view.parts.items()
        }
        model = {part: fitted(at, piece) for part, piece in model.items()}
        return devices(scenario, view, model, data.objectives, shares)[at]

    return LocalHost(group(()), group) if owned is None else LocalHost(group(owned))


def stays(scenario: Scenario, part: str) -> bool:
    """Whether it is certain that a part is never trained, and so never sent."""
    known = scenario.protocol in PROTOCOLS and not scenario.by_client
    return known and not is_expert(part) and part not in scenario.train.shared


def lend(scenario: Scenario, group: Collection[Device]) -> None:
    """Of parts that stay as they are devices hold the model's own tensors, which nobody writes to then, and no copies."""
    for device in group:
        parts = device.view.parts
        device.held |= {part: Piece(part, 0, parts[part]) for part in device.held if part in parts and stays(scenario, part)}


def cluster_of(scenario: Scenario, link: str) -> str:
    """The cluster that a link's devices are of."""
    return link if any(cluster.name == link for cluster in scenario.cluster) else link.rpartition("/")[0]


def load_of(scenario: Scenario, at: str) -> Load:
    """How much of the model the devices of a cluster load: as their class says, else all."""
    table = _class_of(scenario, at)
    return table.load if table and table.load else "all"


def cache_of(scenario: Scenario, at: str) -> int:
    """How many streamed experts of each layer the devices of a cluster keep."""
    table = _class_of(scenario, at)
    return table.cache_experts if table and table.cache_experts else 0


def _class_of(scenario: Scenario, at: str) -> ClassTable | None:
    """What the scenario says of the class of a cluster's devices; nothing of a mix."""
    (kind,) = (str(cluster.device) for cluster in scenario.cluster if cluster.name == at)
    return scenario.device.get(kind)


def partial_view(scenario: Scenario, owned: Collection[str], load: Load, cache: int = 0) -> View:
    """A model whose resident experts are ``owned`` alone: with their rows of the gate, or with all, and the others streamed.

    Raises:
        InputError: the scenario's model is in no checkpoint, or is warmed up, or the owned experts are none of one number.
    """
    table = scenario.model
    if table.path is None or scenario.warmup is not None:
        raise InputError(
            f"device.load = {load!r}: needs model.path and no [warmup], as weights that are made here are in no file to be "
            "read in part; save the model first, or load all"
        )
    checkpoint = Checkpoint(resolve(table.path, scenario.base))
    keep = sorted({m for layer, m in map(expert_index, owned)})
    auto, dtype, where = AUTO[FOR_TASK[scenario.task.kind]], getattr(torch, table.precision), accelerator(table)
    granularity = scenario.assignment.granularity
    if load == "own":
        subset = load_subset(checkpoint, keep, auto, dtype, scenario.seed).to(where)
        return View(subset, table.top1, table.mask, table.noise_std, granularity, kept=keep)
    streamed = load_streamed(checkpoint, keep, auto, dtype, scenario.seed).to(where)
    return View(streamed, table.top1, table.mask, table.noise_std, granularity, kept=keep, stream=checkpoint, cache=cache)
