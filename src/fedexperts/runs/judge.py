"""Judging a checkpoint, of an MoE or a dense model, by a scenario's tasks, apart from any run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..data.objective import judge, total
from ..errors import InputError
from ..moe.subset import new_head
from ..moe.tasks import read_tasks
from ..moe.tokenizer import has_tokenizer
from ..moe.view import View
from ..scenario import Tasks, read_toml
from ..setup.baselines import baselines
from ..setup.model import check_fit, check_forward, load_model
from ..setup.named import check_named
from ..setup.samples import datasets
from .ended import model_folder


def judge_model(model: str | Path, task: str | Path, only: Sequence[str] = (), beside: bool = True) -> dict[str, Any]:
    """How a model does on the test data of a scenario's clusters; what ``fedexperts eval --json`` prints.

    Args:
        model: a checkpoint folder, a run directory or a hub name; it takes the place of the scenario's ``[model] path``.
        task: the scenario's file.
        only: names of the clusters to judge by; nothing means all.
        beside: add the baselines of tasks on text.

    ``new_head`` names tensors of the head that the checkpoint lacks: they are random, and so are the answers. ``dense`` says
    whether the model has no MoE layer.

    Raises:
        InputError: model, scenario and data do not fit each other, or a cluster is unknown.
    """
    model = str(model)
    scenario = _with(model, Path(task))
    names = [cluster.name for cluster in scenario.cluster]
    if unknown := [name for name in only if name not in names]:
        raise InputError(f"--cluster {unknown[0]}: the scenario has no such cluster; it has {', '.join(names)}")
    data = datasets(scenario)
    check_named(read_tasks(Path(scenario.model.path or "")), scenario, data)
    table = scenario.model
    view = View(load_model(scenario, data.outputs, dense=True), table.top1, table.mask, dense=True)
    tests = {name: test for name in only or names if (test := data.splits[name].test) is not None}
    for name, samples in tests.items():
        check_fit(view, f"test data of cluster {name!r}", samples, data.objectives[name])
        check_forward(view, samples, data.objectives[name])
    judged = judge(view, data.objectives, tests)
    clusters = {
        name: {
            "metric": data.objectives[name].metric,
            **one.metrics,
            "loss": _finite(one.loss),
            "count": one.count,
        }
        for name, one in judged.items()
    }
    rows = baselines(scenario, data, tests) if beside else {}
    over_all = total(data.objectives, judged)
    return {
        "model": model,
        "dense": not view.blocks,
        "new_head": new_head(view.model, model_folder(model)),
        **over_all,
        "loss": _finite(over_all["loss"]),
        "clusters": clusters,
        "baselines": rows,
    }


def _finite(loss: float) -> float | None:
    """A model may have diverged, and JSON knows no NaN."""
    return loss if math.isfinite(loss) else None


def _with(model: str, task: Path) -> Tasks:
    """The scenario's tasks with another model, and with that model's tokenizer if it has one."""
    folder, document = model_folder(model), read_toml(task)
    given = document.get("model", {})
    if not isinstance(given, dict):
        raise InputError(f"model = {given!r}: must be a table, or be left out")
    table = {key: value for key, value in given.items() if key not in ("path", "config", "lora")}
    if has_tokenizer(folder):
        table["tokenizer"] = str(folder)
    elif "path" in given:
        table.setdefault("tokenizer", given["path"])
    return Tasks.parse({**document, "model": {**table, "path": str(folder)}}, task.resolve().parent)
