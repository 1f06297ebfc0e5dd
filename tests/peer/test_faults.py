"""Peers that answer what they should not, certificates that nobody knows, requests that are wrong."""

import asyncio
import struct
from collections.abc import Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch
from conftest import CLIENTS

from fedexperts.errors import RunError
from fedexperts.peer.ask import SERVICE, channel
from fedexperts.peer.home import Home
from fedexperts.peer.local import Local
from fedexperts.peer.peer import Peer
from fedexperts.peer.peers_file import Network
from fedexperts.peer.server import _Turn
from fedexperts.peer.tls import Authority, Identity, pem
from fedexperts.peer.user import User
from fedexperts.train.message import MOST_B, encode

Reply = Callable[[str, int], bytes]


def good(run: str, n: int) -> torch.Tensor:
    return torch.full((n, 4), 0.25).log()


def said(run: str, log_p: torch.Tensor, expert: int = 3) -> bytes:
    return encode({"run": run, "expert": expert}, {"log_p": log_p})


GARBAGE: dict[str, tuple[Reply, str]] = {
    "wrong shape": (lambda run, n: said(run, good(run, n)[:, :3].contiguous()), "shape"),
    "too few": (lambda run, n: said(run, good(run, n)[1:]), "were asked of"),
    "too many": (lambda run, n: said(run, good(run, n + 1)), "at most"),
    "other type": (lambda run, n: said(run, good(run, n).long()), "type"),
    "not a number": (lambda run, n: said(run, good(run, n) * float("nan")), "not finite"),
    "infinite": (lambda run, n: said(run, good(run, n) + float("inf")), "not finite"),
    "a class that cannot be": (
        lambda run, n: said(run, torch.tensor([[0.0, 1, 1, 1]]).div(3).log().expand(n, 4)),
        "not finite",
    ),
    "not probabilities": (lambda run, n: said(run, good(run, n) + 1), "sum to one"),
    "another run": (lambda run, n: said("0" * 32, good(run, n)), "of another run"),
    "another expert": (lambda run, n: said(run, good(run, n), expert=2), "has expert 2"),
    "too large": (lambda run, n: b"\0" * (MOST_B + 1), "RESOURCE_EXHAUSTED"),
    "no message": (lambda run, n: b"", "no safetensors file"),
    "a header of exabytes": (lambda run, n: struct.pack("<Q", 2**60) + b"{}" * 20, "a header of"),
    "a pickle": (lambda run, n: b"\x80\x04\x95" + b"\0" * 100, "a header of"),
    "a tensor of terabytes": (
        lambda run, n: _header({"log_p": {"dtype": "F32", "shape": [2**40, 4], "data_offsets": [0, 2**44]}}),
        "at most",
    ),
    "another tensor beside it": (lambda run, n: encode({}, {"log_p": good(run, n), "more": good(run, n)}), "must be"),
}


def _header(tensors: dict[str, Any]) -> bytes:
    import json

    text = json.dumps({"__metadata__": {"fedexperts": "{}"}, **tensors}).encode()
    return struct.pack("<Q", len(text)) + text


