"""From a scenario's tasks and data to samples and objectives."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ..data import choice, classify, images, language
from ..data.choice import Columns, MultipleChoice
from ..data.classify import Classification
from ..data.files import as_given
from ..data.images import ImageFile
from ..data.language import CausalLM
from ..data.metrics import OF_SCORES
from ..data.objective import Objective
from ..data.rows import columns, label_index, numbers, pooled, read_rows, warn_of_no_zero
from ..data.source import Samples, Splits, first, hold_out, load, size, some, take
from ..errors import InputError
from ..moe.checkpoint import resolve
from ..moe.tokenizer import load_tokenizer
from ..scenario import Tasks
from ..tables import TaskTable
from .doubts import warn_of_leaks, warn_of_unseen
from .taken import taken

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Datasets:
    """What the clusters train on and are judged by.

    Attributes:
        objectives: of each cluster.
        splits: of each cluster; every test set is there, and every validation set unless the scenario wants none. Of a cluster
            that was asked for alone there are training data only.
        shared: samples and objective of each entry of ``warmup.data``.
        outputs: what the data need of a classifier's head; None where samples are token numbers and the model decides.
        labels: of each cluster with classes, in the order of its outputs, as its data or ``task.labels`` have them.
    """

    objectives: dict[str, Objective]
    splits: dict[str, Splits]
    shared: list[tuple[Samples, Objective]]
    outputs: int | None
    labels: dict[str, list[Any]] = field(default_factory=dict)


def datasets(scenario: Tasks, only: str | None = None) -> Datasets:
    """Read, check and tokenise all data of a scenario, and hold out what it is to be validated on; the model is not needed.

    Args:
        scenario: whose data.
        only: a cluster that trains, and is not judged, where others' data are not: its own training data are read, and what the
            model is warmed up on. Where no ``labels`` are given, classes are learnt from everybody's data, which must be there.

    Raises:
        InputError: with the file, row, field, value and remedy.
    """
    if only is not None and not labels_are_told(scenario):
        try:
            return datasets(scenario)
        except InputError as error:
            raise InputError(f"{error}; or give task.labels, with which cluster {only!r} needs no data but its own") from error
    with as_given(named(scenario), scenario.base):
        data, share = _read(scenario, only), scenario.evaluation.validation
        if only is None:
            warn_of_leaks(scenario)
    if only is None:
        warn_of_unseen(scenario, data.splits, data.objectives, data.shared, data.labels)
    if not isinstance(share, float) or not share:
        return data
    for cluster in scenario.cluster:
        if cluster.validation is None and cluster.name in data.splits:
            splits = data.splits[cluster.name]
            data.splits[cluster.name] = hold_out(splits, share, scenario.seed, by_label=cluster.partition != "iid")
    return data


def labels_are_told(scenario: Tasks) -> bool:
    """Whether the scenario itself says what outputs there are for, so that no data must be read to know it."""
    tasks = [scenario.task, *map(scenario.task_of, range(len(scenario.cluster)))]
    if not any(task.kind == "image" or reads_text(task) for task in tasks):
        return True  # samples are token numbers, and labels outputs
    return all(task.labels or not task.classifies or task.metric in OF_SCORES for task in tasks)


def named(scenario: Tasks) -> list[str]:
    """All that a scenario names as data."""
    given: list[Any] = [scenario.evaluation.validation, *(scenario.warmup.data if scenario.warmup else ())]
    given += [spec for cluster in scenario.cluster for spec in (cluster.data, cluster.test, cluster.validation)]
    return [spec for spec in given if isinstance(spec, str)]


def validation_file(scenario: Tasks, i: int) -> str | None:
    """Where the i-th cluster's validation data are, if not among its training data."""
    given = scenario.evaluation.validation
    return scenario.cluster[i].validation or (given if isinstance(given, str) else None)


