"""Fuzz every reader of the product, longer than the tests do: ``make fuzz``, or ``python tests/fuzz.py --help``.

A reader reads a file, or refuses it with `InputError`; nothing else, within 20 s and 2 GB. Each mutation is made from seed,
reader and number alone, so that one that fails can be read again: ``--seed S --reader NAME --only N``.
"""

from __future__ import annotations

import argparse
import gc
import logging
import multiprocessing
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1", "COLUMNS": "80"}

import torch
from transformers.utils import logging as transformers_logging

from fedexperts.errors import InputError, InputWarning
from fedexperts.moe import config
from mutate import Reader, mutated
from readers import READERS

LONGEST_S, MOST_B = 20.0, 2 * 10**9
PATIENCE = 4
"""A machine that is that slow is taken for one that hangs."""
KILL_B = 6 * 10**9
"""From here on the machine is in danger: the reader is stopped."""

SHOWN = 20
"""Failures that are printed in full."""


@dataclass
class Counts:
    """Of one reader."""

    mutations: int = 0
    read: int = 0
    refused: int = 0
    tracebacks: int = 0
    slow: int = 0
    large: int = 0
    peak_B: int = 0
    wall_s: float = 0.0
    failures: list[str] = field(default_factory=list)

    @property
    def wrong(self) -> int:
        """Mutations that broke a bound."""
        return self.tracebacks + self.slow + self.large


def case(reader: Reader, valid: bytes, seed: int, number: int) -> tuple[bytes, str]:
    """The mutation of a number."""
    return mutated(valid, reader.form, Random(f"{seed}/{reader.name}/{number}"))


def child(reader: Reader, numbers: range, seed: int, folder: str, out: Connection) -> None:
    """Read one mutation after another; say before each which, and after it what came of it."""
    for standard in (1, 2):  # libraries that are not Python's write there, too
        os.dup2(os.open(os.devnull, os.O_WRONLY), standard)
    logging.disable()
    transformers_logging.set_verbosity(logging.CRITICAL)
    torch.set_num_threads(1)
    config.machine_B = lambda: 10**9  # what a model may take here
    path = reader.make(Path(folder))
    valid = path.read_bytes()
    with warnings.catch_warnings(action="error"):
        warnings.simplefilter("ignore", InputWarning)
        try:
            reader.read(path)
        except BaseException:
            out.send(("wrong", traceback.format_exc()))
            return
        out.send(("begun", ""))
        gc.freeze()
        for number in numbers:
            gc.collect()  # models hold themselves; what one mutation leaves is not the next one's
            path.write_bytes(case(reader, valid, seed, number)[0])
            peak_B(afresh=True)
            try:
                reader.read(path)
                what, why = "read", ""
            except InputError:
                what, why = "refused", ""
            except BaseException:
                what, why = "traceback", traceback.format_exc()
            out.send((what, why, peak_B()))


