"""Checkpoints that write what has changed: whole by themselves, bounded on disk, and none spoilt by a byte of the other."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import fedexperts.runs.run
import small
from fedexperts import run
from fedexperts.events import FORMAT
from fedexperts.moe.parts import Piece
from fedexperts.runs import checkpoint
from fedexperts.runs.sums import damage, write_sums

NUMBERS = 300_000
"""Of a tensor: above what is worth a link."""


def random(seed: int) -> Tensor:
    return torch.randn(NUMBERS, generator=torch.Generator().manual_seed(seed))


class Tree:
    """A model of parts, and what a device has trained of it, in place."""

    def __init__(self, parts: int = 6):
        self.model = {f"expert:{m}": Piece(f"expert:{m}", 0, {"w": random(m)}) for m in range(parts)}
        self.moments = {part: random(100 + m) for m, part in enumerate(self.model)}

    def change(self, number: int, m: int) -> None:
        part = f"expert:{m}"
        self.model[part] = Piece(part, self.model[part].version + 1, {"w": random(1000 * number + m)})
        self.moments[part].add_(1.0)

    def __call__(self) -> Any:
        return {"model": dict(self.model), "moments": self.moments}


def holds(folder: Path, tree: Any, number: int | None = None) -> None:
    found = checkpoint.load(folder)
    assert found is not None
    assert number in (None, found[0])
    for part, piece in tree["model"].items():
        assert found[1]["model"][part].version == piece.version
        assert torch.equal(found[1]["model"][part].tensors["w"], piece.tensors["w"])
        assert torch.equal(found[1]["moments"][part], tree["moments"][part])


def files(at: Path) -> dict[str, os.stat_result]:
    return {path.name: path.stat() for path in at.iterdir()}


def inodes(folder: Path) -> dict[int, int]:
    return {one.st_ino: one.st_size for at in folder.glob("0*") for one in files(at).values()}


def flip(path: Path, at: int = -5) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def saved(folder: Path, numbers: int, tree: Tree, parts: int = 6) -> None:
    for number in range(1, numbers + 1):
        tree.change(number, number % parts)
        checkpoint.save(folder, number, tree())


def test_what_has_not_changed_is_linked_from_the_checkpoint_before_the_last(tmp_path: Path) -> None:
    tree = Tree()
    for number in (1, 2, 3):
        before = inodes(tmp_path)
        checkpoint.save(tmp_path, number, tree())
        wrote_B = sum(size for ino, size in inodes(tmp_path).items() if ino not in before)
        assert (wrote_B < 20_000) == (number == 3)
    assert set(files(tmp_path / "00000003")) == {*checkpoint_files(), "tensors-00000001.safetensors"}
    assert load_file(tmp_path / "00000003" / checkpoint.TENSORS) == {}
    holds(tmp_path, tree(), 3)
    tree.change(4, 2)
    checkpoint.save(tmp_path, 4, tree())
    assert len(load_file(tmp_path / "00000004" / checkpoint.TENSORS)) == 2
    holds(tmp_path, tree(), 4)
    shutil.copytree(tmp_path / "00000004", tmp_path / "elsewhere" / "00000004")
    shutil.rmtree(tmp_path / "00000003")
    holds(tmp_path / "elsewhere", tree(), 4)


def checkpoint_files() -> set[str]:
    return {checkpoint.STATE, checkpoint.TENSORS, "SHA256SUMS"}


def test_moments_that_change_in_place_are_written_again(tmp_path: Path) -> None:
    tree = Tree(2)
    for number in range(1, 6):
        tree.moments["expert:1"][number] = 7.0
        checkpoint.save(tmp_path, number, tree())
        holds(tmp_path, tree(), number)


def test_a_byte_that_is_damaged_spoils_one_checkpoint(tmp_path: Path) -> None:
    tree, older = Tree(), Tree()
    saved(tmp_path / "there", 7, tree)
    saved(tmp_path / "older", 6, older)
    newest, before = (tmp_path / "there" / f"{number:08d}" for number in (7, 6))
    assert not {one.st_ino for one in files(newest).values()} & {one.st_ino for one in files(before).values()}
    assert any(name.startswith("tensors-") for name in files(newest))
    assert any(name.startswith("tensors-") for name in files(before))
    for name in sorted(files(newest)):
        copy = Path(shutil.copytree(tmp_path / "there", tmp_path / name))
        flip(copy / "00000007" / name)
        holds(copy, older(), 6)
    for name in sorted(files(before)):
        copy = Path(shutil.copytree(tmp_path / "there", tmp_path / f"before {name}"))
        flip(copy / "00000006" / name)
        holds(copy, tree(), 7)


def test_nothing_is_linked_from_what_was_damaged_while_nobody_wrote(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tree = Tree()
    saved(tmp_path, 5, tree)
    linked = next(name for name in files(tmp_path / "00000004") if name.startswith("tensors-"))
    flip(tmp_path / "00000004" / linked)
    with caplog.at_level(logging.WARNING):
        holds(tmp_path, tree(), 5)
    assert f"checkpoint 00000004: {linked} is not as it was written" in caplog.text
    checkpoint.save(tmp_path, 6, tree())
    assert damage(tmp_path / "00000006") is None
    assert set(files(tmp_path / "00000006")) == checkpoint_files()
    holds(tmp_path, tree(), 6)


def test_what_a_kill_has_left_of_an_older_one_is_no_damage(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Killed while the checkpoint before the last two is removed: nothing is linked from it, and the next one removes it."""
    tree = Tree()
    saved(tmp_path, 4, tree)
    shutil.copytree(tmp_path / "00000003", tmp_path / "00000002")
    (tmp_path / "00000002" / checkpoint.STATE).unlink()
    with caplog.at_level(logging.WARNING):
        holds(tmp_path, tree(), 4)
    assert not caplog.text
    checkpoint.save(tmp_path, 5, tree())
    assert checkpoint.numbers(tmp_path) == [4, 5]
    holds(tmp_path, tree(), 5)


