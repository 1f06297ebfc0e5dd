"""Warnings of data that work and may not be what was meant, before anything is trained on them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..data.files import files
from ..data.objective import Objective
from ..data.source import Samples, Splits
from ..errors import warn_input
from ..scenario import Tasks
from ..tables import TaskTable

NAMED = 5
"""Of many labels, those that a warning names."""


def warn_of_leaks(scenario: Tasks) -> None:
    """Warn where a cluster is judged by a file that some cluster trains on."""
    trained: dict[str | Path, str] = {}
    for cluster in scenario.cluster:
        for one in _sources(scenario, cluster.data):
            trained.setdefault(one, cluster.name)
    given = scenario.evaluation.validation
    for i, cluster in enumerate(scenario.cluster):
        own = set(_sources(scenario, cluster.data))
        judged = {"test": cluster.test, "validation": cluster.validation or (given if isinstance(given, str) else None)}
        for key, spec in judged.items():
            both = [one for one in (_sources(scenario, spec) if spec else ()) if one in trained]
            if both:
                name = cluster.name if both[0] in own else trained[both[0]]
                warn_input(
                    f"cluster[{i}].{key} = {spec!r}: cluster {name!r} trains on it as well (data), so that what is learnt by "
                    "heart counts as right; name other rows"
                )


def _sources(scenario: Tasks, spec: str) -> list[str | Path]:
    """Files, or what a spec that names none calls its data; nothing of data that come with test data of their own."""
    if spec.startswith("digits:"):
        return []
    return [spec] if spec.startswith("hub:") else [path.resolve() for path in files(spec, scenario.base)]


def warn_of_unseen(
    scenario: Tasks,
    splits: Mapping[str, Splits],
    objectives: Mapping[str, Objective],
    shared: Sequence[tuple[Samples, Objective]],
    labels: Mapping[str, Sequence[Any]],
) -> None:
    """Warn of classes in a cluster's test data that no training data of its task have; ``labels`` are their names."""
    tasks = [scenario.task_of(i) for i in range(len(scenario.cluster))]
    known: list[tuple[TaskTable, Objective, set[Any]]] = []  # of each task the labels that are learnt; most often there is one

    def learnt_of(task: TaskTable, objective: Objective) -> set[Any]:
        if found := next((labels for of, aim, labels in known if of == task and aim == objective), None):
            return found
        alike = [splits[other.name].train["labels"] for other, of in zip(scenario.cluster, tasks, strict=True) if of == task]
        alike += [samples["labels"] for samples, of in shared if of == objective]
        known.append((task, objective, {label for of in alike for label in of.tolist()}))
        return known[-1][2]

    for cluster, task in zip(scenario.cluster, tasks, strict=True):
        test = splits[cluster.name].test
        if not task.classifies or test is None or test["labels"].is_floating_point():
            continue
        learnt = learnt_of(task, objectives[cluster.name])
        strange = Counter(label for label in test["labels"].tolist() if label not in learnt)
        if not strange:
            continue
        names = labels.get(cluster.name) or ()
        told = [
            f"{names[label] if label < len(names) else label!r} ({rows} row{'s' * (rows > 1)})"
            for label, rows in sorted(strange.items())
        ]
        more = ", …" if len(told) > NAMED else ""
        warn_input(
            f"cluster {cluster.name!r}: test data have labels that no training data of this task have, so that no answer to "
            f"{strange.total()} of {len(test['labels'])} rows is learnt: {', '.join(told[:NAMED])}{more}; correct the "
            "labels, or train on such rows"
        )
