"""Runs with protocol = "networked" on tiny images: three stages, both extractors, all gates, controls."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pictures
import small
from fedexperts import Scenario
from fedexperts.errors import InputError
from fedexperts.ledger import read
from fedexperts.method.methods import METHODS, prepare
from fedexperts.method.networked import NETWORKED, inference_facts, stages
from fedexperts.moe.parts import BACKBONE, CORRELATION, expert, file_B
from fedexperts.protocol.link import Start
from fedexperts.protocol.networked import Networked, Stages
from fedexperts.runs import checkpoint
from fedexperts.runs.run import run
from fedexperts.setup.prepare import Prepared
from fedexperts.train.host import latest
from fedexperts.train.member import call_B, image_flops
from fedexperts.train.task import Task

CLIENTS = 3
MODEL = {"model_type": "networked_moe", "image_size": pictures.SIDE, "width": 8, "expert_hidden": 8, "num_experts": CLIENTS}


CLUSTER = {"name": "c", "devices": CLIENTS, "data": "train.npz", "test": "test.npz", "partition": "tau", "tau": 0.5}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pictures")
    pictures.npz(path / "train.npz", 120)
    pictures.npz(path / "test.npz", 60, seed=1)
    return path


def scenario(folder: Path, **tables: Any) -> Scenario:
    base: dict[str, Any] = {
        "name": "network",
        "protocol": "networked",
        "plan": {"kind": "always-on", "slot_s": 600.0},
        "model": {"config": MODEL},
        "task": {"kind": "image"},
        "train": {"cycles": 4, "local_steps": 2, "batch_size": 8, "seconds_per_round": 60.0, "max_rounds": 1},
        "networked": {"extractor_cycles": 2, "expert_cycles": 1, "gate_cycles": 1},
        "evaluation": {"every_cycles": 2},
        "cluster": [CLUSTER],
    }
    for key, value in tables.items():
        base[key] = {**base.get(key, {}), **value} if isinstance(value, dict) else value
    return Scenario.parse(base, folder)


@pytest.fixture(scope="module")
def finished(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The directory of a run with these settings of `networked`, which tests only read: each is run once."""
    found: dict[str, Path] = {}

    def of(**networked: Any) -> Path:
        given = scenario(folder, networked=networked)
        if (whole := given.to_toml()) not in found:
            found[whole] = run(given, tmp_path_factory.mktemp("finished") / "run").directory
        return found[whole]

    return of


def lines(path: Path, event: str) -> list[dict[str, Any]]:
    return [line for line in read(path / "ledger.jsonl") if line["event"] == event]


@pytest.mark.parametrize(("extractor", "gate"), [("fedce", "random"), ("fedce", "rolling"), ("fedsc", "federated")])
def test_stages_follow_each_other_and_experts_stay_at_home(extractor: str, gate: str, finished: Callable[..., Path]) -> None:
    at = finished(extractor=extractor, gate=gate)
    stages = [line["stage"] for line in lines(at, "stage")]
    last = {"random": "rest", "rolling": "rolling", "federated": "federated"}[gate]
    assert stages == [extractor, extractor, "experts", last]
    moved = lines(at, "send") + lines(at, "collect")
    parts = {part for line in moved for part in line["parts"]}
    assert not any(part.startswith("expert") for part in parts)
    assert (CORRELATION in parts) == (extractor == "fedsc")
    trained = {part for line in lines(at, "train") for part in line["parts"]}
    assert {expert(i) for i in range(CLIENTS)} <= trained
    assert ("gate" in trained) == (gate != "random")
    end = lines(at, "end")[0]
    assert 0 <= end["macro_f1"] <= end["accuracy"] + 0.5
    assert end["unsent_rounds"] == 0
    assert np.allclose(np.sum(end["routing"], axis=1), 1, atol=1e-3)


def test_beside_a_loss_stands_what_it_is_of_if_not_of_the_task(finished: Callable[..., Path]) -> None:
    first, *lines = read(finished(extractor="fedsc", gate="rolling") / "ledger.jsonl")
    assert first["links"] == "clients"
    trained = [line for line in lines if line["event"] == "train"]
    assert all("loss" in line for line in trained)
    assert [line.get("goal") for line in trained][:: len(first["clusters"])] == ["contrast", "contrast", None, "own-id"]


