"""Events per second into a ledger, and what a checkpoint costs by the share of it that has changed.

    python benchmarks/ledger.py [--events 100000] [--size-MB 500] [--repeats 5] [--toy]

Events are those of a run of EMS-FL, checked against the table, hashed and written to a file. Beside them: the same lines as
JSON alone, and their bytes written at once.

Checkpoints are of a tree as a run has it: pieces of the global model, what devices have trained of them and Adam's two
moments, in 60 parts. Between two checkpoints a share of the parts becomes another, each time the next ones in turn or the
same ones: pieces are new objects, moments change in place. Each way writes as often: ours; ours with nothing to link to,
which writes all; and the disk: as many bytes, written and synchronised. The first checkpoints of each way do not count. Bytes
are those of files that no checkpoint had before.

Asserted: what is read back is what was saved; with nothing changed no tensor is written; two are kept, they share no file,
and all on disk is at most twice all tensors for each of the two.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from fedexperts.ledger import Ledger
from fedexperts.moe.parts import Piece
from fedexperts.runs import checkpoint

PARTS = 60
SHARES = ((1.0, True), (0.5, True), (0.25, True), (0.1, True), (0.1, False), (0.0, True))
"""Of the parts that change, and whether these are others each time."""
FIRST = 3
"""Checkpoints before those that count: from then on there is something to link to."""
Fact = tuple[str, dict[str, Any]]


def a_contact(number: int) -> list[Fact]:
    """Lines as EMS-FL writes them in one contact."""
    cluster, experts = f"cluster-{number % 4}", ["expert:0", "expert:1"]
    digest, versions = f"{number:016x}", [number, number + 1]
    aggregate = {"cluster": cluster, "version": number, "behind": 0, "digest": digest}
    return [
        ("contact", {"cluster": cluster, "satellite": "sat-1", "until_s": number + 300.0}),
        ("collect", {"cluster": cluster, "parts": experts, "uplink_B": 123456, "rounds": 7}),
        *(("aggregate", {**aggregate, "part": part}) for part in experts),
        ("send", {"cluster": cluster, "parts": experts, "downlink_B": 654321, "versions": versions}),
        (
            "train",
            {"cluster": cluster, "phase": "connected", "parts": experts, "rounds": 3, "steps": 24, "loss": 1.234567},
        ),
    ]


def events(count: int, folder: Path) -> None:
    """Rates of three ways to write so many lines."""
    lines = [fact for number in range(count // 6 + 1) for fact in a_contact(number)][:count]
    path = folder / "ledger.jsonl"

    def ours() -> None:
        ledger = Ledger(path)
        for at, (event, facts) in enumerate(lines):
            ledger.write(event, float(at), **facts)
        ledger.position()
        ledger.close()

    def as_json() -> None:
        for at, (event, facts) in enumerate(lines):
            json.dumps({"t_s": float(at), "event": event, **facts}, separators=(",", ":"), allow_nan=False)

    def at_once() -> None:
        with (folder / "copy").open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())

    ours()
    data = path.read_bytes()
    assert data.count(b"\n") == count
    for name, work in (("events, ours", ours), ("events, JSON alone", as_json), ("events, their bytes at once", at_once)):
        took_s = spent_s(work)
        print(f"{name:34}{count / took_s:12,.0f} a second, {len(data) / took_s / 1e6:8.1f} MB/s", flush=True)


def spent_s(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


class World:
    """A tree with so many numbers in each of `PARTS` parts: of the model, trained by a device, and its two moments."""

    def __init__(self, numbers: int):
        self.generator, self.numbers, self.changes = torch.Generator().manual_seed(0), numbers, 0
        self.model = {f"expert:{m}": Piece(f"expert:{m}", 0, {"w": self.random()}) for m in range(PARTS)}
        self.devices = {part: {"trained": self.random(), "m": self.random(), "v": self.random()} for part in self.model}

    def random(self) -> torch.Tensor:
        return torch.randn(self.numbers, generator=self.generator)

    def change(self, share: float, turn: bool) -> None:
        """Parts are trained: the next ones, or the first."""
        count = round(share * PARTS)
        for at in range(self.changes if turn else 0, (self.changes if turn else 0) + count):
            part = f"expert:{at % PARTS}"
            self.model[part] = Piece(part, self.model[part].version + 1, {"w": self.random()})
            for name in ("m", "v"):
                self.devices[part][name].add_(1.0)
            self.devices[part]["trained"] = self.random()
        self.changes += count

    def tree(self) -> Any:
        return {"model": dict(self.model), "devices": self.devices}


def inodes(at: Path) -> dict[int, int]:
    """Bytes of a checkpoint's files."""
    return {path.stat().st_ino: path.stat().st_size for path in at.iterdir()} if at.is_dir() else {}


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, Piece):
        return one.version == other.version and equal(one.tensors, other.tensors)
    return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)


