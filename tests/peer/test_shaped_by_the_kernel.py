"""Clients in two network namespaces, joined by a link that the kernel shapes (tbf): a second opinion on what the relay does."""

import asyncio
import ctypes
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tomli_w
import torch
from conftest import CLIENTS

from fedexperts.moe.auto import AUTO
from fedexperts.moe.subset import load_full
from fedexperts.peer.peer import Peer
from fedexperts.peer.peers_file import Patience
from fedexperts.peer.serve import serve
from fedexperts.scenario import read_toml
from namespaces import joined
from processes import exit_code, started

RATE_BPS, BURST_B = 200e3, 4000
HOSTS, PORT = ("10.218.77.1", "10.218.77.2"), 7300
CLONE_NEWNET = 0x40000000
PATIENT = Patience(deadline_s=120.0, timeout_after_k_min_s=120.0)


@pytest.fixture
def namespaces() -> Iterator[list[str]]:
    with joined(HOSTS, RATE_BPS, BURST_B) as names:
        yield names


def enter(namespace: str) -> None:
    with open(f"/run/netns/{namespace}") as file:
        if ctypes.CDLL(None, use_errno=True).setns(file.fileno(), CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns")


def served(namespace: str, run: Path, client: int, peers: Path) -> None:
    enter(namespace)
    asyncio.run(serve(run, client, peers))


def asked(namespace: str, run: Path, peers: Path, images: np.ndarray, out: Path) -> None:
    async def found() -> None:
        async with Peer(run, 0, peers, patience=PATIENT) as peer:
            assert [await remote.healthy(60.0) for remote in peer.remotes.values()] == [None] * (CLIENTS - 1)
            answer = await peer.infer(images, k=CLIENTS)
            assert answer.absent == {}
            np.savez(out, log_p=answer.log_p_TL.numpy(), seconds=answer.seconds, sent_B=answer.sent_B)

    enter(namespace)
    torch.set_num_threads(1)
    asyncio.run(found())


@pytest.mark.slow  # times a rate, which others on the machine disturb
def test_a_network_behind_a_link_of_the_kernel_answers_as_fast_as_it_carries(
    namespaces: list[str], trained: Path, files: Path, images: torch.Tensor, tmp_path: Path
) -> None:
    document = read_toml(files)
    for row in document["peer"]:
        row["address"] = f"{HOSTS[min(row['client'], 1)]}:{PORT + row['client']}"
    peers = files.parent / "namespaces.toml"
    peers.write_text(tomli_w.dumps(document))
    servers = [started(served, namespaces[1], trained, client, peers) for client in range(1, CLIENTS)]
    try:
        assert exit_code(started(asked, namespaces[0], trained, peers, images.numpy(), tmp_path / "answer.npz")) == 0
    finally:
        for server in servers:
            server.terminate()
        assert [exit_code(server) for server in servers] == [0] * len(servers)
    answer = np.load(tmp_path / "answer.npz")
    model = load_full(trained / "model", AUTO["image-classifier"]).eval()
    model.moe.router.top_k = CLIENTS
    with torch.no_grad():
        assert np.array_equal(answer["log_p"], model(images).logits.numpy())
    assert answer["seconds"] > (answer["sent_B"] - BURST_B) * 8 / RATE_BPS > 0.5, "the link did not shape"
