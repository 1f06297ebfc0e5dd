"""EMS-FL with policies in Algorithm 1's place: owners, caps by memory and link, re-splitting, granularity."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w

import small
from fedexperts import Scenario
from fedexperts.cli.main import main
from fedexperts.errors import InputError
from fedexperts.ledger import read
from fedexperts.method.capacity import most_experts, need
from fedexperts.method.methods import prepare
from fedexperts.method.owners import Counts, assignment_report, split_experts
from fedexperts.moe.parts import is_expert
from fedexperts.runs.run import run

POLICIES = ("balanced", "optimal")
EXPERTS = {f"expert:{m}" for m in range(4)}
POWERS = {"tx_power_W": 1.0, "rx_power_W": 1.0, "compute_J_per_FLOP": 0.0, "idle_power_W": 0.0}


def scenario(policy: str, **tables: Any) -> Scenario:
    return small.scenario(**{**tables, "assignment": {"policy": policy, **tables.get("assignment", {})}})


def counts(seed: int, clusters: int, layers: int = 1, experts: int = 4, tokens: int = 100) -> Counts:
    """Picks of two of the experts for each token, every cluster with a leaning of its own."""
    rng = np.random.default_rng(seed)
    shares = rng.dirichlet(np.ones(experts), (clusters, layers))
    return {f"c{c}": (np.stack([rng.multinomial(2 * tokens, p) for p in shares[c]]), tokens) for c in range(clusters)}


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("clusters", [1, 2, 3, 4])
def test_every_expert_has_one_owner_and_every_cluster_an_expert(policy: str, clusters: int) -> None:
    for seed in range(20):
        owned = split_experts(scenario(policy), counts(seed, clusters), {f"c{c}": 4 for c in range(clusters)})
        assert sorted(part for parts in owned.values() for part in parts) == sorted(EXPERTS)
        assert all(owned.values())
        sizes = [len(parts) for parts in owned.values()]
        assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("policy", POLICIES)
def test_caps_hold_and_the_others_take_the_rest(policy: str) -> None:
    for seed in range(20):
        owned = split_experts(scenario(policy), counts(seed, 3), {"c0": 0, "c1": 1, "c2": 4})
        assert [len(parts) for parts in owned.values()] == [0, 1, 3]


@pytest.mark.parametrize("policy", POLICIES)
def test_with_layers_every_layer_is_dealt_out_within_the_caps(policy: str) -> None:
    given = scenario(policy, assignment={"granularity": "layer"})
    for seed in range(10):
        owned = split_experts(given, counts(seed, 2, layers=2), {"c0": 2, "c1": 8})
        assert sorted(part for parts in owned.values() for part in parts) == sorted(
            f"expert:{layer}.{m}" for layer in range(2) for m in range(4)
        )
        assert [len(parts) for parts in owned.values()] == [2, 6]


def test_more_clusters_than_experts_leave_some_idle_and_the_report_says_so() -> None:
    given, found = scenario("optimal"), counts(0, 6)
    owned = split_experts(given, found, dict.fromkeys(found, 4))
    assert sorted(len(parts) for parts in owned.values()) == [0, 0, 1, 1, 1, 1]
    report = assignment_report(given, found, owned)
    assert set(report["idle"]) == {name for name, parts in owned.items() if not parts}
    assert all(report["gamma"][name] == 0 for name in report["idle"])


@pytest.mark.parametrize("policy", POLICIES)
def test_clusters_that_cannot_carry_all_experts_are_refused(policy: str) -> None:
    with pytest.raises(
        InputError, match=rf"assignment\.policy = '{policy}': the clusters can carry 1, 2 experts.*give devices"
    ):
        split_experts(scenario(policy), counts(0, 2), {"c0": 1, "c1": 2})


@pytest.mark.parametrize(("experts", "expected"), [(0, 0), (1, 1), (2, 2), (9, 4)])
def test_memory_bounds_what_a_cluster_owns(experts: int, expected: int) -> None:
    clusters = small.document()["cluster"]
    clusters[1]["device"] = "own"
    needed = need(prepare(scenario("optimal")), frozenset({"gate"}))
    memory_B = float(needed.base_memory_B + (experts + 0.5) * needed.expert_memory_B)
    prepared = prepare(scenario("optimal", cluster=clusters, device={"own": POWERS | {"memory_B": memory_B}}))
    assert most_experts(prepared) == {"plain": 4, "inverted": expected}


def test_a_run_that_cannot_carry_all_experts_is_refused_before_it_begins(tmp_path: Path) -> None:
    clusters = [{**cluster, "device": "own"} for cluster in small.document()["cluster"]]
    with pytest.raises(InputError, match="the clusters can carry 0, 0 experts"):
        run(scenario("optimal", cluster=clusters, device={"own": POWERS | {"memory_B": 1000.0}}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("policy", POLICIES)
def test_the_link_bounds_what_a_cluster_owns(policy: str, tmp_path: Path) -> None:
    """A plan with rates: the second cluster's uplink carries one expert in its contact."""
    needed = need(prepare(scenario(policy)), frozenset({"gate"}))
    rate = 8 * (needed.base_up_B + 1.5 * needed.expert_up_B) / 100
    contacts = [
        {"cluster": name, "start_s": start, "end_s": start + 100, "uplink_bps": up_bps, "downlink_bps": 1e9}
        for cycle in range(3)
        for name, start, up_bps in (("plain", 400 * cycle, 1e9), ("inverted", 400 * cycle + 200, rate))
    ]
    (tmp_path / "plan.json").write_text(json.dumps({"horizon_s": 1300, "contacts": contacts}))
    given = scenario(policy, plan={"kind": "file", "path": str(tmp_path / "plan.json")}, train={"cycles": 2})
    assert most_experts(prepare(given)) == {"plain": 4, "inverted": 1}
    result = run(given, tmp_path / "run")
    assert {name: len(parts) for name, parts in result.summary["assignment"].items()} == {"plain": 3, "inverted": 1}


