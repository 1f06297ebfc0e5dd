"""``fedexperts peer demo``: ten clients as processes answer for their users' images, while one is slow, dead or frozen."""

from __future__ import annotations

import asyncio
import os
import signal
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError, RunError
from ..method.methods import prepare
from ..moe.auto import AUTO
from ..moe.subset import load_full
from ..runs.ended import check_ended, scenario_of
from ..runs.run import run as run_scenario
from ..scenario import Scenario
from .address import free_ports
from .home import Home
from .local import Local
from .network import peers_text
from .relay import Relay, Shape
from .user import Reply, User

BATCH, BATCHES = 16, 10
"""Images of a request, and requests of a user at most in one pass."""
SLOW_S = 0.15
"""Each way, of the client that is slowed down."""
PATIENCE = {"deadline_s": 1.0, "timeout_after_k_min_s": 1.0, "suspect_s": 0.5, "suspect_most_s": 8.0}
DEADLINE_S = 30.0
RECOVERY_S = 30.0
Say = Callable[[str], None]


def demo_scenario(folder: Path) -> Scenario:
    """The packaged scenario on Fashion-MNIST of $FEDEXPERTS_DATA if it is there, else on handwritten digits, written there."""
    document = Scenario.load(str(files(__package__).joinpath("demo.toml"))).model_dump(exclude_none=True)
    fashion = Path(os.environ.get("FEDEXPERTS_DATA", ""), "fashion_mnist")
    if os.environ.get("FEDEXPERTS_DATA") and (fashion / "train.npz").is_file() and (fashion / "test.npz").is_file():
        return _on(document, fashion, {}, folder)
    return _on(document, digits(folder), {"image_size": 16, "stem_stride": 1, "samples": 1400, "test_samples": 390}, folder)


def _on(document: dict[str, Any], data: Path, changes: Mapping[str, int], folder: Path) -> Scenario:
    cluster = {**document["cluster"][0], "data": str(data / "train.npz"), "test": str(data / "test.npz")}
    config = document["model"]["config"]
    for key, value in changes.items():
        (config if key in config else cluster)[key] = value
    return Scenario.parse({**document, "cluster": [cluster]}, folder)


def digits(folder: Path) -> Path:
    """Handwritten digits of scikit-learn as images of 16 × 16 pixels: train.npz and test.npz in the folder."""
    from sklearn.datasets import load_digits

    found = load_digits()
    x = np.repeat(np.repeat((found.images * 15.9).astype(np.uint8), 2, axis=1), 2, axis=2)
    folder.mkdir(parents=True, exist_ok=True)
    for split, at in (("train", slice(0, 1400)), ("test", slice(1400, None))):
        np.savez(folder / f"{split}.npz", x=x[at], y=found.target[at])
    return folder


@dataclass
class Pass:
    """What the users of some clients were answered."""

    asked: int = 0
    answered: int = 0
    right: int = 0
    local: float = 0.0
    peer_B: int = 0
    fallbacks: int = 0
    took_s: list[float] = field(default_factory=list)
    log_p: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    absent: dict[str, int] = field(default_factory=dict)

    def facts(self) -> dict[str, Any]:
        """As ``--json`` has them."""
        return {
            "accuracy": round(self.right / max(1, self.asked), 6),
            "answered": self.answered,
            "asked": self.asked,
            "fallbacks": self.fallbacks,
            **{f"p{q}_ms": round(1e3 * quantile(self.took_s or [0.0], q), 3) for q in (50, 95, 99)},
        }


