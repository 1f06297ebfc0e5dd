"""A client of a network of experts: it answers others for its expert, and asks them for theirs.

    async with Peer("runs/first", 0, "peers.toml") as peer:
        answer = await peer.infer(images)

Shapes: T images, P of them that go to one expert, D numbers of a latent, E experts, K picks, L labels.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from ..errors import InputError
from .answer import Answer, Better, combined, duration
from .ask import Absent, Remote
from .home import Home
from .links import best
from .metrics import Metrics
from .peers_file import Network, Patience
from .relay import Windows

CLOCKS_S = 0.001
"""So much later than the plan says a peer is asked: of two clocks one may be behind."""
AT_ONCE_FLOPS = 5e7
"""A millisecond or two: handing it to a thread and back takes a tenth of one."""
ROUNDING_S = 0.005
"""So much before a deadline others are no longer waited for: their answers have to be put together."""


class Peer:
    """One client, in one event loop; use it as an asynchronous context manager.

    Args:
        run: a run directory, or its model's folder.
        client: its number, which is that of its expert.
        peers: ``peers.toml``.
        insecure: talk in the open, which a file without ``[tls]`` asks for.
        patience: takes the place of the file's.

    Raises:
        InputError: run and file do not fit each other, or a certificate is wrong.
    """

    def __init__(
        self, run: str | Path, client: int, peers: str | Path, insecure: bool = False, patience: Patience | None = None
    ):
        self.home = Home(run, client)
        self.network = Network(Path(peers), self.home.experts, self.home.run, insecure)
        self.client = client
        self.network.row(client)
        self.identity = self.network.identity(f"client-{client}", self.network.name(client))
        self.patience = patience or self.network.table.patience
        if self.home.draws and self.patience.channel_tolerance_s is not None:
            raise InputError(
                f"{peers}: patience.channel_tolerance_s = {self.patience.channel_tolerance_s:g}: this run's gate draws experts "
                "at random and minds no channel; leave it out"
            )
        self.metrics = Metrics()
        self.remotes: dict[int, Remote] = {}
        self.reach = self._reach()
        self._seeing: ThreadPoolExecutor | None = None
        self._saying: ThreadPoolExecutor | None = None

    async def __aenter__(self) -> Self:
        """Open channels; nobody is called yet."""
        self._seeing = ThreadPoolExecutor(1, "extractor")
        self._saying = ThreadPoolExecutor(1, "expert")
        self.remotes = {
            m: Remote(
                m,
                self.client,
                row.address,
                self.home.run,
                self.home.labels,
                self.patience,
                self.metrics,
                self.identity,
                self.network.name(m) if self.identity else "",
            )
            for m, row in self.network.peers.items()
            if m != self.client
        }
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close them; whoever still waits for an answer gets none."""
        await asyncio.gather(*(remote.close() for remote in self.remotes.values()))
        for pool in (self._seeing, self._saying):
            if pool is not None:
                pool.shutdown(wait=False, cancel_futures=True)

    async def say(self, latents_PD: Tensor) -> Tensor:
        """log q_PL of the own expert; what takes more than a moment is computed beside the event loop."""
        if len(latents_PD) * self.home.expert_flops <= AT_ONCE_FLOPS:
            return self.home.answer(latents_PD)
        return await asyncio.get_running_loop().run_in_executor(self._saying, self.home.answer, latents_PD)

    def _reach(self) -> dict[int, Windows]:
        """When the plan says that each of the others can be reached; nothing of those that always can."""
        links, others = self.network.links, set(self.network.peers) - {self.client}
        found = {} if links is None else {m: links.windows(str(self.client), str(m)) for m in sorted(others)}
        return {m: windows for m, windows in found.items() if windows is not None}

    def _plan_s(self) -> float:
        return 0.0 if self.network.links is None else self.network.links.clock.now_s()

    def out_of_contact(self, client: int) -> str | None:
        """Why the plan says that a client cannot be asked now, and when it can."""
        now_s = self._plan_s()
        if client not in self.reach or self.reach[client].at(now_s):
            return None
        next_s = self.reach[client].next_s(now_s)
        return "out of contact for good" if math.isinf(next_s) else f"out of contact, next at +{duration(next_s - now_s)}"

    def _better(self, absent: Mapping[int, str]) -> Better | None:
        """What waiting would bring, of those that are away by the plan."""
        now_s, away = self._plan_s(), tuple(m for m in sorted(absent) if self.out_of_contact(m) is not None)
        found = best({m: self.reach[m] for m in away}, now_s)
        return None if found is None else Better(found[0] - now_s, found[1], away)

    async def infer(
        self,
        images: Any,
        k: int | None = None,
        deadline_s: float | None = None,
        wait_s: float = 0.0,
        until_s: float = math.inf,
    ) -> Answer:
        """What the network says of a batch of images; never fails for a peer that does.

        Args:
            images: uint8 [T, C, S, S], an array or a tensor.
            k: experts that are asked of each image; the model's own number if left out.
            deadline_s: for all experts' answers, from when they are asked; that of ``[patience]`` if left out.
            wait_s: how long to wait, in the plan's time, for more experts to come into contact, if it says that they will; they
                are then asked as well, once.
            until_s: nobody is waited for beyond this moment of `time.monotonic`.

        Raises:
            InputError: the images do not fit the model, or there are not so many experts.
        """
        began_s = time.monotonic()
        k = self.home.k if k is None else k
        self.home.check_k(k, "k")
        allowed_s = self.patience.deadline_s if deadline_s is None else deadline_s
        pixels_TCSS = self.home.images(images)
        loop = asyncio.get_running_loop()
        latents_TD, weights_TK, indices_TK = await loop.run_in_executor(
            self._seeing, self.home.look, pixels_TCSS, k, self._discount()
        )
        rows = {m: (indices_TK == m).any(dim=1).nonzero().flatten() for m in torch.unique(indices_TK).tolist()}
        before_B, chosen_s = self._traffic_B(), time.monotonic() - began_s
        answers, absent = await self._answers(latents_TD, indices_TK, rows, min(until_s, time.monotonic() + allowed_s))
        better = self._better(absent)
        if better is not None and better.in_s <= wait_s and self.network.links is not None:
            await asyncio.sleep(self.network.links.clock.real_s(better.in_s) + CLOCKS_S)
            late = {m: rows[m] for m in better.clients}
            more, still = await self._answers(latents_TD, indices_TK, late, min(until_s, time.monotonic() + allowed_s))
            answers, absent = answers | more, {m: why for m, why in absent.items() if m not in late} | still
            better = self._better(absent)
        log_p_TL, weights_TK = combined(answers, indices_TK, weights_TK, self.home.labels)
        alone_T = torch.isinf(log_p_TL[:, 0])
        if fallbacks := int(alone_T.sum()):
            log_p_TL[alone_T] = await self.say(latents_TD[alone_T])
            self.metrics.fallback(fallbacks)
        for m, rows_P in rows.items():
            outcome = "absent" if m in absent else "home" if m == self.client else "answered"
            self.metrics.expert(m, outcome, len(rows_P))
        sent_B, received_B = (after - before for after, before in zip(self._traffic_B(), before_B, strict=True))
        took_part = {m: len(rows_P) for m, (rows_P, _) in answers.items()}
        return Answer(
            log_p_TL,
            indices_TK,
            weights_TK,
            took_part,
            absent,
            self.client,
            fallbacks,
            chosen_s,
            time.monotonic() - began_s,
            sent_B,
            received_B,
            better,
        )

    def _traffic_B(self) -> tuple[int, int]:
        traffic = [remote.traffic for remote in self.remotes.values()]
        return sum(t.sent_B for t in traffic), sum(t.received_B for t in traffic)

    def _discount(self) -> Tensor | None:
        """What the gate's logits lose by the channel: log of how often a peer answers, and its delay over the tolerance."""
        if (tolerance_s := self.patience.channel_tolerance_s) is None:
            return None
        discount_E = torch.zeros(self.home.experts)
        for m, remote in self.remotes.items():
            away = remote.breaker.suspected or self.out_of_contact(m) is not None
            there = 0.0 if away else remote.pace.answered
            discount_E[m] = math.log(max(there, 1e-6)) - remote.pace.delay_s / tolerance_s
        return discount_E

    async def _answers(
        self, latents_TD: Tensor, indices_TK: Tensor, rows: Mapping[int, Tensor], until_s: float
    ) -> tuple[dict[int, tuple[Tensor, Tensor]], dict[int, str]]:
        """What the picked experts say, by expert, and who was away; the own expert answers while others are asked."""
        absent = {m: why for m in rows if m != self.client and (why := self.out_of_contact(m)) is not None}
        asked = {
            m: self.say(latents_TD[at]) if m == self.client else self.remotes[m].ask(latents_TD[at], until_s)
            for m, at in rows.items()
            if m not in absent
        }
        tasks = {asyncio.ensure_future(question): m for m, question in asked.items()}
        began_s = time.monotonic()
        answers: dict[int, tuple[Tensor, Tensor]] = {}
        try:
            await self._waited(tasks, rows, indices_TK, until_s)
            for task, m in tasks.items():
                if not task.done() and m != self.client:
                    absent[m] = self.remotes[m].late(time.monotonic() - began_s)
                    continue
                try:
                    answers[m] = rows[m], await task
                except Absent as error:
                    absent[m] = str(error)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return answers, absent

    async def _waited(
        self, tasks: Mapping[asyncio.Task[Tensor], int], rows: Mapping[int, Tensor], indices_TK: Tensor, until_s: float
    ) -> None:
        """Wait until all have answered or will not, or long enough."""
        have_T, enough = torch.zeros(len(indices_TK), dtype=torch.long), min(self.patience.k_min, indices_TK.shape[1])
        pending, hurried = set(tasks), False
        while pending:
            left_s = max(0.0, until_s - time.monotonic())
            done, pending = await asyncio.wait(pending, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
            if not done:
                break
            for task in done:
                if task.exception() is None:
                    have_T[rows[tasks[task]]] += 1
            if not hurried and bool((have_T >= enough).all()):
                until_s, hurried = min(until_s, time.monotonic() + self.patience.timeout_after_k_min_s), True
