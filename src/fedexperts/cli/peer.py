"""``fedexperts peer``: clients of a trained Networked MoE that answer each other, with no server."""

from __future__ import annotations

import asyncio
import shlex
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from ..errors import InputError
from .common import output, print_json, say, warn
from .run import Json

if TYPE_CHECKING:
    from ..peer.user import Reply

app = typer.Typer(
    help="Let the clients of a trained Networked MoE answer each other over a network.",
    no_args_is_help=True,
    add_completion=False,
)

Run = Annotated[Path, typer.Option(metavar="DIR", help='A run of protocol = "networked" that has ended.')]
Peers = Annotated[Path, typer.Option(metavar="FILE", help="The network, as fedexperts peer init writes it.")]
Insecure = Annotated[bool, typer.Option("--insecure", help="Talk in the open; the file must have no [tls].")]
LIBRARIES = ("grpc", "cryptography", "prometheus_client")
AT_ONCE = 256
"""Images of one request."""


def _check_extra() -> None:
    if lost := [name for name in LIBRARIES if find_spec(name) is None]:
        raise InputError(f"fedexperts peer: {', '.join(lost)} is not installed; install fedexperts[peer]")


@app.command("init")
def init(
    run: Run,
    out: Annotated[Path, typer.Option(metavar="DIR", help="The folder to write; new or empty.")],
    host: Annotated[list[str], typer.Option(metavar="HOST", help="Of all clients, or once for each in order.")] = ["127.0.0.1"],  # noqa: B006
    port: Annotated[int, typer.Option(help="Of the first client on a host; the next have the next.")] = 7300,
    days: Annotated[int, typer.Option(help="For which the certificates are good.")] = 365,
    ca: Annotated[
        Path | None, typer.Option(metavar="PEM", help="Your own authority's certificate, instead of a new one.")
    ] = None,
    ca_key: Annotated[Path | None, typer.Option(metavar="PEM", help="Its private key.")] = None,
    json: Json = False,
) -> None:
    """Write peers.toml, certificates, and a script and a unit of systemd to start each client."""
    _check_extra()
    from ..peer.network import init as make

    names = make(run, out, host, port, days, ca, ca_key)
    if json:
        print_json({"out": str(out), "files": names})
        return
    say(f"{out}: {len(names)} files; start client 0 with {shlex.quote(str(out / 'client-0.sh'))}, and ask it with")
    say(f"  fedexperts peer infer --peers {shlex.quote(str(out / 'peers.toml'))} --client {host[0]}:{port} FILE")


@app.command("serve")
def serve(
    run: Run,
    client: Annotated[int, typer.Option(metavar="I", help="Its number, which is that of its expert.")],
    peers: Peers = Path("peers.toml"),
    listen: Annotated[str | None, typer.Option(metavar="HOST:PORT", help="Default: its address in the file.")] = None,
    metrics: Annotated[str | None, typer.Option(metavar="HOST:PORT", help="A page for Prometheus, /metrics.")] = None,
    insecure: Insecure = False,
) -> None:
    """Start one client, until Ctrl-C: extractor, gate and its own expert are loaded, and no other."""
    _check_extra()
    from ..peer.serve import serve as run_peer

    def ready(peer: Any, door: Any) -> None:
        say(f"client {client} of run {peer.home.run} listens at {door.address}{', in the open' if insecure else ''}")

    asyncio.run(run_peer(run, client, peers, listen, insecure, metrics, ready))


@app.command("infer")
def infer(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Images: .npz with x, .parquet, or single ones.")],
    client: Annotated[str, typer.Option(metavar="HOST:PORT", help="The client to ask.")],
    peers: Peers = Path("peers.toml"),
    k: Annotated[
        int | None, typer.Option("-k", "--experts", min=1, help="Experts asked of each image; default: the model's.")
    ] = None,
    deadline: Annotated[float, typer.Option(metavar="SECONDS", min=0.001, help="For each request of up to 256 images.")] = 30.0,
    wait: Annotated[
        float, typer.Option(metavar="SECONDS", min=0.0, help="For experts that are out of contact by the plan.")
    ] = 0.0,
    insecure: Insecure = False,
    json: Json = False,
) -> None:
    """Ask one client for its network's predictions; the answer says who took part and who was away."""
    _check_extra()
    import torch

    from ..peer.user import ask

    torch.set_num_threads(1)
    replies = asyncio.run(ask(client, files, peers, insecure, k, deadline, wait, AT_ONCE))
    document = told(replies)
    for m, why in document["absent"].items():
        warn(f"expert {m} {why}")
    if json:
        print_json(document)
    else:
        say(answers_title(document), output)
        output.print(answers_table(document))


