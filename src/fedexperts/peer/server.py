"""The door of a peer: others ask its expert (Answer), users its network (Infer), and both how it is (Health).

It admits what it can finish: a bounded number of requests, and of these none whose deadline is nearer than its turn.
"""

from __future__ import annotations

import math
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, Self

import grpc
import torch

from .. import __version__
from ..errors import InputError
from ..train.message import WireError, decode, encode, number, said, text
from .address import check_free
from .ask import MOST_SAMPLES, OPTIONS, SERVICE
from .home import MOST_IMAGES
from .peer import ROUNDING_S, Peer

MOST_ANSWERS, MOST_INFERENCES = 64, 128
"""Requests of a kind that are admitted at once; others are refused, and may come again."""
MOST_RPCS = 512
MEMORY = 0.8
"""What is left of an observation at the next one."""


class _Turn:
    """How many requests of a kind are admitted, and how long this machine computes on their samples."""

    def __init__(self, most: int):
        self.most, self.requests, self.samples = most, 0, 0
        self._took_s, self._done = 0.0, 0.0

    @contextmanager
    def taken(self, samples: int) -> Iterator[int]:
        """Within the block a request is being worked on; gives the samples of all that are, its own among them."""
        self.requests, self.samples = self.requests + 1, self.samples + samples
        try:
            yield self.samples
        finally:
            self.requests, self.samples = self.requests - 1, self.samples - samples

    def took(self, seconds: float, samples: int) -> None:
        """So many samples were computed on for so long; requests of many samples say more than those of few."""
        self._took_s, self._done = MEMORY * self._took_s + seconds, MEMORY * self._done + samples

    def expected_s(self, samples: int) -> float:
        """Until a request that came now would be computed; nothing where none is: who is idle tries, and learns."""
        return self._took_s / self._done * (self.samples + samples) if self.requests and self._done else 0.0