def peak_B(afresh: bool = False) -> int:
    """The most memory that this process has had, since it was asked to begin ``afresh`` where the system can tell."""
    try:
        if afresh:
            Path("/proc/self/clear_refs").write_text("5")
        status = Path("/proc/self/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024
    except (OSError, IndexError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class Fuzzing:
    """One reader under way, in a process that is replaced when it is stopped."""

    def __init__(self, reader: Reader, numbers: range, seed: int):
        self.reader, self.numbers, self.seed, self.counts = reader, numbers, seed, Counts()
        self.began_s = time.monotonic()
        self.folder = tempfile.TemporaryDirectory(prefix="fuzz")
        self.start()

    def start(self) -> None:
        """A process for the mutations that are left."""
        folder = tempfile.mkdtemp(dir=self.folder.name)
        self.pipe, theirs = multiprocessing.Pipe(duplex=False)
        arguments = (self.reader, self.numbers, self.seed, folder, theirs)
        self.process = multiprocessing.get_context("fork").Process(target=child, args=arguments, daemon=True)
        self.process.start()
        theirs.close()
        self.since_s, self.busy_s, self.begun = time.monotonic(), 0.0, False

    def step(self) -> bool:
        """Take what the process says; whether it is at work still."""
        try:
            while self.pipe.poll():
                self.take(*self.pipe.recv())
        except EOFError:
            self.process.join()
            if not self.numbers:
                return self.end()
            if not self.begun:
                raise SystemExit(f"{self.reader.name}: its process cannot begin") from None
            self.fail("tracebacks", f"the process ended with {self.process.exitcode}")
            self.start()
            return True
        if self.begun and self.stuck():
            self.stop("slow", f"takes more than {LONGEST_S:g} s")
        elif (size_B := resident_B(self.process.pid)) > KILL_B:
            self.stop("large", f"takes more than {size_B / 1e9:.1f} GB")
        return True

    def stuck(self) -> bool:
        """Whether a mutation takes too long: by the processor's time where other work is on the machine, or long for any."""
        waited_s = time.monotonic() - self.since_s
        worked_s = busy_s(self.process.pid, waited_s) - self.busy_s
        return waited_s > LONGEST_S and (worked_s > LONGEST_S or waited_s > PATIENCE * LONGEST_S)

    def take(self, what: str, why: str, peak_B: int = 0) -> None:
        """What came of a mutation."""
        self.since_s, self.busy_s = time.monotonic(), busy_s(self.process.pid, 0.0)
        if what == "wrong":
            raise SystemExit(f"{self.reader.name}: its valid file is not read\n{why}")
        if what == "begun":
            self.begun = True
            return
        self.counts.peak_B = max(self.counts.peak_B, peak_B)
        if what == "traceback":
            self.fail("tracebacks", why)
        elif peak_B > MOST_B:
            self.stop("large", f"takes {peak_B / 1e9:.1f} GB")
        else:
            self.count(what)

    def count(self, what: str) -> None:
        """One more."""
        self.counts.mutations += 1
        setattr(self.counts, what, getattr(self.counts, what) + 1)
        self.numbers = self.numbers[1:]

    def fail(self, what: str, why: str) -> None:
        """One more that is wrong, and how to see it again."""
        number = self.numbers[0]
        made = Path(tempfile.mkdtemp(dir=self.folder.name))
        how = case(self.reader, self.reader.make(made).read_bytes(), self.seed, number)[1]
        self.counts.failures.append(
            f"{self.reader.name}: {why.strip()}\n  --seed {self.seed} --reader {self.reader.name!r} --only {number}  ({how})"
        )
        self.count(what)

    def stop(self, what: str, why: str) -> None:
        """End a process that breaks a bound, and go on behind the mutation that it was at."""
        with suppress(ProcessLookupError):  # it may have ended by itself
            os.kill(self.process.pid or 0, signal.SIGKILL)
        self.process.join()
        self.fail(what, why)
        if self.numbers:
            self.start()
        else:
            self.pipe, theirs = multiprocessing.Pipe(duplex=False)
            theirs.close()

    def end(self) -> bool:
        """Nothing is left."""
        self.counts.wall_s = time.monotonic() - self.began_s
        self.folder.cleanup()
        return False


def resident_B(pid: int | None) -> int:
    """Memory of a process."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()
    except (OSError, IndexError):
        return 0


def busy_s(pid: int | None, otherwise_s: float) -> float:
    """Processor seconds of a process so far, where the system can tell."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    except (OSError, IndexError):
        return otherwise_s


def fuzz(readers: list[Reader], count: int, seed: int, only: int | None = None, processes: int = 2) -> dict[str, Counts]:
    """Fuzz readers, each in a process of its own."""
    waiting, running, done = list(readers), [], {}
    while waiting or running:
        while waiting and len(running) < processes:
            reader = waiting.pop(0)
            numbers = range(max(1, round(count * reader.share))) if only is None else range(only, only + 1)
            running.append(Fuzzing(reader, numbers, seed))
        for one in list(running):
            if not one.step():
                running.remove(one)
                done[one.reader.name] = one.counts
                print(row(one.reader.name, one.counts), flush=True)
        time.sleep(0.01)
    return done


COLUMNS = (
    ("mutations", 9),
    ("read", 7),
    ("refused", 8),
    ("tracebacks", 10),
    ("> 20 s", 7),
    ("> 2 GB", 7),
    ("peak MB", 8),
    ("s", 6),
)
HEAD = f"{'reader':30}" + "".join(f" {name:>{width}}" for name, width in COLUMNS)


def row(name: str, c: Counts) -> str:
    """A line of the table."""
    return (
        f"{name:30} {c.mutations:9,} {c.read:7,} {c.refused:8,} {c.tracebacks:10,} {c.slow:7,} {c.large:7,} "
        f"{c.peak_B / 1e6:8,.0f} {c.wall_s:6.1f}"
    )


def main(arguments: list[str] | None = None) -> int:
    """The exit code: 1 if a bound was broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000, help="mutations of a reader; slow readers get a share of it")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--reader", action="append", help="one reader, or all whose names begin so; may be repeated")
    parser.add_argument("--only", type=int, help="the mutation of this number alone")
    parser.add_argument("--processes", type=int, default=2)
    given = parser.parse_args(arguments)
    chosen = [r for r in READERS.values() if not given.reader or any(r.name.startswith(name) for name in given.reader)]
    if not chosen:
        parser.error(f"--reader {given.reader[0]}: no such reader; there are {', '.join(READERS)}")
    print(HEAD)
    done = fuzz(chosen, given.count, given.seed, given.only, given.processes)
    total = Counts(peak_B=max(c.peak_B for c in done.values()))
    for name in ("mutations", "read", "refused", "tracebacks", "slow", "large", "wall_s"):
        setattr(total, name, sum(getattr(c, name) for c in done.values()))
    print(row("all", total))
    failures: list[Any] = [failure for c in done.values() for failure in c.failures]
    for failure in failures[:SHOWN]:
        print(f"\n{failure}")
    if len(failures) > SHOWN:
        print(f"\nand {len(failures) - SHOWN} more")
    return 1 if total.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