@pytest.mark.parametrize("extractor", ["fedce", "fedsc"])
def test_a_projection_is_what_clients_correlate(
    extractor: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = scenario(folder, model={"config": {**MODEL, "projection_size": 5}}, networked={"extractor": extractor})
    servers: list[Networked] = []

    def serve(prepared: Prepared, start: Start) -> Networked:
        servers.append(Networked(start, stages(prepared)))
        return servers[0]

    monkeypatch.setitem(METHODS, "networked", replace(NETWORKED, protocol=serve))

    before = prepare(given).view.parts[BACKBONE]
    before = {name: tensor.clone() for name, tensor in before.items() if name.startswith("projection")}
    run(given, tmp_path / "run")
    after = servers[0].model[BACKBONE].tensors
    assert len(before) == 4
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items()) == (extractor == "fedce")
    shapes = {tuple(shared["matrix"].shape) for shared in servers[0].correlations.values()}
    assert shapes == ({(5, 5)} if extractor == "fedsc" else set())


def test_a_run_repeats_and_a_resumed_one_ends_with_the_same_bytes(
    folder: Path, finished: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given, whole = scenario(folder, networked={"extractor": "fedsc"}), finished(extractor="fedsc")
    monkeypatch.setattr("fedexperts.runs.run.CHECKPOINT_EVERY_S", 0.0)
    save = checkpoint.save
    for stop_at in (1, 3):

        def stop(path: Path, number: int, tree: Any, stop_at: int = stop_at) -> None:
            save(path, number, tree)
            if number == stop_at:
                raise KeyboardInterrupt

        monkeypatch.setattr("fedexperts.runs.checkpoint.save", stop)
        with pytest.raises(KeyboardInterrupt):
            run(given, tmp_path / f"cut{stop_at}")
        monkeypatch.setattr("fedexperts.runs.checkpoint.save", save)
        run(given, tmp_path / f"cut{stop_at}", resume=True)
        assert (tmp_path / f"cut{stop_at}" / "ledger.jsonl").read_bytes() == (whole / "ledger.jsonl").read_bytes()


def test_the_network_infers_as_the_model_does(folder: Path, finished: Callable[..., Path]) -> None:
    """What is put together from latents, experts and picks, against the model's own forward pass on the saved checkpoint."""
    given = scenario(folder)
    for k in (1, 2):
        from_disk = given.changed(train={"cycles": 0 + 1}, networked={"extractor_cycles": 0, "expert_cycles": 0})
        document = from_disk.model_dump(exclude_none=True)
        document["model"] = {"path": str(finished() / "model")}
        prepared = prepare(Scenario.parse(document, folder))
        prepared.view.blocks[0].router.top_k = k
        facts = inference_facts(prepared, prepared.tests)
        prepared.view.model.eval()
        right = total = 0
        for samples in prepared.tests.own.values():
            with torch.no_grad():
                log_p = prepared.view(samples)
            right += int((log_p.argmax(dim=-1) == samples["labels"]).sum())
            total += len(log_p)
        assert facts["accuracy"] == pytest.approx(right / total)
        assert facts["accuracy_by_k"][str(k)] == pytest.approx(right / total, abs=1e-6)


def test_a_federated_gate_asks_the_others_and_counts_it(folder: Path, finished: Callable[..., Path]) -> None:
    asked, cached = finished(), finished(expert_cache=True)
    rows = [line for line in lines(asked, "train") if line["parts"] == ["gate"]]
    assert len(rows) == 3  # ⌈0.7 · 3⌉
    calls = [line.get("peer_B", 0) for line in rows]
    view = prepare(scenario(folder)).view
    assert all(size % call_B(view) == 0 for size in calls)
    assert 0 < sum(calls) <= 3 * 2 * 8 * call_B(view)  # clients, steps, images of a batch; one expert each
    assert lines(asked, "end")[0]["peer_B"] == sum(calls)
    fetched = [line.get("peer_B", 0) for line in lines(cached, "train") if line["parts"] == ["gate"]]
    size = file_B(view.parts["expert:1"])
    assert all(0 <= found <= (CLIENTS - 1) * size * 1.01 for found in fetched)
    digests = [[line["digest"] for line in lines(at, "aggregate")] for at in (asked, cached)]
    assert digests[0] == digests[1]  # what it costs changes nothing


def test_only_the_gate_learns_in_its_stage_and_experts_of_others_stay(folder: Path) -> None:
    prepared = prepare(scenario(folder))
    device = small.devices(prepared)["c/0"][0]
    before = {part: latest(host, part) for part, host in prepared.owners.items()}
    peers = {part: host.own(part) for part, host in prepared.owners.items()}
    device.train(Task(frozenset({"gate"}), peers=True, unit_gradient=True), 1, peers=peers)
    assert set(device.trained) == {"gate"}
    assert not torch.equal(device.trained["gate"]["moe.gate.weight"], prepared.model["gate"].tensors["moe.gate.weight"])
    for part, host in prepared.owners.items():
        assert all(torch.equal(tensor, before[part][name]) for name, tensor in latest(host, part).items())


def test_training_from_kept_latents_is_training_from_images(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    for kept in (True, False):
        prepared = prepare(scenario(folder))
        device = small.devices(prepared)["c/1"][0]
        if not kept:
            monkeypatch.setattr(device.member, "source", lambda device, task: device.data)
        part = frozenset({"expert:1"})
        device.train(Task(part, route=part, keeps=part), 2)
        results.append(device.trained["expert:1"])
    assert all(torch.allclose(results[0][name], results[1][name], atol=1e-5) for name in results[0])


def test_a_rolling_gate_visits_every_client_once_a_roll_and_stops_when_it_gains_no_more(folder: Path, tmp_path: Path) -> None:
    table = {"gate": "rolling", "gate_cycles": 12, "gate_patience": 1, "gate_lr": 1e-9}  # it cannot gain
    run(scenario(folder, networked=table, train={"cycles": 15}), tmp_path / "run")
    turns = [line["clients"] for line in lines(tmp_path / "run", "stage") if line["stage"] == "rolling"]
    assert sorted(turns[:3]) == [["c/0"], ["c/1"], ["c/2"]]
    assert turns[3:6] == turns[:3]
    rolls = lines(tmp_path / "run", "roll")
    assert rolls[-1]["stalled"] == 1
    stages = [line["stage"] for line in lines(tmp_path / "run", "stage")]
    assert stages[-1] == "rest"


def test_a_random_gate_follows_its_prior(folder: Path, tmp_path: Path) -> None:
    run(scenario(folder, networked={"gate": "random", "prior": [0.0, 1.0, 0.0]}), tmp_path / "run")
    end = lines(tmp_path / "run", "end")[0]
    assert end["routing"] == [[0.0, 1.0, 0.0]] * 3
    assert end["local_ratio"] == pytest.approx(1 / 3, abs=1e-6)
    assert end["inference_B"] == pytest.approx(2 / 3 * 4 * (64 + 4), abs=0.1)


def test_the_privacy_of_correlations_is_stated(finished: Callable[..., Path]) -> None:
    pytest.importorskip("dp_accounting")
    row = lines(finished(extractor="fedsc", sigma=4.0), "privacy")[0]
    assert row["epsilon"] > 0
    assert "weights" in row["note"]  # which are not protected by it
    assert lines(finished(extractor="fedsc"), "privacy")[0]["epsilon"] is None


def test_correlations_of_the_others_by_hand() -> None:
    told = Stages({"a": 1, "b": 2, "c": 3}, representation_size=1, seed=0, extractor="fedsc", schedule="plain")
    server = Networked(Start({}, ("a", "b", "c"), frozenset(), {}, cycles=1), told)
    first = server.of_the_others("a")
    assert (first.version, float(first.tensors["weight"])) == (0, pytest.approx(1 / 6))
    server.correlations = {c: {"matrix": torch.tensor([[value]])} for c, value in (("a", 10.0), ("b", 2.0), ("c", 4.0))}
    server.exchanges = 5
    # (2·2 + 3·4) / 5
    piece = server.of_the_others("a")
    assert (piece.version, piece.tensors["matrix"].item()) == (5, pytest.approx(3.2))
    assert server.extractor("a").rate == 1.0


@pytest.mark.parametrize("schedule", ["plain", "official"])
def test_the_server_is_told_the_schedule(schedule: str, folder: Path) -> None:
    assert stages(prepare(scenario(folder, networked={"schedule": schedule}))).schedule == schedule


def test_the_release_weighs_a_client_s_own_matrix_by_the_round() -> None:
    """From 1 to 0.2, the others' alike, and the learning rate by a cosine: at half way 0.6 and a half."""
    told = Stages({"a": 1, "b": 2, "c": 3}, representation_size=1, seed=0, extractor="fedsc", extractor_cycles=10)
    server = Networked(Start({}, ("a", "b", "c"), frozenset(), {}, cycles=10), told)
    server.correlations = {c: {"matrix": torch.tensor([[value]])} for c, value in (("a", 10.0), ("b", 2.0), ("c", 4.0))}
    found = []
    for server.round in (0, 5, 9):
        tensors = server.of_the_others("a").tensors
        found.append((float(tensors["weight"]), float(tensors["matrix"]), server.extractor("a").rate))
    at_9 = (1 + np.cos(0.9 * np.pi)) / 2
    assert np.allclose(found, [(1.0, 3.0, 1.0), (0.6, 3.0, 0.5), (0.28, 3.0, at_9)])


def test_a_rate_scales_the_learning_rates_of_a_task(folder: Path) -> None:
    """Of plain gradient descent: half the rate, half the step."""
    given = scenario(folder, train={"optimizer": "sgd", "local_steps": 1})
    moved = []
    for rate in (1.0, 0.5):
        device = small.devices(prepare(given))["c/0"][0]
        before = device.held[BACKBONE].tensors["extractor.0.weight"].clone()
        device.train(Task(frozenset({BACKBONE}), rate=rate), 1)
        moved.append(device.trained[BACKBONE]["extractor.0.weight"] - before)
    assert moved[0].abs().max() > 0
    assert torch.allclose(moved[0] / 2, moved[1], atol=1e-7)


@pytest.mark.parametrize("control", ["local", "fedavg"])
def test_controls(control: str, folder: Path, tmp_path: Path) -> None:
    model = {"config": {**MODEL, "num_experts": 1 if control == "fedavg" else CLIENTS}}
    run(scenario(folder, networked={"control": control}, model=model, train={"cycles": 2}), tmp_path / "run")
    end = lines(tmp_path / "run", "end")[0]
    assert end["local_ratio"] == 1.0
    assert end["inference_B"] == 0.0
    assert bool(lines(tmp_path / "run", "collect")) == (control == "fedavg")
    assert ("one_shot" in end) == (control == "local")


def test_fedavg_of_one_client_is_that_client_s_training(folder: Path, tmp_path: Path) -> None:
    one = [{"name": "c", "devices": 1, "data": "train.npz", "test": "test.npz"}]
    model = {"config": {**MODEL, "num_experts": 1}, "uplink": "exact"}
    ends = []
    for control in ("fedavg", "local"):
        given = scenario(folder, cluster=one, model=model, networked={"control": control}, train={"cycles": 2})
        run(given, tmp_path / control)
        ends.append(lines(tmp_path / control, "end")[0]["loss"])
    assert ends[0] == pytest.approx(ends[1], rel=1e-5)


def test_on_an_orbit_the_extractor_s_rounds_obey_contacts(folder: Path, tmp_path: Path) -> None:
    places = [("lisbon", 38.7, -9.1), ("berlin", 52.5, 13.4), ("lima", -12.0, -77.0)]
    clusters = [
        {"name": name, "latitude_deg": lat, "longitude_deg": lon, "data": "train.npz", "test": "test.npz"}
        for name, lat, lon in places
    ]
    given = scenario(
        folder,
        cluster=clusters,
        plan={"kind": "orbit", "start": datetime(2026, 1, 1, tzinfo=UTC), "days": 3.0, "min_elevation_deg": 10.0},
        satellite={"altitude_km": 600.0, "inclination_deg": 53.0},
        radio={"preset": "paper-range"},
        train={"seconds_per_round": 60.0, "max_rounds": 2},
    )
    run(given, tmp_path / "run")
    visits = lines(tmp_path / "run", "contact") + lines(tmp_path / "run", "flush")
    contacts = [(line["cluster"], line["t_s"], line["until_s"]) for line in visits]
    for line in lines(tmp_path / "run", "collect"):
        assert any(c == line["cluster"] and start <= line["t_s"] <= end for c, start, end in contacts)
    stages = [line["stage"] for line in lines(tmp_path / "run", "stage")]
    assert stages == ["fedce", "fedce", "experts", "federated"]
    late = [line["part"] for line in lines(tmp_path / "run", "refuse")]
    assert set(late) <= {"backbone"}


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"cluster": [{**CLUSTER, "tau": 0.0}]}, "cluster[0].tau = 0.0"),
        ({"cluster": [{**CLUSTER, "tau": 1.5}]}, "cluster[0].tau = 1.5"),
        ({"cluster": [{**CLUSTER, "devices": 200}], "model": {"config": {**MODEL, "num_experts": 200}}}, "devices = 200"),
        ({"model": {"config": {**MODEL, "num_experts": 4}}}, "model.config.num_experts = 4: must be 3, one for each client"),
        ({"networked": {"gate_top_k": 4}}, "networked.gate_top_k = 4: must be at most the number of clients, 3"),
        ({"train": {"cycles": 5}}, "train.cycles = 5: must be the stages' 2 + 1 + 1 = 4"),
        ({"networked": {"prior": [1.0, 1.0]}}, "networked.prior = [1.0, 1.0]: must be 3 weights"),
        ({"networked": {"share": 1.5}}, "networked.share = 1.5"),
        ({"model": {"config": pictures.CONFIG}}, 'needs a model of model_type "networked_moe"'),
        ({"task": {"kind": "classification"}}, 'protocol = "networked" is for images'),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(
    tables: dict[str, Any], message: str, folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError) as error:
        run(scenario(folder, **tables), tmp_path / "run")
    assert message in str(error.value)
    assert not (tmp_path / "run").exists()


