"""Several runs at once, each in a process of its own with one thread, so that results do not depend on their number."""

from __future__ import annotations

import multiprocessing
import os
import re
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from ..ledger import tail
from ..scenario import Scenario
from .run import run

POLL_S = 1.0
"""Between looks at how far the runs are: each reads their whole ledgers."""
Progress = Callable[[str, int, float | None], None]
"""Called with a run's name, its finished cycles and its last accuracy."""


def run_many(jobs: Mapping[str, Scenario], out: Path, resume: bool = False, progress: Progress | None = None) -> dict[str, Any]:
    """Run every scenario into ``out/<folder of its name>``; return the summaries by name, in the order of the jobs."""
    workers = min(len(jobs), os.cpu_count() or 1)
    context = multiprocessing.get_context("spawn")  # a forked torch may hang
    with ProcessPoolExecutor(workers, context) as pool:
        futures = {name: pool.submit(_run, job, out / folder(name), resume) for name, job in jobs.items()}
        while progress and not all(future.done() for future in futures.values()):
            _report([name for name, future in futures.items() if future.running()], out, progress)
            time.sleep(POLL_S)
        results = {name: future.result() for name, future in futures.items()}
    if progress:
        _report(jobs, out, progress)
    return results


def folder(name: str) -> str:
    """A run's folder: its name in plain characters."""
    plain = name.replace("γ ≈ 1", "gamma-1").lower()
    return re.sub(r"[^a-z0-9.]+", "-", plain).strip("-")


def _run(scenario: Scenario, directory: Path, resume: bool) -> dict[str, Any]:
    return run(scenario, directory, resume=resume and (directory / "scenario.toml").is_file()).summary


def _report(jobs: Iterable[str], out: Path, progress: Progress) -> None:
    for name in jobs:
        last = tail(out / folder(name) / "ledger.jsonl", "evaluate")
        if last:
            progress(name, last["cycle"], last["accuracy"])
