"""Ranks of adapters by class of devices, at the server: what is sent of a product, and what changes of that make of it.

Products are diagonal, so that singular values are what stands on the diagonal: every number below was worked out on paper.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from fedexperts.moe.lora import A, B, LoRA, Ranks, combined
from fedexperts.moe.parts import Piece
from fedexperts.protocol.aggregate import Averaging, averaged, changed, settled
from fedexperts.protocol.step import ADDED
from fedexperts.train.task import Update

PART = "expert:0"
RANKS = Ranks({"a": 1})  # cluster b has the model's
MEAN = Averaging(LoRA(2, 4.0), overlap="mean", fitted=RANKS)
ADD = Averaging(LoRA(2, 4.0), overlap="add", fitted=RANKS)


def adapters(*diagonal: float) -> dict[str, Tensor]:
    """Factors of a diagonal 3 × 3 product, as many as there are numbers that are not zero."""
    at = [i for i, value in enumerate(diagonal) if value]
    b_OR = torch.zeros(3, len(at))
    for r, i in enumerate(at):
        b_OR[i, r] = diagonal[i]
    return {"w" + A: torch.eye(3)[at], "w" + B: b_OR}


def product(tensors: Any) -> Tensor:
    return tensors["w" + B] @ tensors["w" + A]


def piece(*diagonal: float, version: int = 1) -> Piece:
    return Piece(PART, version, adapters(*diagonal))


def updates(version: int, *diagonals: Sequence[float], samples: int = 1) -> list[Update]:
    return [Update(f"x/{j}", piece(*of, version=version), 1, samples, 0) for j, of in enumerate(diagonals)]


def is_diagonal(tensors: Any, *diagonal: float) -> None:
    torch.testing.assert_close(product(tensors), torch.diag(torch.tensor(diagonal)), rtol=1e-5, atol=1e-6)


def server(how: Averaging, current: Piece, *arrivals: tuple[str, list[Update]]) -> tuple[Piece, list[float]]:
    """Clusters that were all sent the current version return it one after the other; the part, and what was lost each time."""
    model, sent, returned, lost = {PART: current}, {c: {PART: current} for c, _ in arrivals}, dict[str, Any](), []
    for cluster, group in arrivals:
        model[PART], facts = settled(cluster, group, model, sent, returned, how, {})
        lost.append(facts["truncation"])
    return model[PART], lost


def test_a_cluster_is_sent_the_best_product_of_its_rank() -> None:
    whole = piece(4.0, 1.0, 0.0)
    cut = RANKS("a", whole)
    is_diagonal(cut.tensors, 4.0, 0.0, 0.0)
    assert (cut.tensors["w" + A].shape, cut.tensors["w" + B].shape, cut.version) == ((1, 3), (3, 1), 1)
    assert RANKS("b", whole) is whole
    assert RANKS("a", cut) is cut
    assert RANKS("a", whole) is cut  # the same piece again, as whoever compares pieces counts on


def test_an_update_of_a_truncation_moves_what_was_truncated_by_its_change_alone() -> None:
    """a was sent diag(4, 0, 0) of diag(4, 1, 0), and made 6 of the 4; the 1, which it never had, stays."""
    part, lost = server(ADD, piece(4.0, 1.0, 0.0), ("a", updates(1, (6.0,))))
    is_diagonal(part.tensors, 6.0, 1.0, 0.0)
    assert (part.version, part.tensors["w" + A].shape) == (2, (2, 3))
    assert lost == [pytest.approx(0.0, abs=1e-6)]


def test_nothing_trained_changes_nothing() -> None:
    part, _ = server(ADD, piece(4.0, 1.0, 0.0), ("a", updates(1, (4.0,), (4.0,))))
    is_diagonal(part.tensors, 4.0, 1.0, 0.0)


@pytest.mark.parametrize("order", ["ab", "ba"])
def test_two_clusters_of_ranks_one_and_two_are_averaged_as_products(order: str) -> None:
    """Changes of one version: a's +2 on the first, b's +2 on the second; the mean is half of each."""
    arrivals = {"a": ("a", updates(1, (6.0,))), "b": ("b", updates(1, (4.0, 3.0)))}
    part, _ = server(MEAN, piece(4.0, 1.0, 0.0), *(arrivals[name] for name in order))
    is_diagonal(part.tensors, 5.0, 2.0, 0.0)
    part, _ = server(ADD, piece(4.0, 1.0, 0.0), *(arrivals[name] for name in order))
    is_diagonal(part.tensors, 6.0, 3.0, 0.0)


def test_a_mean_of_more_directions_than_the_model_has_loses_the_least() -> None:
    """b turns diag(4, 1, 0) into diag(4, 0, 3), a has no change: diag(4, ½, 3/2), of which rank two leaves out the ½."""
    part, lost = server(MEAN, piece(4.0, 1.0, 0.0), ("a", updates(1, (4.0,))), ("b", updates(1, (4.0, 0.0, 3.0))))
    is_diagonal(part.tensors, 4.0, 0.0, 1.5)
    assert lost[-1] == pytest.approx(0.5 / (16 + 0.25 + 2.25) ** 0.5, rel=1e-5)


def test_samples_weigh_products() -> None:
    """Three samples of a's +2 and one of b's +2: 4 + 6/4 and 1 + 2/4."""
    how = Averaging(LoRA(2, 4.0), weights="samples", overlap="mean", fitted=RANKS)
    arrivals = ("a", updates(1, (6.0,), samples=3)), ("b", updates(1, (4.0, 3.0)))
    part, _ = server(how, piece(4.0, 1.0, 0.0), *arrivals)
    is_diagonal(part.tensors, 5.5, 1.5, 0.0)


def test_an_expert_becomes_what_its_owner_has_and_the_spare_direction_can_learn() -> None:
    """(31) with an owner of rank one: mean of 6 and 8 on the first; a second row of A is there, with a zero in B."""
    model = {PART: piece(4.0, 1.0, 0.0)}
    part, facts = averaged(model, updates(1, (6.0,), (8.0,)), ADD)
    is_diagonal(part.tensors, 7.0, 0.0, 0.0)
    a_RI, b_OR = part.tensors["w" + A], part.tensors["w" + B]
    torch.testing.assert_close(a_RI @ a_RI.T, torch.eye(2) / 3)  # rows as they are drawn, none of them dead
    assert b_OR[:, 1].abs().max() < 1e-6
    assert facts["truncation"] < 1e-6


def test_equal_updates_of_a_lower_rank_are_lifted_too() -> None:
    part, _ = averaged({PART: piece(4.0, 1.0, 0.0)}, updates(1, (7.0,), (7.0,)), ADD)
    assert part.tensors["w" + A].shape == (2, 3)
    is_diagonal(part.tensors, 7.0, 0.0, 0.0)


def test_one_rank_for_all_is_what_was_before_to_the_bit() -> None:
    """The very tensors where nobody differs, and the very factoring where they do."""
    current, one, other = piece(4.0, 1.0), updates(1, (5.0, 1.0)), updates(1, (4.0, 3.0))
    for ranks in (Ranks({}), Ranks({"a": 2, "b": 2}), Ranks({"a": 5})):
        how = Averaging(LoRA(2, 4.0), overlap="mean", fitted=ranks)
        same, _ = changed({PART: current}, current, one, how)
        assert same.tensors is one[0].piece.tensors
        part, _ = server(how, current, ("a", one), ("b", other))
        before, _ = server(Averaging(LoRA(2, 4.0), overlap="mean"), current, ("a", one), ("b", other))
        assert all(torch.equal(part.tensors[name], value) for name, value in before.tensors.items())
    assert ADDED.plain


def test_factoring_to_a_rank_that_is_given() -> None:
    found, error = combined([(1.0, adapters(4.0, 1.0, 0.5))], 2)
    is_diagonal(found, 4.0, 1.0, 0.0)
    assert error == pytest.approx(0.5 / (16 + 1 + 0.25) ** 0.5)
