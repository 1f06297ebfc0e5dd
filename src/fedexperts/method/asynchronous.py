"""FedAsync and FedBuff: everybody trains the whole model, so that there is nothing to know before the first contact."""

from __future__ import annotations

from ..protocol.link import ServerProtocol, Start
from ..setup.prepare import Prepared, prepare
from . import told
from .method import Method


def _protocol(prepared: Prepared, start: Start) -> ServerProtocol:
    return told.whole(prepared.scenario, start)


ASYNCHRONOUS = Method(prepare, _protocol)
