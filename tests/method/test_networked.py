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
from fedexperts.moe.parts import BACKBONE, CORRELATION, STATISTICS, Piece, expert, file_B
from fedexperts.protocol.link import Start
from fedexperts.protocol.networked import Networked, Stages
from fedexperts.runs import checkpoint
from fedexperts.runs.run import run
from fedexperts.setup.prepare import Prepared
from fedexperts.train.member import call_B, image_flops
from fedexperts.train.privacy import sensitivity
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

        def stop(path: Path, number: int, tree: Any, last: bool = False, stop_at: int = stop_at) -> None:
            save(path, number, tree, last)
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


def test_a_federated_gate_asks_the_others_once_and_counts_it(
    folder: Path, finished: Callable[..., Path], tmp_path: Path
) -> None:
    ends = {}
    for cached in (False, True):
        given = scenario(folder, networked={"gate_cycles": 3, "expert_cache": cached}, train={"cycles": 6})
        ends[cached] = run(given, tmp_path / f"run{cached}").directory
    rows = [line for line in lines(ends[False], "train") if line["parts"] == ["gate", "statistics"]]
    assert len(rows) == 3 * 3  # all of them tell what their latents are like; then ⌈0.7 · 3⌉
    view, prepared = prepare(scenario(folder)).view, prepare(scenario(folder))
    samples = [small.devices(prepared)[f"c/{i}"][0].samples for i in range(CLIENTS)]
    # every image to each of the others, once: its latent there, probabilities back
    assert [line.get("peer_B", 0) for line in rows] == [n * (CLIENTS - 1) * call_B(view) for n in samples] + [0] * 6
    assert lines(ends[False], "end")[0]["peer_B"] == sum(samples) * (CLIENTS - 1) * call_B(view)
    size = file_B(view.parts["expert:1"])
    fetched = [line.get("peer_B", 0) for line in lines(ends[True], "train") if line["parts"] == ["gate", "statistics"]]
    assert fetched == [pytest.approx((CLIENTS - 1) * size, rel=0.01)] * 3 + [0] * 6
    digests = [[line["digest"] for line in lines(at, "aggregate")] for at in ends.values()]
    assert digests[0] == digests[1]  # what it costs changes nothing


def test_fewer_picks_ask_no_more_than_these(folder: Path, tmp_path: Path) -> None:
    run(scenario(folder, networked={"gate_top_k": 1, "gate_cycles": 2}, train={"cycles": 5}), tmp_path / "run")
    view = prepare(scenario(folder)).view
    calls = [line.get("peer_B", 0) for line in lines(tmp_path / "run", "train") if "gate" in line["parts"]]
    assert all(size % call_B(view) == 0 for size in calls)
    assert 0 < sum(calls) <= 2 * 3 * 2 * 8 * call_B(view)  # rounds, clients, steps, images of a batch; one expert each


def test_the_first_round_of_a_gate_tells_statistics_and_moves_nothing(folder: Path) -> None:
    """Pooled over clients they are those of all latents; a gate is trained on standardised ones and kept for raw ones."""
    prepared = prepare(scenario(folder))
    devices = [group[0] for group in small.devices(prepared).values()]
    server = Networked(Start(prepared.model, tuple(prepared.hosts), frozenset(), {}, cycles=4), stages(prepared))
    server.round = 3
    task = server.federated()
    assert task.rate == 0
    for device in devices:
        device.receive(server.pieces(device.name, task))
        device.train(task, 1, peers=prepared.homes.others(device.name))
        server.statistics[device.name] = device.trained[STATISTICS]
        before = prepared.model["gate"].tensors
        assert all(torch.allclose(tensor, before[name], atol=1e-6) for name, tensor in device.trained["gate"].items())
    latents_TD = torch.cat([device.member.latents(device) for device in devices])
    told = server.of_all().tensors
    assert torch.allclose(told["mean"], latents_TD.mean(dim=0), atol=1e-5)
    spread_D = latents_TD.std(dim=0, correction=0)
    assert torch.allclose(told["spread"], spread_D.clamp_min(float(spread_D.max()) / 100), atol=1e-5)
    picks_T = prepared.view.model.moe.gate(latents_TD).argmax(dim=1)
    assert torch.allclose(told["load"], torch.bincount(picks_T, minlength=CLIENTS) / len(picks_T), atol=0.05)
    assert server.federated().rate > 0


