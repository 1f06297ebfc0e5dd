"""A network of experts over gRPC: what asking a peer costs beside the bytes themselves, and what faults and links change.

Ten clients of the network of ``fedexperts peer demo`` are processes of this machine; client 0 is this process. Asking is
measured at 32 images, with that network and with random weights at ResNet-18's full width: the expert's own computing in this
process, the bare round trip (a server of the same library that returns as many bytes), and ours, with messages written, read,
checked and computed on; alternately, so that all see the same machine. With --faults all users ask their clients while nothing,
one frozen or three dead clients are in the way. With --links client 0 asks the others over relays of this process: accuracy and
latency against loss, rate and absence, and a gate that minds the channel beside one that does not; the figure is peers.html.

Asserted: what the network answers has the bits of one process, for as long as nobody is away; every request is answered; the
p95 with one frozen is at most twice the healthy one and one deadline. What asking costs against the bare round trip is printed,
not asserted: it is a matter of the machine.
Data: Fashion-MNIST in $FEDEXPERTS_DATA, else handwritten digits.
Usage: python benchmarks/peers.py [--faults] [--links] [--run DIR] [--out DIR] [--toy]
"""

import argparse
import asyncio
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import grpc
import torch

from fedexperts import run as run_scenario
from fedexperts.moe.auto import AUTO, new_model
from fedexperts.moe.subset import load_full
from fedexperts.peer.ask import OPTIONS, channel
from fedexperts.peer.demo import BATCH, PATIENCE, asked, demo_scenario, quantile, recovered, tests_of
from fedexperts.peer.home import Home
from fedexperts.peer.local import Local, free_ports
from fedexperts.peer.network import peers_text
from fedexperts.peer.peer import Peer
from fedexperts.peer.peers_file import Patience
from fedexperts.peer.relay import Relay, Shape
from fedexperts.peer.wire import encode
from fedexperts.runs.ended import scenario_of

IMAGES, AT_ONCE = 32, 16
LOSSES, RATES_BPS, AWAY = (0.0, 0.01, 0.05, 0.1), (1e5, 3e5, 1e6, 1e7), (0, 1, 3, 5, 7, 9)
DELAY_S = 0.01
TOLERANCES_S = (None, 0.2, 0.05)


def echo(port: int, size_B: int) -> None:
    """A server that returns so many bytes, whatever it is sent."""

    async def serve() -> None:
        async def handle(data: bytes, context: Any) -> bytes:
            return reply

        reply, server = bytes(size_B), grpc.aio.server(options=OPTIONS)
        handlers = {"Echo": grpc.unary_unary_rpc_method_handler(handle)}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bare", handlers),))
        server.add_insecure_port(f"127.0.0.1:{port}")
        await server.start()
        await server.wait_for_termination()

    asyncio.run(serve())


@dataclass
class Bench:
    """Ten clients, of which 1 to 9 are processes, and a file of peers by which client 0 reaches them."""

    run: Path
    out: Path
    images: dict[int, torch.Tensor]
    labels: dict[int, torch.Tensor]
    local: Local
    home: Home
    file: Path
    rounds: int

    def through(self, name: str, addresses: dict[int, str], **patience: float) -> Path:
        """A file of peers by which others are reached at these addresses."""
        rows = [addresses.get(m, self.local.address(m)) for m in range(self.home.experts)]
        path = self.out / f"{name}.toml"
        path.write_text(peers_text(self.home.run, rows, patience={**PATIENCE, **patience}))
        return path


async def timed(work: Callable[[], Awaitable[Any]]) -> float:
    began_s = time.perf_counter()
    await work()
    return time.perf_counter() - began_s


