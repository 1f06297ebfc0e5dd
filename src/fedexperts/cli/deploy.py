"""``fedexperts deploy``: the same protocols over Flower."""

from __future__ import annotations

import shlex
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.table import Table

from ..errors import InputError, warn_input
from ..report.table import written
from ..writing import write_whole
from .common import advance, output, print_json, progress_bars, reached, say
from .run import PAGE, Json, Protocol, ScenarioPath, Seed, Set, load

if TYPE_CHECKING:
    from ..deploy.place import Place

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Train over a real network, with Flower.")
PATIENCE_S = 120.0
Verb = Literal["list", "revoke", "rotate"]
Patience = Annotated[
    float, typer.Option(metavar="SECONDS", min=1.0, help="For a node's answer, training that comes before it included.")
]
Folder = Annotated[Path, typer.Argument(metavar="DIR", help="The deployment's folder.")]


@app.callback()
def _main() -> None:
    pass


@app.command("init")
def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder to write; new or empty.")],
    scenario: Annotated[Path, typer.Option("--scenario", metavar="SCENARIO.toml", help="What is to be trained.")],
    server: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="Where nodes find the server; default this machine's name, port 8000."),
    ] = None,
    days: Annotated[int, typer.Option(help="For which the certificates are good.")] = 365,
    ca: Annotated[
        Path | None, typer.Option(metavar="PEM", help="Your own authority's certificate, instead of a new one.")
    ] = None,
    ca_key: Annotated[Path | None, typer.Option(metavar="PEM", help="Its private key.")] = None,
    patience: Patience = PATIENCE_S,
    protocol: Protocol = None,
    seed: Seed = None,
    set_: Set = [],  # noqa: B006  # typer wants the default to be a list, and nobody writes to it
    json: Json = False,
) -> None:
    """Write a deployment over machines: app, certificates, node keys, scripts, units, and a README that says what to do."""
    from ..deploy.init import init as make
    from ..deploy.local import check_flower

    check_flower()
    loaded = load(scenario, protocol, seed, set_)
    names = make(folder, loaded, server or f"{socket.gethostname()}:8000", patience, days, ca, ca_key)
    if json:
        print_json({"directory": str(folder), "files": names})
    else:
        say(f"{folder}: {len(names)} files; {folder / 'README.md'} says what to do, from {folder / 'server.sh'} on")


@app.command("local")
def local(
    scenario: ScenarioPath,
    protocol: Protocol = None,
    seed: Seed = None,
    out: Annotated[Path | None, typer.Option(help="Folder; default runs/<name>-<protocol>-<seed>-local.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the deployment in --out.")] = False,
    links: Annotated[
        Path | None, typer.Option(metavar="LINKS.toml", help="Rate, delay, jitter, loss and cuts of the links to the nodes.")
    ] = None,
    patience: Patience = PATIENCE_S,
    set_: Set = [],  # noqa: B006  # typer wants the default to be a list, and nobody writes to it
    json: Json = False,
) -> None:
    """Deploy a scenario on this machine: each cluster is a node, its link goes down with the plan, whose time is compressed."""
    from ..deploy import place as places
    from ..deploy.links import links_of, rates_missing
    from ..deploy.local import check_flower
    from ..deploy.place import LINKS
    from ..deploy.shapes import shapes

    check_flower()
    loaded = load(scenario, protocol, seed, set_)
    folder = out or Path("runs") / f"{loaded.name}-{loaded.label}-{loaded.seed}-local"
    if resume:
        if links is not None:
            raise InputError(
                f"--links {links}: is for a deployment that begins; one that goes on has {folder / LINKS}, or none"
            )
        place = places.load(folder)
    else:
        nodes = links_of(loaded)
        if links is not None:
            shapes(links, nodes)
        if fault := rates_missing(loaded):
            warn_input(fault)
        place = places.create(folder, loaded.to_toml(), loaded.base, nodes, patience)
        if links is not None:
            write_whole(folder / LINKS, links.read_bytes())
    _here(place, json)


def _here(place: Place, json: bool) -> None:
    """Run a deployment on this machine to its end, and show what it came to."""
    from ..deploy.local import deploy_local

    _followed(place, json, lambda show: deploy_local(place, show), place.folder / "logs")


def _followed(place: Place, json: bool, work: Any, logs: Path | None) -> None:
    """Bars while ``work`` goes on, and the results after it; these alone if the run has ended before."""
    from ..deploy.status import has_ended
    from ..deploy.worker import scenario_of
    from ..ledger import summary
    from ..report.html import write_report
    from ..report.table import results_table

    loaded = scenario_of(place)
    if has_ended(place):
        how = "deploy local with another --out" if place.server is None else "deploy init with another folder"
        say(f"{place.folder}: its run has ended, and is as it was; to begin anew: fedexperts {how}")
        work = _nothing
    with progress_bars() as bars:
        bar = bars.add_task(loaded.label, total=loaded.train.cycles, accuracy="")

        def show(line: dict[str, Any]) -> None:
            if line["event"] == "evaluate":
                advance(bars, bar, line["cycle"], reached(line["accuracy"], line.get("metric", "accuracy")))

        work(show)
    found = summary(place.run / "ledger.jsonl")
    write_report({loaded.label: place.run}, place.run / PAGE, loaded.name)
    if json:
        print_json({"directory": str(place.run), "protocols": {loaded.label: found}})
    else:
        output.print(results_table({loaded.label: found}))
        told = "" if logs is None else f"; {logs}: what each process said"
        say(f"{place.run}: ledger.jsonl, report.html, model/{told}")