def told(replies: list[Reply]) -> dict[str, Any]:
    """Answers to several requests as one document."""
    facts = [reply.facts for reply in replies]
    took_part: dict[str, int] = {}
    for one in facts:
        for m, n in one["took_part"].items():
            took_part[m] = took_part.get(m, 0) + n
    better = [one["better"] for one in facts if one["better"] is not None]
    return {
        "predictions": [label for reply in replies for label in reply.log_p_TL.argmax(dim=1).tolist()],
        "probabilities": [round(p, 6) for reply in replies for p in reply.log_p_TL.amax(dim=1).exp().tolist()],
        "took_part": took_part,
        "absent": {m: why for one in facts for m, why in one["absent"].items()},
        "fallbacks": sum(one["fallbacks"] for one in facts),
        "local_ratio": round(
            sum(r.facts["local_ratio"] * len(r.log_p_TL) for r in replies) / sum(len(r.log_p_TL) for r in replies), 6
        ),
        "latency_s": [round(reply.seconds, 6) for reply in replies],
        "uplink_B": sum(reply.sent_B for reply in replies),
        "downlink_B": sum(reply.received_B for reply in replies),
        "peer_sent_B": sum(one["sent_B"] for one in facts),
        "peer_received_B": sum(one["received_B"] for one in facts),
        "better": better[-1] if better else None,
    }


MOST_ROWS = 20


def answers_title(document: dict[str, Any]) -> str:
    """How many predictions there are, who has made them, and what it took."""
    n = len(document["predictions"])
    by = ", ".join(f"expert {m}: {images}" for m, images in document["took_part"].items())
    size_B, ms = document["peer_sent_B"] + document["peer_received_B"], 1e3 * sum(document["latency_s"])
    title = f"{n} images; {by}; {ms:.0f} ms, {size_B:,} B between clients"
    if document["fallbacks"]:
        title += f"; {document['fallbacks']} answered by the client's own expert alone"
    if document["better"]:
        title += f"; waiting would bring {document['better']['text']}"
    return title


def answers_table(document: dict[str, Any]) -> Table:
    """The first predictions."""
    n, table = len(document["predictions"]), Table(box=None)
    for column in ("image", "class", "probability"):
        table.add_column(column, justify="right")
    for i in range(min(n, MOST_ROWS)):
        table.add_row(str(i), str(document["predictions"][i]), f"{document['probabilities'][i]:.3f}")
    if n > MOST_ROWS:
        table.add_row("…", f"{n - MOST_ROWS} more", "--json")
    return table


@app.command("demo")
def demo(
    run: Annotated[Path | None, typer.Option(metavar="DIR", help="Take this run instead of training one.")] = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the trained run goes; new or empty.")] = Path(
        "runs/peer-demo"
    ),
    json: Json = False,
) -> None:
    """Ten clients as processes answer for real images; then one is slow, one killed, one frozen, and what each changes."""
    _check_extra()
    from ..peer import demo as module
    from ..runs.lock import is_free

    if run is None and not is_free(out):
        raise InputError(
            f"--out {out}: already holds files; add --run {out / 'run'} if a demo has trained there, or name another"
        )
    document = module.demo(run, out, say)
    if json:
        print_json(document)
    else:
        output.print(demo_table(document))


PASSES = (("healthy", "all well"), ("slow", "one slow"), ("killed", "one killed"), ("frozen", "one frozen"))


def demo_table(document: dict[str, Any]) -> Table:
    """One row for each thing that goes wrong."""
    d = document
    bits = "the same bits" if d["equal_bits"] else "other bits"
    title = (
        f"{d['clients']} clients, {d['k']} experts an image, {d['data']}\n"
        f"{d['accuracy']:.1%} right, in one process {d['in_process_accuracy']:.1%} ({bits}), by the own expert alone "
        f"{d['own_expert_accuracy']:.1%}\n"
        f"{d['local_ratio']:.0%} of picks stay at home; {d['bytes_per_sample']:,.0f} B an image between clients"
    )
    table = Table(title=title, box=None, title_justify="left")
    for i, column in enumerate(("", "accuracy", "all well", "answered", "fallbacks", "p50 ms", "p95 ms", "p99 ms")):
        table.add_column(column, justify="right" if i else "left")
    for key, name in PASSES:
        row = d if key == "healthy" else d[key]
        well = row.get("healthy_accuracy", row["accuracy"])
        times = (f"{row[f'p{q}_ms']:.1f}" for q in (50, 95, 99))
        shown = f"{row['answered']}/{row['asked']}"
        table.add_row(name, f"{row['accuracy']:.1%}", f"{well:.1%}", shown, str(row["fallbacks"]), *times)
    return table


@app.command("relay")
def relay(
    links: Annotated[Path, typer.Argument(metavar="LINKS.toml", help="Links with rate, delay, jitter, loss, and [[route]]s.")],
) -> None:
    """Carry the routes of a file of links, shaped as it says, until Ctrl-C."""
    _check_extra()
    from ..peer.links import Links
    from ..peer.relay import relayed

    relays = Links(links).relays()
    if not relays:
        raise InputError(f"{links}: has no [[route]], so there is nothing to carry; add between, listen and to")
    say(f"{links}: {len(relays)} route{'s' * (len(relays) > 1)}")
    asyncio.run(relayed(relays))