def _read(scenario: Tasks, only: str | None) -> Datasets:
    if scenario.task.kind == "image":
        return _Images(scenario).datasets(only)
    tasks = [scenario.task_of(i) for i in range(len(scenario.cluster))]
    if not reads_text(scenario.task) and not any(map(reads_text, tasks)):
        return _numbered(scenario, only)
    if blind := [scenario.cluster[i].name for i, task in enumerate(tasks) if not reads_text(task)]:
        raise InputError(
            f"task.text: is missing for cluster {', '.join(blind)}, and others have text; name the column in [task] or in the "
            "cluster's task"
        )
    reader = _Reader(scenario)
    train = [read_rows(one.data, scenario.base) if only in (None, one.name) else None for one in scenario.cluster]
    test = [_test_rows(scenario, i) if only is None else None for i in range(len(scenario.cluster))]
    valid = [_validation_rows(scenario, i) if only is None else None for i in range(len(scenario.cluster))]
    warm = [_shared_rows(scenario, i) for i in range(len(scenario.warmup.data))] if scenario.warmup else []
    warm_tasks = [tasks[i] if len(warm) == len(tasks) else scenario.task for i in range(len(warm))]
    if warm and not all(map(reads_text, warm_tasks)):
        raise InputError(
            f"warmup.data: has {len(warm)} entries for {len(tasks)} clusters, and [task] names no column of text; give one "
            "entry for each cluster, or text in [task]"
        )
    names = [f"{of} of cluster {cluster.name!r}" for of in ("data", "test", "validation") for cluster in scenario.cluster]
    names += [f"warmup.data[{i}]" for i in range(len(warm))]
    read = zip([*tasks, *tasks, *tasks, *warm_tasks], [*train, *test, *valid, *warm], strict=True)
    reader.learn_labels(
        [(name, task, _column(rows or [], task.label_column)) for name, (task, rows) in zip(names, read, strict=True)]
    )
    objectives: dict[str, Objective] = {}
    splits = {}
    for i, cluster in enumerate(scenario.cluster):
        where, rows, judging, deciding = f"cluster {cluster.name!r}", train[i], test[i], valid[i]
        objectives[cluster.name] = reader.objective(tasks[i])
        if rows is None:
            continue
        samples = reader.encode(rows, tasks[i], f"data of {where}", taken(scenario, i, len(rows), "samples"))
        tests = validation = None
        if judging is not None:
            chosen = taken(scenario, i, len(judging), "test_samples")
            tests = reader.encode(judging, tasks[i], f"test of {where}", chosen)
        if deciding is not None:
            validation = reader.encode(deciding, tasks[i], f"validation of {where}")
        splits[cluster.name] = Splits(samples, tests, samples, validation)
    if only is None:
        asked = [
            splits[cluster.name]
            for cluster, task in zip(scenario.cluster, tasks, strict=True)
            if task.kind == "multiple-choice"
        ]
        warn_of_no_zero(_labels(asked), "answers of all clusters")
    shared = [
        (reader.encode(rows, task, f"warmup.data[{i}]"), reader.objective(task))
        for i, (rows, task) in enumerate(zip(warm, warm_tasks, strict=True))
    ]
    labels = {cluster.name: reader.labels_of(task) for cluster, task in zip(scenario.cluster, tasks, strict=True)}
    return Datasets(objectives, splits, shared, reader.outputs if scenario.task.classifies else None, labels)


def _column(rows: Rows, name: str) -> list[Any]:
    """The values of a column, missing ones too; none where no row has one, which is told when the rows are encoded."""
    return [row.get(name) for row in rows] if any(name in row for row in rows) else []


def reads_text(task: TaskTable) -> bool:
    """Whether samples come from columns of text."""
    return task.text is not None or not task.classifies


class _Heads:
    """Deals out a classifier's outputs to the tasks."""

    def __init__(self) -> None:
        self.labels: dict[str, list[Any]] = {}
        self.first: dict[str, int] = {}
        self.outputs = 0

    def learn_labels(self, read: Sequence[tuple[str, TaskTable, Sequence[Any]]]) -> None:
        """The label set of every task, over the labels of all its data, which have names, and its place in the head."""
        parts: dict[str, list[tuple[str, int]]] = {}
        for name, task, found in read:
            if task.classifies and task.metric not in OF_SCORES:
                seen = self.labels.setdefault(_key(task), list(task.labels or ()))
                if not task.labels:
                    seen += found
                    parts.setdefault(_key(task), []).append((name, len(found)))
        for _, task, _ in read:
            if not task.classifies or _key(task) in self.first:
                continue
            self.first[_key(task)] = self.outputs
            if task.metric not in OF_SCORES:
                place = pooled(parts[_key(task)]) if _key(task) in parts else None
                where = f"task.label = {task.label_column!r}"
                self.labels[_key(task)] = label_index(self.labels[_key(task)], task.labels, where, place)[1]
            self.outputs += 1 if task.metric in OF_SCORES else len(self.labels[_key(task)])

    def classification(self, task: TaskTable) -> Classification:
        """What a classifier's task trains for."""
        outputs = self.first[_key(task)], len(self.labels.get(_key(task), [0]))
        return Classification(*outputs, task.metric, macro=task.kind == "image")

    def labels_of(self, task: TaskTable) -> list[Any]:
        """The classes of a task; none of a regression, or of what classifies nothing."""
        return self.labels.get(_key(task), [])


