"""Dealing a cluster's samples to its devices."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fedexperts.data.partition import deal, deal_test
from fedexperts.errors import InputError


def numbered(n: int, labels: int = 4) -> dict[str, torch.Tensor]:
    """Sample i holds the token i."""
    return {"input_ids": torch.arange(n)[:, None], "labels": torch.arange(n) * 7 % labels}


@settings(deadline=None, max_examples=60)
@given(
    devices=st.integers(1, 9),
    extra=st.integers(0, 30),
    how=st.sampled_from(["iid", "by-label"]),
    seed=st.integers(0, 2**32 - 1),
)
def test_every_sample_goes_to_exactly_one_device_with_its_label(devices, extra, how, seed):
    samples = numbered(devices + extra)
    dealt = deal(samples, devices, how, seed, "c")
    assert len(dealt) == devices
    assert sorted(i for part in dealt for i in part["input_ids"].flatten().tolist()) == list(range(devices + extra))
    for part in dealt:
        assert torch.equal(part["labels"], samples["labels"][part["input_ids"].flatten()])


@settings(deadline=None, max_examples=30)
@given(devices=st.integers(1, 9), extra=st.integers(0, 30), how=st.sampled_from(["iid", "by-label"]))
def test_shares_differ_by_one_sample_at_most(devices, extra, how):
    sizes = [len(part["labels"]) for part in deal(numbered(devices + extra), devices, how, 0, "c")]
    assert max(sizes) - min(sizes) <= 1
    assert min(sizes) >= 1


def test_by_label_gives_each_device_a_run_of_the_sorted_labels():
    dealt = deal(numbered(12, labels=4), 4, "by-label", 0, "c")
    assert [sorted(set(part["labels"].tolist())) for part in dealt] == [[0], [1], [2], [3]]


@settings(deadline=None, max_examples=30)
@given(devices=st.integers(2, 6), n=st.integers(6, 40), seed=st.integers(0, 100))
def test_by_label_devices_do_not_interleave(devices, n, seed):
    dealt = deal(numbered(n), devices, "by-label", seed, "c")
    for before, after in pairwise(dealt):
        assert int(before["labels"].max()) <= int(after["labels"].min())


def test_iid_mixes_the_labels():
    dealt = deal(numbered(400, labels=4), 4, "iid", 0, "c")
    assert all(set(part["labels"].tolist()) == {0, 1, 2, 3} for part in dealt)


@pytest.mark.parametrize("how", ["iid", "by-label"])
def test_the_seed_decides(how):
    def shares(seed: int) -> list[list[int]]:
        return [part["input_ids"].flatten().tolist() for part in deal(numbered(20, labels=2), 2, how, seed, "c")]

    assert shares(1) == shares(1)
    dealt = {str(deal(numbered(21, labels=3), 2, how, seed, "c")[0]["input_ids"].tolist()) for seed in range(10)}
    assert len(dealt) > 1


@pytest.mark.parametrize("how", ["iid", "by-label"])
def test_fewer_samples_than_devices_are_refused_by_cluster_and_number(how):
    with pytest.raises(InputError, match=r"cluster 'lisbon': devices = 5 but its data hold only 4 samples"):
        deal(numbered(4), 5, how, 0, "lisbon")


def pool(counts: list[int]) -> dict[str, torch.Tensor]:
    """So many samples of each class, in no order; sample i holds the token i."""
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))]
    return {"input_ids": torch.arange(len(labels))[:, None], "labels": labels}


def ids(dealt: list[dict[str, torch.Tensor]]) -> list[list[int]]:
    return [part["input_ids"].flatten().tolist() for part in dealt]


def classes(dealt: list[dict[str, torch.Tensor]], many: int) -> np.ndarray:
    """counts_DC."""
    return np.stack([np.bincount(part["labels"].numpy(), minlength=many) for part in dealt])


def disjoint(dealt: list[dict[str, torch.Tensor]]) -> list[int]:
    flat = [i for part in ids(dealt) for i in part]
    assert len(flat) == len(set(flat))
    return sorted(flat)


WAYS = {
    "classes": {"classes_per_device": 2},
    "tau": {"tau": 0.5},
    "dirichlet": {"dirichlet_alpha": 1.0},
}


@pytest.mark.parametrize("how", WAYS)
def test_skewed_shares_repeat_for_a_seed_and_differ_between_seeds(how):
    def shares(seed: int) -> list[list[int]]:
        return ids(deal(pool([30] * 4), 4, how, seed, "c", **WAYS[how]))

    assert shares(1) == shares(1) != shares(2)


@settings(deadline=None, max_examples=80)
@given(
    counts=st.lists(st.integers(20, 40), min_size=1, max_size=7),
    each=st.integers(1, 7),
    extra=st.integers(0, 6),
    seed=st.integers(0, 99),
)
def test_classes_gives_every_device_so_many_classes_and_every_sample_away(counts, each, extra, seed):
    each = min(each, len(counts))
    groups = math.ceil(len(counts) / each)
    dealt = deal(pool(counts), groups + extra, "classes", seed, "c", classes_per_device=each)
    assert disjoint(dealt) == list(range(sum(counts)))
    counts_DC = classes(dealt, len(counts))
    assert np.all((counts_DC > 0).sum(axis=1) == each)
    for i, counts_C in enumerate(counts_DC):
        assert set(np.flatnonzero(counts_C)) == {(i % groups * each + k) % len(counts) for k in range(each)}
    for held_D in counts_DC.T:
        assert np.ptp(held_D[held_D > 0]) <= 1


def test_classes_that_cannot_be_dealt_are_told():
    with pytest.raises(InputError, match=r"cluster 'c': classes_per_device = 5: its data hold only 4 classes"):
        deal(pool([9] * 4), 2, "classes", 0, "c", classes_per_device=5)
    with pytest.raises(InputError, match=r"3 devices would leave .* at least 5 devices, or at least 4 classes per device"):
        deal(pool([9] * 10), 3, "classes", 0, "c", classes_per_device=2)
    with pytest.raises(InputError, match=r"a class of 3 samples cannot be split among 4 devices"):
        deal(pool([3, 9]), 8, "classes", 0, "c", classes_per_device=1)


@settings(deadline=None, max_examples=120)
@given(
    counts=st.lists(st.integers(40, 90), min_size=2, max_size=8),
    devices=st.integers(1, 12),
    tau=st.sampled_from([0.2, 0.3, 0.5, 1.0]),
    mode=st.sampled_from(["table", "prose"]),
    seed=st.integers(0, 99),
)
def test_tau_makes_one_class_dominant_and_shares_the_rest_evenly(counts, devices, tau, mode, seed):
    many = len(counts)
    dominant = 1 / (1 + tau) if mode == "table" else 1 - tau
    assume(dominant >= 1 / many)
    try:
        dealt = deal(pool(counts), devices, "tau", seed, "c", tau=tau, tau_mode=mode)
    except InputError:
        n = next(n for n in range(1, 10**6) if n * (1 - dominant) / (many - 1) >= 1)  # a sample of each class
        assert sum(counts) < 2 * devices * n or min(counts) < 2 * devices * n
        return
    disjoint(dealt)
    counts_DC = classes(dealt, many)
    n = counts_DC[0].sum()
    assert np.all(counts_DC.sum(axis=1) == n)
    assert np.all(counts_DC > 0)
    for i, counts_C in enumerate(counts_DC):
        wanted_C = np.full(many, n * (1 - dominant) / (many - 1))
        wanted_C[i % many] = n * dominant
        assert np.all(np.abs(counts_C - wanted_C) < 1)
    used_C, taken = counts_DC.sum(axis=0), counts_DC.sum()
    spare_C = np.array(counts) - used_C
    assert spare_C.min() <= devices or sum(counts) - taken < devices  # the pool allows no more


def test_tau_uses_every_sample_of_cifar_s_50000():
    """Ten clients, ten classes of 5,000: the tables' 66.66 % is the dominant class's share."""
    dealt = deal(pool([5000] * 10), 10, "tau", 0, "c", tau=0.5)
    assert disjoint(dealt) == list(range(50000))
    assert [int(counts_C.max()) for counts_C in classes(dealt, 10)] == [3334] * 10
    prose = classes(deal(pool([5000] * 10), 10, "tau", 0, "c", tau=0.3, tau_mode="prose"), 10)
    assert np.all(np.diagonal(prose) == 3500)


@pytest.mark.parametrize("tau", [0.0, -1.0, 1.5, float("nan")])
def test_tau_outside_its_bounds_is_refused(tau):
    with pytest.raises(InputError, match=r"cluster 'c': tau = .*: must be above 0 and at most 1"):
        deal(pool([9, 9]), 2, "tau", 0, "c", tau=tau)


def test_tau_that_the_data_do_not_allow_is_told():
    with pytest.raises(InputError, match=r"too few for each of 10 devices to hold all 4 classes \(the rarest has 8 samples\)"):
        deal(pool([90, 90, 90, 8]), 10, "tau", 0, "c", tau=0.5)
    with pytest.raises(InputError, match="one class alone"):
        deal(pool([9]), 2, "tau", 0, "c", tau=0.5)
    with pytest.raises(InputError, match=r"a share of 0.1 of 4 classes is not dominant; use at most 0.75"):
        deal(pool([90] * 4), 2, "tau", 0, "c", tau=0.9, tau_mode="prose")


@settings(deadline=None, max_examples=60)
@given(
    counts=st.lists(st.integers(20, 60), min_size=1, max_size=6),
    devices=st.integers(1, 6),
    alpha=st.sampled_from([0.3, 1.0, 100.0]),
    seed=st.integers(0, 99),
)
def test_dirichlet_gives_every_sample_away_and_leaves_no_device_without(counts, devices, alpha, seed):
    dealt = deal(pool(counts), devices, "dirichlet", seed, "c", dirichlet_alpha=alpha)
    assert disjoint(dealt) == list(range(sum(counts)))
    assert all(len(part["labels"]) for part in dealt)


def test_a_small_alpha_skews_and_a_large_one_does_not():
    skew = {a: classes(deal(pool([1000] * 5), 5, "dirichlet", 0, "c", dirichlet_alpha=a), 5) / 1000 for a in (0.1, 1e5)}
    assert np.allclose(skew[1e5], 0.2, atol=0.01)
    shares = np.concatenate([classes(deal(pool([999] * 5), 5, "dirichlet", s, "c", dirichlet_alpha=0.5), 5) for s in range(40)])
    assert np.var(shares / 999) == pytest.approx(0.2 * 0.8 / (5 * 0.5 + 1), rel=0.2)  # of one coordinate of Dir(α)


def test_dirichlet_that_leaves_devices_without_data_is_told():
    with pytest.raises(InputError, match=r"dirichlet_alpha = 0.001: a device was left without data in each of 100 draws"):
        deal(pool([30, 30]), 9, "dirichlet", 0, "c", dirichlet_alpha=0.001)


@settings(deadline=None, max_examples=40)
@given(
    how=st.sampled_from([*WAYS, "iid", "by-label"]),
    tests=st.lists(st.integers(20, 60), min_size=4, max_size=4),
    seed=st.integers(0, 99),
)
def test_the_same_test_shares_have_the_training_proportions(how, tests, seed):
    trained = deal(pool([40] * 4), 4, how, seed, "c", **WAYS.get(how, {}))
    shares_DC = classes(trained, 4) / classes(trained, 4).sum(axis=1, keepdims=True)
    dealt = deal_test(pool(tests), trained, "same", seed, "c")
    disjoint(dealt)
    counts_DC = classes(dealt, 4)
    n = counts_DC[0].sum()
    assert np.all(counts_DC.sum(axis=1) == n)
    assert n > 0
    assert np.all(np.abs(counts_DC - n * shares_DC) < 1)
    spare_C = np.array(tests) - counts_DC.sum(axis=0)
    assert spare_C.min() <= 4 or sum(tests) - counts_DC.sum() < 4
    assert ids(dealt) == ids(deal_test(pool(tests), trained, "same", seed, "c"))


@settings(deadline=None, max_examples=30)
@given(devices=st.integers(1, 9), extra=st.integers(0, 30), seed=st.integers(0, 99))
def test_iid_test_shares_are_equal_and_complete(devices, extra, seed):
    trained = deal(pool([20] * 4), devices, "iid", seed, "c")
    dealt = deal_test(numbered(devices + extra), trained, "iid", seed, "c")
    assert disjoint(dealt) == list(range(devices + extra))
    sizes = [len(part["labels"]) for part in dealt]
    assert max(sizes) - min(sizes) <= 1


def test_test_data_that_cannot_be_dealt_are_told():
    trained = deal(pool([20] * 4), 4, "by-label", 0, "c")
    with pytest.raises(InputError, match=r"test data of cluster 'c': only 3 samples for 4 devices"):
        deal_test(numbered(3), trained, "iid", 0, "c")
    with pytest.raises(InputError, match=r"test data of cluster 'c': label 3 is missing, and devices train on it"):
        deal_test(pool([9, 9, 9]), trained, "same", 0, "c")
    with pytest.raises(InputError, match=r"too few samples to give each of 4 devices"):
        deal_test(pool([9, 1]), deal(pool([1, 20]), 4, "iid", 0, "c")[:3] + [{"labels": torch.zeros(2)}] * 1, "same", 0, "c")
