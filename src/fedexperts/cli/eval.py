"""``fedexperts eval``: a checkpoint judged by a scenario's tasks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from ..report.table import written
from .common import output, print_json, warn
from .run import Json


def command(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A checkpoint folder, a run directory or a hub name.")],
    task: Annotated[Path, typer.Option(metavar="SCENARIO.toml", help="Whose tasks and test data; its model is replaced.")],
    cluster: Annotated[list[str], typer.Option(metavar="NAME", help="Judge by this cluster alone; may be repeated.")] = [],  # noqa: B006
    baselines: Annotated[bool, typer.Option(help="Majority and TF-IDF beside every result on text.")] = True,
    json: Json = False,
) -> None:
    """Judge a model by the test data of a scenario's clusters, beside what needs no model."""
    import torch

    from ..runs.judge import judge_model

    torch.set_num_threads(1)
    document = judge_model(model, task, cluster, baselines)
    for warning in below(document):
        warn(warning)
    if json:
        print_json(document)
    else:
        output.print(eval_table(document))


def below(document: dict[str, Any]) -> list[str]:
    """Clusters where the model does no better than a baseline."""
    found = []
    for name, row in document["baselines"].items():
        metrics = document["clusters"][name]
        score = metrics[metrics["metric"]]
        best = max((value, kind) for kind, value in row.items() if value is not None)
        if score <= best[0]:
            found.append(
                f"cluster {name}: {metrics['metric']} {score:.3f} is not above the baseline {best[1]}, {best[0]:.3f}; "
                "the model has learnt nothing worth its size there"
            )
    return found


def _number(value: float | None) -> str:
    return "–" if value is None else str(value) if isinstance(value, int) else f"{value:.3f}"


def eval_table(document: dict[str, Any]) -> Table:
    """One row a cluster: how much was judged, the loss, all metrics, and the baselines of the cluster's own metric."""
    clusters, rows = document["clusters"], document["baselines"]
    metrics = list(dict.fromkeys(key for row in clusters.values() for key in row if key not in ("metric", "loss", "count")))
    kinds = list(dict.fromkeys(kind for row in rows.values() for kind in row))
    total = f"{document['metric']} {written(document['accuracy'], document['metric'])}"
    table = Table(title=f"{document['model']}: {total}, loss {_number(document['loss'])}", box=None)
    for i, column in enumerate(["cluster", "judged by", "count", "loss", *metrics, *kinds]):
        table.add_column(column, justify="left" if i < 2 else "right", style="dim" if column in kinds else None)
    for name, row in clusters.items():
        values = [*(row.get(metric) for metric in metrics), *(rows.get(name, {}).get(kind) for kind in kinds)]
        table.add_row(name, row["metric"], str(row["count"]), *map(_number, [row["loss"], *values]))
    return table
