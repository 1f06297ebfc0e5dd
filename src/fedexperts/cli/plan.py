"""``fedexperts plan``: who can talk when, how many bytes fit, and whether a method can work with that."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..contact.interchange import EXPORTS, plan_text
from ..errors import InputError
from ..planned import described, planned
from ..scenario import Prospect
from ..writing import check_replaceable, on_disk, written_beside
from .bound_tables import bound_of, show_bound
from .common import Force, json_text, output, print_json, say, warn
from .plan_tables import cluster_table, contact_table, link_table, stage_table
from .run import Json, Protocol, ScenarioPath, Set

PAGE, ANSWER = "plan.html", "answer.json"


def command(
    scenario: ScenarioPath,
    days: Annotated[float | None, typer.Option(help="Change plan.days.")] = None,
    protocol: Protocol = None,
    cycles: Annotated[int | None, typer.Option(min=1, help="Tell when this orbital cycle ends; default train.cycles.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write plan.html, plan.json, answer.json and any export there.")] = None,
    export: Annotated[list[str], typer.Option(help=f"Also write the plan as {', '.join(EXPORTS)}.")] = [],  # noqa: B006  # typer's way
    bound: Annotated[
        bool, typer.Option("--bound", help="Say how early updates can be, what they wait for, what would help.")
    ] = False,
    owners: Annotated[Path | None, typer.Option(help="Who owns which expert, as assign --json says; for --bound.")] = None,
    run: Annotated[
        Path | None, typer.Option(help="A run of this scenario: its owners, and its updates beside the bounds; for --bound.")
    ] = None,
    force: Force = False,
    set_: Set = [],  # noqa: B006  # typer wants the default to be a list, and nobody writes to it
    json: Json = False,
) -> None:
    """Show contacts, gaps and bytes of a plan, and whether a method can work with them; needs no data, and no model."""
    export = [kind.strip() for given in export for kind in given.split(",") if kind.strip()]
    if unknown := set(export) - set(EXPORTS):
        raise InputError(f"--export {', '.join(sorted(unknown))}: unknown format; choose from {', '.join(EXPORTS)}")
    for option, given in (("--owners", owners), ("--run", run)):
        if given is not None and not bound:
            raise InputError(f"{option} {given}: is for --bound; add it")
    if owners is not None and run is not None:
        raise InputError(f"--owners {owners}: --run has owners of its own; leave one out")
    if export and out is None:
        raise InputError("--export needs --out, the folder to write to")
    formats = {f"plan.{EXPORTS[kind]}": kind for kind in ("json", *export)}
    if out is not None:
        check_replaceable(out / PAGE, "--out", force)
        for name in (ANSWER, *formats):
            check_replaceable(out / name, "--out", force, written_beside(out / PAGE))
    changes = [f"plan.days={days}"] if days is not None else []
    changes += [f'protocol="{protocol}"'] if protocol is not None else []
    network = Prospect.load(scenario, [*set_, *changes])
    _, plan, found = planned(network, cycles)
    for warning in plan.notes:
        warn(warning)
    document = described(network, plan, found, cycles)
    if bound:
        document["bound"] = bound_of(network, plan, found, owners, run)
    if out is not None:
        texts = {name: plan_text(plan, kind, network.plan.start, network.plan.nodes) for name, kind in formats.items()}
        texts[ANSWER] = json_text(document) + "\n"
        with on_disk(out, "make room, or name another folder", "--out"):
            from ..report.plan_html import write_plan

            write_plan(document, out / PAGE, texts)
        say(f"{out}: {PAGE}, {', '.join(texts)}")
        if set(export) & {"hdtn", "ion"}:
            say("rates of these exports are those of one device, and a node is a cluster of devices")
    if json:
        print_json(document)
        return
    output.print(contact_table(document, output.width))
    output.print(cluster_table(document, output.width))
    for name, row in document["clusters"].items():
        say(f"{name}: {row['verdict']}", output)
    if document["method"] is None:
        say(f"upload: {document['upload_of']}", output)
    if document["method"] is not None:
        output.print(stage_table(document["method"], output.width))
        output.print(link_table(document["method"], output.width))
        for sentence in document["method"]["answers"]:
            say(sentence, output)
    if bound:
        show_bound(document)