class _Reader(_Heads):
    """Tokenises rows."""

    def __init__(self, scenario: Tasks):
        super().__init__()
        table = scenario.model
        if table.path is None and table.tokenizer is None:
            raise InputError("model.tokenizer: is missing; a task on text needs a folder with a tokenizer, or model.path")
        self.tokenizer = load_tokenizer(resolve(table.tokenizer or table.path or "", scenario.base))

    def objective(self, task: TaskTable) -> Objective:
        """What the task trains for."""
        if task.kind == "multiple-choice":
            return MultipleChoice(task.normalise)
        if task.kind == "causal-lm":
            return CausalLM()
        return self.classification(task)

    def encode(self, rows: Rows, task: TaskTable, where: str, chosen: Sequence[int] | None = None) -> Samples:
        """Rows as tensors, those of the numbers ``chosen`` or all."""
        if task.kind == "multiple-choice":
            found = Columns(task.prompt, task.options, task.label_column)
            return choice.encode(rows, self.tokenizer, found, task.max_length, where, chosen)
        assert task.text is not None  # the scenario's own check
        if task.kind == "causal-lm":
            return language.encode(rows, self.tokenizer, task.text, task.max_length, where, chosen)
        samples = classify.encode(rows, self.tokenizer, task.text, task.text_pair, task.max_length, where, chosen)
        (values,) = columns(rows, [task.label_column], where)
        scores = task.metric in OF_SCORES
        labels_N = torch.tensor(numbers(values, where) if scores else label_index(values, self.labels[_key(task)], where)[0])
        samples["labels"] = labels_N if chosen is None else labels_N[list(chosen)]
        return samples


class _Images(_Heads):
    """Reads files of images, each once whatever number of clusters names it, and decodes those images that are taken."""

    def __init__(self, scenario: Tasks):
        super().__init__()
        self.scenario = scenario
        self.tasks = [scenario.task_of(i) for i in range(len(scenario.cluster))]
        self.read: dict[tuple[str, str, str], list[ImageFile]] = {}
        self.decoded: dict[tuple[Any, ...], Samples] = {}

    def datasets(self, only: str | None) -> Datasets:
        """Of all clusters and the warm-up, or of one that is not judged, and the warm-up."""
        scenario, tasks, table = self.scenario, self.tasks, self.scenario.warmup
        warm = table.data if table else ()
        warm_tasks = [tasks[i] if len(warm) == len(tasks) else scenario.task for i in range(len(warm))]
        train = [cluster.data if only in (None, cluster.name) else None for cluster in scenario.cluster]
        tests = [self._test(i) if only is None else None for i in range(len(tasks))]
        valid = [validation_file(scenario, i) if only is None else None for i in range(len(tasks))]
        named = zip([*tasks, *tasks, *warm_tasks, *tasks], [*train, *tests, *warm, *valid], strict=True)
        self.learn_labels(
            [
                (str(file.path), task, file.labels)
                for task, spec in named
                for file in (self._files(task, spec) if spec is not None else ())
            ]
        )
        splits = {}
        for i, (cluster, task) in enumerate(zip(scenario.cluster, tasks, strict=True)):
            if train[i] is None:
                continue
            data = self._samples(task, cluster.data, taken(scenario, i, self._size(task, cluster.data), "samples", "images"))
            test, validation, judging, deciding = None, None, tests[i], valid[i]
            if judging is not None:
                chosen = taken(scenario, i, self._size(task, judging), "test_samples", "images")
                test = self._samples(task, judging, chosen)
            if deciding is not None:
                validation = self._samples(task, deciding, range(self._size(task, deciding)))
            splits[cluster.name] = Splits(data, test, data, validation)
        shared: list[tuple[Samples, Objective]] = []
        for task, spec in zip(warm_tasks, warm, strict=True):
            n = self._size(task, spec)
            chosen = some(n, 0, min(table.samples if table else 0, n), scenario.seed)
            shared.append((self._samples(task, spec, chosen), self.classification(task)))
        clusters = [cluster.name for cluster in scenario.cluster]
        objectives: dict[str, Objective] = dict(zip(clusters, map(self.classification, tasks), strict=True))
        return Datasets(objectives, splits, shared, self.outputs, dict(zip(clusters, map(self.labels_of, tasks), strict=True)))

    def _test(self, i: int) -> str:
        table = self.scenario.cluster[i]
        if table.test is None:
            raise _no_test(i, table.data)
        return table.test

    def _files(self, task: TaskTable, spec: str) -> list[ImageFile]:
        key = (spec, task.image, task.label_column)
        if key not in self.read:
            self.read[key] = images.read_images(spec, self.scenario.base, task.image, task.label_column)
        return self.read[key]

    def _size(self, task: TaskTable, spec: str) -> int:
        return images.size(self._files(task, spec))

    def _samples(self, task: TaskTable, spec: str, chosen: Sequence[int]) -> Samples:
        """The images of these numbers."""
        files, key = self._files(task, spec), (spec, _key(task), tuple(chosen))
        if key not in self.decoded:
            classes = [label_index(file.labels, self.labels[_key(task)], str(file.path))[0] for file in files]
            labels_N = torch.tensor([label for group in classes for label in group])[list(chosen)]
            self.decoded[key] = {"pixel_values": images.pixels(files, chosen), "labels": labels_N}
        return self.decoded[key]