async def asking(bench: Bench) -> None:
    """One question after another, and then many at once."""
    home = Home(bench.run, 0)
    latents = torch.randn(IMAGES, home.latent_size, generator=torch.Generator().manual_seed(0))
    question = encode({"run": home.run, "client": 0, "expert": 1}, {"latents": latents})
    reply = encode({"run": home.run, "expert": 1}, {"log_p": torch.zeros(IMAGES, home.labels)})
    (port,) = free_ports(1)
    server = subprocess.Popen([sys.executable, __file__, "--child", str(port), str(len(reply))])
    try:
        async with Peer(bench.run, 0, bench.file, insecure=True) as peer, channel(f"127.0.0.1:{port}", None) as opened:
            bare, remote = opened.unary_unary("/bare/Echo"), peer.remotes[1]
            await bare(question, timeout=60.0, wait_for_ready=True)

            async def ours() -> None:
                assert len(await remote.ask(latents, time.monotonic() + 10.0)) == IMAGES

            async def here() -> None:
                home.answer(latents)

            works = {
                "the expert, in one process": here,
                "bare round trip": lambda: bare(question, timeout=10.0),
                "ours": ours,
            }
            took: dict[str, list[float]] = {name: [] for name in works}
            for i in range(bench.rounds + 20):
                for name, work in works.items():
                    seconds = await timed(work)
                    if i >= 20:
                        took[name].append(seconds)
            per_s = {}
            for name, work in list(works.items())[1:]:
                began_s = time.perf_counter()
                for _ in range(max(1, bench.rounds // AT_ONCE)):
                    await asyncio.gather(*(work() for _ in range(AT_ONCE)))
                per_s[name] = max(1, bench.rounds // AT_ONCE) * AT_ONCE / (time.perf_counter() - began_s)
    finally:
        server.kill()
        server.wait()
    base = median(took["bare round trip"])
    print(f"{IMAGES} images: {len(question):,} B there, {len(reply):,} B back; {bench.rounds} rounds")
    print(f"{'':28}{'median ms':>10}{'p95 ms':>9}{'/ bare':>8}{f'{AT_ONCE} at once, /s':>18}")
    for name, values in took.items():
        many = f"{per_s[name]:,.0f}" if name in per_s else ""
        print(f"{name:28}{1e3 * median(values):10.3f}{1e3 * quantile(values, 95):9.3f}{median(values) / base:8.2f}{many:>18}")
    rest = median(took["ours"]) - median(took["the expert, in one process"])
    print(f"{'ours, without the expert':28}{1e3 * rest:10.3f}{'':9}{rest / base:8.2f}")


def wide(bench: Bench) -> None:
    """The same with a model of the paper's size, whose weights do not matter here."""
    folder = bench.out / "wide"
    config = load_full(bench.run / "model", AUTO["image-classifier"]).config.to_dict()
    labels = config["num_labels"] if "num_labels" in config else len(config["id2label"])
    changed = {"width": 64, "expert_hidden": 256, "stem_stride": 1}
    new_model({**config, **changed}, 0, kind="image-classifier", outputs=labels).save_pretrained(folder)
    home, ports = Home(folder, None), dict(enumerate(free_ports(bench.home.experts)))
    file = bench.out / "wide.toml"
    file.write_text(peers_text(home.run, [f"127.0.0.1:{port}" for port in ports.values()], patience=PATIENCE))
    with Local(folder, {1: file}, ports, insecure=True) as local:
        local.start([1])
        asyncio.run(asking(replace(bench, run=folder, home=home, local=local, file=file)))


async def faults(bench: Bench) -> None:
    """Users of the well clients ask, one request after another."""
    local, images, labels = bench.local, bench.images, bench.labels
    deadline_ms = 1e3 * PATIENCE["deadline_s"]
    await asked(local, images, labels, most=1)
    healthy = await asked(local, images, labels)
    local.signal(9, signal.SIGSTOP)
    frozen = await asked(local, {c: x for c, x in images.items() if c != 9}, labels)
    local.signal(9, signal.SIGCONT)
    await recovered(local)
    local.end([7, 8, 9])
    dead = await asked(local, {c: x for c, x in images.items() if c < 7}, labels)
    await asyncio.to_thread(local.start, [7, 8, 9])
    print(f"{'':20}{'answered':>12}{'accuracy':>10}{'fallbacks':>11}{'p50 ms':>9}{'p95 ms':>9}{'p99 ms':>9}")
    for name, found in (("healthy", healthy), ("one of ten frozen", frozen), ("three of ten dead", dead)):
        facts = found.facts()
        times = "".join(f"{facts[f'p{q}_ms']:9.1f}" for q in (50, 95, 99))
        print(f"{name:20}{facts['answered']:>6}/{facts['asked']:<5}{facts['accuracy']:10.1%}{facts['fallbacks']:11}{times}")
        assert found.answered == found.asked, f"{name}: {found.asked - found.answered} images were lost"
    bound_ms = 2 * healthy.facts()["p95_ms"] + deadline_ms
    print(f"frozen: p95 {frozen.facts()['p95_ms']:.0f} ms, at most 2 × {healthy.facts()['p95_ms']:.1f} + {deadline_ms:g} ms")
    assert frozen.facts()["p95_ms"] <= bound_ms


@dataclass
class Asked:
    """What client 0 was answered for images of all clients."""

    accuracy: float
    size_B: float
    took_ms: list[float]
    absent: int

    def row(self, name: str) -> str:
        """A line of the table."""
        times = "".join(f"{quantile(self.took_ms, q):9.1f}" for q in (50, 95))
        return f"{name:30}{self.accuracy:10.1%}{self.size_B:12.0f}{times}{self.absent:8}"


async def all_asked(bench: Bench, file: Path, patience: Patience | None = None) -> Asked:
    took_ms, right, n, size_B, absent = [], 0, 0, 0, 0
    async with Peer(bench.run, 0, file, insecure=True, patience=patience) as peer:
        for c, x in bench.images.items():
            for images, labels in zip(torch.split(x, BATCH), torch.split(bench.labels[c], BATCH), strict=True):
                answer = await peer.infer(images)
                took_ms.append(1e3 * answer.seconds)
                right, n = right + int((answer.log_p_TL.argmax(dim=1) == labels).sum()), n + len(labels)
                size_B, absent = size_B + answer.sent_B + answer.received_B, absent + len(answer.absent)
    return Asked(right / n, size_B / n, took_ms, absent)


async def links(bench: Bench) -> None:
    """Client 0 over relays: loss, rate, delay, absence; and its gate told of the channel."""
    others = range(1, bench.home.experts)
    found: dict[str, list[tuple[Any, Asked]]] = {"loss": [], "rate": [], "away": [], "channel": []}
    print(f"{'':30}{'accuracy':>10}{'B an image':>12}{'p50 ms':>9}{'p95 ms':>9}{'absent':>8}")

    def told(kind: str, at: Any, name: str, asked: Asked) -> None:
        found[kind].append((at, asked))
        print(asked.row(name))

    async with AsyncExitStack() as stack:
        relays = {m: Relay(("127.0.0.1", 0), ("127.0.0.1", bench.local.ports[m]), seed=m) for m in others}
        for relay in relays.values():
            await stack.enter_async_context(relay)
        file = bench.through("relayed", {m: f"127.0.0.1:{relay.port}" for m, relay in relays.items()})
        await all_asked(bench, file)
        for loss in LOSSES:
            for relay in relays.values():
                relay.shape = Shape(delay_s=DELAY_S, loss=loss)
            told("loss", loss, f"loss {loss:.0%}, {1e3 * DELAY_S:g} ms each way", await all_asked(bench, file))
        for rate in RATES_BPS:
            for relay in relays.values():
                relay.shape = Shape(rate_bps=rate, delay_s=DELAY_S)
            told("rate", rate, f"{rate / 1e6:g} Mb/s, {1e3 * DELAY_S:g} ms", await all_asked(bench, file))
        for m, relay in relays.items():
            relay.shape = Shape(delay_s=0.02 * m)
        for tolerance in TOLERANCES_S:
            patience = Patience(**PATIENCE, channel_tolerance_s=tolerance)
            name = "delays of 20 to 180 ms" + (f", e in {tolerance:g} s" if tolerance else ", not minded")
            told("channel", tolerance, name, await all_asked(bench, file, patience))
    for away in AWAY:
        gone = [m for m in others if m > bench.home.experts - 1 - away]
        bench.local.end(gone)
        told("away", away, f"{away} of {bench.home.experts} away", await all_asked(bench, bench.file))
        await asyncio.to_thread(bench.local.start, gone)
    figure(found, bench.out / "peers.html")


def figure(found: dict[str, list[tuple[Any, Asked]]], path: Path) -> None:
    """Accuracy and p95 against loss, rate and absence."""
    from plotly.subplots import make_subplots

    panels = (("loss", "loss of segments"), ("rate", "rate, bit/s"), ("away", "clients away"))
    drawn = make_subplots(rows=2, cols=3, shared_xaxes="columns", horizontal_spacing=0.07, vertical_spacing=0.08)
    for column, (kind, title) in enumerate(panels, start=1):
        x = [at for at, _ in found[kind]]
        for row, values in ((1, [a.accuracy for _, a in found[kind]]), (2, [quantile(a.took_ms, 95) for _, a in found[kind]])):
            drawn.add_scatter(x=x, y=values, mode="lines+markers", showlegend=False, row=row, col=column)
        drawn.update_xaxes(title_text=title, row=2, col=column, type="log" if kind == "rate" else "linear")
    drawn.update_yaxes(title_text="accuracy", row=1, col=1)
    drawn.update_yaxes(title_text="p95, ms", row=2, col=1)
    drawn.write_html(path, include_plotlyjs="inline")
    print(f"{path}: accuracy and latency against loss, rate and absence")


def same_bits(bench: Bench, answers: dict[int, torch.Tensor]) -> None:
    model = load_full(bench.run / "model", AUTO["image-classifier"]).eval()
    with torch.no_grad():
        for c, log_p in answers.items():
            assert torch.equal(log_p, model(bench.images[c][:BATCH]).logits), (
                f"images of client {c}: other bits than in one process"
            )


async def bits(bench: Bench) -> dict[int, torch.Tensor]:
    async with Peer(bench.run, 0, bench.file, insecure=True) as peer:
        return {c: (await peer.infer(x[:BATCH])).log_p_TL for c, x in bench.images.items()}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", action="store_true", help="one frozen, three dead")
    parser.add_argument("--links", action="store_true", help="loss, rate, absence, a gate that minds the channel")
    parser.add_argument("--run", type=Path, help="a run that has ended, instead of training one")
    parser.add_argument("--out", type=Path, default=Path("runs/bench-peers"))
    parser.add_argument("--toy", action="store_true", help="smallest size, all parts; the figures mean nothing")
    parser.add_argument("--child", type=int, nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.child:
        return echo(*arguments.child)
    torch.set_num_threads(1)
    arguments.out.mkdir(parents=True, exist_ok=True)
    run = arguments.run or arguments.out / "run"
    if not (run / "model").is_dir():
        scenario = demo_scenario(arguments.out)
        if arguments.toy:
            stages = {"extractor_cycles": 1, "expert_cycles": 1, "gate_cycles": 1}
            cluster = [{**scenario.cluster[0].model_dump(exclude_none=True), "samples": 500, "test_samples": 190}]
            scenario = scenario.changed(train={"cycles": 3, "local_steps": 1}, networked=stages, cluster=cluster)
        run_scenario(scenario, run)
    home, (images, labels) = Home(run, None), tests_of(scenario_of(run), 1 if arguments.toy else 10)
    ports = dict(enumerate(free_ports(home.experts)))
    file = arguments.out / "peers.toml"
    file.write_text(peers_text(home.run, [f"127.0.0.1:{port}" for port in ports.values()], patience=PATIENCE))
    with Local(run, dict.fromkeys(ports, file), ports, insecure=True) as local:
        local.start(ports)
        bench = Bench(run, arguments.out, images, labels, local, home, file, 20 if arguments.toy else 500)
        same_bits(bench, asyncio.run(bits(bench)))
        asyncio.run(asking(bench))
        if not arguments.toy:
            wide(bench)
        if arguments.faults or arguments.toy:
            asyncio.run(faults(bench))
        if arguments.links:
            asyncio.run(links(bench))
    return None


if __name__ == "__main__":
    main()
