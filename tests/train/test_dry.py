"""Devices that only count do what those that train do: the same bytes, rounds and versions, at the same seconds."""

from pathlib import Path
from typing import Any

import pytest

import toy
from fedexperts.contact.plan import Contact, ContactPlan
from fedexperts.drive.cluster import Pace
from fedexperts.drive.simulate import Simulator
from fedexperts.ledger import Ledger, read
from fedexperts.protocol.ems_fl import EmsFl, EnhancedEmsFl
from fedexperts.protocol.sync import Sync
from fedexperts.train.dry import DryHost


def play(protocol_class: Any, plan: ContactPlan, path: Path, dry: bool) -> list[dict[str, Any]]:
    owned = {"a": frozenset({"expert:0", "expert:1"}), "b": frozenset({"expert:2"})}
    data = {"a": [toy.samples(0, 8.0, experts=3)] * 2, "b": [toy.samples(2, 8.0, experts=3)]}
    _, model, devices = toy.make(data, values=(0.0, 0.0, 0.0))
    hosts = toy.hosts(devices)
    if dry:
        hosts = {name: DryHost(host, model) for name, host in hosts.items()}
    protocol = toy.protocol(protocol_class, model, owned, 9, gate_tail_cycles=0)
    ledger = Ledger(path / f"{dry}.jsonl")
    Simulator(plan, hosts, Pace(1.0), 9, ledger, lambda model, cycle: {}).run(protocol)
    ledger.close()
    return [{k: v for k, v in line.items() if k not in ("digest", "loss")} for line in read(path / f"{dry}.jsonl")]


@pytest.mark.parametrize("protocol_class", [EmsFl, EnhancedEmsFl, Sync])
@pytest.mark.parametrize("up_B", [60, 100, 150, 250])
def test_what_is_trained_while_an_upload_waits_is_carried_over(protocol_class: Any, up_B: int, tmp_path: Path) -> None:
    contacts = [Contact("ab"[k % 2], 5.0 * k, 5.0 * k + 2, 8 * up_B / 2, 8 * 400) for k in range(30)]
    plan = ContactPlan(("a", "b"), tuple(contacts), 150.0)
    assert play(protocol_class, plan, tmp_path, True) == play(protocol_class, plan, tmp_path, False)
