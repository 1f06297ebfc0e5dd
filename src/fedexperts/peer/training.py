"""The same door for training: a gate that is trained against experts which other clients hold, over the network.

Within ``Peers`` the model's other experts are asked, and answer in their place; whoever trains the gate calls them as if they
were there. Nothing of their weights is here, and no gradient goes to them, as they and the extractor are frozen.
"""

from __future__ import annotations

import asyncio
import functools
import threading
import time
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from ..errors import RunError
from .ask import Absent, Traffic
from .peer import Peer
from .peers_file import Patience

START_S = 60.0


class _Asked(nn.Module):
    """In the place of an expert of another client."""

    def __init__(self, peers: Peers, client: int):
        super().__init__()
        self._ask = functools.partial(peers.ask, client)

    def forward(self, latents_TD: Tensor) -> Tensor:
        """log q_TL, as the other client says it."""
        return self._ask(latents_TD)


class Peers:
    """Other clients' experts in a model of this client; use it as a context manager.

    Who does not answer after all attempts, or is suspected, is stood in for by the client's own expert, as in inference: the
    gate then learns that asking it is worth no more than staying at home, and training goes on.

    Args:
        run: the run whose experts are asked, with its extractor; a checkpoint's folder will do.
        client: who trains.
        peers: ``peers.toml``.
        model: a `NetworkedMoEForImageClassification` with its own expert ``client``.
        insecure: talk in the open.
        patience: takes the place of the file's.

    Attributes:
        fallbacks: samples whose expert was stood in for.
    """

    def __init__(
        self,
        run: str | Path,
        client: int,
        peers: str | Path,
        model: Any,
        insecure: bool = False,
        patience: Patience | None = None,
    ):
        self._peer = Peer(run, client, peers, insecure, patience)
        self._model, self.client = model, client
        self.fallbacks = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="peers", daemon=True)
        self._own: dict[int, nn.Module] = {}

    def __enter__(self) -> Self:
        """Put others in the place of the model's other experts."""
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._peer.__aenter__(), self._loop).result(START_S)
        experts = self._model.moe.experts
        for m in range(len(experts)):
            if m != self.client:
                self._own[m] = experts[m]
                experts[m] = _Asked(self, m)
        return self

    def __exit__(self, *_: object) -> None:
        """Put the model together again as it was."""
        for m, module in self._own.items():
            self._model.moe.experts[m] = module
        self._own.clear()
        asyncio.run_coroutine_threadsafe(self._peer.__aexit__(), self._loop).result(START_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def ask(self, client: int, latents_TD: Tensor) -> Tensor:
        """log q_TL of another client's expert, or of one's own where it is away."""
        latents_TD = latents_TD.detach()
        here = latents_TD.device
        question = self._ask(client, latents_TD.float().cpu())
        try:
            log_q_TL: Tensor = asyncio.run_coroutine_threadsafe(question, self._loop).result()
        except Absent:
            self.fallbacks += len(latents_TD)
            with torch.no_grad():
                own_TL: Tensor = self._model.moe.experts[self.client](latents_TD)
                return own_TL
        return log_q_TL.to(here)

    async def _ask(self, client: int, latents_TD: Tensor) -> Tensor:
        return await self._peer.remotes[client].ask(latents_TD, time.monotonic() + self._peer.patience.deadline_s)

    def traffic(self, client: int) -> Traffic:
        """What has travelled to and from another client.

        Raises:
            RunError: there is none of this number.
        """
        if client not in self._peer.remotes:
            raise RunError(f"client {client}: is none of the others; they are {', '.join(map(str, self._peer.remotes))}")
        return self._peer.remotes[client].traffic

    @property
    def numbers_B(self) -> int:
        """Bytes of latents and answers alone, as simulated runs count them; messages have heads beside."""
        return sum(remote.traffic.numbers_B for remote in self._peer.remotes.values())