def _key(task: TaskTable) -> str:
    return task.model_dump_json()


def _numbered(scenario: Tasks, only: str | None) -> Datasets:
    """Samples that are token numbers already; their labels are outputs of the head."""
    objective = Classification(0, 2**31, scenario.task.metric)
    splits = {
        cluster.name: _splits(scenario, i, only is None)
        for i, cluster in enumerate(scenario.cluster)
        if only in (None, cluster.name)
    }
    if only is None:
        warn_of_no_zero(_labels(splits.values()), "labels of all clusters")
    shared: list[tuple[Samples, Objective]] = []
    if scenario.warmup:
        samples = [load(spec, scenario.base, scenario.seed).shared for spec in scenario.warmup.data]
        shared = [(first(s, scenario.warmup.samples), objective) for s in samples]
    return Datasets({cluster.name: objective for cluster in scenario.cluster}, splits, shared, None)


def _splits(scenario: Tasks, i: int, judged: bool) -> Splits:
    table = scenario.cluster[i]
    splits = load(table.data, scenario.base, scenario.seed)
    train = _some_of(splits.train, taken(scenario, i, size(splits.train), "samples", "samples to train on"))
    if not judged:
        return Splits(train, None, splits.shared)
    test = _held(scenario, table.test) if table.test else splits.test
    if test is None:
        raise _no_test(i, table.data)
    spec = validation_file(scenario, i)
    test = _some_of(test, taken(scenario, i, size(test), "test_samples", "samples to test on"))
    return Splits(train, test, splits.shared, _held(scenario, spec) if spec else None)


def _some_of(samples: Samples, chosen: Sequence[int]) -> Samples:
    """The chosen ones; the same tensors where that is all."""
    return samples if len(chosen) == size(samples) else take(samples, torch.tensor(chosen))


def _held(scenario: Tasks, spec: str) -> Samples:
    """Samples to judge by: the test data of a source that has some, or all of a file."""
    given = load(spec, scenario.base, scenario.seed)
    return given.train if given.test is None else given.test


def _labels(splits: Iterable[Splits]) -> list[int]:
    parts = [part for split in splits for part in (split.train, split.test, split.validation) if part is not None]
    return [n for part in parts for n in part["labels"].tolist()]


def _no_test(i: int, data: str) -> InputError:
    return InputError(f"cluster[{i}].test: is missing; a file as data ({data}) needs a test file beside it")


def _test_rows(scenario: Tasks, i: int) -> Rows:
    table = scenario.cluster[i]
    if table.test is None:
        raise _no_test(i, table.data)
    return read_rows(table.test, scenario.base)


def _validation_rows(scenario: Tasks, i: int) -> Rows | None:
    spec = validation_file(scenario, i)
    return None if spec is None else read_rows(spec, scenario.base)


def _shared_rows(scenario: Tasks, i: int) -> Rows:
    assert scenario.warmup is not None  # the caller's check
    return read_rows(scenario.warmup.data[i], scenario.base)[: scenario.warmup.samples]
