"""Whole runs in which one device lies in every upload, each time in another way: they end as if it were not heard."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

import fedexperts.runs.run
import fingerprints
import pictures
import small
from everything import Everything
from fedexperts import Scenario, run
from fedexperts.errors import Diverged
from fedexperts.events import RefuseUpdate
from fedexperts.ledger import read
from fedexperts.moe.parts import finite
from fedexperts.protocol.link import Start
from fedexperts.runs.run import Result
from fedexperts.setup.prepare import Prepared
from fedexperts.train.host import Host, LocalHost
from forgers import LIES, Forge, Forger, all_lies, honest, lying, silent


class Unwary(Everything):
    """A protocol of one's own that takes whatever comes, of clusters: shared parts as well."""

    def __init__(self, start: Start):
        super().__init__(start)
        self.parts = frozenset(self.model)


class UnwaryOfClients(Unwary):
    """The same, with devices as links."""

    by_client = True


def hosts(forge: Forge) -> Callable[[Prepared], Mapping[str, Host]]:
    """Of the second link the last device is heard through ``forge``."""

    def replaced(prepared: Prepared) -> Mapping[str, Host]:
        found = dict(prepared.hosts)
        link = list(found)[1]
        local = found[link]
        assert isinstance(local, LocalHost)
        return {**found, link: Forger(list(local.group.values()), local.devices[-1], forge)}

    return replaced


def scenario(kind: str, base: Path) -> tuple[Scenario, Any]:
    if kind == "networked":
        pictures.npz(base / "train.npz", 120)
        pictures.npz(base / "test.npz", 60, seed=1)
        own = {**fingerprints.NETWORKED["networked"], "extractor": "fedsc"}
        return Scenario.parse(fingerprints.merged(fingerprints.NETWORKED, {"networked": own}), base), None
    if kind == "aligned":
        return Scenario.parse(fingerprints.text(fingerprints.ALIGNED)), None
    own_class = {"own": Unwary, "own, by client": UnwaryOfClients}.get(kind)
    return small.scenario(**({} if own_class else {"protocol": kind}), train={"cycles": 2}), own_class


def ended(kind: str, forge: Forge, path: Path) -> Result:
    given, own_class = scenario(kind, path.parent)
    return run(given, path, protocol=own_class, hosts=hosts(forge))


KINDS = ["ems-fl-enhanced", "aligned", "networked", "own, by client"]
LIKE_THEM = [pytest.param(kind, marks=pytest.mark.slow) for kind in ("sync", "ems-fl", "own")]


@pytest.mark.parametrize("kind", [*KINDS, *LIKE_THEM])
def test_a_run_with_a_device_that_lies_ends_as_one_in_which_it_is_not_heard(kind: str, tmp_path: Path) -> None:
    lied, without = ended(kind, all_lies(), tmp_path / "lied"), ended(kind, silent, tmp_path / "silent")
    model = (lied.directory / "model" / "model.safetensors").read_bytes()
    assert model == (without.directory / "model" / "model.safetensors").read_bytes()
    assert finite(load_file(lied.directory / "model" / "model.safetensors"))
    (device,) = lied.summary["refused_updates"]
    refused = [line for line in read(lied.directory / "ledger.jsonl") if line["event"] == "refuse" and "device" in line]
    assert lied.summary["refused_updates"] == {device: len(refused)}
    assert all(RefuseUpdate.model_validate(line).model_dump(exclude_unset=True) == line for line in refused)
    assert [text for text in lied.summary["warnings"] if f"{device}: {len(refused)} of its updates not let in, first" in text]
    assert without.summary["refused_updates"] == {}


def test_a_run_is_another_when_the_device_is_heard(tmp_path: Path) -> None:
    """And nothing of an honest device is refused."""
    heard, without = ended("sync", honest, tmp_path / "heard"), ended("sync", silent, tmp_path / "silent")
    assert heard.summary["refused_updates"] == {}
    models = [(one.directory / "model" / "model.safetensors").read_bytes() for one in (heard, without)]
    assert models[0] != models[1]


def test_honest_devices_know_the_bound_and_stop_a_run_that_passes_it(tmp_path: Path) -> None:
    with pytest.raises(Diverged, match=r"further from what was sent than train\.max_update_norm"):
        run(small.scenario(train={"cycles": 1, "max_update_norm": 1e-6}), tmp_path / "strict")
    lines = list(read(tmp_path / "strict" / "ledger.jsonl"))
    assert [line["reason"] for line in lines if line["event"] == "refuse"] == ["diverged", "diverged"]
    assert not [line for line in lines if line["event"] == "aggregate"]


@pytest.mark.parametrize("lie", ["not a number", "a file of a terabyte"])
def test_what_the_gate_remembers_outlives_the_server(lie: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is stopped in its second cycle and gone on with is the run that was not."""
    assert lie in LIES
    whole = ended("ems-fl", lying(lie), tmp_path / "whole")
    monkeypatch.setattr(fedexperts.runs.run, "CHECKPOINT_EVERY_S", 0.0)
    count = itertools.count()

    def stop(line: dict[str, Any]) -> None:
        if line["event"] == "aggregate" and next(count) == 5:
            raise KeyboardInterrupt

    given, _ = scenario("ems-fl", tmp_path)
    with pytest.raises(KeyboardInterrupt):
        run(given, tmp_path / "parts", hosts=hosts(lying(lie)), listener=stop)
    monkeypatch.setattr(fedexperts.runs.run, "CHECKPOINT_EVERY_S", 60.0)
    run(given, tmp_path / "parts", hosts=hosts(lying(lie)), resume=True)
    for name in ("ledger.jsonl", "model/model.safetensors"):
        assert (tmp_path / "parts" / name).read_bytes() == (whole.directory / name).read_bytes()


def test_a_checkpoint_from_before_there_was_a_gate_is_gone_on_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What devices hold, and have not delivered, is what they may deliver."""
    from fedexperts.drive.books import Books

    given, _ = scenario("ems-fl", tmp_path)
    whole = run(given, tmp_path / "whole")
    monkeypatch.setattr(fedexperts.runs.run, "CHECKPOINT_EVERY_S", 0.0)
    monkeypatch.setattr(Books, "state", lambda self, full=Books.state: {k: v for k, v in full(self).items() if k != "gate"})
    count = itertools.count()

    def stop(line: dict[str, Any]) -> None:
        if line["event"] == "aggregate" and next(count) == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(given, tmp_path / "parts", listener=stop)
    run(given, tmp_path / "parts", resume=True)
    for name in ("ledger.jsonl", "model/model.safetensors"):
        assert (tmp_path / "parts" / name).read_bytes() == (whole.directory / name).read_bytes()
