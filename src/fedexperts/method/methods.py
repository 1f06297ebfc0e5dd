"""The methods by the name of their protocol, and one for a class of the user's own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from ..errors import InputError
from ..own import imported_class, is_own
from ..protocol.link import ServerProtocol, Start
from ..scenario import Scenario
from ..setup.devices import Judges
from ..setup.prepare import Prepared
from ..setup.prepare import prepare as prepare_devices
from . import aligned, alone, asynchronous, networked, owners
from .method import Method, judged_by_clusters

METHODS: dict[str, Method] = {
    "sync": owners.SYNC,
    "sync-c-rounds": owners.SYNC,
    "fedasync": asynchronous.ASYNCHRONOUS,
    "fedbuff": asynchronous.ASYNCHRONOUS,
    "ems-fl": owners.EMS_FL,
    "ems-fl-enhanced": owners.ENHANCED,
    "aligned": aligned.ALIGNED,
    "networked": networked.NETWORKED,
    "central": alone.CENTRAL,
    "local": alone.LOCAL,
}


def prepare(scenario: Scenario, only: str | None = None) -> Prepared:
    """Everything that a scenario's own method needs, loaded and checked; nothing is trained and nothing is written.

    Args:
        scenario: what is to be prepared.
        only: a cluster whose devices alone are wanted, see `setup.prepare.prepare`.

    Raises:
        InputError: with the field, the value, the bound and the remedy.
    """
    return of(scenario).prepare(scenario, only=only)


def of(scenario: Scenario) -> Method:
    """The method of a scenario's protocol.

    Raises:
        InputError: it is a class of the user's own, and there is none of this name, or the scenario is not for it.
    """
    if not is_own(scenario.protocol):
        return METHODS[scenario.protocol]
    return own(imported_class("protocol", scenario.protocol, scenario.base), scenario)


def own(build: Callable[[Start], ServerProtocol], scenario: Scenario) -> Method:
    """A method of a class that is built from a `Start`. With ``by_client = True`` each device is a link of its own.

    One that has a ``placement()``, by client, is judged by that as well.

    Raises:
        InputError: the scenario's clusters are for protocols that treat clients one by one, and this one does not.
    """
    by_client: bool = getattr(build, "by_client", False)
    if not by_client and (fault := scenario.needs_clients()):
        raise InputError(f"{fault}; write by_client = True into the class, if it does")
    method = Method(
        partial(prepare_devices, by_client=by_client),
        lambda prepared, start: build(start),
        judge=_judge,
        alike=lambda scenario, cycles: 0,  # it may have looked at Start.cycles
    )
    alone = by_client or not getattr(build, "needs_owners", True)
    return method if alone else replace(method, check=owners.check, begin=owners.begin)


def _judge(prepared: Prepared, protocol: ServerProtocol, judges: Judges) -> dict[str, Any]:
    if hasattr(protocol, "placement"):
        return aligned.judge(prepared, protocol, judges)
    return judged_by_clusters(prepared, protocol, judges)
