"""What every cluster's task on text or images gives without a model, from a scenario's own data."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from torch import Tensor

from ..data import choice
from ..data.baselines import Text, majority, tfidf_choice, tfidf_linear
from ..data.choice import Columns
from ..data.files import as_given
from ..data.rows import columns, read_rows
from ..data.source import Samples, Splits
from ..scenario import Tasks
from ..tables import TaskTable
from .devices import dealt
from .prepare import Prepared
from .samples import Datasets, Rows, reads_text
from .taken import taken

Row = dict[str, float | None]


def baselines(scenario: Tasks, data: Datasets, only: Collection[str] = ()) -> dict[str, Row]:
    """The task's metric by ``majority`` and ``tfidf``, trained on the cluster's train data and taken on its test data.

    ``only`` names the clusters that are wanted, nothing means all. Clusters whose samples are token numbers have none.
    Of language modelling, where the majority is the most frequent token, and of images ``tfidf`` is None.
    """
    found = {}
    for i, cluster in enumerate(scenario.cluster):
        task, splits = scenario.task_of(i), data.splits[cluster.name]
        if only and cluster.name not in only:
            continue
        if task.kind == "image":
            assert splits.test is not None  # filled by `datasets`
            found[cluster.name] = _of_images(splits.train, splits.test, task.metric)
        elif reads_text(task):
            row = _row(scenario, i, task, splits)
            found[cluster.name] = {name: None if value is None else round(value, 6) for name, value in row.items()}
    return found


def of_links(prepared: Prepared) -> dict[str, Row]:
    """`baselines` of a run: those of images are by link, a client's from its own data."""
    scenario, data = prepared.scenario, prepared.data
    if scenario.task.kind != "image" or not prepared.by_client:
        return baselines(scenario, data)
    held = [
        (share, scenario.task_of(i).metric)
        for i, cluster in enumerate(scenario.cluster)
        for share in dealt(cluster, data.splits[cluster.name].train, scenario.seed)
    ]
    tests = prepared.tests.own
    return {link: _of_images(share, tests[link], metric) for link, (share, metric) in zip(prepared.hosts, held, strict=True)}


def _of_images(train: Samples, test: Samples, metric: str) -> Row:
    return {"majority": round(majority(train["labels"].tolist(), test["labels"].tolist(), metric), 6), "tfidf": None}


def _row(scenario: Tasks, i: int, task: TaskTable, splits: Splits) -> Row:
    cluster = scenario.cluster[i]
    assert splits.test is not None  # filled by `datasets`
    assert cluster.test is not None
    if task.kind == "causal-lm":
        return {"majority": majority(_targets(splits.train), _targets(splits.test), task.metric), "tfidf": None}
    with as_given((cluster.data, cluster.test), scenario.base):
        train, test = (read_rows(spec, scenario.base) for spec in (cluster.data, cluster.test))
    train = [train[n] for n in taken(scenario, i, len(train), "samples")]
    test = [test[n] for n in taken(scenario, i, len(test), "test_samples")]
    if splits.kept is not None:  # what is held out for validation nobody trains on
        train = [train[i] for i in splits.kept.tolist()]
    learnt, asked = (samples["labels"].tolist() for samples in (splits.train, splits.test))
    usual = majority(learnt, asked, task.metric)
    if task.kind == "multiple-choice":
        return {"majority": usual, "tfidf": tfidf_choice(*_questions(train, task), learnt, *_questions(test, task), asked)}
    return {"majority": usual, "tfidf": tfidf_linear(_texts(train, task), learnt, _texts(test, task), asked, task.metric)}


def _targets(samples: Samples) -> list[int]:
    """The tokens that a language model is to foretell."""
    targets_S: Tensor = samples["input_ids"][:, 1:][samples["attention_mask"][:, 1:].bool()]
    tokens: list[int] = targets_S.tolist()
    return tokens


def _questions(rows: Rows, task: TaskTable) -> tuple[list[str], list[list[str]]]:
    table = Columns(task.prompt, task.options, task.label_column)
    found = [choice.texts(row, table, f"row {n}") for n, row in enumerate(rows, start=1)]
    return [question for question, _ in found], [options for _, options in found]


def _texts(rows: Rows, task: TaskTable) -> list[Text]:
    names = [name for name in (task.text, task.text_pair) if name is not None]
    sides: list[list[Any]] = columns(rows, names, "task.text")
    return [str(one[0]) if len(one) == 1 else (str(one[0]), str(one[1])) for one in zip(*sides, strict=True)]