@asynccontextmanager
async def impostor(port: int, identity: Identity, answer: Callable[[bytes], bytes]) -> Any:
    """A server with a client's certificate that answers questions as it likes."""

    async def handle(data: bytes, context: Any) -> bytes:
        return answer(data)

    server = grpc.aio.server(options=[("grpc.max_send_message_length", -1)])
    handlers = {"Answer": grpc.unary_unary_rpc_method_handler(handle)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    server.add_secure_port(f"127.0.0.1:{port}", identity.server())
    await server.start()
    try:
        yield
    finally:
        await server.stop(0)


@pytest.fixture(scope="module")
def without_3(network: Local) -> Local:
    network.end([3])
    return network


@pytest.mark.parametrize("kind", GARBAGE)
def test_garbage_is_an_absence_with_its_reason(
    kind: str, trained: Path, files: Path, images: torch.Tensor, without_3: Local
) -> None:
    answers, reason = GARBAGE[kind]

    async def watched() -> Any:
        async with Peer(trained, 0, files) as peer:
            run = peer.home.run
            identity = peer.network.identity("client-3")
            assert identity is not None
            async with impostor(without_3.ports[3], identity, lambda data: answers(run, len(images))):
                answer = await peer.infer(images, k=CLIENTS)
                return answer, peer.remotes[3].breaker.suspected

    answer, suspected = asyncio.run(watched())
    assert reason in answer.absent[3]
    assert suspected
    assert set(answer.took_part) == {0, 1, 2}
    assert answer.log_p_TL.isfinite().all()


def test_an_impostor_that_answers_well_is_believed(trained: Path, files: Path, images: torch.Tensor, without_3: Local) -> None:
    """So the tests above see what is wrong with the answers, and not the impostor."""

    async def watched() -> Any:
        async with Peer(trained, 0, files) as peer:
            run = peer.home.run
            async with impostor(
                without_3.ports[3], peer.network.identity("client-3"), lambda data: said(run, good(run, len(images)))
            ):
                return await peer.infer(images, k=CLIENTS)

    assert asyncio.run(watched()).absent == {}


def test_a_client_with_anothers_certificate_is_not_believed(
    trained: Path, files: Path, images: torch.Tensor, without_3: Local
) -> None:
    async def watched() -> Any:
        async with Peer(trained, 0, files) as peer:
            run = peer.home.run
            async with impostor(
                without_3.ports[3], peer.network.identity("client-2"), lambda data: said(run, good(run, len(images)))
            ):
                return await peer.infer(images, k=CLIENTS)

    assert "cannot be reached" in asyncio.run(watched()).absent[3]


def strange(name: str) -> Identity:
    """A certificate with the right name, of an authority that nobody here knows."""
    authority = Authority.new("strange", 1)
    certificate, key = authority.leaf(name, ("127.0.0.1",), 1)
    return Identity(pem(authority.certificate), certificate, key)


def test_a_certificate_of_an_unknown_authority_is_refused(trained: Path, files: Path, network: Local) -> None:
    run = Home(trained, None).run
    rows = Network(files, CLIENTS, run)
    known = rows.identity("user")
    assert known is not None
    made = strange(rows.name(0))
    theirs = Identity(known.ca, made.certificate, made.key)  # it trusts us, and we do not trust it

    async def refused(identity: Identity | None) -> None:
        async with User(rows.row(1).address, identity, rows.name(1)):
            pass

    for identity in (theirs, None, made):
        with pytest.raises(RunError, match="cannot be reached"):
            asyncio.run(refused(identity))
    asyncio.run(refused(known))


async def called(files: Path, run: str, who: str, data: bytes, method: str = "Answer", timeout: float = 60.0) -> str:
    rows = Network(files, CLIENTS, run)
    async with channel(rows.row(1).address, rows.identity(who), rows.name(1)) as opened:
        try:
            await opened.unary_unary(f"/{SERVICE}/{method}")(data, timeout=timeout)
        except grpc.aio.AioRpcError as error:
            return f"{error.code().name}: {error.details()}"
        return "answered"


def test_a_question_must_be_of_this_run_and_of_who_asks_it(trained: Path, files: Path, network: Local) -> None:
    run = Home(trained, None).run
    latents = {"latents": torch.zeros(3, 64)}

    def asks(who: str, **changed: Any) -> str:
        head = {"run": run, "client": 0, "expert": 1, **changed}
        return asyncio.run(called(files, run, who, encode(head, latents)))

    assert asks("client-0") == "answered"
    assert asks("client-0", run="f" * 32).startswith("FAILED_PRECONDITION: of another run or version, ffff")
    assert asks("client-0", expert=2).startswith("FAILED_PRECONDITION: expert 1 is here")
    assert asks("client-2").startswith("PERMISSION_DENIED: client 0 is client-0.")
    assert asks("user").startswith("PERMISSION_DENIED")
    assert asks("client-0", client=7).startswith("INVALID_ARGUMENT: client = 7")
    assert asks("client-0", client="0").startswith("INVALID_ARGUMENT: client = 0: must be a number")


@pytest.mark.parametrize(
    ("tensors", "said_of_it"),
    [
        ({"latents": torch.zeros(3, 63)}, "must be [None, 64]"),
        ({"latents": torch.zeros(3, 64, dtype=torch.int64)}, "must be F32"),
        ({"latents": torch.zeros(5000, 64)}, "at most 4,096"),
        ({}, "must be ['latents']"),
    ],
)
def test_a_question_that_is_wrong_is_refused_in_words(
    tensors: dict[str, torch.Tensor], said_of_it: str, trained: Path, files: Path, network: Local
) -> None:
    run = Home(trained, None).run
    data = encode({"run": run, "client": 0, "expert": 1}, tensors)
    found = asyncio.run(called(files, run, "client-0", data))
    assert found.startswith("INVALID_ARGUMENT")
    assert said_of_it in found
    assert asyncio.run(called(files, run, "client-0", b"x" * (MOST_B + 1))).startswith("RESOURCE_EXHAUSTED")


def test_what_a_few_samples_took_is_put_right_by_many() -> None:
    turn = _Turn(2)
    turn.took(1.0, 1)
    assert turn.expected_s(100) == 0.0, "an idle client tries"
    with turn.taken(100) as in_hand:
        assert in_hand == 100
        assert turn.expected_s(100) == 200.0
    turn.took(1.0, 1000)
    with turn.taken(100):
        assert turn.expected_s(100) == pytest.approx(200 * 1.8 / 1000.8)


def test_a_user_is_not_told_half_an_answer() -> None:
    head = {"image": [1, 2, 2], "labels": 4, "k": 1}
    tensors = {"log_p": good("", 3), "indices": torch.zeros(3, 1, dtype=torch.int64), "weights": torch.ones(3, 1)}

    async def asked() -> None:
        async def health(data: bytes, context: Any) -> bytes:
            return encode(head)

        async def infer(data: bytes, context: Any) -> bytes:
            return encode({"answer": {"own": 0}}, tensors)

        server = grpc.aio.server()
        handlers = {n: grpc.unary_unary_rpc_method_handler(f) for n, f in (("Health", health), ("Infer", infer))}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        try:
            async with User(f"127.0.0.1:{port}") as user:
                await user.infer(torch.zeros(3, 1, 2, 2, dtype=torch.uint8))
        finally:
            await server.stop(0)

    with pytest.raises(RunError, match="says not all of how it answered; is it of another version"):
        asyncio.run(asked())
