"""Asking one peer: a channel, questions that travel together, bounded retries, answers checked, a breaker with its probes.

Shapes: P images of a question, D numbers of a latent, L labels.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np
import torch
from torch import Tensor

from ..train.message import MOST_B, Message, WireError, decode, encode, payload_B, said
from .breaker import Breaker
from .metrics import Metrics
from .peers_file import Patience
from .tls import Identity

SERVICE = "fedexperts.Peer"
MOST_SAMPLES = 4096
"""Images of one question between peers; more travel as several."""
IN_FLIGHT = 2
"""Questions on their way to one peer; others wait, and travel together."""
BACKOFF_S, MOST_BACKOFF_S = 0.02, 0.5
NORMALISED = 1e-3
"""How far the probabilities of an answer may sum from one."""
OPTIONS = [
    ("grpc.max_receive_message_length", MOST_B),
    ("grpc.max_send_message_length", MOST_B),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 20_000),  # for which a connection may take to open: links may be slow
    ("grpc.max_reconnect_backoff_ms", 500),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
    ("grpc.http2.bdp_probe", 0),
]


class Absent(Exception):  # noqa: N818  # it is what the peer is
    """A peer has not answered; the text says why."""


@dataclass
class _Question:
    latents_PD: Tensor
    until_s: float
    answer: asyncio.Future[Tensor]


@dataclass
class Traffic:
    """Of one peer, in messages and in the numbers within them, which is what simulated runs count.

    What is sent counts at each attempt: whether a message has left before a connection broke, nobody tells.
    """

    sent_B: int = 0
    received_B: int = 0
    numbers_B: int = 0
    questions: int = 0


@dataclass
class Pace:
    """How a peer has answered so far: running means, from which a gate that minds the channel takes what to expect."""

    delay_s: float = 0.0
    answered: float = 1.0
    weight: float = 0.2
    heard: bool = False

    def note(self, delay_s: float | None) -> None:
        """An answer after so long, or none."""
        if delay_s is not None:
            self.delay_s += (delay_s - self.delay_s) * (self.weight if self.heard else 1.0)
            self.heard = True
        self.answered += ((delay_s is not None) - self.answered) * self.weight


class Remote:
    """One other client, as it is asked from here. It lives in one event loop.

    Args:
        client: its number, which is that of its expert.
        own: number of who asks.
        address: HOST:PORT.
        run: digest of extractor and gate, which must be its own too.
        labels: L.
        patience: how long to wait, and how often.
        metrics: what is counted.
        identity: of who asks; None talks in the open.
        name: what its certificate must say.
    """

    def __init__(
        self,
        client: int,
        own: int,
        address: str,
        run: str,
        labels: int,
        patience: Patience,
        metrics: Metrics,
        identity: Identity | None = None,
        name: str = "",
    ):
        self.client, self.own, self.address, self.run, self.labels = client, own, address, run, labels
        self.patience, self.metrics = patience, metrics
        self.breaker = Breaker(patience.suspect_s, patience.suspect_most_s)
        self.traffic, self.pace = Traffic(), Pace()
        self._head = said({"run": run, "client": own, "expert": client})
        self._waiting: deque[_Question] = deque()
        self._flights = 0
        self._calls: set[Any] = set()
        self._cut: set[Any] = set()  # calls that were given up, as the peer is suspected
        self._tasks: set[asyncio.Task[None]] = set()
        self._channel = channel(address, identity, name)
        self._answer = self._channel.unary_unary(f"/{SERVICE}/Answer")
        self._health = self._channel.unary_unary(f"/{SERVICE}/Health")

    async def close(self) -> None:
        """End all that is under way."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._channel.close()

    async def ask(self, latents_PD: Tensor, until_s: float) -> Tensor:
        """log q_PL of its expert, by a moment of `time.monotonic`.

        Raises:
            Absent: it is suspected, does not answer in time or at all, or answers what cannot be used.
        """
        if self.breaker.suspected:
            raise Absent(f"suspected ({self.breaker.reason}), asked again in {self.breaker.left_s:.1f} s")
        if not self._waiting and self._flights < IN_FLIGHT and len(latents_PD) <= MOST_SAMPLES:
            self._flights += 1  # alone, and at once
            try:
                return await self._travelled(latents_PD, until_s)
            finally:
                self._flights -= 1
                self._dispatch()
        parts = [
            _Question(part, until_s, asyncio.get_running_loop().create_future())
            for part in torch.split(latents_PD, MOST_SAMPLES)
        ]
        self._waiting.extend(parts)
        self._dispatch()
        try:
            return torch.cat([await part.answer for part in parts]) if len(parts) > 1 else await parts[0].answer
        finally:
            for part in parts:
                part.answer.cancel()

    def late(self, waited_s: float) -> str:
        """Who asked has gone on without it, after so long; the reason in words.

        It is suspected, unless who asked was in a greater hurry than ``[patience]`` is: that says nothing of it.
        """
        reason = f"did not answer within {waited_s:.2g} s"
        if waited_s >= 0.9 * min(self.patience.deadline_s, self.patience.timeout_after_k_min_s):
            self._failed(reason)
        return reason

    def _failed(self, reason: str) -> None:
        """Suspect it, tell all who wait for it, and look after it from now on; no question waits for that."""
        if self.breaker.failed(reason):
            self.metrics.suspected(self.client, True)
            self._start(self._probe())
        for question in self._waiting:
            _refuse(question, reason)
        self._waiting.clear()
        for call in self._calls:
            self._cut.add(call)
            call.cancel()
        self._calls.clear()

    def _start(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _dispatch(self) -> None:
        """Send what waits, as far as not enough is on its way already; questions that wait travel together."""
        while self._waiting and self._flights < IN_FLIGHT:
            flight: list[_Question] = []
            while self._waiting and sum(len(q.latents_PD) for q in flight) + len(self._waiting[0].latents_PD) <= MOST_SAMPLES:
                question = self._waiting.popleft()
                if not question.answer.done():
                    flight.append(question)
            if flight:
                self._flights += 1
                self._start(self._fly(flight))

    async def _fly(self, flight: list[_Question]) -> None:
        """One message for several, there and back."""
        latents_PD = flight[0].latents_PD if len(flight) == 1 else torch.cat([q.latents_PD for q in flight])
        try:
            log_q_PL = await self._travelled(latents_PD, max(q.until_s for q in flight))
        except Absent as error:
            for question in flight:
                _refuse(question, str(error))
        except Exception as error:  # a fault of ours: whoever asks must hear of it, and not wait for good
            for question in flight:
                if not question.answer.done():
                    question.answer.set_exception(error)
        else:
            for question, part in zip(flight, torch.split(log_q_PL, [len(q.latents_PD) for q in flight]), strict=True):
                if not question.answer.done():
                    question.answer.set_result(part)
        finally:
            self._flights -= 1
            self._dispatch()

    async def _travelled(self, latents_PD: Tensor, until_s: float) -> Tensor:
        """`_asked`, and what is learnt of the peer by it."""
        began_s = time.monotonic()
        try:
            log_q_PL = await self._asked(latents_PD, until_s)
        except Absent:
            self.pace.note(None)
            raise
        self.pace.note(time.monotonic() - began_s)
        self.breaker.answered()
        return log_q_PL

    async def _asked(self, latents_PD: Tensor, until_s: float) -> Tensor:
        tensors = {"latents": latents_PD}
        data, began_s = encode(self._head, tensors), time.monotonic()
        for attempt in range(1, self.patience.attempts + 1):
            left_s = until_s - time.monotonic()
            if left_s <= 0:
                raise Absent(self.late(time.monotonic() - began_s))
            if self.breaker.suspected:
                raise Absent(self.breaker.reason)
            self.traffic.sent_B += len(data)
            self.traffic.questions += 1
            self.metrics.sent(len(data))
            call = self._answer(data, timeout=left_s)
            self._calls.add(call)
            try:
                reply = await call
            except asyncio.CancelledError:
                if call in self._cut:
                    raise Absent(self.breaker.reason) from None
                raise
            except grpc.aio.AioRpcError as error:
                pause_s = min(MOST_BACKOFF_S, BACKOFF_S * 2**attempt) * random.uniform(0.5, 1.0)
                again = attempt < self.patience.attempts and until_s - time.monotonic() > pause_s
                if again and (error.code() is grpc.StatusCode.UNAVAILABLE or busy(error)):
                    await asyncio.sleep(pause_s)
                    continue
                if busy(error):  # it is there and well, and has no time
                    raise Absent(f"is {error.details()}") from error
                if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                    raise Absent(self.late(time.monotonic() - began_s)) from error
                raise self._blamed(_told(error, left_s)) from error
            finally:
                self._calls.discard(call)
                self._cut.discard(call)
            self.traffic.received_B += len(reply)
            self.metrics.received(len(reply))
            try:
                message = checked(reply, self.run, self.client, len(latents_PD), self.labels)
            except WireError as error:
                raise self._blamed(f"answered what cannot be used: {error}") from error
            self.traffic.numbers_B += payload_B(tensors) + payload_B(message.tensors)
            return message.tensors["log_p"]
        raise AssertionError("the last attempt returns or raises")

    def _blamed(self, reason: str) -> Absent:
        self._failed(reason)
        return Absent(reason)

    async def healthy(self, timeout_s: float) -> str | None:
        """What is wrong with it; None if it is well and of this run."""
        try:
            reply = await self._health(b"", timeout=timeout_s, wait_for_ready=True)  # it may just be starting
            head = decode(reply, {}, 0).head
        except grpc.aio.AioRpcError as error:
            return _told(error, timeout_s)
        except WireError as error:
            return f"answered what cannot be used: {error}"
        return _other(head, self.run, self.client)

    async def _probe(self) -> None:
        """Ask a suspected peer how it is, until it is well."""
        while self.breaker.suspected:
            await asyncio.sleep(self.breaker.left_s)
            fault = await self.healthy(self.patience.deadline_s)
            self.breaker.probed(fault)
        self.metrics.suspected(self.client, False)


def channel(address: str, identity: Identity | None, name: str = "") -> Any:
    """A channel to a peer whose certificate must have this name."""
    if identity is None:
        return grpc.aio.insecure_channel(address, options=OPTIONS)
    override = [("grpc.ssl_target_name_override", name)] if name else []
    return grpc.aio.secure_channel(address, identity.channel(), options=[*OPTIONS, *override])


def checked(reply: bytes, run: str, client: int, samples: int, labels: int) -> Message:
    """An answer, if it is one: of this run and expert, of so many images, finite, probabilities that sum to one.

    Raises:
        WireError: it is not.
    """
    message = decode(reply, {"log_p": (torch.float32, (None, labels))}, samples)
    if fault := _other(message.head, run, client):
        raise WireError(fault)
    log_p_PL = message.tensors["log_p"]
    if len(log_p_PL) != samples:
        raise WireError(f"log_p of {len(log_p_PL)} images; {samples} were asked of")
    array = log_p_PL.numpy()
    sums_P = np.add.reduce(np.exp(array), axis=1)  # here and below what .sum() and .min() call, after 5 µs of Python
    least, most = np.minimum.reduce(sums_P, initial=1), np.maximum.reduce(sums_P, initial=1)
    if not (least >= 1 - NORMALISED and most <= 1 + NORMALISED):  # so that what is not a number fails too
        raise WireError("probabilities do not sum to one" if np.isfinite(array).all() else "log_p is not finite")
    if not np.minimum.reduce(array, axis=None, initial=0) > -np.inf:
        raise WireError("log_p is not finite")
    return message


def _other(head: Mapping[str, Any], run: str, client: int) -> str | None:
    """Whether a head is of another run or expert."""
    if head.get("run") != run:
        return f"is of another run or version, {str(head.get('run'))[:64]}, and not of {run}"
    if head.get("expert") != client:
        return f"has expert {str(head.get('expert'))[:20]}, and not {client}"
    return None


def busy(error: grpc.aio.AioRpcError) -> bool:
    """Whether a peer has refused for want of time; a message that is too large has the same code."""
    return error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED and str(error.details()).startswith("busy")


def _told(error: grpc.aio.AioRpcError, waited_s: float) -> str:
    """What became of a call, in words."""
    code, details = error.code(), " ".join(str(error.details()).split())[:300]
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return f"did not answer within {waited_s:.2g} s"
    if code is grpc.StatusCode.UNAVAILABLE:
        return f"cannot be reached ({details})"
    return f"refused: {details} ({code.name})"


def _refuse(question: _Question, reason: str) -> None:
    if not question.answer.done():
        question.answer.set_exception(Absent(reason))
        question.answer.exception()  # nobody may be left to hear it