@pytest.mark.parametrize("hot", [False, True])
def test_the_disk_that_checkpoints_take_is_bounded(hot: bool, tmp_path: Path) -> None:
    tree = Tree(8)
    full_B = 2 * 8 * NUMBERS * 4
    for number in range(1, 40):
        tree.change(number, 0 if hot else number % 8)
        if not hot and number % 3 == 0:
            tree.change(number, (5 * number) % 8)
        checkpoint.save(tmp_path, number, tree())
        assert checkpoint.numbers(tmp_path) == [number - 1, number][number == 1 :]
        assert sum(inodes(tmp_path).values()) <= 2 * 2 * full_B
        assert all(len(files(at)) <= checkpoint.MOST_LINKS + 3 for at in tmp_path.glob("0*"))
    holds(tmp_path, tree(), 39)


def test_no_file_is_kept_for_the_little_that_stays_of_it(tmp_path: Path) -> None:
    changing, staying = [random(m) for m in range(12)], []
    for number in range(1, 13):
        staying.append(random(100 + number))
        for tensor in changing:
            tensor.add_(1.0)
        checkpoint.save(tmp_path, number, {"changing": changing, "staying": staying})
        assert sum(inodes(tmp_path).values()) <= 2 * 2 * 4 * NUMBERS * (len(changing) + len(staying))


def test_many_small_files_are_written_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "LEAST_B", 1)
    monkeypatch.setattr(checkpoint, "MOST_LINKS", 3)
    tree: dict[str, Any] = {}
    for number in range(1, 20):
        tree[str(number)] = torch.full((number,), float(number))
        checkpoint.save(tmp_path, number, tree)
        assert len(files(tmp_path / f"{number:08d}")) <= 6
    found = checkpoint.load(tmp_path)
    assert found is not None
    assert all(torch.equal(found[1][name], value) for name, value in tree.items())


@pytest.mark.parametrize("code", [errno.EPERM, errno.ENOTSUP, errno.EMLINK, errno.EXDEV])
def test_a_file_system_without_hard_links_gets_copies(code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "link", refuse)
    tree = Tree()
    saved(tmp_path, 5, tree)
    assert any(name.startswith("tensors-") for name in files(tmp_path / "00000005"))
    assert {one.st_nlink for one in files(tmp_path / "00000005").values()} == {1}
    holds(tmp_path, tree(), 5)
    assert damage(tmp_path / "00000004") is None


def test_a_full_disk_leaves_the_checkpoints_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    tree = Tree(3)
    saved(tmp_path, 4, tree, 3)
    before = {at.name: files(at) for at in tmp_path.iterdir()}
    monkeypatch.setattr(os, "link", full)
    monkeypatch.setattr(shutil, "copy", full)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save(tmp_path, 5, tree())
    after = {at.name: files(at) for at in tmp_path.iterdir()}
    assert {name: set(found) for name, found in after.items()} == {name: set(found) for name, found in before.items()}
    holds(tmp_path, tree(), 4)