class Door:
    """A peer that listens; use it as an asynchronous context manager, within the peer's own.

    Args:
        peer: who answers.
        listen: HOST:PORT.

    Raises:
        InputError: on entering, the address cannot be had.
    """

    def __init__(self, peer: Peer, listen: str):
        self.peer, self.listen = peer, listen
        self.port = 0
        self._answers, self._inferences = _Turn(MOST_ANSWERS), _Turn(MOST_INFERENCES)
        self._head = said({"run": peer.home.run, "expert": peer.client})
        self._began_s = time.monotonic()
        self._server: Any = None

    async def __aenter__(self) -> Self:
        """Listen."""
        check_free("--listen", self.listen)  # gRPC says less of it, and logs it beside
        options = [*OPTIONS, ("grpc.so_reuseport", 0)]
        self._server = grpc.aio.server(options=options, maximum_concurrent_rpcs=MOST_RPCS)
        methods = {"Answer": self._answer, "Infer": self._infer, "Health": self._health}
        handlers = {name: grpc.unary_unary_rpc_method_handler(self._guarded(name, f)) for name, f in methods.items()}
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
        try:
            if self.peer.identity is None:
                self.port = self._server.add_insecure_port(self.listen)
            else:
                self.port = self._server.add_secure_port(self.listen, self.peer.identity.server())
        except RuntimeError as error:
            raise InputError(
                f"--listen {self.listen}: cannot be had; name another port or address, or end what listens there"
            ) from error
        await self._server.start()
        return self

    @property
    def address(self) -> str:
        """Where it listens: as it was given, with the port that it got if any would do."""
        return f"{self.listen.rpartition(':')[0]}:{self.port}"

    async def __aexit__(self, *_: object) -> None:
        """Finish what was admitted, within a second."""
        await self._server.stop(1.0)

    def _guarded(self, name: str, work: Callable[[bytes, Any], Awaitable[bytes]]) -> Callable[[bytes, Any], Awaitable[bytes]]:
        """What is wrong with a request is told in gRPC's codes, and counted."""

        async def handle(data: bytes, context: Any) -> bytes:
            began_s = time.monotonic()
            try:
                reply = await work(data, context)
            except _Refusal as error:
                self.peer.metrics.refused(error.why)
                return await context.abort(error.code, str(error))  # type: ignore[no-any-return]  # it raises
            except (WireError, InputError) as error:
                self.peer.metrics.refused("wrong")
                return await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))  # type: ignore[no-any-return]
            self.peer.metrics.answered(name, time.monotonic() - began_s)
            return reply

        return handle

    async def _answer(self, data: bytes, context: Any) -> bytes:
        home = self.peer.home
        wanted = {"latents": (torch.float32, (None, home.latent_size))}
        message = decode(data, wanted, MOST_SAMPLES)
        asker = int(number(message.head, "client", 0, home.experts - 1))
        self._check_run(text(message.head, "run"))
        self._check_name(asker, context)
        if message.head.get("expert") != self.peer.client:
            raise _Refusal("expert", grpc.StatusCode.FAILED_PRECONDITION, f"expert {self.peer.client} is here")
        latents_PD = message.tensors["latents"]
        self._admit(self._answers, len(latents_PD), context)
        began_s = time.monotonic()
        with self._answers.taken(len(latents_PD)) as in_hand:
            log_p_PL = await self.peer.say(latents_PD)
        self._answers.took(time.monotonic() - began_s, in_hand)
        return encode(self._head, {"log_p": log_p_PL})

    async def _infer(self, data: bytes, context: Any) -> bytes:
        home = self.peer.home
        message = decode(data, {"pixel_values": (torch.uint8, (None, *home.shape_CSS))}, MOST_IMAGES)
        k = int(number(message.head, "k", 1, home.experts, home.k))
        images = message.tensors["pixel_values"]
        self._admit(self._inferences, len(images), context)
        wait_s = number(message.head, "wait_s", 0, 1e9, 0)
        left_s = context.time_remaining()
        until_s = math.inf if left_s is None else time.monotonic() + left_s - ROUNDING_S
        with self._inferences.taken(len(images)) as in_hand:
            answer = await self.peer.infer(images, k, wait_s=wait_s, until_s=until_s)
        self._inferences.took(answer.chosen_s, in_hand)  # waiting for others says nothing of this machine
        tensors = {"log_p": answer.log_p_TL, "indices": answer.indices_TK, "weights": answer.weights_TK.float()}
        return encode({"run": home.run, "expert": self.peer.client, "answer": answer.facts()}, tensors)

    async def _health(self, data: bytes, context: Any) -> bytes:
        home = self.peer.home
        suspects = {str(m): r.breaker.reason for m, r in self.peer.remotes.items() if r.breaker.suspected}
        head = {
            "run": home.run,
            "expert": self.peer.client,
            "version": __version__,
            "experts": home.experts,
            "labels": home.labels,
            "image": list(home.shape_CSS),
            "k": home.k,
            "up_s": round(time.monotonic() - self._began_s, 3),
            "suspects": suspects,
        }
        return encode(head)

    def _check_run(self, run: str) -> None:
        if run != self.peer.home.run:
            raise _Refusal(
                "run",
                grpc.StatusCode.FAILED_PRECONDITION,
                f"of another run or version, {run[:64]}; here is {self.peer.home.run}: start all peers from one run",
            )

    def _check_name(self, asker: int, context: Any) -> None:
        """Who asks as a client must show this client's certificate."""
        if self.peer.identity is None:
            return
        names = {name.decode(errors="replace") for name in context.auth_context().get("x509_subject_alternative_name", ())}
        if self.peer.network.name(asker) not in names:
            raise _Refusal(
                "name",
                grpc.StatusCode.PERMISSION_DENIED,
                f"client {asker} is {self.peer.network.name(asker)}, and not {sorted(names)}",
            )

    def _admit(self, turn: _Turn, samples: int, context: Any) -> None:
        if turn.requests >= turn.most:
            raise _Refusal("busy", grpc.StatusCode.RESOURCE_EXHAUSTED, f"busy: {turn.requests} requests are being worked on")
        left_s, needed_s = context.time_remaining(), turn.expected_s(samples)
        if left_s is not None and left_s < needed_s:
            raise _Refusal(
                "deadline",
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"busy: it would take {needed_s:.2g} s, and the deadline is in {left_s:.2g} s",
            )


class _Refusal(Exception):  # noqa: N818
    """A request that is not worked on: why, for the metrics, and what gRPC calls it."""

    def __init__(self, why: str, code: grpc.StatusCode, text: str):
        super().__init__(text)
        self.why, self.code = why, code
