"""``fedexperts eval``: checkpoints judged by a scenario's tasks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from ..report.stacked import Stacked
from ..report.table import NAMES, written
from .common import output, print_json, warn
from .run import Json


def command(
    models: Annotated[list[str], typer.Argument(metavar="MODEL...", help="Checkpoint folders, run directories or hub names.")],
    task: Annotated[Path, typer.Option(metavar="SCENARIO.toml", help="Whose tasks and test data; its model is replaced.")],
    cluster: Annotated[list[str], typer.Option(metavar="NAME", help="Judge by this cluster alone; may be repeated.")] = [],  # noqa: B006
    baselines: Annotated[bool, typer.Option(help="Majority and TF-IDF beside every result on text.")] = True,
    json: Json = False,
) -> None:
    """Judge models, dense ones too, by the test data of a scenario's clusters, beside what needs no model.

    With --json one model is one object; several are a list of these under "models".
    """
    import torch

    from ..runs.judge import judge_model

    torch.set_num_threads(1)
    documents = [judge_model(model, task, cluster, baselines) for model in models]
    for document in documents:
        for warning in below(document):
            warn(f"{document['model']}: {warning}" if len(documents) > 1 else warning)
    if json:
        print_json(documents[0] if len(documents) == 1 else {"models": documents})
    else:
        output.print(eval_table(documents))


def below(document: dict[str, Any]) -> list[str]:
    """Why figures of a model say little: a head that nobody has trained, clusters where a baseline does no worse."""
    found = []
    if document["new_head"]:
        found.append(
            f"the model has no head for this task ({document['new_head'][0]} is not in it): a RANDOM one was put on, "
            "and what follows is chance; judge a run or checkpoint that was tuned for it, or by a task that its own head does, "
            'kind = "multiple-choice" or "causal-lm"'
        )
    for name, row in document["baselines"].items():
        metrics = document["clusters"][name]
        score = metrics[metrics["metric"]]
        best = max((value, kind) for kind, value in row.items() if value is not None)
        if score <= best[0]:
            found.append(
                f"cluster {name}: {_name(metrics['metric'])} {score:.3f} is not above the baseline {_name(best[1])}, "
                f"{best[0]:.3f}; the model has learnt nothing worth its size there"
            )
    return found


def _number(value: float | None) -> str:
    return "–" if value is None else str(value) if isinstance(value, int) else f"{value:.3f}"


def _name(key: str) -> str:
    return NAMES.get(key, key)


def eval_table(documents: Sequence[dict[str, Any]]) -> Stacked:
    """One row a cluster and model: how much was judged, the loss, all metrics, the baselines of the cluster's own metric."""
    every = [row for document in documents for row in document["clusters"].values()]
    metrics = list(dict.fromkeys(key for row in every for key in row if key not in ("metric", "loss", "count")))
    kinds = list(dict.fromkeys(kind for document in documents for row in document["baselines"].values() for kind in row))
    names = ["cluster", *(["model"] if len(documents) > 1 else []), "judged by"]
    heads = [*names, *map(_name, ("count", "loss", *metrics, *kinds))]
    rows = []
    for name in dict.fromkeys(name for document in documents for name in document["clusters"]):
        for document in documents:
            row, beside = document["clusters"][name], document["baselines"].get(name, {})
            model = [document["model"]] if len(documents) > 1 else []
            numbers = [row["count"], row["loss"], *(row.get(key) for key in metrics), *(beside.get(kind) for kind in kinds)]
            rows.append([name, *model, _name(row["metric"]), *map(_number, numbers)])
    faint = range(len(heads) - len(kinds), len(heads))
    return Stacked("\n".join(map(_title, documents)), heads, rows, faint=faint, names=len(names) - 1)


def _title(document: dict[str, Any]) -> str:
    over_all = f"{document['metric']} {written(document['accuracy'], document['metric'])}, loss {_number(document['loss'])}"
    marks = ", ".join(["dense"] * document["dense"] + ["RANDOM HEAD: chance"] * bool(document["new_head"]))
    return f"{f'({marks}) ' if marks else ''}{document['model']}: {over_all}"