def quantile(values: Sequence[float], percent: int) -> float:
    """The smallest of the values that so many per cent of them do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, -(-len(ordered) * percent // 100) - 1)]


def demo(run: Path | None, out: Path, say: Say, batches: int = BATCHES, context: Any = None) -> dict[str, Any]:
    """Train, or take a run, and let its clients answer; what ``fedexperts peer demo --json`` prints.

    Args:
        run: a run directory; None trains one in ``out``.
        out: where it goes.
        say: told how far it is.
        batches: requests of a user in one pass, at most.
        context: see `Local`.

    Raises:
        InputError: the run has no experts that ask each other, or no gate that chooses them.
        RunError: a process ends that should not.
    """
    torch.set_num_threads(1)
    began_s = time.monotonic()
    if run is None:
        scenario, run = demo_scenario(out), out / "run"
        say("training a network of experts")
        run_scenario(scenario, run)
    else:
        check_ended(run)
        scenario = scenario_of(run)
    home = Home(run, None)
    if home.draws:
        raise InputError(
            f"--run {run}: its gate draws experts at random, so that no two processes ask the same; give a run whose gate "
            "was trained"
        )
    images, labels = tests_of(scenario, batches)
    model: Any = load_full(run / "model", AUTO["image-classifier"]).eval()
    trained_s = time.monotonic() - began_s
    expected, alone, asked_CE = in_process(model, images)
    picked = asked_CE.sum(axis=0) - np.diag(asked_CE)
    victim = int(picked.argmax())
    clients = range(home.experts)
    with tempfile.TemporaryDirectory() as folder:
        ports = free_ports(home.experts + 1)
        addresses = [f"127.0.0.1:{port}" for port in ports[:-1]]
        addresses[victim] = f"127.0.0.1:{ports[-1]}"  # others reach it by a relay
        (Path(folder) / "peers.toml").write_text(peers_text(home.run, addresses, patience=PATIENCE))
        at = dict(zip(clients, ports, strict=False))
        with Local(run, dict.fromkeys(clients, Path(folder) / "peers.toml"), at, insecure=True, context=context) as local:
            say(f"starting {home.experts} clients")
            starting_s = time.monotonic()
            local.start(clients)
            started_s = time.monotonic() - starting_s
            relay = Relay(("127.0.0.1", ports[-1]), ("127.0.0.1", ports[victim]))
            passes = asyncio.run(_passes(local, relay, victim, images, labels, say))
    whole = passes["healthy"]
    n = sum(len(labels[c]) for c in labels)
    same = all(torch.equal(found, expected[key]) for key, found in whole.log_p.items())
    right = sum(int((expected[key].argmax(dim=1) == part).sum()) for key, part in _batches(labels))
    own = sum(int((alone[key].argmax(dim=1) == part).sum()) for key, part in _batches(labels))
    return {
        "run": str(run),
        "clients": home.experts,
        "k": home.k,
        "data": str(scenario.cluster[0].test),
        "victim": victim,
        **whole.facts(),
        "in_process_accuracy": round(right / n, 6),
        "equal_bits": same,
        "own_expert_accuracy": round(own / n, 6),
        "local_ratio": round(whole.local / max(1, whole.answered), 6),
        "bytes_per_sample": round(whole.peer_B / max(1, whole.answered), 1),
        "training_s": round(trained_s, 1),
        "start_s": round(started_s, 1),
        "total_s": round(time.monotonic() - began_s, 1),
        **{
            name: {**found.facts(), "healthy_accuracy": round(_right_of(whole, found, labels), 6)}
            for name, found in passes.items()
            if name != "healthy"
        },
    }


def _right_of(whole: Pass, part: Pass, labels: Mapping[int, Tensor]) -> float:
    """Accuracy with all well, on the images of another pass."""
    keys = set(part.log_p)
    truth = dict(_batches(labels))
    rows = [(log_p.argmax(dim=1) == truth[key]) for key, log_p in whole.log_p.items() if key in keys]
    return float(torch.cat(rows).double().mean()) if rows else 0.0


def tests_of(scenario: Scenario, batches: int) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
    """Each client's own test images, as many as fill its requests, and their labels."""
    own = prepare(scenario).tests.own
    found = [(samples["pixel_values"], samples["labels"]) for samples in own.values()]
    most = batches * BATCH
    return {i: x[:most] for i, (x, _) in enumerate(found)}, {i: y[:most] for i, (_, y) in enumerate(found)}


def _batches(tensors: Mapping[int, Tensor]) -> list[tuple[tuple[int, int], Tensor]]:
    """Requests by client and number."""
    return [((c, i), part) for c, rows in tensors.items() for i, part in enumerate(torch.split(rows, BATCH))]


