"""CPU seconds of a command from its start to its end, beside what it cannot be below: Python alone, and what it must import.

Each command runs in processes of its own, which take turns; user and system time of these count, so that other work on the
machine matters little. Files are read once before the clock starts.

Asserted: each command ends with 0 and prints something; none has loaded torch, for a model's size follows from its config.
Usage: python benchmarks/startup.py [--repeats N] [--toy]
"""

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BARE = """name = "bare"
[plan]
kind = "orbit"
start = 2026-01-01T00:00:00Z
days = 1.0
[satellite]
altitude_km = 600.0
inclination_deg = 53.0
[radio]
preset = "paper-range"
[[cluster]]
name = "lisbon"
latitude_deg = 38.7
longitude_deg = -9.1
"""


FLOORS = ("import numpy, pydantic", "import torch, transformers")


def rows(folder: Path) -> dict[str, list[str]]:
    """Programs by the name of their row; the first are floors."""
    (folder / "bare.toml").write_text(BARE)
    ours = ["-m", "fedexperts"]
    config = str(ROOT / "examples" / "llama3-8b-x3.json")
    return {
        "python alone": ["-c", "print(1)"],
        "import numpy, pydantic": ["-c", "import numpy, pydantic; print(1)"],
        "import torch, transformers": ["-c", "import torch, transformers.modeling_utils; print(1)"],
        "fedexperts --help": [*ours, "--help"],
        "plan, no model": [*ours, "plan", str(folder / "bare.toml"), "--json"],
        "plan, with a model": [*ours, "plan", str(ROOT / "examples" / "orbit.toml"), "--json"],
        "inspect": [*ours, "inspect", config, "--json"],
    }


def spent_s(words: list[str]) -> float:
    """CPU seconds of one process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, f"{' '.join(words)}: {done.stderr[-500:]}"
    assert done.stdout.strip(), f"{' '.join(words)} printed nothing"
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def loads_torch(words: list[str]) -> bool:
    """Whether Python's own list of imports has torch."""
    done = subprocess.run([sys.executable, "-X", "importtime", *words], capture_output=True, text=True)
    return any(line.endswith("| torch") for line in done.stderr.splitlines())


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--toy", action="store_true")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        programs = rows(Path(name))
        if args.toy:
            programs = {
                row: words for row, words in programs.items() if row in ("python alone", "fedexperts --help", "plan, no model")
            }
        found: dict[str, list[float]] = {row: [] for row in programs}
        for turn in range(1 if args.toy else args.repeats + 1):
            for row, words in programs.items():
                seconds = spent_s(words)
                if turn or args.toy:
                    found[row].append(seconds)
        for row in (row for row in programs if row not in ("python alone", *FLOORS)):
            assert not loads_torch(programs[row]), f"{row} loads torch"
    print(f"{'':28} CPU s, median (range) of {len(found['python alone'])}")
    for row, seconds in found.items():
        print(f"{row:28} {statistics.median(seconds):5.2f} ({min(seconds):.2f}–{max(seconds):.2f})")


if __name__ == "__main__":
    main()