def test_latents_that_are_kept_cost_the_extractor_once(folder: Path, tmp_path: Path) -> None:
    """2·(numbers of a kernel)·(places) for each convolution and image, in the first round that needs latents alone."""
    given = scenario(
        folder,
        train={"cycles": 3},
        networked={"extractor_cycles": 1, "expert_cycles": 2, "gate_cycles": 0, "gate": "random"},
        device={"phone": {"compute_J_per_FLOP": 1.0}},
    )
    prepared = prepare(given)
    model, samples = prepared.view.model, small.devices(prepared)["c/0"][0].samples
    places: list[int] = []
    convolutions = [module for module in model.extractor.modules() if isinstance(module, torch.nn.Conv2d)]
    for module in convolutions:
        module.register_forward_hook(lambda m, _, y: places.append(2 * m.weight.numel() * y.shape[2] * y.shape[3]))
    model.latents(torch.zeros(1, 3, pictures.SIDE, pictures.SIDE, dtype=torch.uint8))
    run(given, tmp_path / "run")
    energy = [line["per_device"] for line in lines(tmp_path / "run", "energy")]
    assert all(cycle["c/0"] == cycle["c/1"] == cycle["c/2"] for cycle in energy)  # alike, with equally many images
    joules = [cycle["c/0"]["compute_J"] for cycle in energy]
    assert joules[1] - joules[2] == pytest.approx(samples * sum(places), rel=1e-4)  # the ledger has six digits


@pytest.mark.parametrize("extractor", ["fedce", "fedsc"])
def test_correlation_matrices_cost_their_views(extractor: str, folder: Path, tmp_path: Path) -> None:
    """One round of contrast with matrices of 2·3 views, and of 2·7: the difference is 8 images' way through the extractor."""
    spent = []
    for samples in (3, 7):
        given = scenario(
            folder,
            train={"cycles": 1},
            networked={"extractor": extractor, "extractor_cycles": 1, "expert_cycles": 0, "gate_cycles": 0, "gate": "random"}
            | {"correlation_samples": samples},
            device={"phone": {"compute_J_per_FLOP": 1.0}},
        )
        run(given, tmp_path / f"run{samples}")
        spent.append(lines(tmp_path / f"run{samples}", "energy")[0]["per_device"]["c/1"]["compute_J"])
    device = small.devices(prepare(given))["c/1"][0]
    more = 8 * image_flops(device.view, device.data) if extractor == "fedsc" else 0
    assert spent[1] - spent[0] == pytest.approx(more, rel=1e-3)  # the ledger has six digits