def test_a_gate_alone_steps_by_its_rate_in_standardised_coordinates(folder: Path) -> None:
    """One step of plain descent along a gradient of norm 1: the move has the length of the rate."""
    prepared = prepare(scenario(folder, train={"local_steps": 1}, networked={"gate_lr": 0.5}))
    device = small.devices(prepared)["c/0"][0]
    peers = prepared.homes.others("c/0")
    size = prepared.view.model.config.latent_size
    mean_D, spread_D = torch.linspace(-1, 1, size), torch.linspace(0.5, 2, size)
    told = {"mean": mean_D, "spread": spread_D, "load": torch.full((CLIENTS,), 1 / CLIENTS)}
    device.receive([Piece(STATISTICS, 1, told)])
    device.train(Task(frozenset({"gate"}), goal="gate", peers=True, unit_gradient=True), 1, peers=peers)
    moved = {n.rpartition(".")[2]: t - device.held["gate"].tensors[n] for n, t in device.trained["gate"].items()}
    weight_ED, bias_E = moved["weight"] * spread_D, moved["bias"] + moved["weight"] @ mean_D
    assert float((weight_ED**2).sum() + (bias_E**2).sum()) ** 0.5 == pytest.approx(0.5, rel=1e-3)


def test_only_the_gate_learns_in_its_stage_and_experts_of_others_stay(folder: Path) -> None:
    prepared = prepare(scenario(folder))
    device = small.devices(prepared)["c/0"][0]
    experts = {link: [part] for part, link in prepared.homes.experts.items()}
    before = {link: prepared.hosts[link].own(parts) for link, parts in experts.items()}
    peers = prepared.homes.others("c/0")
    assert set(peers) == {expert(1), expert(2)}
    device.train(Task(frozenset({"gate"}), goal="gate", peers=True, unit_gradient=True), 1, peers=peers)
    assert set(device.trained) == {"gate"}
    assert not torch.equal(device.trained["gate"]["moe.gate.weight"], prepared.model["gate"].tensors["moe.gate.weight"])
    for link, parts in experts.items():
        now = prepared.hosts[link].own(parts)
        assert all(torch.equal(tensor, now[part][name]) for part in parts for name, tensor in before[link][part].items())


