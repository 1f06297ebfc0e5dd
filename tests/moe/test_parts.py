"""Names, travelling order and bytes of parts."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from fedexperts.moe.parts import Piece, expert, expert_index, in_order, is_expert, tensors_B


@pytest.mark.parametrize(("m", "layer", "name"), [(0, None, "expert:0"), (11, None, "expert:11"), (3, 2, "expert:2.3")])
def test_expert_names(m, layer, name):
    assert expert(m, layer) == name
    assert expert_index(name) == (layer, m)


@settings(deadline=None, max_examples=40)
@given(m=st.integers(0, 500), layer=st.none() | st.integers(0, 100))
def test_expert_index_inverts_expert(m, layer):
    assert expert_index(expert(m, layer)) == (layer, m)


def test_only_experts_are_experts():
    assert [is_expert(part) for part in ("expert:0", "expert:1.2", "gate", "head", "backbone")] == [
        True,
        True,
        False,
        False,
        False,
    ]


@pytest.mark.parametrize(
    "ordered",
    [
        ["expert:0", "expert:2", "expert:10", "gate", "head", "backbone"],
        ["expert:0.1", "expert:0.10", "expert:1.0", "expert:2.0", "expert:10.0", "gate"],
    ],
)
def test_experts_travel_first_by_number_then_gate_head_and_backbone(ordered):
    shuffled = list(ordered)
    for seed in range(5):
        random.Random(seed).shuffle(shuffled)
        assert in_order(shuffled) == ordered


def test_bytes_are_elements_times_their_width():
    tensors = {
        "a": torch.zeros(3, 5),
        "b": torch.zeros(7, dtype=torch.bfloat16),
        "c": torch.zeros(2, dtype=torch.float64),
    }
    assert tensors_B(tensors) == 3 * 5 * 4 + 7 * 2 + 2 * 8
    assert Piece("gate", 4, tensors).size_B == len(save(tensors)) > 90  # a file with a header


def test_an_empty_piece_is_a_header_alone():
    assert Piece("gate", 0, {}).size_B == len(save({}))


def test_a_digest_names_the_content():
    same = [Piece("gate", version, {"w": torch.tensor([1.0, 2.0])}) for version in (0, 7)]
    other = Piece("gate", 0, {"w": torch.tensor([1.0, 2.5])})
    shaped = Piece("gate", 0, {"w": torch.tensor([[1.0, 2.0]])})
    assert same[0].digest == same[1].digest
    assert len({same[0].digest, other.digest, shaped.digest}) == 3
