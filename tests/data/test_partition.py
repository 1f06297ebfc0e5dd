"""Dealing a cluster's samples to its devices."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedexperts.data.partition import deal
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
