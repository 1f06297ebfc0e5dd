"""A peer as a process: it listens until it is told to end."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import torch

from ..errors import InputError
from .address import split_address
from .peer import Peer
from .server import Door


async def serve(
    run: Path,
    client: int,
    peers: Path,
    listen: str | None = None,
    insecure: bool = False,
    metrics: str | None = None,
    ready: Callable[[Peer, Door], None] = lambda peer, door: None,
) -> None:
    """Answer until SIGINT or SIGTERM.

    Args:
        run: a run directory.
        client: its number.
        peers: ``peers.toml``.
        listen: HOST:PORT; the client's address in ``peers.toml`` if left out.
        insecure: talk in the open.
        metrics: HOST:PORT of a page for Prometheus.
        ready: told when it listens.

    Raises:
        InputError: something of this does not fit, or a port is in use.
    """
    if listen is not None:
        split_address("--listen", listen)
    page_at = None if metrics is None else split_address("--metrics", metrics)
    torch.set_num_threads(1)
    peer = Peer(run, client, peers, insecure)
    if peer.patience.k_min > peer.home.k:
        raise InputError(
            f"{peers}: patience.k_min = {peer.patience.k_min}: is above the {peer.home.k} experts that are asked; lower it"
        )
    at = listen or peer.network.row(client).address
    ended = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    async with peer, Door(peer, at) as door:
        if page_at is None:
            ready(peer, door)
            await ended.wait()
            return
        page = peer.metrics.serve(*page_at)
        with closing(page.socket):
            try:
                ready(peer, door)
                await ended.wait()
            finally:
                page.shutdown()
