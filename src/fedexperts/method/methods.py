"""The methods by the name of their protocol, and one for a class of the user's own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from ..protocol.link import ServerProtocol, Start
from ..scenario import BY_CLIENT, Scenario
from ..setup.devices import Judges
from ..setup.prepare import Prepared
from ..setup.prepare import prepare as prepare_devices
from . import aligned, networked, owners
from .method import Method, judged_by_clusters

METHODS: dict[str, Method] = {
    "sync": owners.SYNC,
    "ems-fl": owners.EMS_FL,
    "ems-fl-enhanced": owners.ENHANCED,
    "aligned": aligned.ALIGNED,
    "networked": networked.NETWORKED,
}


def prepare(scenario: Scenario) -> Prepared:
    """Everything that a scenario's own method needs, loaded and checked; nothing is trained and nothing is written.

    Raises:
        InputError: with the field, the value, the bound and the remedy.
    """
    return METHODS[scenario.protocol].prepare(scenario)


def own(build: Callable[[Start], ServerProtocol], scenario: Scenario) -> Method:
    """A method of a class that is built from a `Start`. With ``by_client = True`` each device is a link of its own.

    One that has a ``placement()``, by client, is judged by that as well.
    """
    by_client: bool = getattr(build, "by_client", scenario.protocol in BY_CLIENT)
    method = Method(partial(prepare_devices, by_client=by_client), lambda prepared, start: build(start), judge=_judge)
    alone = by_client or not getattr(build, "needs_owners", True)
    return method if alone else replace(method, check=owners.check, begin=owners.begin)


def _judge(prepared: Prepared, protocol: ServerProtocol, judges: Judges) -> dict[str, Any]:
    if hasattr(protocol, "placement"):
        return aligned.judge(prepared, protocol, judges)
    return judged_by_clusters(prepared, protocol, judges)
