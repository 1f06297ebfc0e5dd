"""A network of experts over gRPC: what asking a peer costs beside the bytes themselves, and what faults and links change.

Ten clients of the network of ``fedexperts peer demo`` are processes of this machine; client 0 is this process. Asking is
measured at 32 images, with that network and with random weights at ResNet-18's full width, in the open and over mutual TLS: the
expert's own computing in this process, the bare round trip (a server of the same library and credentials that returns as many
bytes), the same with the expert computed there and nothing checked, and ours, with messages written, read, checked and computed
on. Each round asks all of them once, in an order drawn anew, so that all see the same machine and nobody is always first. With
--hivemind PYTHON, an environment where hivemind is installed, its server answers for the same expert right after.
With --faults all users ask their clients while nothing, one frozen or three dead clients are in the way. With --links client 0
asks the others over relays of this process: accuracy and latency against loss, rate and absence, and a gate that minds the
channel beside one that does not; the figure is peers.html.

Asserted: what the network answers has the bits of one process, for as long as nobody is away; every request is answered; the
p95 with one frozen is at most twice the healthy one and one deadline. What asking costs against the bare round trip is printed,
not asserted: it is a matter of the machine.
Data: Fashion-MNIST in $FEDEXPERTS_DATA, else handwritten digits.
Usage: python benchmarks/peers.py [--faults] [--links] [--hivemind PYTHON] [--run DIR] [--out DIR] [--toy]
"""

import argparse
import asyncio
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import grpc
import numpy as np
import torch

from fedexperts import run as run_scenario
from fedexperts.moe.auto import AUTO, new_model
from fedexperts.moe.subset import load_full
from fedexperts.peer.address import free_ports
from fedexperts.peer.ask import OPTIONS, channel
from fedexperts.peer.demo import BATCH, PATIENCE, asked, demo_scenario, quantile, recovered, tests_of
from fedexperts.peer.home import Home
from fedexperts.peer.local import Local
from fedexperts.peer.network import init, peers_text
from fedexperts.peer.peer import Peer
from fedexperts.peer.peers_file import Network, Patience, Tls
from fedexperts.peer.relay import Relay, Shape
from fedexperts.report.chart import Chart, Line, Panel
from fedexperts.report.page import shown, write_page
from fedexperts.runs.ended import scenario_of
from fedexperts.train.message import encode

IMAGES, AT_ONCE, PARTS = 32, 16, 5
LOSSES, RATES_BPS, AWAY = (0.0, 0.01, 0.05, 0.1), (1e5, 3e5, 1e6, 1e7), (0, 1, 3, 5, 7, 9)
DELAY_S = 0.01
TOLERANCES_S = (None, 0.2, 0.05)


def echo(run: str, peers: str, port: str, size_B: str) -> None:
    """A server that returns so many bytes, whatever it is sent; by its other method it computes on them, and checks nothing."""

    async def serve() -> None:
        async def nothing(data: bytes, context: Any) -> bytes:
            return reply

        async def expert(data: bytes, context: Any) -> bytes:
            size = IMAGES * home.latent_size
            latents = np.frombuffer(data, np.float32, size, len(data) - 4 * size).reshape(IMAGES, -1).copy()
            return reply[: -4 * IMAGES * home.labels] + home.answer(torch.from_numpy(latents)).numpy().tobytes()

        home, reply, server = Home(run, 1), bytes(int(size_B)), grpc.aio.server(options=OPTIONS)
        methods = {"Echo": nothing, "Expert": expert}
        handlers = {name: grpc.unary_unary_rpc_method_handler(work) for name, work in methods.items()}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bare", handlers),))
        identity = Network(Path(peers), run=home.run, insecure=insecure(peers)).identity("client-1")
        if identity is None:
            server.add_insecure_port(f"127.0.0.1:{port}")
        else:
            server.add_secure_port(f"127.0.0.1:{port}", identity.server())
        await server.start()
        await server.wait_for_termination()

    torch.set_num_threads(1)
    asyncio.run(serve())


def insecure(peers: str | Path) -> bool:
    """Whether a file of peers has no [tls]."""
    return "[tls]" not in Path(peers).read_text()


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


