"""What tasks and the rows of a head are called: kept beside a model, and held against one that is judged."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from ..data.classify import Classification
from ..errors import InputError, InputWarning
from ..moe.tasks import TASKS, NamedTask
from ..scenario import Tasks
from ..tables import TaskTable
from .samples import Datasets, reads_text

COLUMNS = {
    "classification": ("text", "text_pair", "max_length"),
    "multiple-choice": ("prompt", "options", "normalise", "max_length"),
    "causal-lm": ("text", "max_length"),
    "image": ("image",),
}
"""What of a task's table says how a sample is read."""


def named_tasks(scenario: Tasks, data: Datasets) -> dict[str, NamedTask]:
    """The task of each cluster; none of samples that are token numbers, which have no columns and no names."""
    found = {}
    for i, cluster in enumerate(scenario.cluster):
        task, objective = scenario.task_of(i), data.objectives[cluster.name]
        if task.kind != "image" and not reads_text(task):
            continue
        rows = range(objective.first, objective.first + objective.labels) if isinstance(objective, Classification) else ()
        labels = tuple(map(str, data.labels.get(cluster.name, ())))
        told = {name: getattr(task, name) for name in COLUMNS[task.kind]}
        label = None if task.kind == "causal-lm" else task.label_column
        found[cluster.name] = NamedTask(
            kind=task.kind, metric=objective.metric, rows=tuple(rows), labels=labels, label=label, **told
        )
    return found


def name_outputs(config: Any, scenario: Tasks, data: Datasets) -> None:
    """Let a model's config name the outputs where all clusters have one task, and its data or ``labels`` have names.

    A checkpoint that has the same names in another order is warned of (`InputWarning`): its head would answer wrongly at first.
    """
    tasks = list(named_tasks(scenario, data).values())
    if not tasks or any(task.rows != tasks[0].rows for task in tasks) or len(tasks[0].labels) != config.num_labels:
        return
    if all(map(_has_names, map(scenario.task_of, range(len(tasks))), data.labels.values())):
        before = [str(config.id2label.get(i)) for i in range(config.num_labels)]
        if before != list(tasks[0].labels) and sorted(before) == sorted(tasks[0].labels):
            warnings.warn(
                f"the model calls its outputs {', '.join(before[:8])}, and the data's labels come in another order "
                f"({_listed(tasks[0])}); give task.labels in the model's order, or its head begins with wrong answers",
                InputWarning,
                stacklevel=2,
            )
        config.id2label = dict(enumerate(tasks[0].labels))
        config.label2id = {name: i for i, name in enumerate(tasks[0].labels)}


def _has_names(task: TaskTable, labels: list[Any]) -> bool:
    """Numbers that are classes as they are name nothing; a checkpoint may have names for them."""
    return task.labels is not None or any(isinstance(label, str) for label in labels)


def check_named(kept: Mapping[str, NamedTask], scenario: Tasks, data: Datasets) -> None:
    """Refuse to judge a model by rows of its head that belong to another task, or to other labels.

    Raises:
        InputError: a cluster of the scenario is one of the model's, and its rows or labels are others.
    """
    for name, task in named_tasks(scenario, data).items():
        mine = kept.get(name)
        if mine is not None and mine.kind == task.kind and (mine.rows, mine.labels) != (task.rows, task.labels):
            raise InputError(
                f"cluster {name!r}: by this scenario rows {_range(task)} of the head are {_listed(task)}, but {TASKS} beside "
                f"the model says that rows {_range(mine)} are {_listed(mine)}; give all clusters of the model's run in their "
                "order, and task.labels where the data lack a label"
            )


def _range(task: NamedTask) -> str:
    return f"{task.rows[0]}…{task.rows[-1]}" if task.rows else "none"


def _listed(task: NamedTask) -> str:
    return ", ".join(task.labels[:8]) + (", …" if len(task.labels) > 8 else "") or task.metric