def saved(
    world: World, share: float, folder: Path, repeats: int, turn: bool = True, all_of_it: bool = False
) -> tuple[float, float, float]:
    """Median seconds and bytes of a checkpoint, and the most that all checkpoints took on disk."""
    took_s, wrote_B, most_B = [], [], 0
    shutil.rmtree(folder, ignore_errors=True)
    for number in range(1, FIRST + repeats + 1):
        world.change(share, turn)
        before = {ino for at in folder.glob("0*") for ino in inodes(at)}
        at = number * 3 if all_of_it else number  # a number whose predecessor but one was never there
        seconds = spent_s(lambda at=at: checkpoint.save(folder, at, world.tree()))
        new = sum(size_B for ino, size_B in inodes(folder / f"{at:08d}").items() if ino not in before)
        most_B = max(most_B, sum({ino: size_B for one in folder.glob("0*") for ino, size_B in inodes(one).items()}.values()))
        if number > FIRST:
            took_s.append(seconds)
            wrote_B.append(new)
    kept = checkpoint.numbers(folder)
    assert len(kept) <= 2
    shared = set.intersection(*(set(inodes(folder / f"{n:08d}")) for n in kept)) if len(kept) == 2 else set()
    assert not shared, "one file of both"
    found = checkpoint.load(folder)
    assert found is not None
    assert equal(found[1], world.tree()), "what is read back is another tree"
    return statistics.median(took_s), statistics.median(wrote_B), most_B


def disk_s(folder: Path, size_B: int, repeats: int) -> float:
    """Median seconds to write so many bytes to a new file, and to know that they are there."""
    data, found = os.urandom(2**20) * (size_B // 2**20 + 1), []

    def write() -> None:
        with (folder / "disk").open("wb") as file:
            file.write(memoryview(data)[:size_B])
            file.flush()
            os.fsync(file.fileno())

    for _ in range(repeats):
        (folder / "disk").unlink(missing_ok=True)
        found.append(spent_s(write))
    return statistics.median(found)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=100_000)
    parser.add_argument("--size-MB", type=int, default=500)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--toy", action="store_true", help="smallest size; the figures mean nothing")
    args = parser.parse_args(argv)
    if args.toy:
        args.events, args.size_MB, args.repeats = 120, 4, 2
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as name:  # not in memory, as a temporary folder may be
        folder = Path(name)
        events(args.events, folder)
        world = World(args.size_MB * 10**6 // (4 * 4 * PARTS))
        size_B = 4 * PARTS * 4 * world.numbers
        took_s = disk_s(folder, size_B, args.repeats)
        print(
            f"{f'disk, {size_B / 1e6:.0f} MB written and synced':34}{took_s:8.2f} s {size_B / took_s / 1e6:8.0f} MB/s",
            flush=True,
        )
        print(f"{'checkpoint, changed':34}{'s':>8}{'MB written':>12}{'of a full one, s':>18}{'all on disk, × it':>20}")
        full_s, full_B, _ = saved(world, 1.0, folder / "full", args.repeats, all_of_it=True)
        print(f"{'all written':34}{full_s:8.2f}{full_B / 1e6:12.1f}{1.0:18.2f}", flush=True)
        for share, turn in SHARES:
            seconds, wrote_B, most_B = saved(world, share, folder / "ours", args.repeats, turn=turn)
            head = f"{100 * share:.0f} %, {'in turn' if turn else 'the same'}"
            times = f"{seconds / full_s:18.2f}{most_B / size_B:20.2f}"
            print(f"{head:34}{seconds:8.2f}{wrote_B / 1e6:12.1f}{times}", flush=True)
            assert share or wrote_B < size_B / 20, f"{wrote_B:,.0f} B written, and nothing had changed"
            assert most_B < 4.1 * size_B


if __name__ == "__main__":
    main()
