"""``tasks.json`` beside a model: what each cluster's task is, and which rows of a classifier's head answer it by which names.

It is one table, from a cluster's name to its `NamedTask`. Plain transformers pays no heed to it: of a model's logits those at
``rows`` belong to the task, and ``labels`` are what they are called.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from ..errors import InputError
from ..reading import read_json, short

TASKS = "tasks.json"
SHOWN = 5
"""Labels of a task that a message lists."""


class NamedTask(BaseModel):
    """A cluster's task: keys of the scenario's ``[task]`` with their values, and of a classifier its rows and labels."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: str
    metric: str = "accuracy"
    rows: tuple[int, ...] = ()
    """Of the head; none of a language model."""
    labels: tuple[str, ...] = ()
    """Names of the rows; none of a score."""
    text: str | None = None
    text_pair: str | None = None
    image: str | None = None
    label: str | None = None
    prompt: str | None = None
    options: str | tuple[str, ...] | None = None
    normalise: str | None = None
    max_length: int | None = Field(default=None, ge=2)

    def answers(self) -> str:
        """In words, what it takes and gives."""
        asked = " and ".join(column for column in (self.text, self.text_pair) if column is not None)
        more = ", …" if len(self.labels) > SHOWN else ""
        return f"{asked or self.kind} → {', '.join(self.labels[:SHOWN]) + more if self.labels else self.metric}"


FILE = TypeAdapter(dict[str, NamedTask])


def write_tasks(folder: Path, tasks: Mapping[str, NamedTask]) -> None:
    """Write them into a model's folder; nothing where there are none."""
    if tasks:
        tables = {name: task.model_dump(mode="json", exclude_none=True) for name, task in tasks.items()}
        document = {name: {key: value for key, value in table.items() if value != []} for name, table in tables.items()}
        (folder / TASKS).write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def copy_tasks(source: Path, target: Path) -> None:
    """Copy the file, if there is one, from one folder to another."""
    if (source / TASKS).is_file():
        shutil.copyfile(source / TASKS, target / TASKS)


def read_tasks(folder: Path) -> dict[str, NamedTask]:
    """The tasks of a model by cluster; none where no file is.

    Raises:
        InputError: it is not what `write_tasks` writes, or rows and labels are not equally many.
    """
    path = folder / TASKS
    if not path.exists():
        return {}
    remedy = "export the run again, or remove the file"
    try:
        found = FILE.validate_python(read_json(path, "file"))
    except ValidationError as error:
        first = error.errors()[0]
        at = ".".join(map(str, first["loc"]))
        raise InputError(f"{path}: {at} = {short(first['input'])}: {first['msg'].lower()}; {remedy}") from error
    for name, task in found.items():
        if min(task.rows, default=0) < 0 or (task.labels and len(task.labels) != len(task.rows)):
            raise InputError(f"{path}: {name}: {len(task.labels)} labels for rows {short(list(task.rows))}; {remedy}")
    return found