def test_training_from_kept_latents_is_training_from_images(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    for kept in (True, False):
        prepared = prepare(scenario(folder))
        device = small.devices(prepared)["c/1"][0]
        if not kept:
            monkeypatch.setattr(device.member, "source", lambda device, task, peers: device.data)
        part = frozenset({"expert:1"})
        device.train(Task(part, route=part, keeps=part), 2)
        results.append(device.trained["expert:1"])
    assert all(torch.allclose(results[0][name], results[1][name], atol=1e-5) for name in results[0])


def test_a_rolling_gate_visits_every_client_once_a_roll_and_stops_when_it_gains_no_more(folder: Path, tmp_path: Path) -> None:
    """Before the first roll and after each all judge the gate that it ended with."""
    table = {"gate": "rolling", "gate_cycles": 12, "gate_patience": 1, "gate_lr": 1e-9}  # it cannot gain
    run(scenario(folder, networked=table, train={"cycles": 15}), tmp_path / "run")
    turns = [line["clients"] for line in lines(tmp_path / "run", "stage") if line["stage"] == "rolling"]
    everybody = [f"c/{i}" for i in range(CLIENTS)]
    assert turns[0] == turns[4] == everybody
    assert sorted(turns[1:4]) == [[client] for client in everybody]
    rolls = lines(tmp_path / "run", "roll")
    assert [line["stalled"] for line in rolls] == [0, 1]
    assert rolls[0]["held_loss"] == pytest.approx(rolls[1]["held_loss"], abs=1e-3)  # the same gate, the same clients
    assert [line["stage"] for line in lines(tmp_path / "run", "stage")][3 + 5 :] == ["rest"] * 7


def test_a_roll_is_judged_by_the_gate_it_ends_with(folder: Path, tmp_path: Path) -> None:
    """Steps so large that a turn undoes the others': right after its own each client is content, in the end they are not."""
    table = {"gate": "rolling", "gate_cycles": 9, "gate_patience": 9, "gate_lr": 200.0, "share": 1.0}
    run(scenario(folder, networked=table, train={"cycles": 12}), tmp_path / "run")
    losses = [line["held_loss"] for line in lines(tmp_path / "run", "roll")]
    assert losses[1] > 2 * losses[0]


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


def neighbours(folder: Path, black: Callable[[Prepared], int], **networked: Any) -> list[torch.Tensor]:
    """R of one client as it goes up after a round of contrast; in the second run one of its images is another."""
    found = []
    for replaced in (False, True):
        given = scenario(
            folder,
            model={"config": {**MODEL, "projection_size": 2}},
            networked={"extractor": "fedsc", **networked},
            train={"local_steps": 10, "optimizer": "adamw", "lr_gate": 1e-2},
        )
        prepared = prepare(given)
        device = small.devices(prepared)["c/0"][0]
        at = black(prepared)
        device.data["pixel_values"][at] = 255 if replaced else 0
        server = Networked(Start(prepared.model, tuple(prepared.hosts), frozenset(), {}, cycles=4), stages(prepared))
        server.round = 0
        device.receive(server.pieces("c/0", server.extractor("c/0")))
        device.train(server.extractor("c/0"), 1)
        found.append(device.trained[CORRELATION]["matrix"].double())
    return found


def apart(prepared: Prepared) -> int:
    """Makes a projection that sends black images to c·e_0 and white ones to c·e_1, and says which image is to be either."""
    model = prepared.view.model
    black, white = (torch.full((1, 3, pictures.SIDE, pictures.SIDE), value).float() for value in (-1.0, 1.0))
    with torch.no_grad():
        greys = [white * grey for grey in np.linspace(0.2, 1.0, 9)]  # brightness is drawn
        low, high = model.latents(black)[0], torch.cat([model.latents(grey) for grey in greys])
        gap = (high - low).mean(dim=0)
        direction = gap / (gap @ gap)
        assert ((high - low) @ direction > 0.5).all()
        first, _, last = model.projection
        first.weight.zero_(), last.weight.zero_(), last.bias.zero_()
        first.weight[0], first.weight[1] = -1e4 * direction, 1e4 * direction
        first.bias[:2] = torch.tensor([1.0, -1.0]) * 1e4 * (direction @ low + torch.tensor([0.25, 0.25]))
        first.bias[1] = -1e4 * (direction @ low + 0.25)
        last.weight[0, 0] = last.weight[1, 1] = 1.0
    piece = Piece(BACKBONE, 0, prepared.view.export(BACKBONE))
    prepared.model[BACKBONE] = piece
    for host in prepared.hosts.values():
        host.begin(prepared.model)
    return 0


@pytest.mark.parametrize(("samples", "at"), [(256, (0, 1, 2)), (7, (3, 5, 6))])  # of 27 images; these are among the 7 drawn
def test_one_image_moves_a_shared_matrix_by_no_more_than_is_stated(samples: int, at: tuple[int, ...], folder: Path) -> None:
    """Two neighbouring data sets, the same model received, the real path with its training."""
    for image in at:
        one, other = neighbours(folder, lambda _, image=image: image, correlation_samples=samples)
        moved = float((one - other).norm())
        device_samples = small.devices(prepare(scenario(folder)))["c/0"][0].samples
        assert 0 < moved <= sensitivity(1.0, min(samples, device_samples)) * (1 + 1e-5)


def test_a_pair_of_images_reaches_the_bound_of_the_stated_sensitivity(folder: Path) -> None:
    one, other = neighbours(folder, apart)
    samples = small.devices(prepare(scenario(folder)))["c/0"][0].samples
    assert float((one - other).norm()) == pytest.approx(sensitivity(1.0, samples), rel=1e-4)


def test_a_shared_matrix_is_of_the_model_that_came_down(folder: Path) -> None:
    """Also where the client has trained on since: R is what the received model gives."""
    found = []
    for rounds in (1, 3):
        prepared = prepare(scenario(folder, networked={"extractor": "fedsc"}))
        device = small.devices(prepared)["c/0"][0]
        server = Networked(Start(prepared.model, tuple(prepared.hosts), frozenset(), {}, cycles=4), stages(prepared))
        server.round = 0
        device.receive(server.pieces("c/0", server.extractor("c/0")))
        device.train(server.extractor("c/0"), rounds)
        found.append(device.trained[CORRELATION]["matrix"])
        moved = device.trained[BACKBONE]["extractor.0.weight"] - device.held[BACKBONE].tensors["extractor.0.weight"]
        assert moved.abs().max() > 0
    assert torch.equal(*found)


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


@pytest.mark.parametrize(("named", "falls"), [("plain", False), ("falling", True), ("official", True)])
def test_the_server_is_told_the_schedule(named: str, falls: bool, folder: Path) -> None:
    """Also by the name that "falling" had in earlier runs."""
    prepared = prepare(scenario(folder, networked={"schedule": named, "extractor": "fedsc"}))
    server = Networked(Start(prepared.model, tuple(prepared.hosts), frozenset(), {}, cycles=4), stages(prepared))
    server.round = 1
    assert server.extractor("c/0").rate == (0.5 if falls else 1.0)


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


def test_experts_that_are_averaged_once_begin_alike(folder: Path, finished: Callable[..., Path]) -> None:
    """The mean of perceptrons drawn apart is none: one-shot FedAvg starts all of them from one initialisation."""
    prepared = prepare(scenario(folder, networked={"control": "local"}, train={"cycles": 2}))
    device = small.devices(prepared)["c/2"][0]
    first = list(device.held[expert(0)].tensors.values())
    for i in range(1, CLIENTS):
        assert all(torch.equal(a, b) for a, b in zip(first, device.held[expert(i)].tensors.values(), strict=True))
        assert all(torch.equal(a, b) for a, b in zip(first, prepared.view.parts[expert(i)].values(), strict=True))
    network = prepare(scenario(folder)).model
    assert not torch.equal(*(next(iter(network[expert(i)].tensors.values())) for i in (0, 1)))  # a network's experts differ


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
