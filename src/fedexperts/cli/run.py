"""``fedexperts run``: one protocol on one scenario."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import overheard
from ..runs.lock import check_usable
from ..scenario import Scenario
from ..setup.clients import device_classes
from ..tables.protocols import PROTOCOLS
from ..writing import check_replaceable
from .common import advance, output, print_json, progress_bars, reached, resumable, say, warn

PAGE = "report.html"
ScenarioPath = Annotated[Path, typer.Argument(metavar="SCENARIO.toml", help="The scenario file.")]
JOBS = "Processes that share the clusters and train at the same time, each with a model of its own; same results to the byte."
SET = "Change a value of the scenario; of several tables by number, as cluster.0.devices=4."
Set = Annotated[list[str], typer.Option("--set", metavar="SECTION.KEY=VALUE", help=SET)]
Seed = Annotated[int | None, typer.Option(help="Change the scenario's seed.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout, everything else on stderr.")]
Protocol = Annotated[str | None, typer.Option(help=f"One of {', '.join(PROTOCOLS)}, or module:Class of your own.")]
Out = Annotated[Path | None, typer.Option(help="Run directory; default runs/<name>-<protocol>-<seed>.")]


def command(
    scenario: ScenarioPath,
    protocol: Protocol = None,
    seed: Seed = None,
    out: Out = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
    set_: Set = [],  # noqa: B006  # typer wants the default to be a list, and nobody writes to it
    jobs: Annotated[int, typer.Option(min=1, help=JOBS)] = 1,
    json: Json = False,
) -> None:
    """Run a scenario: train a model over its contact plan."""
    if out is not None:
        check_usable(out, resume)
    loaded = load(scenario, protocol, seed, set_)
    from ..report.html import write_report
    from ..report.table import results_table
    from ..runs import run as module

    label = loaded.label
    directory = module.default_directory(loaded) if out is None else out
    check_replaceable(directory / PAGE, "--out")
    with progress_bars() as bars, resumable(), overheard() as heard:
        bar, new = bars.add_task(label, total=loaded.train.cycles, accuracy=""), 0

        def show(line: dict[str, Any]) -> None:
            nonlocal new
            new += 1
            if line["event"] == "evaluate":
                advance(bars, bar, line["cycle"], reached(line["accuracy"], line.get("metric", "accuracy")))

        result = module.run(loaded, directory, resume=resume, listener=show, jobs=jobs)
        bars.update(bar, visible=bool(new))
    if not new:
        say(f"{result.directory}: has ended before, and stays as it is; more cycles go on from there, --set train.cycles=N")
    for warning in result.summary["warnings"]:
        if warning not in heard:
            warn(warning)
    write_report({label: result.directory}, result.directory / PAGE, loaded.name)
    if json:
        print_json({"directory": str(result.directory), "protocols": {label: result.summary}})
    else:
        output.print(results_table({label: result.summary}))
        say(f"{result.directory}: ledger.jsonl, report.html, model/")


def load(path: Path, protocol: str | None, seed: int | None, overrides: list[str]) -> Scenario:
    """A scenario with the command line's changes."""
    changes = list(overrides)
    if protocol is not None:
        changes.append(f'protocol="{protocol}"')
    if seed is not None:
        changes.append(f"seed={seed}")
    loaded = Scenario.load(path, changes)
    device_classes(loaded)  # which asks for nothing that takes time to load
    return loaded
