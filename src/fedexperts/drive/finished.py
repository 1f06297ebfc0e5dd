"""Reading run directories: the model of a run that has ended, its scenario, and the model that it began with."""

from __future__ import annotations

import json
from pathlib import Path

from ..errors import InputError
from ..moe.checkpoint import resolve
from ..scenario import Scenario, read_toml

FOLDER = "scenario_folder"
"""Key of ``runtime.jsonl``: the folder that the scenario's relative paths start from."""


def is_run(directory: Path) -> bool:
    """Whether a folder is a run directory, ended or not."""
    return (directory / "scenario.toml").is_file() and not (directory / "config.json").is_file()


def check_ended(directory: Path) -> None:
    """Refuse what is no run directory, and a run that has not ended.

    Raises:
        InputError: with the remedy.
    """
    if not is_run(directory):
        raise InputError(f"RUN {directory}: holds no scenario.toml; give a run directory, the --out of fedexperts run")
    if not (directory / "model").is_dir():
        raise InputError(
            f"{directory}: holds a run that has not ended (no model/); end it with fedexperts run … --resume first"
        )


def model_folder(name: str) -> Path:
    """The checkpoint folder that MODEL stands for: a folder, the ``model/`` of a run that has ended, or a hub name.

    Raises:
        InputError: there is no such folder or name, or the run has not ended.
    """
    if is_run(Path(name)):
        check_ended(Path(name))
        return (Path(name) / "model").resolve()
    return resolve(name, Path())


def scenario_of(directory: Path) -> Scenario:
    """The resolved scenario of a run; its paths start from the folder that they started from.

    Raises:
        InputError: it cannot be read.
    """
    lines = map(json.loads, (directory / "runtime.jsonl").read_text().splitlines())
    folders = [line[FOLDER] for line in lines if FOLDER in line]
    return Scenario.parse(read_toml(directory / "scenario.toml"), Path(folders[-1] if folders else "."))


def initial_folder(directory: Path, scenario: Scenario) -> Path | None:
    """The checkpoint that the run started from, else its base under the adapters; None where neither was kept.

    Raises:
        InputError: the checkpoint is no longer where it was.
    """
    if scenario.model.path is not None:
        return resolve(scenario.model.path, scenario.base)
    return directory / "base" if (directory / "base").is_dir() else None