def test_algorithm_1_knows_no_caps() -> None:
    assert most_experts(prepare(small.scenario())) is None


def test_with_layers_one_cluster_can_own_them_all() -> None:
    prepared = prepare(scenario("optimal", cluster=small.document()["cluster"][:1], assignment={"granularity": "layer"}))
    assert most_experts(prepared) == {"plain": 8}


@pytest.mark.parametrize("policy", POLICIES)
def test_resplitting_goes_by_the_policy(policy: str, tmp_path: Path) -> None:
    given = scenario(policy, train={"cycles": 5}, assignment={"every_cycles": 2})
    run(given, tmp_path / "run")
    lines = list(read(tmp_path / "run" / "ledger.jsonl"))
    splits = [line["owned"] for line in lines if line["event"] == "split"]
    assert splits
    for owned in splits:
        assert sorted(part for parts in owned.values() for part in parts) == sorted(EXPERTS)
        assert [len(parts) for parts in owned.values()] == [2, 2]
    trained = {part for line in lines if line["event"] == "train" for part in line["parts"] if is_expert(part)}
    assert trained == EXPERTS


def test_granularity_by_layer_trains(tmp_path: Path) -> None:
    result = run(scenario("balanced", train={"cycles": 1}, assignment={"granularity": "layer"}), tmp_path / "run")
    sizes = [len(parts) for parts in result.summary["assignment"].values()]
    assert sizes == [4, 4]


def test_assign_shows_the_policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "small.toml"
    path.write_text(tomli_w.dumps(small.document(assignment={"policy": "optimal"})))

    def shown(*words: str) -> str:
        monkeypatch.setattr(sys, "argv", ["fedexperts", "assign", str(path), *words])
        with pytest.raises(SystemExit):
            main()
        return capsys.readouterr().out

    assert "Optimal" in shown()
    found = json.loads(shown("--json"))
    assert sorted(m for group in found["assignment"].values() for m in group) == [0, 1, 2, 3]
    assert [len(group) for group in found["assignment"].values()] == [2, 2]
