"""Runs against EMS-FL derived from the paper alone, in float64: benchmarks/paper.py, and benchmarks/rederive.py beside it."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))
import paper
from rederive import CASES, TRIALS, compare, derive, draws, lora_faults, make_world, product, split_faults, step_faults


@pytest.fixture(scope="module")
def worlds(tmp_path_factory):
    return {C: make_world(tmp_path_factory.mktemp("worlds") / str(C), C) for C in (2, 3)}


@pytest.fixture(scope="module")
def ended(worlds):
    """Each run once."""
    found = {}

    def of(C, protocol, first_cycle="met"):
        if (C, protocol, first_cycle) not in found:
            found[C, protocol, first_cycle] = product(worlds[C], protocol, first_cycle)
        return found[C, protocol, first_cycle]

    return of


@pytest.mark.parametrize(("protocol", "first_cycle"), CASES)
@pytest.mark.parametrize("C", [2, 3])
def test_a_run_ends_with_the_papers_model(worlds, ended, C, protocol, first_cycle):
    run = ended(C, protocol, first_cycle)
    found = compare(worlds[C], run, derive(worlds[C], protocol, run.owned, first_cycle))
    assert found.faults + step_faults(worlds[C], protocol, run, first_cycle) == []
    assert found.movement > 0.1


@pytest.mark.parametrize("C", [2, 3])
def test_the_ledgers_split_is_that_of_27_to_29(worlds, ended, C):
    assert split_faults(worlds[C], ended(C, "ems-fl")) == []
    threshold = 0.5 * paper.TOP_K / paper.EXPERTS
    assert (paper.relevance(worlds[C].theta, worlds[C].devices) < threshold).any(), "nothing to truncate"


def weights_by_samples(models, of):
    return {name: 0.3 * models[0][name] + 0.7 * models[1][name] for name in of}


def no_download(local, theta, what):
    return list(local)


def mask_of_zeros(logits, allowed):
    return logits * torch.tensor([float(m in allowed) for m in range(paper.EXPERTS)])


@pytest.mark.parametrize(
    ("protocol", "name", "changed"),
    [
        ("sync", "mean", weights_by_samples),
        ("ems-fl", "mean", weights_by_samples),
        ("ems-fl", "downloaded", no_download),
        ("ems-fl-enhanced", "downloaded", no_download),
        ("ems-fl-enhanced", "masked", mask_of_zeros),
    ],
)
def test_another_rule_is_told_apart(monkeypatch, worlds, ended, protocol, name, changed):
    run = ended(2, protocol)
    monkeypatch.setattr(paper, name, changed)
    assert "experts or gate differ" in compare(worlds[2], run, derive(worlds[2], protocol, run.owned)).faults


@pytest.mark.parametrize(
    ("protocol", "reading"),
    [
        ("ems-fl", {"first_cycle": "paper"}),
        ("ems-fl-enhanced", {"first_cycle": "paper"}),
        ("ems-fl-enhanced", {"tail": "paper"}),
    ],
)
def test_another_reading_is_told_apart(worlds, ended, protocol, reading):
    run = ended(2, protocol)
    assert "experts or gate differ" in compare(worlds[2], run, derive(worlds[2], protocol, run.owned, **reading)).faults


@pytest.mark.parametrize("name", TRIALS)
def test_draws_follow_algorithm_1(worlds, name):
    sigmas, faults = draws(worlds[3], TRIALS[name], seeds=300)
    assert faults == []
    assert sigmas <= 5


@pytest.mark.parametrize(
    ("trial", "name", "changed"),
    [
        ("truncated", "truncated", lambda p_MC: p_MC),
        ("all relevant", "TOP_K", 4),
        ("one cluster's", "repaired", lambda owner, p_MC: tuple(owner[m] for m in range(len(p_MC)))),
    ],
)
def test_another_algorithm_1_is_told_apart(monkeypatch, worlds, trial, name, changed):
    monkeypatch.setattr(paper, name, changed)
    assert draws(worlds[3], TRIALS[trial], seeds=300)[1] != []


def test_algorithm_1_by_hand():
    """Two clusters like each other, three experts, K = 2: no cluster gets all, and who is alone is anyone with equal chance."""
    likely = paper.algorithm_1(np.full((3, 2), 0.5))
    assert sorted(likely) == [(0, 0, 1), (0, 1, 0), (0, 1, 1), (1, 0, 0), (1, 0, 1), (1, 1, 0)]
    assert list(likely.values()) == pytest.approx([1 / 6] * 6)


def test_merged_adapters_add_their_rank(tmp_path):
    assert lora_faults(tmp_path / "world") == []
