"""Processes of tests: real ones, with files, locks, streams and an exit code of their own, which a signal ends.

They are forked from a server that has done nothing but load torch, transformers and the package, which takes seconds.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

MIXTRAL = "transformers.models.mixtral.modeling_mixtral"
STEPS = "torch._dynamo"  # which the first step of an optimiser loads
FIGURES = ("matplotlib.figure", "matplotlib.ticker", "matplotlib.backends.backend_svg")
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    [
        "fedexperts.cli.main",
        "fedexperts.runs.run",
        "fedexperts.runs.comparison",
        "fedexperts.runs.answers",
        "fedexperts.peer.serve",
        MIXTRAL,
        STEPS,
        *FIGURES,
    ]
)


def started(work: Callable[..., object], *arguments: Any) -> BaseProcess:
    """A process that does ``work``, a function of a module, and ends."""
    process = CONTEXT.Process(target=_work, args=(work, arguments))
    process.start()
    return process


def exit_code(process: BaseProcess) -> int | None:
    """When it has ended: minus the signal that ended it, as subprocess has it."""
    process.join()
    return process.exitcode


def start_program(*words: object, folder: Path, out: Path, err: Path, columns: int = 200) -> BaseProcess:
    """``fedexperts`` with these words, in a folder and a terminal so wide; what it prints goes to two files."""
    return _in_folder("fedexperts", words, folder, out, err, columns)


def program(*words: object, folder: Path, columns: int = 200) -> subprocess.CompletedProcess[str]:
    """The same when it has ended."""
    return _ended("fedexperts", words, folder, columns)


def script(path: Path, *words: object, folder: Path) -> subprocess.CompletedProcess[str]:
    """A Python script with these words, run to its end in a folder."""
    return _ended(path, words, folder, 80)


def fork_instead_of_spawning(patch: pytest.MonkeyPatch) -> None:
    """The package's own processes, which it spawns, come from the server as well."""
    patch.setattr(multiprocessing, "get_context", lambda method=None: CONTEXT)


def run_until(scenario: Path, out: Path, resume: bool = False, number: int | None = None) -> None:
    """For a process of its own: a run with a checkpoint at every chance, which kills itself at its n-th ledger line."""
    import fedexperts.runs.run

    fedexperts.runs.run.CHECKPOINT_EVERY_S = 0.0
    seen = [0]

    def listener(line: dict[str, Any]) -> None:
        seen[0] += 1
        if seen[0] == number:
            os.kill(os.getpid(), signal.SIGKILL)

    fedexperts.runs.run.run(scenario, out, resume=resume, listener=listener)


def _work(work: Callable[..., object], arguments: tuple[Any, ...]) -> None:
    import torch

    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background jobs ignore
    work(*arguments)


def _in_folder(what: str | Path, words: tuple[object, ...], folder: Path, out: Path, err: Path, columns: int) -> BaseProcess:
    return started(_main, what, tuple(map(str, words)), folder, (out, err), columns, dict(os.environ))


def _ended(what: str | Path, words: tuple[object, ...], folder: Path, columns: int) -> subprocess.CompletedProcess[str]:
    with tempfile.TemporaryDirectory() as streams:
        out, err = Path(streams, "out"), Path(streams, "err")
        code = exit_code(_in_folder(what, words, folder, out, err, columns))
        assert code is not None
        return subprocess.CompletedProcess([what, *words], code, out.read_text(), err.read_text())


def _main(
    what: str | Path,
    words: tuple[str, ...],
    folder: Path,
    streams: tuple[Path, Path],
    columns: int,
    environment: dict[str, str],
) -> None:
    from fedexperts.cli import common
    from fedexperts.cli.main import main

    for path, number in zip(streams, (1, 2), strict=True):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115  # streams of the process
    sys.stderr = open(2, "w", encoding="utf-8", closefd=False, buffering=1)  # noqa: SIM115
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    warnings.resetwarnings()
    warnings.simplefilter("ignore", DeprecationWarning)
    common.console._width = common.output._width = columns
    sys.argv = [str(what), *words]
    if isinstance(what, Path):
        sys.path.insert(0, str((folder / what).parent))
        runpy.run_path(str(what), run_name="__main__")
    else:
        main()
