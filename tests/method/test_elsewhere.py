"""Devices in a process of their own, built there from the scenario: with all experts, their own alone, or others streamed."""

import json
import warnings
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import small
from fedexperts import InputError, Scenario, run
from fedexperts.drive.cluster import Pace
from fedexperts.drive.simulate import Simulator
from fedexperts.errors import InputWarning
from fedexperts.ledger import Ledger
from fedexperts.method.elsewhere import check_loads, host
from fedexperts.method.method import start
from fedexperts.method.methods import METHODS, prepare
from fedexperts.method.owners import split_experts
from fedexperts.moe.parts import is_expert
from fedexperts.setup.prepare import counted
from fedexperts.train.host import Host, LocalHost
from fedexperts.train.process import ProcessHost

CONFIG = {**small.CONFIG, "hidden_size": 8, "intermediate_size": 8}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "initial"
    prepare(small.scenario(model={"config": CONFIG})).view.model.save_pretrained(folder)  # type: ignore[operator]
    return folder


def scenario(checkpoint: Path, load: str | None = None, **tables: Any) -> Scenario:
    document = small.document(protocol="ems-fl-enhanced", **tables)
    document["model"] = {"path": str(checkpoint)}
    document["train"] |= {"cycles": 2, "gate_tail_cycles": 0, **tables.get("train", {})}
    if load:
        document["device"] = {"phone": {"load": load}}
    return Scenario.parse(document)


VARYING = ("digest", "per_device", "energy_per_device")


def play(
    given: Scenario, hosts: dict[str, Host], owned: dict[str, frozenset[str]], path: Path
) -> tuple[list[Any], dict[str, Any]]:
    """The ledger without digests and joules, and the model."""
    prepared = prepare(given)
    protocol = METHODS[given.protocol].protocol(prepared, start(prepared, owned))
    with closing(Ledger(path)) as ledger:
        Simulator(prepared.plan, hosts, Pace(60.0, 1), 2, ledger, lambda model, cycle: {}).run(protocol)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in VARYING} for line in lines], protocol.model


@pytest.mark.parametrize("load", ["all", "own", "stream"])
def test_devices_elsewhere_learn_what_they_learn_here(load: str, checkpoint: Path, tmp_path: Path) -> None:
    given = scenario(checkpoint, load)
    prepared = prepare(given)
    owned = split_experts(given, counted(prepared.trials()))
    here, ours = play(given, prepare(given).hosts, owned, tmp_path / "here")
    hosts = {name: host(given, name, owned[name]) for name in owned}
    there, theirs = play(given, hosts, owned, tmp_path / "there")
    assert there == here
    for part, piece in ours.items():
        for name, tensor in piece.tensors.items():
            if load == "all":
                assert torch.equal(theirs[part].tensors[name], tensor)
            else:  # rounding of another order of sums
                assert torch.allclose(theirs[part].tensors[name], tensor, atol=1e-5)
    for name, one in hosts.items():
        assert isinstance(one, LocalHost)
        (device, *_) = one.group.values()
        resident = {part for part in device.view.parts if is_expert(part)}
        assert resident == (owned[name] if load != "all" else set(filter(is_expert, prepared.view.parts)))


@pytest.mark.slow
def test_a_process_builds_its_own_devices(checkpoint: Path, tmp_path: Path) -> None:
    given = scenario(checkpoint, "own")
    owned = split_experts(given, counted(prepare(given).trials()))
    _, ours = play(given, {name: host(given, name, owned[name]) for name in owned}, owned, tmp_path / "here")
    with ExitStack() as stack:
        hosts = {name: stack.enter_context(ProcessHost(partial(host, given, name, owned[name]))) for name in owned}
        _, theirs = play(given, dict(hosts), owned, tmp_path / "there")
    assert {part: piece.digest for part, piece in ours.items()} == {part: piece.digest for part, piece in theirs.items()}


@pytest.mark.parametrize(
    ("changes", "load", "allowed"),
    [
        ({"protocol": "ems-fl"}, "own", "all"),
        ({"protocol": "sync"}, "stream", "all"),
        ({"train": {"gate_tail_cycles": 1}}, "own", "stream or all"),
        ({"assignment": {"every_cycles": 1}}, "own", "stream or all"),
    ],
)
def test_what_a_method_cannot_do_is_refused(
    changes: dict[str, Any], load: str, allowed: str, checkpoint: Path, tmp_path: Path
) -> None:
    given = scenario(checkpoint, load).changed(**changes)
    with pytest.raises(InputError, match=rf"device\.phone\.load = '{load}': .* lets devices load {allowed} here"):
        run(given, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_in_a_simulation_the_whole_model_is_shared_and_that_is_said(checkpoint: Path) -> None:
    with pytest.warns(InputWarning, match=r"device\.phone\.load = 'own': .* share the whole model"):
        check_loads(scenario(checkpoint, "own"), METHODS["ems-fl-enhanced"])
    check_loads(scenario(checkpoint, "all"), METHODS["ems-fl-enhanced"])  # a warning would be an error


def test_weights_that_are_in_no_file_cannot_be_loaded_in_part() -> None:
    given = small.scenario(
        protocol="ems-fl-enhanced", train={"gate_tail_cycles": 0, "cycles": 2}, device={"phone": {"load": "own"}}
    )
    with pytest.raises(InputError, match=r"device\.load = 'own': needs model\.path and no \[warmup\]"):
        host(given, "plain", ["expert:0"])


def written(folder: Path) -> dict[str, Path]:
    """Token sequences of each cluster, in a file of its own."""
    paths = {}
    for at, name in enumerate(("a", "b")):
        rows = [{"input_ids": [(at + 3 * i + j) % 90 for j in range(6 + i % 3)], "label": (i + at) % 10} for i in range(24)]
        paths[name] = folder / f"{name}.jsonl"
        paths[name].write_text("".join(json.dumps(row) + "\n" for row in rows))
    return paths


@pytest.mark.parametrize("protocol", ["ems-fl", "aligned"])
def test_devices_elsewhere_need_no_data_of_others(protocol: str, tmp_path: Path) -> None:
    paths = written(tmp_path)
    table = {"devices": 2} | ({"test_partition": "iid"} if protocol == "aligned" else {})
    given = small.scenario(
        protocol=protocol,
        cluster=[{"name": n, "data": str(p), "test": str(p), **table} for n, p in paths.items()],
        evaluation={"validation": 0.25, "target": None},
        warmup={"data": ["digits:plain"], "samples": 16, "steps": 1},
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # trained on and judged by the same
        whole = prepare(given)
    whole.begin()
    paths["b"].unlink()
    for link, right in whole.hosts.items():
        if not link.startswith("a"):
            continue
        assert isinstance(right, LocalHost)
        found = host(given, link)
        assert isinstance(found, LocalHost)
        assert found.devices == right.devices
        for mine, theirs in zip(found.group.values(), right.group.values(), strict=True):
            assert mine.data.keys() == theirs.data.keys()
            assert all(torch.equal(mine.data[key], theirs.data[key]) for key in mine.data)
            for part, piece in theirs.held.items():
                assert mine.held[part].digest == piece.digest
