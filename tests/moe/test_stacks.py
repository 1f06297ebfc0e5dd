"""Parts of many devices in one stack are what each device's own would be."""

import io
import math
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fedexperts.moe.parts import Piece, norm
from fedexperts.moe.stacked import Entry, Stacked, norms, runs
from fedexperts.protocol.admission import differs
from fedexperts.protocol.aggregate import STRETCH, Term, combination, mean
from fedexperts.runs import checkpoint

SHAPES = st.lists(st.lists(st.integers(0, 5), max_size=3).map(tuple), min_size=1, max_size=3)


def stack(
    devices: int, shapes: list[tuple[int, ...]] | None = None, dtype: torch.dtype = torch.float32, seed: int = 0
) -> Stacked:
    generator = torch.Generator().manual_seed(seed)
    made = [torch.randn(devices, *shape, generator=generator).to(dtype) for shape in shapes or [(4, 3), (4,)]]
    return Stacked({f"tensor{i}": value_J for i, value_J in enumerate(made)}, devices)


def apart(entries: list[Entry]) -> list[dict[str, Tensor]]:
    return [{name: tensor.clone() for name, tensor in entry.items()} for entry in entries]


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_an_entry_is_a_mapping_of_the_devices_own_tensors_the_same_ones_each_time() -> None:
    whole = stack(3)
    entry = whole.entries()[1]
    assert dict(entry) == {name: entry[name] for name in ("tensor0", "tensor1")}
    assert entry["tensor0"] is entry["tensor0"]
    assert torch.equal(entry["tensor0"], whole.values["tensor0"][1])
    assert "tensor1" in entry
    assert "tensor2" not in entry
    with pytest.raises(KeyError):
        entry["tensor2"]


def test_another_process_is_sent_one_devices_tensors_and_not_the_stack() -> None:
    entry = stack(1000, [(100,)]).entries()[7]
    data = pickle.dumps(entry)
    file = io.BytesIO()
    torch.save(dict(pickle.loads(data)), file)
    assert len(data) < 4 * 100 * 20
    assert len(file.getvalue()) < 4 * 100 * 20
    assert equal(pickle.loads(data), dict(entry))


def test_a_checkpoint_has_tensors_and_what_comes_back_is_equal(tmp_path: Path) -> None:
    entries = stack(3).entries()
    checkpoint.save(tmp_path, 1, {"trained": dict(enumerate(entries))})
    found = checkpoint.load(tmp_path)
    assert found is not None
    assert all(equal(found[1]["trained"][j], dict(entry)) for j, entry in enumerate(entries))


@settings(deadline=None)
@given(
    devices=st.integers(1, 9),
    shapes=SHAPES,
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64]),
    seed=st.integers(0, 99),
    data=st.data(),
)
def test_a_mean_over_entries_is_to_the_bit_that_over_tensors_apart(
    devices: int, shapes: list[tuple[int, ...]], dtype: torch.dtype, seed: int, data: st.DataObject
) -> None:
    """Also where some are missing, others come between, they come in another order, or weigh differently."""
    others = apart(stack(3, shapes, dtype, seed + 1).entries())
    pool = [*stack(devices, shapes, dtype, seed).entries(), *stack(4, shapes, dtype, seed + 2).entries(), *others]
    picked = data.draw(st.lists(st.sampled_from(pool), min_size=1, max_size=9) | st.just(pool[:devices]))
    weights = data.draw(st.lists(st.sampled_from([1.0, 3.0, 0.3, -2.5]), min_size=len(picked), max_size=len(picked)))
    weights = weights if sum(weights) else [1.0] * len(picked)
    terms: list[Term] = list(zip(weights, picked, strict=True))
    plain: list[Term] = [(weight, {name: t.clone() for name, t in tensors.items()}) for weight, tensors in terms]
    assert equal(dict(mean(terms)), dict(mean(plain)))
    assert equal(dict(combination(terms, None)[0]), dict(combination(plain, None)[0]))


class Largest(TorchDispatchMode):
    """How many bytes the largest piece of memory has that is written within the block, or read, but for some."""

    def __init__(self, but: Tensor):
        super().__init__()
        self.but, self.size_B = but.untyped_storage().data_ptr(), 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if isinstance(made, Tensor) and made.untyped_storage().data_ptr() != self.but:
            self.size_B = max(self.size_B, made.untyped_storage().nbytes())
        return made


def test_a_mean_over_large_entries_takes_the_memory_of_one() -> None:
    whole = stack(5, [(STRETCH + 1,)])
    with Largest(but=whole.values["tensor0"]) as largest:
        mean([(float(1 + j), entry) for j, entry in enumerate(whole.entries())])
    assert largest.size_B == 4 * (STRETCH + 1)


def test_a_mean_writes_to_nobodys_tensors() -> None:
    whole = stack(4)
    before = {name: value_J.clone() for name, value_J in whole.values.items()}
    mean([(1.0, entry) for entry in whole.entries()])
    assert equal(before, dict(whole.values))


def test_neighbours_are_found() -> None:
    a, b, plain = stack(4).entries(), stack(2).entries(), dict(stack(1).entries()[0])
    found = [
        (begin, end, value_J is not None) for begin, end, value_J in runs([a[0], a[1], a[3], b[0], b[1], plain, plain, a[2]])
    ]
    assert found == [(0, 2, True), (2, 3, True), (3, 5, True), (5, 7, False), (7, 8, True)]
    assert list(runs([])) == []


def test_norms_are_each_devices_own() -> None:
    whole = stack(3)
    whole.values["tensor1"][1, 2] = math.nan
    whole.values["tensor0"][2, 0, 0] = math.inf
    entries = whole.entries()
    first, second, third = norms(entries)
    assert first == pytest.approx(norm(dict(entries[0])), rel=1e-6)
    assert second is not None
    assert math.isnan(second)
    assert third == math.inf
    assert norms([dict(entries[0]), entries[0]]) == [None, first]


def test_norms_of_halves_do_not_overflow() -> None:
    whole = Stacked({"w": torch.full((2, 100), 30000.0, dtype=torch.float16)}, 2)
    assert norms(whole.entries()) == pytest.approx([3e5, 3e5])


def test_what_differs_from_the_piece_is_told_as_of_tensors_apart() -> None:
    """One entry is not a number, one far away; others have the wrong type or a name too many."""
    sent = Piece("head", 0, apart(stack(1).entries())[0])
    whole = stack(3)
    whole.values["tensor0"][1, 0, 0], whole.values["tensor1"][2] = math.nan, 1e6
    for entry, known in zip(whole.entries(), norms(whole.entries()), strict=True):
        assert differs(entry, sent, 100.0, known) == differs(entry, sent, 100.0) == differs(dict(entry), sent, 100.0)
    reasons = [differs(entry, sent, 100.0) for entry in whole.entries()]
    assert reasons[:2] == [None, "is not finite"]
    assert "changes the part by" in str(reasons[2])
    assert "must be torch.float32" in str(differs(stack(2, dtype=torch.float64).entries()[0], sent))
    assert "must be torch.float32 [4, 3]" in str(differs(stack(2, [(3, 4), (4,)]).entries()[0], sent))
    assert "tensor2" in str(differs(stack(2, [(4, 3), (4,), (1,)]).entries()[0], sent))
