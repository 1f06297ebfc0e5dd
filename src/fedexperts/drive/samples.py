"""From a scenario's tasks and data to samples and objectives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..data import choice, classify, language
from ..data.choice import Columns, MultipleChoice
from ..data.classify import Classification
from ..data.language import CausalLM
from ..data.metrics import OF_SCORES
from ..data.objective import Objective
from ..data.rows import columns, label_index, numbers, read_rows
from ..data.source import Samples, Splits, first, load
from ..errors import InputError
from ..moe.checkpoint import resolve
from ..moe.load import load_tokenizer
from ..scenario import Task, Tasks

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Datasets:
    """What the clusters train on and are judged by.

    Attributes:
        objectives: of each cluster.
        splits: of each cluster; every test set is there.
        shared: samples and objective of each entry of ``warmup.data``.
        outputs: what the data need of a classifier's head; None where samples are token numbers and the model decides.
    """

    objectives: dict[str, Objective]
    splits: dict[str, Splits]
    shared: list[tuple[Samples, Objective]]
    outputs: int | None


def datasets(scenario: Tasks) -> Datasets:
    """Read, check and tokenise all data of a scenario; the model itself is not needed.

    Raises:
        InputError: with the file, row, field, value and remedy.
    """
    tasks = [scenario.task_of(i) for i in range(len(scenario.cluster))]
    if not reads_text(scenario.task) and not any(map(reads_text, tasks)):
        return _numbered(scenario)
    if blind := [scenario.cluster[i].name for i, task in enumerate(tasks) if not reads_text(task)]:
        raise InputError(
            f"task.text: is missing for cluster {', '.join(blind)}, and others have text; name the column in [task] or in the "
            "cluster's task"
        )
    reader = _Reader(scenario)
    train = [read_rows(cluster.data, scenario.base) for cluster in scenario.cluster]
    test = [_test_rows(scenario, i) for i in range(len(scenario.cluster))]
    warm = [_shared_rows(scenario, i) for i in range(len(scenario.warmup.data))] if scenario.warmup else []
    warm_tasks = [tasks[i] if len(warm) == len(tasks) else scenario.task for i in range(len(warm))]
    reader.learn_labels(list(zip([*tasks, *tasks, *warm_tasks], [*train, *test, *warm], strict=True)))
    objectives: dict[str, Objective] = {}
    splits = {}
    for i, cluster in enumerate(scenario.cluster):
        where = f"cluster {cluster.name!r}"
        samples = reader.encode(train[i], tasks[i], f"data of {where}")
        splits[cluster.name] = Splits(samples, reader.encode(test[i], tasks[i], f"test of {where}"), samples)
        objectives[cluster.name] = reader.objective(tasks[i])
    shared = [
        (reader.encode(rows, task, f"warmup.data[{i}]"), reader.objective(task))
        for i, (rows, task) in enumerate(zip(warm, warm_tasks, strict=True))
    ]
    return Datasets(objectives, splits, shared, reader.outputs if scenario.task.kind == "classification" else None)


def reads_text(task: Task) -> bool:
    """Whether samples come from columns of text."""
    return task.text is not None or task.kind != "classification"


class _Reader:
    """Tokenises rows, and deals out the head's outputs to the tasks."""

    def __init__(self, scenario: Tasks):
        table = scenario.model
        if table.path is None and table.tokenizer is None:
            raise InputError("model.tokenizer: is missing; a task on text needs a folder with a tokenizer, or model.path")
        self.tokenizer = load_tokenizer(resolve(table.tokenizer or table.path or "", scenario.base))
        self.labels: dict[str, list[Any]] = {}
        self.first: dict[str, int] = {}
        self.outputs = 0

    def learn_labels(self, read: Sequence[tuple[Task, Rows]]) -> None:
        """The label set of every task, over all of its data, and its place in the head."""
        for task, rows in read:
            if task.kind == "classification" and task.metric not in OF_SCORES:
                seen = self.labels.setdefault(_key(task), list(task.labels or ()))
                if not task.labels:
                    seen += [row[task.label_column] for row in rows if task.label_column in row]
        for task, _ in read:
            if task.kind != "classification" or _key(task) in self.first:
                continue
            self.first[_key(task)] = self.outputs
            if task.metric not in OF_SCORES:
                self.labels[_key(task)] = label_index(
                    self.labels[_key(task)], task.labels, f"task.label = {task.label_column!r}"
                )[1]
            self.outputs += 1 if task.metric in OF_SCORES else len(self.labels[_key(task)])

    def objective(self, task: Task) -> Objective:
        """What the task trains for."""
        if task.kind == "multiple-choice":
            return MultipleChoice(task.normalise)
        if task.kind == "causal-lm":
            return CausalLM()
        return Classification(self.first[_key(task)], len(self.labels.get(_key(task), [0])), task.metric)

    def encode(self, rows: Rows, task: Task, where: str) -> Samples:
        """Rows as tensors."""
        if task.kind == "multiple-choice":
            found = Columns(task.prompt, task.options, task.label_column)
            return choice.encode(rows, self.tokenizer, found, task.max_length, where)
        assert task.text is not None  # the scenario's own check
        if task.kind == "causal-lm":
            return language.encode(rows, self.tokenizer, task.text, task.max_length, where)
        samples = classify.encode(rows, self.tokenizer, task.text, task.text_pair, task.max_length, where)
        (values,) = columns(rows, [task.label_column], where)
        if task.metric in OF_SCORES:
            samples["labels"] = torch.tensor(numbers(values, where))
        else:
            samples["labels"] = torch.tensor(label_index(values, self.labels[_key(task)], where)[0])
        return samples


def _key(task: Task) -> str:
    return task.model_dump_json()


def _numbered(scenario: Tasks) -> Datasets:
    """Samples that are token numbers already; their labels are outputs of the head."""
    objective = Classification(0, 2**31, scenario.task.metric)
    splits = {cluster.name: _splits(scenario, i) for i, cluster in enumerate(scenario.cluster)}
    shared: list[tuple[Samples, Objective]] = []
    if scenario.warmup:
        samples = [load(spec, scenario.base, scenario.seed).shared for spec in scenario.warmup.data]
        shared = [(first(s, scenario.warmup.samples), objective) for s in samples]
    return Datasets(dict.fromkeys(splits, objective), splits, shared, None)


def _splits(scenario: Tasks, i: int) -> Splits:
    table = scenario.cluster[i]
    splits = load(table.data, scenario.base, scenario.seed)
    given = load(table.test, scenario.base, scenario.seed) if table.test else None
    test = splits.test if given is None else given.train if given.test is None else given.test
    if test is None:
        raise _no_test(i, table.data)
    return Splits(splits.train, test, splits.shared)


def _no_test(i: int, data: str) -> InputError:
    return InputError(f"cluster[{i}].test: is missing; a file as data ({data}) needs a test file beside it")


def _test_rows(scenario: Tasks, i: int) -> Rows:
    table = scenario.cluster[i]
    if table.test is None:
        raise _no_test(i, table.data)
    return read_rows(table.test, scenario.base)


def _shared_rows(scenario: Tasks, i: int) -> Rows:
    assert scenario.warmup is not None  # the caller's check
    return read_rows(scenario.warmup.data[i], scenario.base)[: scenario.warmup.samples]