def test_equal_tensors_are_on_disk_once_and_in_memory_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "ALIGNED_B", 1)  # or each would be moved anyway
    one = torch.zeros(NUMBERS)
    checkpoint.save(tmp_path, 1, {"a": one, "same": one, "equal": torch.zeros(NUMBERS), "short": torch.zeros(NUMBERS // 2)})
    assert (tmp_path / "00000001" / checkpoint.TENSORS).stat().st_size < 1.6 * 4 * NUMBERS
    found = checkpoint.load(tmp_path)
    assert found is not None
    tree = found[1]
    assert tree["a"] is tree["same"]
    tree["a"].add_(1.0)
    assert torch.equal(tree["equal"], torch.zeros(NUMBERS))
    assert torch.equal(tree["short"], torch.zeros(NUMBERS // 2))


def test_a_checkpoint_whose_tensors_have_no_addresses_is_read(tmp_path: Path) -> None:
    at = tmp_path / "00000001"
    at.mkdir()
    save_file({"0": random(0)}, at / checkpoint.TENSORS)
    (at / checkpoint.STATE).write_text(json.dumps({"format": FORMAT, "tree": {"!": "tensor", "name": "0"}}))
    write_sums(at, (checkpoint.STATE, checkpoint.TENSORS))
    found = checkpoint.load(tmp_path)
    assert found is not None
    assert torch.equal(found[1], random(0))
    for number in (2, 3):
        checkpoint.save(tmp_path, number, found[1])
    assert set(files(tmp_path / "00000003")) == checkpoint_files()


@pytest.mark.parametrize("stop_at", [3, 6, 9])
def test_a_run_goes_on_from_linked_files_to_the_same_bytes(
    stop_at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "LEAST_B", 1)
    monkeypatch.setattr(fedexperts.runs.run, "CHECKPOINT_EVERY_S", 0.0)
    given = small.scenario(train={"optimizer": "adamw"})
    whole = run(given, tmp_path / "whole").directory
    save, links = checkpoint.save, []

    def stop(folder: Path, number: int, tree: Any, last: bool = False) -> None:
        save(folder, number, tree, last)
        links.append(len(files(folder / f"{number:08d}")) - 3)
        if folder.name == "checkpoints" and number == stop_at:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", stop)
        with pytest.raises(KeyboardInterrupt):
            run(given, tmp_path / "stopped")
    assert any(links)
    stopped = run(given, tmp_path / "stopped", resume=True).directory
    for name in ("ledger.jsonl", "model/model.safetensors"):
        assert (stopped / name).read_bytes() == (whole / name).read_bytes()


@pytest.mark.parametrize(("takes_s", "expected"), [(0.1, 5), (0.2, 10), (30.0, 300)])
def test_what_takes_long_to_write_is_written_less_often(
    takes_s: float, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seconds pass with each contact; of those between two checkpoints at most a fiftieth is spent on one, up to 5 minutes."""
    clock, saved, long_s = [0.0], [], expected / 5

    def save(folder: Path, number: int, tree: Any, last: bool = False) -> None:
        if folder.name == "checkpoints":
            saved.append(clock[0])
            clock[0] += takes_s

    class Second:
        def monotonic(self) -> float:
            return clock[0]

    def contact(line: dict[str, Any]) -> None:
        clock[0] += long_s * (line["event"] == "contact")

    monkeypatch.setattr(fedexperts.runs.run, "time", Second())
    monkeypatch.setattr(checkpoint, "save", save)
    run(small.scenario(train={"cycles": 15, "local_steps": 1}), tmp_path / "run", listener=contact)
    apart = [b - a - takes_s for a, b in pairwise(saved)]
    assert 5 <= saved[0] < 5 + long_s
    assert apart
    assert all(expected - 1e-6 < seconds < expected + long_s + 1e-6 for seconds in apart)


def test_tensors_are_copied_only_where_they_must_be(tmp_path: Path) -> None:
    whole = random(0).view(500, 600)
    tree = {
        "whole": random(1),
        "turned": whole.t(),
        "half": whole[:250],
        "other": whole[250:],
        "column": whole[:, 3],
        "none": torch.zeros(0),
    }
    fresh = checkpoint._separate(dict(tree))
    assert [name for name in tree if fresh[name] is tree[name]] == ["whole", "none"]
    for number in (1, 2):
        checkpoint.save(tmp_path, number, tree)
    found = checkpoint.load(tmp_path)
    assert found is not None
    assert all(torch.equal(found[1][name], tensor) for name, tensor in tree.items())


def test_a_part_of_memory_is_no_whole_memory_on_disk(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, 1, {"few": random(0)[:10]})
    assert (tmp_path / "00000001" / checkpoint.TENSORS).stat().st_size < 1000


def test_the_last_state_needs_no_addresses(tmp_path: Path) -> None:
    tree = {"a": Piece("gate", 3, {"w": random(0)}), "b": torch.ones(3)}
    checkpoint.save(tmp_path, 1, {**tree, "same": tree["b"]}, last=True)
    found = checkpoint.load(tmp_path)
    assert found is not None
    assert torch.equal(found[1]["a"].tensors["w"], random(0))
    assert found[1]["same"] is found[1]["b"]
    assert "addresses" not in vars(tree["a"])
