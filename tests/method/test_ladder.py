"""Rungs beside a gate: what they are on a few latents and answers that can be told by hand."""

import json
from pathlib import Path

import pytest
import torch

from fedexperts.ledger import summary
from fedexperts.method.ladder import Answers, _rungs, central_gate, probe
from fedexperts.report.clients import client_tables
from fedexperts.report.table import RUNGS, ladder_rows, results_table
from terminal import printed

OLD = Path(__file__).resolve().parents[1] / "old_runs" / "networked"


def network(seed: int, n: int = 60, experts: int = 3) -> Answers:
    """Label c has latents around 5·e_c far from 0; expert c is right on label c alone and sure of itself."""
    generator = torch.Generator().manual_seed(seed)
    labels_T = torch.arange(n) % experts
    latents_TD = 20 + 5 * torch.eye(experts)[labels_T] + torch.randn(n, experts, generator=generator) / 4
    q_TEL = torch.full((n, experts, experts), 0.02)
    for e in range(experts):
        q_TEL[:, e, e] = 0.96  # it says its own label, whatever it is shown
    return Answers(latents_TD, q_TEL.log(), labels_T)


def test_a_central_gate_finds_the_expert_that_is_right_though_latents_are_far_from_zero() -> None:
    weight_ED, bias_E = central_gate(network(0))
    test = network(1)
    assert torch.equal((test.latents_TD @ weight_ED.T + bias_E).argmax(dim=1), test.labels_T)


def test_rungs_by_hand() -> None:
    """Two clients: one has labels 0 alone, the other all; the gate sends all to expert 0, the usual labels are 0 and 1."""
    train, whole = network(0), network(1)
    zeros = Answers(*(tensor[whole.labels_T == 0] for tensor in (whole.latents_TD, whole.log_q_TEL, whole.labels_T)))
    gate = torch.zeros(3, 3), torch.tensor([1.0, 0.0, 0.0])
    found = _rungs([zeros, whole], gate, probe(train), [0, 1])
    assert found["random"]["accuracy"] == pytest.approx(1 / 3, abs=1e-6)
    assert found["central"]["accuracy"] == pytest.approx((20 + 20) / 80)
    assert found["central"]["local_ratio"] == 0.5  # the first client's images stay, the second's go
    assert found["oracle"]["accuracy"] == found["probe"]["accuracy"] == 1.0
    assert found["majority"]["accuracy"] == pytest.approx((20 + 20) / 80)
    assert found["majority"]["macro_f1"] < found["probe"]["macro_f1"] == 1.0


def test_a_run_shows_its_ladder_in_table_page_and_summary() -> None:
    rungs = {name: {"accuracy": i / 8} for i, name in enumerate(RUNGS)}
    even = {name: {"accuracy": (i + 1) / 8} for i, name in enumerate(RUNGS)}
    row = summary(OLD / "ledger.jsonl")
    assert ladder_rows({"network": row})[2] == []  # an old run has none
    row |= {"ladder": rungs, "even_test": {**row["even_test"], "ladder": even}}
    _, heads, (own, other) = ladder_rows({"network": row})
    assert heads == ["run", "final", "random", "central\ngate", "all\nexperts", "oracle", "probe", "majority"]
    assert own[2:] == ["0.0%", "12.5%", "25.0%", "37.5%", "50.0%", "62.5%"]
    assert other[2:] == ["12.5%", "25.0%", "37.5%", "50.0%", "62.5%", "75.0%"]
    for text in (printed(results_table({"network": row}), 100), client_tables({"network": row})):
        assert "oracle" in text
        assert "62.5%" in text


def test_a_summary_has_the_ladder_of_the_end(tmp_path: Path) -> None:
    *rows, last = map(json.loads, (OLD / "ledger.jsonl").read_text().splitlines())
    last |= {"ladder": {"oracle": {"accuracy": 0.9}}}
    (tmp_path / "ledger.jsonl").write_text("".join(json.dumps(line) + "\n" for line in [*rows, last]))
    assert summary(tmp_path / "ledger.jsonl")["ladder"] == {"oracle": {"accuracy": 0.9}}