def _nothing(show: Any) -> None:
    pass


@app.command("serve")
def serve(folder: Folder) -> None:
    """Be the server of a deployment, until Ctrl-C: Flower's SuperLink, where other machines reach nodes' calls alone."""
    from ..deploy.local import check_flower
    from ..deploy.superlink import serve as run_server

    check_flower()
    run_server(folder, say)


@app.command("submit")
def submit(folder: Folder, json: Json = False) -> None:
    """Let the nodes of a deployment in, hand its run to the server, and follow it; what was begun goes on."""
    from ..deploy.local import check_flower
    from ..deploy.submit import train
    from ..deploy.superlink import checked

    check_flower()
    place = checked(folder)
    _followed(place, json, lambda show: train(place, say, show), None)


@app.command("node")
def node(folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="The node's own folder.")]) -> None:
    """Be a node of a deployment, until Ctrl-C: its devices, and Flower's SuperNode."""
    from ..deploy.local import check_flower
    from ..deploy.standing import stand

    check_flower()
    stand(folder, say)


@app.command("status")
def status(folder: Folder, json: Json = False) -> None:
    """Say how far a deployment is: cycle, seconds of the plan, contacts, losses, accuracy, bytes, and its end."""
    from ..deploy import place as places
    from ..deploy.status import status as look

    document = look(places.load(folder))
    if json:
        print_json(document)
        return
    output.print(status_table(document))
    if document["error"]:
        say(f"why: {document['error']}", output)


def status_table(document: dict[str, Any]) -> Table:
    """One row for each thing to know."""
    d = document
    table = Table(box=None, show_header=False)
    at = "" if d["server"] is None else f", with the server at {d['server']}"
    rows = {
        d["scenario"]: f"{d['protocol']}, seed {d['seed']}: {d['state']}",
        "nodes": ", ".join(d["nodes"]) + at,
        "cycle": f"{d['cycle']} of {d['cycles']}, {d['t_s']:,.0f} s of the plan",
        "contacts": f"{d['contacts']}, of which {d['lost']} were lost; {d['refused']} updates refused",
        d["metric"]: "none yet" if d["accuracy"] is None else written(d["accuracy"], d["metric"]),
        "bytes": f"{d['uplink_B']:,} up, {d['downlink_B']:,} down",
        "processes": ", ".join(d["processes"]) or "none here",
    }
    for name, text in rows.items():
        table.add_row(name, text)
    return table


@app.command("collect")
def collect(
    folder: Folder,
    out: Annotated[Path, typer.Option("--out", metavar="RUN", help="The run directory to write; new or empty.")],
) -> None:
    """Copy the run of a deployment that has ended: ledger, model and report."""
    from ..deploy import place as places
    from ..deploy.status import collect as copy
    from ..deploy.worker import scenario_of
    from ..report.html import write_report

    place = places.load(folder)
    copy(place, out)
    loaded = scenario_of(place)
    write_report({loaded.label: out}, out / PAGE, loaded.name)
    say(f"{out}: ledger.jsonl, report.html, model/")


@app.command("resume")
def resume(folder: Folder, json: Json = False) -> None:
    """Go on with a deployment on this machine; of one over machines, say what goes on with it."""
    from ..deploy import place as places
    from ..deploy.local import check_flower

    check_flower()
    place = places.load(folder)
    if place.server is None:
        _here(place, json)
        return
    script = f"node-{place.link}.sh" if place.link is not None else "run.sh"
    say(f"{folder}: is over machines; its server is {place.server}. Go on with {shlex.quote(str(folder / script))}")
    if place.link is None:
        say(f"which needs {shlex.quote(str(folder / 'server.sh'))} to run, and the nodes")


@app.command("keys")
def keys(
    folder: Folder,
    verb: Annotated[Verb, typer.Argument(metavar="list|revoke|rotate", help="What to do.")],
    cluster: Annotated[str | None, typer.Argument(metavar="[CLUSTER]", help="Whose key; not of list.")] = None,
    json: Json = False,
) -> None:
    """Say who is let in; put a node out; or give a node another key."""
    from ..deploy import keys as module
    from ..deploy.init import node_folder
    from ..deploy.local import check_flower
    from ..deploy.superlink import checked

    check_flower()
    place = checked(folder)
    if (verb == "list") != (cluster is None):
        raise InputError(f"deploy keys {verb}: {'is of all nodes; name none' if verb == 'list' else 'name the CLUSTER'}")
    if cluster is None:
        rows = module.listed(place)
        if json:
            print_json({"keys": rows})
            return
        table = Table(box=None)
        for column in ("node", "state", "number"):
            table.add_column(column)
        for row in rows:
            table.add_row(row["link"], row["state"], str(row["node"] or ""))
        output.print(table)
        if any(row["state"] == "?" for row in rows):
            say(f"?: no SuperLink answers; {place.folder / 'server.sh'} starts it", output)
    elif verb == "revoke":
        module.revoke(place, cluster)
        say(f"{cluster}: is not let in any more; `fedexperts deploy keys {folder} rotate {cluster}` gives it another key")
    else:
        module.check_link(place, cluster)
        path = module.rotate(place, cluster, node_folder(place, cluster))
        say(f"{path}: put it into the node's folder on its machine, and start the node again; the old key is out")
