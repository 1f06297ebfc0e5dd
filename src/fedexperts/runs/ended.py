"""Reading run directories: the model of a run that has ended, its scenario, and the model that it began with.

What needs torch is imported where it is used: whether a run has ended is known without, by its checksums.
"""

from __future__ import annotations

from pathlib import Path

from ..errors import InputError
from ..ledger import tail
from ..reading import parse_json, read_text
from ..scenario import Scenario, read_toml
from .header import format_of
from .sums import SUMS, damage

ADAPTERS = "adapters.safetensors"
"""In a run directory: the final adapters and whatever else was trained, as ``<part>/<name>``."""
FOLDER = "scenario_folder"
"""Key of ``runtime.jsonl``: the folder that the scenario's relative paths start from."""


WHOLE = ("ledger.jsonl", "model/config.json", "scenario.toml")
"""Files whose checksums a run that has ended carries, among others."""


def is_run(directory: Path) -> bool:
    """Whether a folder is a run directory, ended or not."""
    return (directory / "scenario.toml").is_file() and not (directory / "config.json").is_file()


def check_ended(directory: Path) -> None:
    """Refuse what is no run directory, a run that has not ended or is no longer as it was written, and one of a newer format.

    Raises:
        InputError: with the remedy.
    """
    if not is_run(directory):
        raise InputError(f"RUN {directory}: holds no scenario.toml; give a run directory, the --out of fedexperts run")
    format_of(directory)
    if not (directory / "model").is_dir():
        raise InputError(
            f"{directory}: holds a run that has not ended (no model/); end it with fedexperts run … --resume first"
        )
    if (directory / SUMS).exists() and (why := damage(directory, WHOLE)):
        raise InputError(f"{directory}: {why}; mend the run with fedexperts run … --resume, or delete {SUMS} if you changed it")


def what_lacks(directory: Path) -> str | None:
    """What a run lacks of having ended, be it that a file was damaged since; None if it lacks nothing.

    A run without checksums, killed before it wrote them or written by an earlier version, is looked at more lightly: a model
    that opens, and a ledger that says the end.
    """
    if not (directory / "model").is_dir():
        return "model/"
    if (directory / SUMS).exists():
        return damage(directory, WHOLE)
    from ..moe.checkpoint import Checkpoint

    try:
        Checkpoint(directory / "model")
        return None if tail(directory / "ledger.jsonl", "end") else "the end of ledger.jsonl"
    except InputError as error:
        return str(error)


def model_folder(name: str) -> Path:
    """The checkpoint folder that MODEL stands for: a folder, the ``model/`` of a run that has ended, or a hub name.

    Raises:
        InputError: there is no such folder or name, or the run has not ended.
    """
    if is_run(Path(name)):
        check_ended(Path(name))
        return (Path(name) / "model").resolve()
    from ..moe.checkpoint import resolve

    return resolve(name, Path())


def scenario_of(directory: Path) -> Scenario:
    """The resolved scenario of a run; its paths start from the folder that they started from.

    Raises:
        InputError: it cannot be read.
    """
    path = directory / "runtime.jsonl"
    folder = "."
    for number, text in enumerate(read_text(path, "file").split("\n")[:-1], start=1):
        where = f"{path}, line {number}"
        line = parse_json(text, where)
        if not isinstance(line, dict) or not isinstance(line.get(FOLDER, ""), str) or "\0" in line.get(FOLDER, ""):
            raise InputError(f"{where}: is no line of a run; delete it")
        folder = line.get(FOLDER, folder)
    try:
        document = read_toml(directory / "scenario.toml")
    except InputError:
        raise
    except (ValueError, RecursionError) as error:  # thousands of digits or brackets
        raise InputError(f"{directory / 'scenario.toml'}: is not TOML ({error})") from error
    return Scenario.parse(document, Path(folder))


def initial_folder(directory: Path, scenario: Scenario) -> Path | None:
    """The checkpoint that the run started from, else its base under the adapters; None where neither was kept.

    Raises:
        InputError: the checkpoint is no longer where it was.
    """
    if scenario.model.path is not None:
        from ..moe.checkpoint import resolve

        return resolve(scenario.model.path, scenario.base)
    return directory / "base" if (directory / "base").is_dir() else None
