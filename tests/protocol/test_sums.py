"""Sums of updates in place: the same bits as with a new tensor for each term, and the memory of a result."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fedexperts.moe.parts import Piece, Tensors
from fedexperts.protocol import aggregate
from fedexperts.protocol.aggregate import STRETCH, Averaging, Change, Term, changed, combination, mean, moved
from fedexperts.train.task import Update

SHAPES: dict[str, tuple[int, ...]] = {"matrix": (300, 500), "vector": (STRETCH + 1,), "one": (), "none": (0, 3), "small": (7,)}


def tensors(seed: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    found = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    found["turned"] = torch.randn(300, 500, generator=generator).T
    found["zeros"] = torch.tensor([0.0, -0.0]).repeat(4)
    return {name: (100 * value).to(dtype) if dtype is torch.int64 else value.to(dtype) for name, value in found.items()}


def terms(count: int, dtype: torch.dtype = torch.float32, alike: bool = False) -> list[Term]:
    weights = torch.randint(1, 1000, (count,), generator=torch.Generator().manual_seed(count)).tolist()
    return [(1.0 if alike else weight / 7, tensors(seed, dtype)) for seed, weight in enumerate(weights)]


def plain(terms: list[Term]) -> Tensors:
    """With a new tensor for each product and each sum."""
    weight, first = terms[0]
    total = {name: weight * value for name, value in first.items()}
    for more, other in terms[1:]:
        total = {name: value + more * other[name] for name, value in total.items()}
        weight += more
    return {name: value / weight for name, value in total.items()}


def same(found: Tensors, expected: Tensors) -> None:
    """To the bit, signs of zeros and places in memory among them."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert (found[name].dtype, found[name].stride()) == (value.dtype, value.stride())
        assert torch.equal(found[name], value)
        assert torch.equal(found[name].signbit(), value.signbit())


@pytest.mark.parametrize("alike", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64])
@pytest.mark.parametrize("given", [list, iter])
def test_a_mean_has_the_bits_of_the_plain_sum(given: Callable[[Any], Any], dtype: torch.dtype, alike: bool) -> None:
    for count in (1, 2, 5):
        found = terms(count, dtype, alike)
        same(mean(given(found)), plain(found))


def test_what_moves_by_changes_has_them_too() -> None:
    model = {"head": Piece("head", 3, tensors(50))}
    sent, before = Piece("head", 1, tensors(51)), terms(2)
    arrived = [Update(f"d/{i}", Piece("head", 1, tensors(60 + i)), 1, 3 + i, 0) for i in range(3)]
    how = Averaging(weights="samples")
    weighed = how.terms(arrived)
    new, old = sum(w for w, _ in [*before, *weighed]), sum(w for w, _ in before)
    shares = [(w / new - w / old, t) for w, t in before] + [(w / new, t) for w, t in weighed]
    change = {name: sum(share * of[name] for share, of in shares) for name in model["head"].tensors}
    expected = {name: value + change[name] for name, value in model["head"].tensors.items()}
    same(changed(model, sent, arrived, how, before)[0].tensors, expected)

    found = [(1.0, tensors(1)), (-0.25, tensors(2)), (0.3, tensors(3))]
    total = {name: found[0][0] * value for name, value in found[0][1].items()}
    for weight, other in found[1:]:
        total = {name: value + weight * other[name] for name, value in total.items()}
    same(combination(found, None)[0], total)

    changes = [Change("head", 2.0 + i, tensors(70 + i), tensors(80 + i)) for i in range(3)]
    expected = {name: value.clone() for name, value in model["head"].tensors.items()}
    for one in changes:
        for name, local in one.local.items():
            expected[name] += one.weight / 9.0 * (local - one.since[name])
    same(moved(model, changes)[0].tensors, expected)


def test_of_a_generator_one_update_is_there_at_a_time() -> None:
    alive: list[weakref.ref[Tensor]] = []

    def arriving() -> Iterator[Term]:
        for seed in range(6):
            assert not [one for one in alive if one() is not None]
            yield 2.0 + seed, made(seed)

    def made(seed: int) -> Tensors:
        found = tensors(seed)
        alive.extend(map(weakref.ref, found.values()))
        return found

    same(mean(arriving()), plain([(2.0 + seed, tensors(seed)) for seed in range(6)]))
    assert len(alive) == 6 * len(tensors(0))


class Made(TorchDispatchMode):
    """Sizes of all results that are no views and were not written in place."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        real = isinstance(result, Tensor) and result.is_floating_point()
        if real and func.overloadpacket in (torch.ops.aten.mul, torch.ops.aten.add, torch.ops.aten.sub):
            self.numbers.append(result.numel())
        return result


@pytest.mark.parametrize("given", [list, iter])
def test_a_sum_takes_a_result_and_a_stretch_however_many_it_sums(given: Callable[[Any], Any], monkeypatch: Any) -> None:
    monkeypatch.setattr(aggregate, "STRETCH", 100)
    found = [(1.5 + seed, {"w": torch.ones(20, 50), "b": torch.ones(50)}) for seed in range(9)]
    with Made() as made:
        mean(given(found))
    assert sorted(made.numbers)[-1] == 1000
    assert sorted(made.numbers)[-2] <= 100
    with Made() as made:
        combination(found, None)
        moved({"head": Piece("head", 0, found[0][1])}, [Change("head", 1.0, t, found[0][1]) for _, t in found])
    assert sorted(made.numbers)[-2] <= 100