@torch.no_grad()
def in_process(
    model: Any, images: Mapping[int, Tensor]
) -> tuple[dict[tuple[int, int], Tensor], dict[tuple[int, int], Tensor], Any]:
    """The same requests in one process: the network's answers, those of the own expert, and who asks whom, asked_CE."""
    answers, alone = {}, {}
    asked_CE = np.zeros((len(images), model.config.num_experts))
    for key, part in _batches(images):
        latents_TD = model.latents(part)
        answers[key] = model(part).logits
        alone[key] = model.moe.experts[key[0]](latents_TD)
        _, indices_TK = model.moe.router(model.moe.gate(latents_TD), False)
        asked_CE[key[0]] += np.bincount(indices_TK.flatten().numpy(), minlength=asked_CE.shape[1])
    return answers, alone, asked_CE


async def _passes(
    local: Local, relay: Relay, victim: int, images: Mapping[int, Tensor], labels: Mapping[int, Tensor], say: Say
) -> dict[str, Pass]:
    """All well, and then one client slow, dead and frozen; after each it is well again."""
    others = {c: x for c, x in images.items() if c != victim}
    found: dict[str, Pass] = {}
    async with relay:
        await asked(local, images, labels, most=1)  # connections are made, and code is warm
        say("asking all clients")
        found["healthy"] = await asked(local, images, labels)
        say(f"client {victim} is slow: {1e3 * SLOW_S:g} ms each way")
        relay.shape = Shape(delay_s=SLOW_S)
        found["slow"] = await asked(local, others, labels)
        relay.shape = Shape()
        await recovered(local)
        say(f"client {victim} is killed")
        local.end([victim])
        found["killed"] = await asked(local, others, labels)
        await asyncio.to_thread(local.start, [victim])
        await recovered(local)
        say(f"client {victim} is frozen")
        local.signal(victim, signal.SIGSTOP)
        found["frozen"] = await asked(local, others, labels)
        local.signal(victim, signal.SIGCONT)
    return found


async def asked(local: Local, images: Mapping[int, Tensor], labels: Mapping[int, Tensor], most: int = 10**9) -> Pass:
    """Each user asks its client, one request after another, the users in turn."""
    found = Pass()
    truth = dict(_batches(labels))
    requests = sorted(_batches(images), key=lambda request: request[0][::-1])
    async with AsyncExitStack() as stack:
        users = {c: await stack.enter_async_context(User(local.address(c))) for c in images}
        for (client, i), part in requests:
            if i >= most:
                continue
            found.asked += len(part)
            try:
                reply = await users[client].infer(part, deadline_s=DEADLINE_S)
            except RunError:
                continue
            _counted(found, (client, i), reply, truth[client, i])
    return found


def _counted(found: Pass, key: tuple[int, int], reply: Reply, labels: Tensor) -> None:
    found.answered += len(labels)
    found.right += int((reply.log_p_TL.argmax(dim=1) == labels).sum())
    found.local += reply.facts["local_ratio"] * len(labels)
    found.peer_B += reply.facts["sent_B"] + reply.facts["received_B"]
    found.fallbacks += reply.facts["fallbacks"]
    found.took_s.append(reply.seconds)
    found.log_p[key] = reply.log_p_TL
    for m in reply.facts["absent"]:
        found.absent[m] = found.absent.get(m, 0) + 1


async def recovered(local: Local) -> None:
    """Wait until nobody suspects anybody.

    Raises:
        RunError: it takes too long.
    """
    until_s = time.monotonic() + RECOVERY_S
    suspects: dict[int, Any] = {}
    while time.monotonic() < until_s:
        suspects = {}
        for client in local.processes:
            async with User(local.address(client)) as user:
                suspects[client] = user.health["suspects"]
        if not any(suspects.values()):
            return
        await asyncio.sleep(0.1)
    raise RunError(f"clients are still suspected after {RECOVERY_S:g} s: {suspects}")