async def asking(run: Path, file: Path, rounds: int, hivemind: Path | None) -> None:
    """One question after another, and then many at once."""
    home = Home(run, 0)
    latents = torch.randn(IMAGES, home.latent_size, generator=torch.Generator().manual_seed(0))
    question = encode({"run": home.run, "client": 0, "expert": 1}, {"latents": latents})
    reply = encode({"run": home.run, "expert": 1}, {"log_p": torch.zeros(IMAGES, home.labels)})
    (port,) = free_ports(1)
    server = subprocess.Popen([sys.executable, __file__, "--child", str(run), str(file), str(port), str(len(reply))])
    try:
        async with Peer(run, 0, file, insecure=insecure(file)) as peer:
            opened = channel(f"127.0.0.1:{port}", peer.identity, peer.network.name(1) if peer.identity else "")
            async with opened:
                echo, expert = (opened.unary_unary(f"/bare/{name}") for name in ("Echo", "Expert"))
                await echo(question, timeout=60.0, wait_for_ready=True)

                async def ours() -> None:
                    assert len(await peer.remotes[1].ask(latents, time.monotonic() + 10.0)) == IMAGES

                async def here() -> None:
                    home.answer(latents)

                works: dict[str, Callable[[], Awaitable[Any]]] = {
                    "the expert, in one process": here,
                    "bare round trip": lambda: echo(question, timeout=10.0),
                    "bare, with the expert": lambda: expert(question, timeout=10.0),
                    "ours": ours,
                }
                took: dict[str, list[float]] = {name: [] for name in works}
                order = random.Random(0)
                for i in range(rounds + 20):
                    for name in order.sample(list(works), len(works)):
                        seconds = await timed(works[name])
                        if i >= 20:
                            took[name].append(seconds)
                per_s = {}
                for name in list(works)[1:]:
                    began_s, turns = time.perf_counter(), max(1, rounds // AT_ONCE)
                    for _ in range(turns):
                        await asyncio.gather(*(works[name]() for _ in range(AT_ONCE)))
                    per_s[name] = turns * AT_ONCE / (time.perf_counter() - began_s)
    finally:
        server.kill()
        server.wait()
    print(
        f"{IMAGES} images of {home.latent_size} numbers, {'in the open' if insecure(file) else 'mutual TLS'}: "
        f"{len(question):,} B there, {len(reply):,} B back; {rounds} rounds"
    )
    if hivemind:
        took["hivemind"], per_s["hivemind"] = beside(hivemind, Home(run, 1), latents, file.parent, rounds)
    told_of(took, per_s)


def told_of(took: dict[str, list[float]], per_s: dict[str, float]) -> None:
    """The table; a ratio is of medians over all rounds, and its range that over fifths of them, one after another."""
    print(f"{'':28}{'median ms':>10}{'p95 ms':>9}{'/ bare':>8}{f'{PARTS} parts':>13}{f'{AT_ONCE} at once, /s':>18}")
    there = [s - b for s, b in zip(took["bare, with the expert"], took["bare round trip"], strict=True)]
    took["ours, without the expert"] = [s - median(there) for s in took["ours"]]
    base = took["bare round trip"]
    for name, values in took.items():
        size = len(values) // PARTS
        parts = [median(values[i * size : (i + 1) * size]) / median(base[i * size : (i + 1) * size]) for i in range(PARTS)]
        spread = f"{min(parts):.2f}…{max(parts):.2f}"
        many = f"{per_s[name]:,.0f}" if name in per_s else ""
        times = f"{1e3 * median(values):10.3f}{1e3 * quantile(values, 95):9.3f}{median(values) / median(base):8.2f}"
        print(f"{name:28}{times}{spread:>13}{many:>18}")


def beside(python: Path, home: Home, latents: torch.Tensor, out: Path, rounds: int) -> tuple[list[float], float]:
    """What hivemind's client waits for its server with the same expert: seconds each, and requests a second."""
    numbers = {f"p{i}": p.detach().numpy() for i, p in enumerate(home.model.moe.experts[1].parameters())}
    np.savez(out / "expert.npz", latents=latents.numpy(), **numbers)
    script = Path(__file__).with_name("peers_hivemind.py")
    words = [str(python), str(script), str(out / "expert.npz"), str(rounds), str(AT_ONCE)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode != 0:
        sys.exit(f"{python} {script.name}: ended with {done.returncode}:\n{done.stderr[-2000:]}")
    found = json.loads(done.stdout.splitlines()[-1])
    assert torch.allclose(torch.tensor(found["log_p"]), home.answer(latents), atol=1e-5, rtol=0), "hivemind: another expert"
    return found["took_s"], found["per_s"]


def one_asked(bench: Bench, run: Path, name: str, hivemind: Path | None) -> None:
    """Client 1 of a run is a process, and asked: in the open, and with certificates."""
    home, ports = Home(run, None), dict(enumerate(free_ports(bench.home.experts)))
    addresses = [f"127.0.0.1:{port}" for port in ports.values()]
    for tls in (None, Tls()):
        folder = bench.out / (f"{name}-tls" if tls else name)
        if tls:
            shutil.rmtree(folder, ignore_errors=True)
            init(run, folder, ["127.0.0.1"], 7300, 1)
        folder.mkdir(exist_ok=True)
        file = folder / "peers.toml"
        file.write_text(peers_text(home.run, addresses, tls, PATIENCE))
        with Local(run, {1: file}, ports, insecure=tls is None) as local:
            local.start([1])
            asyncio.run(asking(run, file, bench.rounds, hivemind if tls else None))


def wide(bench: Bench) -> Path:
    """A model of the paper's size, whose weights do not matter here."""
    folder = bench.out / "wide-model"
    config = load_full(bench.run / "model", AUTO["image-classifier"]).config.to_dict()
    labels = config["num_labels"] if "num_labels" in config else len(config["id2label"])
    changed = {"width": 64, "expert_hidden": 256, "stem_stride": 1}
    new_model({**config, **changed}, 0, kind="image-classifier", outputs=labels).save_pretrained(folder)
    return folder


async def faults(bench: Bench, toy: bool) -> None:
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
    assert toy or frozen.facts()["p95_ms"] <= bound_ms


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
    kinds = (("loss", "loss of segments"), ("rate", "rate, bit/s"), ("away", "clients away"))
    panels = []
    for label, value in (("accuracy", lambda asked: asked.accuracy), ("p95, ms", lambda asked: quantile(asked.took_ms, 95))):
        for kind, title in kinds:
            line = Line(label, [float(at) for at, _ in found[kind]], [float(value(asked)) for _, asked in found[kind]])
            panels.append(Panel(title, label, [line], log="x" if kind == "rate" else ""))
    title = f"Client 0 asks for {BATCH} images at a time"
    alt = "Accuracy and the 95th percentile of latency against loss of segments, rate and clients that are away"
    write_page(path, title, shown([Chart("Accuracy and latency", alt, panels, columns=3)]))
    print(f"{path}: accuracy and latency against loss, rate and absence")


def same_bits(bench: Bench, answers: dict[int, torch.Tensor]) -> None:
    model = load_full(bench.run / "model", AUTO["image-classifier"]).eval()
    with torch.no_grad():
        for c, log_p in answers.items():
            assert torch.equal(log_p, model(bench.images[c][:BATCH]).logits), (
                f"images of client {c}: other bits than in one process"
            )


async def bits(bench: Bench) -> dict[int, torch.Tensor]:
    patience = Patience(deadline_s=60.0, timeout_after_k_min_s=60.0)  # of what is compared nothing may be late
    async with Peer(bench.run, 0, bench.file, insecure=True, patience=patience) as peer:
        return {c: (await peer.infer(x[:BATCH])).log_p_TL for c, x in bench.images.items()}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", action="store_true", help="one frozen, three dead")
    parser.add_argument("--links", action="store_true", help="loss, rate, absence, a gate that minds the channel")
    parser.add_argument("--hivemind", type=Path, metavar="PYTHON", help="of an environment with hivemind, asked for the same")
    parser.add_argument("--run", type=Path, help="a run that has ended, instead of training one")
    parser.add_argument("--out", type=Path, default=Path("runs/bench-peers"))
    parser.add_argument("--toy", action="store_true", help="smallest size, all parts; the figures mean nothing")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
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
        one_asked(bench, run, "asked", arguments.hivemind)
        if not arguments.toy:
            one_asked(bench, wide(bench), "wide", arguments.hivemind)
        if arguments.faults or arguments.toy:
            asyncio.run(faults(bench, arguments.toy))
        if arguments.links:
            asyncio.run(links(bench))
    return None


if __name__ == "__main__":
    main()
