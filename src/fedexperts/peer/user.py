"""Asking a network of experts from outside: a user's images to one client, and its answer."""

from __future__ import annotations

import asyncio
import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import grpc
import torch
from torch import Tensor

from ..errors import InputError, RunError
from ..train.message import MOST_B, WireError, decode, encode
from .address import split_address
from .answer import FACTS
from .ask import SERVICE, busy, channel
from .home import MOST_IMAGES
from .peers_file import Network
from .tls import Identity

HEALTH_S = 5.0
ATTEMPTS, BACKOFF_S = 4, 0.05


@dataclass(frozen=True, eq=False)
class Reply:
    """What a client's network says: log-probabilities_TL, picks, their weights, and all else as `Answer.facts` has it."""

    log_p_TL: Tensor
    indices_TK: Tensor
    weights_TK: Tensor
    facts: dict[str, Any]
    seconds: float
    sent_B: int
    received_B: int


class User:
    """Somebody with images; use it as an asynchronous context manager.

    Args:
        address: HOST:PORT of a client.
        identity: certificates; None talks in the open.
        name: what the client's certificate must say.
    """

    def __init__(self, address: str, identity: Identity | None = None, name: str = ""):
        self.address = address
        self._identity, self._name = identity, name
        self.health: dict[str, Any] = {}

    async def __aenter__(self) -> Self:
        """Ask how the client is, and what images it takes.

        Raises:
            RunError: it cannot be reached.
        """
        self._channel = channel(self.address, self._identity, self._name)
        self._infer = self._channel.unary_unary(f"/{SERVICE}/Infer")
        try:
            reply = await self._channel.unary_unary(f"/{SERVICE}/Health")(b"", timeout=HEALTH_S)
            self.health = dict(decode(reply, {}, 0).head)
            self._shape = tuple(int(n) for n in self.health["image"])
            self._labels, self._k = int(self.health["labels"]), int(self.health["k"])
        except grpc.aio.AioRpcError as error:
            await self._channel.close()
            raise RunError(f"{self.address}: {_told(error)}") from error
        except (WireError, KeyError, TypeError, ValueError) as error:
            await self._channel.close()
            raise RunError(f"{self.address}: is no client of a network of experts ({error}); correct the address") from error
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close the channel."""
        await self._channel.close()

    def most_images(self) -> int:
        """Of one request."""
        channels, side, _ = self._shape
        return max(1, min(MOST_IMAGES, (MOST_B - 4096) // (channels * side * side)))

    async def infer(self, pixels_TCSS: Tensor, k: int | None = None, deadline_s: float = 30.0, wait_s: float = 0.0) -> Reply:
        """One request, as `Peer.infer` has it; a client that is busy is asked again, as long as the deadline allows.

        Raises:
            InputError: the images are not what the client takes.
            RunError: it does not answer.
        """
        if tuple(pixels_TCSS.shape[1:]) != self._shape or pixels_TCSS.dtype != torch.uint8:
            raise InputError(
                f"images of {pixels_TCSS.dtype} {list(pixels_TCSS.shape)}: {self.address} takes uint8 [images, "
                f"{', '.join(map(str, self._shape))}] (channels, height, width)"
            )
        k = self._k if k is None else k
        data, began_s = encode({"k": k, "wait_s": wait_s}, {"pixel_values": pixels_TCSS}), time.monotonic()
        reply = await self._asked(data, began_s + deadline_s + wait_s)
        wanted = {
            "log_p": (torch.float32, (None, self._labels)),
            "indices": (torch.int64, (None, k)),
            "weights": (torch.float32, (None, k)),
        }
        try:
            message = decode(reply, wanted, len(pixels_TCSS))
        except WireError as error:
            raise RunError(f"{self.address}: answered what cannot be used: {error}") from error
        if len(message.tensors["log_p"]) != len(pixels_TCSS):
            raise RunError(f"{self.address}: answered {len(message.tensors['log_p'])} of {len(pixels_TCSS)} images")
        facts = message.head.get("answer")
        if not isinstance(facts, dict) or not facts.keys() >= FACTS:
            raise RunError(f"{self.address}: says not all of how it answered; is it of another version of fedexperts?")
        log_p_TL, indices_TK, weights_TK = (message.tensors[name] for name in wanted)
        return Reply(log_p_TL, indices_TK, weights_TK, copy.deepcopy(facts), time.monotonic() - began_s, len(data), len(reply))

    async def _asked(self, data: bytes, until_s: float) -> bytes:
        for attempt in range(ATTEMPTS):
            try:
                reply: bytes = await self._infer(data, timeout=max(0.001, until_s - time.monotonic()))
                return reply
            except grpc.aio.AioRpcError as error:
                pause_s = BACKOFF_S * 2**attempt
                again = busy(error) or error.code() is grpc.StatusCode.UNAVAILABLE
                if attempt == ATTEMPTS - 1 or not again or time.monotonic() + pause_s > until_s:
                    if error.code() is grpc.StatusCode.INVALID_ARGUMENT:
                        raise InputError(f"{self.address}: {error.details()}") from error
                    raise RunError(f"{self.address}: {_told(error)}") from error
                await asyncio.sleep(pause_s)
        raise AssertionError("the last attempt returns or raises")


def _told(error: grpc.aio.AioRpcError) -> str:
    details = " ".join(str(error.details()).split())[:300]
    if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
        return "did not answer in time; give it longer (--deadline), or send fewer images at once"
    if error.code() is grpc.StatusCode.UNAVAILABLE:
        return f"cannot be reached ({details}); is it started, and of the same [tls]? Name its --peers file, or --insecure"
    return f"{details} ({error.code().name})"


def images_of(paths: Sequence[Path]) -> Tensor:
    """Images of files: ``x`` of .npz, the column ``image`` of .parquet, or single ones in a format of their own; no labels.

    Raises:
        InputError: a file cannot be read, or its images are not all alike.
    """
    from ..data.images import ImageFile, pixels, read_images
    from ..reading import read_bytes

    found = []
    for path in paths:
        if path.suffix.lower() in (".npz", ".parquet"):
            read = read_images(str(path), Path(), "image", None)
        else:
            read = [ImageFile(path, [read_bytes(path, "")], [None])]
        found.append(pixels(read, range(sum(len(file.labels) for file in read))))
    if wrong := [path for path, one in zip(paths, found, strict=True) if one.shape[1:] != found[0].shape[1:]]:
        raise InputError(f"{wrong[0]}: images of another size or colour than {paths[0]}; all must be alike")
    return torch.cat(found)


async def ask(
    address: str,
    files: Sequence[Path],
    peers: Path,
    insecure: bool,
    k: int | None,
    deadline_s: float,
    wait_s: float,
    at_once: int,
) -> list[Reply]:
    """Send the images of files to a client, in requests of so many, one after another; see `User.infer`.

    Raises:
        InputError: files, address or certificates are wrong.
        RunError: the client does not answer.
    """
    split_address("--client", address)
    images = images_of(files)
    identity, name = None, ""
    if not insecure:
        network = Network(peers)
        identity = network.identity("user")
        at = next((m for m, row in network.peers.items() if row.address == address), None)
        if at is None:
            known = ", ".join(row.address for row in network.peers.values())
            raise InputError(f"--client {address}: is no address in {peers}; it has {known}")
        name = network.name(at)
    async with User(address, identity, name) as user:
        most = min(at_once, user.most_images())
        return [await user.infer(part, k, deadline_s, wait_s) for part in torch.split(images, most)]
