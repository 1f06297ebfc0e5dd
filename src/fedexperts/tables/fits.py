"""What of ``[server]``, ``[ems_fl]`` and ranks of device classes a protocol cannot do, in words."""

from __future__ import annotations

from collections.abc import Mapping

from .learning import Model, Train
from .methods import Assignment, EmsFl, Server
from .network import Device

AVERAGED = ("sync", "sync-c-rounds", "fedbuff")
"""Protocols whose server moves all that is trained by mean changes."""
RANKED = ("sync", "sync-c-rounds", "ems-fl", "ems-fl-enhanced")
"""Protocols whose devices may have adapters of several ranks."""
UNRANKED = {
    "merge": "sends whole weights down, which have no rank",
    "factors": "averages A and B number by number, which takes equal shapes",
}
"""Of `LoRA.average`, why all ranks must be one."""
WHY = {
    "fedasync": "mixes whole models, and has server.mixing for that; use fedbuff",
    "aligned": "averages an expert over those who were given it in a round, others each time",
    "networked": "has experts that never leave their clients",
}
"""Of protocols without a step of the server's own."""


def misfit(
    protocol: str, server: Server, table: EmsFl, assignment: Assignment, train: Train | None, model: Model | None
) -> str | None:
    """The first that does not fit, with the remedy; None if all does."""
    return _of_server(protocol, server, table, model) or _of_ems_fl(protocol, table, assignment, train)


def _of_server(protocol: str, server: Server, table: EmsFl, model: Model | None) -> str | None:
    if server.optimizer == "sgd" and server.lr in (None, 1.0):
        return None
    given = f"server.optimizer = {server.optimizer!r}" if server.optimizer != "sgd" else f"server.lr = {server.lr:g}"
    if why := WHY.get(protocol):
        return f"{given}: protocol = {protocol!r} {why}; leave it out"
    factored = model is not None and model.lora is not None and model.lora.average == "refactor"
    experts = protocol in AVERAGED or (protocol.startswith("ems-fl") and not table.disjoint)
    by_products = protocol == "fedbuff" and server.optimizer == "sgd"  # a sum of products, whatever their weights
    if factored and experts and not by_products:
        return (
            f'{given}: steps on numbers, and model.lora.average = "refactor" makes other factors of adapters each time; set '
            'average = "merge" or "factors"'
        )
    return None


def _of_ems_fl(protocol: str, table: EmsFl, assignment: Assignment, train: Train | None) -> str | None:
    if protocol not in ("ems-fl", "ems-fl-enhanced"):
        return None
    if not table.mask and protocol == "ems-fl":
        return 'ems_fl.mask = false: protocol = "ems-fl" masks no gate; leave it out, or use ems-fl-enhanced'
    if not table.mask and not table.disjoint:
        return (
            "ems_fl.mask = false: with disjoint = false every cluster has all experts, and a mask lets all pass; leave one out"
        )
    if not table.disjoint and assignment.every_cycles:
        return (
            f"ems_fl.disjoint = false: experts without owners cannot be split again; set assignment.every_cycles = 0 (it is "
            f"{assignment.every_cycles})"
        )
    if not table.away and train is not None and train.first_cycle == "paper":
        return 'ems_fl.away = false: train.first_cycle = "paper" is training out of contact; set it to "met"'
    return None


def misfit_cohort(
    protocol: str, train: Train | None, devices: Mapping[str, Device], kind: str, model: Model | None
) -> str | None:
    """Why devices cannot be computed as one, with the remedy; None if they can, or are not asked to."""
    if train is None or train.cohort != "batched":
        return None
    given, remedy = 'train.cohort = "batched"', 'leave it out, or set it to "one-by-one"'
    if protocol in ("aligned", "networked"):
        return f"{given}: protocol = {protocol!r} has devices do each a task of its own; {remedy}"
    if train.local_loss is not None:
        return f"{given}: train.local_loss = {train.local_loss!r} is of one device's loss; leave one of them out"
    if model is not None and model.noise_std:
        return f"{given}: model.noise_std = {model.noise_std:g} is drawn by each device for itself; leave one of them out"
    if streamed := [name for name, device in devices.items() if device.load == "stream"]:
        return f'{given}: device.{streamed[0]}.load = "stream" reads experts one after the other; {remedy}'
    if "head" in train.shared and kind not in ("classification", "image"):
        return f'{given}: train.shared has "head", which task.kind = {kind!r} asks for some tokens alone; leave one of them out'
    return None


def misfit_rank(protocol: str, table: EmsFl, devices: Mapping[str, Device], model: Model | None) -> str | None:
    """Why classes of devices cannot have these ranks of adapters, with the remedy; None if they can, or no model is given."""
    for name, device in devices.items():
        if device.lora_rank is None or model is None:
            continue
        given = f"device.{name}.lora_rank = {device.lora_rank}"
        if model.lora is None:
            return f"{given}: no adapters are trained; set model.lora, or leave it out"
        if model.lora.average != "refactor":
            why = UNRANKED[model.lora.average]
            return f'{given}: model.lora.average = "{model.lora.average}" {why}; set average = "refactor", or leave it out'
        if device.lora_rank > model.lora.rank:
            return f"{given}: must be at most model.lora.rank = {model.lora.rank}, the server's; lower it, or raise that"
        if protocol not in RANKED:
            return (
                f"{given}: protocol = {protocol!r} takes adapters of one rank; use {', '.join(RANKED[:-1])} or {RANKED[-1]}, "
                "or leave it out"
            )
        if not table.disjoint:
            return f"{given}: with ems_fl.disjoint = false experts have no owner whose rank would count; leave one out"
    return None
