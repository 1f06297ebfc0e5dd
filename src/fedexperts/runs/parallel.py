"""Several runs at once, each in a process of its own with one thread, so that results do not depend on their number."""

from __future__ import annotations

import multiprocessing
import os
import re
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import FIRST_EXCEPTION, Executor, Future, ProcessPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import Any

from ..errors import Diverged, InputError, hear_warnings, warn_input
from ..ledger import summary, tail
from ..scenario import Scenario
from .child import follow_parent
from .directory import check_directory, has_ended
from .lock import claimed
from .rates import shown

POLL_S = 1.0
"""Between looks at how far the runs are: each reads their whole ledgers."""
Progress = Callable[[str, int, float | None], None]
"""Called with a run's name, its finished cycles and its last accuracy."""


@dataclass(frozen=True)
class Workers:
    """Where runs are made: in so many processes of this machine, as many as it has processors by default, or on a Ray cluster.

    ``ray`` is the cluster's address; ``"local"`` starts one on this machine.
    """

    processes: int | None = None
    ray: str | None = None


HERE = Workers()


def run_many(
    jobs: Mapping[str, Scenario],
    out: Path,
    resume: bool = False,
    progress: Progress | None = None,
    workers: Workers = HERE,
    diverging: bool = False,
) -> dict[str, Any]:
    """Run every scenario into ``out/<folder of its name>``; return the summaries by name, in the order of the jobs.

    Runs that have ended cost nothing: their summaries are read, and no process is started for them. When one fails, or the
    caller is interrupted, the others are ended at once: ``resume`` goes on from their checkpoints. With ``diverging`` a run
    that diverges does not fail: its summary is ``{"diverged": why}``. What the runs warn of (`InputWarning`) is warned of here,
    the same thing once.

    Raises:
        InputError: a scenario cannot work, a folder holds another run, or one with other rates or cycles, another process is
            at work in ``out``, or a Ray cluster cannot be used.
        RunError: the machine refuses, as a full disk does.
        Diverged: training has left the finite numbers, with the run's folder.
    """
    with claimed(out):
        for name, job in jobs.items():
            at = out / folder(name)
            if before := check_directory(at, job, job.label, _begun(at, resume)):
                raise InputError(
                    f"{at}: was begun with {shown(before)}; runs that are compared keep their rates and cycles: go on with "
                    "these"
                )
        ended = [name for name in jobs if resume and has_ended(out / folder(name))]
        left = {name: job for name, job in jobs.items() if name not in ended}
        _report(ended, out, progress)
        found = _run_all(left, out, resume, progress, workers, diverging) if left else {}
        return {name: found[name] if name in left else summary(out / folder(name) / "ledger.jsonl") for name in jobs}


def _run_all(
    jobs: Mapping[str, Scenario],
    out: Path,
    resume: bool,
    progress: Progress | None,
    workers: Workers = HERE,
    diverging: bool = False,
) -> dict[str, Any]:
    context = multiprocessing.get_context("spawn")  # a forked torch may hang
    others = set(multiprocessing.active_children())
    told: SimpleQueue[str] = context.SimpleQueue()
    warned: set[str] = set()
    pool: Executor
    if workers.ray is not None:
        from .on_ray import RayPool  # an extra, and slow to load

        pool = RayPool(workers.ray, out, told.put)
    else:
        count = min(len(jobs), workers.processes or os.cpu_count() or 1)
        pool = ProcessPoolExecutor(count, context, _begin, (told,))

    def report(names: list[str]) -> None:
        _pass_on(told, warned)
        _report(names, out, progress)

    try:
        futures = {name: pool.submit(_run, job, out / folder(name), resume, diverging) for name, job in jobs.items()}
        results = _results(futures, report)
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in set(multiprocessing.active_children()) - others:
            process.kill()
        raise
    pool.shutdown()
    return results


def _results(futures: Mapping[str, Future[Any]], report: Callable[[list[str]], None]) -> dict[str, Any]:
    """What the jobs give; the first error of any as soon as there is one. ``report`` is told which of them have moved."""
    left = set(futures.values())
    while left:
        done, left = wait(left, timeout=POLL_S, return_when=FIRST_EXCEPTION)
        for future in done:
            future.result()
        report([name for name, future in futures.items() if future in done or future.running()])
    return {name: future.result() for name, future in futures.items()}


def _begin(told: SimpleQueue[str]) -> None:
    """In a worker: its warnings of input are the parent's to show."""
    follow_parent()
    hear_warnings(told.put)


def _pass_on(told: SimpleQueue[str], warned: set[str]) -> None:
    """Warn of what the workers have told, the same thing once."""
    while not told.empty():
        if (message := told.get()) not in warned:
            warned.add(message)
            warn_input(message)


def folder(name: str) -> str:
    """A run's folder: its name in plain characters; the sign of a number is a word, as all else that is not plain is a dash."""
    plain = re.sub(r"(?<=[=\[ ,])-(?=[\d.])", "minus-", name.replace("γ ≈ 1", "gamma-1").lower())
    return re.sub(r"[^a-z0-9.]+", "-", plain).strip("-")


def _begun(directory: Path, resume: bool) -> bool:
    """Whether there is a run to go on with."""
    return resume and (directory / "scenario.toml").is_file()


def _run(scenario: Scenario, directory: Path, resume: bool, diverging: bool) -> dict[str, Any]:
    from .run import run  # here alone: whoever collects runs that have ended needs no torch

    try:
        return run(scenario, directory, resume=_begun(directory, resume)).summary
    except Diverged as error:
        if diverging:
            return {"diverged": str(error)}
        raise Diverged(f"{directory}: {error}") from error


def _report(jobs: Iterable[str], out: Path, progress: Progress | None) -> None:
    for name in jobs if progress else ():
        last = None
        with suppress(InputError):  # a damaged ledger is the run's business, which begins it afresh or refuses it
            last = tail(out / folder(name) / "ledger.jsonl", "evaluate")
        if last and progress:
            progress(name, last["cycle"], last["accuracy"])
