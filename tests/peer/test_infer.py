"""A client asks real processes for their experts: equal to one process, and what becomes of it when they fail."""

import asyncio
import signal
import time
from pathlib import Path

import pytest
import torch
from conftest import CLIENTS, PATIENCE

from fedexperts.errors import InputError
from fedexperts.moe.auto import AUTO
from fedexperts.moe.resnet import log_mixture
from fedexperts.moe.subset import load_full
from fedexperts.peer.answer import Answer
from fedexperts.peer.ask import IN_FLIGHT, Remote
from fedexperts.peer.local import Local
from fedexperts.peer.peer import Peer
from fedexperts.peer.peers_file import Network, Patience
from fedexperts.peer.server import Door
from fedexperts.peer.user import User


async def asked(trained: Path, files: Path, images: torch.Tensor, times: int = 1, **given: int) -> list[Answer]:
    async with Peer(trained, 0, files) as peer:
        return [await peer.infer(images, **given) for _ in range(times)]


def whole(trained: Path, k: int) -> torch.nn.Module:
    """The model in one process."""
    model = load_full(trained / "model", AUTO["image-classifier"])
    model.moe.router.top_k = k
    return model.eval()


def renormalised(trained: Path, images: torch.Tensor, answer: Answer, without: int) -> torch.Tensor:
    """What the picks come to without one expert: (1) with its weight taken out, image by image, by hand."""
    model = whole(trained, 1)
    rows = []
    with torch.no_grad():
        latents_TD = model.latents(images)
        p_TE = model.moe.gate(latents_TD).softmax(dim=1)
        for t, picks in enumerate(answer.indices_TK.tolist()):
            there = [m for m in picks if m != without] or [answer.own]
            log_q = torch.cat([model.moe.experts[m](latents_TD[t : t + 1]) for m in there])
            weights = p_TE[t, there] / p_TE[t, there].sum()
            rows.append(log_mixture(log_q[None], weights[None])[0])
    return torch.stack(rows)


@pytest.mark.parametrize("k", [1, 2, CLIENTS])
def test_answers_equal_the_model_in_one_process_to_the_bit(
    k: int, trained: Path, files: Path, images: torch.Tensor, network: Local
) -> None:
    (answer,) = asyncio.run(asked(trained, files, images, k=k))
    with torch.no_grad():
        expected_TL = whole(trained, k)(images).logits
    assert answer.absent == {}
    assert sum(answer.took_part.values()) == k * len(images)
    assert len(answer.took_part) > 1, "the gate sends all to one expert: this would test nothing"
    assert torch.equal(answer.log_p_TL, expected_TL)


def test_questions_that_travel_together_have_answers_equal_but_for_rounding(
    trained: Path, files: Path, images: torch.Tensor, network: Local
) -> None:
    def hold(remote: Remote, all_wait: asyncio.Event) -> None:
        """What is on its way arrives only when all the rest wait."""
        travelled = remote._travelled

        async def held(latents_PD: torch.Tensor, until_s: float) -> torch.Tensor:
            while len(remote._waiting) < len(images) - IN_FLIGHT and not all_wait.is_set():
                await asyncio.sleep(0.001)
            all_wait.set()
            return await travelled(latents_PD, until_s)

        remote._travelled = held  # type: ignore[method-assign]  # how long an answer takes, the machine decides else

    async def at_once() -> tuple[list[Answer], list[int]]:
        async with Peer(trained, 0, files) as peer:
            for remote in peer.remotes.values():
                hold(remote, asyncio.Event())
            answers = await asyncio.gather(*(peer.infer(images[i : i + 1], k=CLIENTS) for i in range(len(images))))
            return answers, [remote.traffic.questions for remote in peer.remotes.values()]

    answers, questions = asyncio.run(at_once())
    assert questions == [IN_FLIGHT + 1] * (CLIENTS - 1), "they did not travel together"
    with torch.no_grad():
        expected_TL = whole(trained, CLIENTS)(images).logits
    found_TL = torch.cat([answer.log_p_TL for answer in answers])
    assert torch.allclose(found_TL, expected_TL, atol=1e-5, rtol=0)


def test_a_hundred_requests_at_once_are_all_answered(trained: Path, files: Path, images: torch.Tensor, network: Local) -> None:
    async def at_once() -> list[dict[str, object]]:
        home = Peer(trained, 0, files)
        rows = Network(files, CLIENTS, home.home.run)
        async with User(rows.row(1).address, rows.identity("user"), rows.name(1)) as user:
            asked = (user.infer(images[:8], deadline_s=120.0) for _ in range(100))
            return [reply.facts for reply in await asyncio.gather(*asked)]

    found = asyncio.run(at_once())
    assert len(found) == 100
    assert all(facts["own"] == 1 for facts in found)


@pytest.mark.parametrize("k", [1, 2])
def test_who_is_killed_is_named_and_the_others_weigh_more(
    k: int, trained: Path, files: Path, images: torch.Tensor, network: Local
) -> None:
    network.end([3])
    try:
        (answer,) = asyncio.run(asked(trained, files, images, k=k))
    finally:
        network.start([3])
    assert list(answer.absent) == [3]
    assert "cannot be reached" in answer.absent[3]
    assert 3 not in answer.took_part
    assert not answer.weights_TK[answer.indices_TK == 3].any()
    assert answer.fallbacks == (0 if k > 1 else int((answer.indices_TK == 3).sum()))
    assert (answer.fallbacks > 0) == (k == 1), "this would test nothing"
    assert torch.allclose(answer.log_p_TL, renormalised(trained, images, answer, 3), atol=1e-5, rtol=0)


def test_a_frozen_peer_costs_one_deadline_over_all_requests(
    trained: Path, files: Path, images: torch.Tensor, network: Local
) -> None:
    """Suspected after the first, it is skipped and probed in the background, while it stays frozen, and then asked again."""

    patience = Patience(deadline_s=1.0, timeout_after_k_min_s=60.0, suspect_s=0.1)

    async def watched() -> tuple[list[Answer], list[bool], Answer]:
        async with Peer(trained, 0, files, patience=patience) as peer:
            remote = peer.remotes[3]
            network.signal(3, signal.SIGSTOP)
            answers, suspected = [], []
            until_s = time.monotonic() + 120
            while remote.breaker.failures < 2 or len(answers) <= 10:
                assert time.monotonic() < until_s, "it was never probed"
                answers.append(await peer.infer(images, k=CLIENTS))
                suspected.append(remote.breaker.suspected)
                await asyncio.sleep(0.02)
            network.signal(3, signal.SIGCONT)
            while any(each.breaker.suspected for each in peer.remotes.values()):  # others too, on a machine that is slow
                await asyncio.sleep(0.02)
            return answers, suspected, await peer.infer(images, k=CLIENTS, deadline_s=60.0)

    try:
        answers, suspected, after = asyncio.run(watched())
    finally:
        network.signal(3, signal.SIGCONT)
    waited = [answer for answer in answers if "suspected" not in answer.absent[3]]
    assert len(waited) == 1, "only the first request may wait for it"
    assert waited[0] is answers[0]
    assert all(suspected)
    assert after.absent == {}


def test_requests_on_their_way_to_a_peer_that_freezes_wait_for_one_deadline_together(
    trained: Path, files: Path, images: torch.Tensor, network: Local
) -> None:
    """What is on its way is given up when the first finds out, and not at a deadline of its own, ten minutes later."""
    patience = Patience(deadline_s=1.0, timeout_after_k_min_s=1.0, k_min=CLIENTS)

    async def watched() -> list[Answer]:
        async with Peer(trained, 0, files, patience=patience) as peer:
            await peer.infer(images, k=CLIENTS, deadline_s=600.0)
            _, _, picked_T1 = peer.home.look(images, 1, None)
            of_3 = images[picked_T1[:, 0] == 3]  # so that the second that it allows is for no other
            network.signal(3, signal.SIGSTOP)
            first = asyncio.ensure_future(peer.infer(of_3, k=1))
            others = [asyncio.ensure_future(peer.infer(images, k=CLIENTS, deadline_s=600.0)) for _ in range(5)]
            return await asyncio.wait_for(asyncio.gather(first, *others), 120.0)

    try:
        answers = asyncio.run(watched())
    finally:
        network.signal(3, signal.SIGCONT)
    assert all(list(answer.absent) == [3] for answer in answers)


def test_whoever_is_in_a_hurry_makes_nobody_suspected(trained: Path, files: Path, images: torch.Tensor, network: Local) -> None:
    async def hurried() -> tuple[Answer, bool]:
        async with Peer(trained, 0, files) as peer:
            answer = await peer.infer(images, k=CLIENTS, deadline_s=1e-4)
            return answer, any(remote.breaker.suspected for remote in peer.remotes.values())

    answer, suspected = asyncio.run(hurried())
    assert set(answer.absent) == {1, 2, 3}
    assert not suspected


def test_enough_answers_end_the_wait_sooner(trained: Path, files: Path, images: torch.Tensor, network: Local) -> None:
    patience = Patience(deadline_s=600.0, k_min=3, timeout_after_k_min_s=0.1)

    async def watched() -> Answer:
        async with Peer(trained, 0, files, patience=patience) as peer:
            network.signal(3, signal.SIGSTOP)
            return await asyncio.wait_for(peer.infer(images, k=CLIENTS), 120.0)

    try:
        answer = asyncio.run(watched())
    finally:
        network.signal(3, signal.SIGCONT)
    assert list(answer.absent) == [3]
    assert set(answer.took_part) == {0, 1, 2}


def test_a_client_that_starts_again_with_its_key_takes_part_again(
    trained: Path, files: Path, images: torch.Tensor, network: Local
) -> None:
    async def watched() -> tuple[Answer, Answer]:
        async with Peer(trained, 0, files) as peer:
            network.end([3])
            without = await peer.infer(images, k=CLIENTS)
            await asyncio.to_thread(network.start, [3])
            while peer.remotes[3].breaker.suspected:
                await asyncio.sleep(0.02)
            return without, await peer.infer(images, k=CLIENTS)

    without, after = asyncio.run(watched())
    assert list(without.absent) == [3]
    assert after.absent == {}


def test_a_client_works_in_a_loop_that_runs_already(trained: Path, files: Path, images: torch.Tensor, network: Local) -> None:
    """As in a notebook, whose cells open, ask and close: nothing of it starts a loop, or needs one task for all."""

    loop = asyncio.new_event_loop()
    try:
        peer = Peer(trained, 0, files)
        for cell in (peer.__aenter__, lambda: peer.infer(images.numpy()), peer.__aexit__):
            found = loop.run_until_complete(cell())  # a task of its own
            assert not isinstance(found, Answer) or len(found.labels) == len(images)
    finally:
        loop.close()


@pytest.mark.parametrize(
    ("batch", "k", "said"),
    [
        (torch.zeros(2, 3, 9, 9, dtype=torch.uint8), 1, "the model takes uint8"),
        (torch.zeros(2, 3, 8, 8), 1, "the model takes uint8"),
        (torch.zeros(0, 3, 8, 8, dtype=torch.uint8), 1, "1 to 1024"),
        ([["a"]], 1, "give an array"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), 5, "must lie in 1…4"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), 0, "must lie in 1…4"),
    ],
)
def test_a_batch_that_does_not_fit_is_refused(batch: object, k: int, said: str, trained: Path, files: Path) -> None:
    async def refused() -> None:
        async with Peer(trained, 0, files) as peer:
            await peer.infer(batch, k=k)

    with pytest.raises(InputError, match=said):
        asyncio.run(refused())


def test_patience_of_the_file_is_that_of_the_peer(trained: Path, files: Path) -> None:
    assert Peer(trained, 0, files).patience.deadline_s == PATIENCE["deadline_s"]


def test_a_client_that_waited_for_others_takes_the_next_request(
    trained: Path, files: Path, images: torch.Tensor, network: Local
) -> None:
    """How long others took says nothing of how long this machine will compute, and an idle one refuses nobody."""

    async def watched() -> list[dict[str, object]]:
        rows, patience = Network(files), Patience(deadline_s=60.0, k_min=CLIENTS - 1, timeout_after_k_min_s=1.0)
        async with Peer(trained, 0, files, patience=patience) as peer, Door(peer, rows.row(0).address):
            network.signal(3, signal.SIGSTOP)
            async with User(rows.row(0).address, rows.identity("user"), rows.name(0)) as user:
                late = await user.infer(images[:1], k=CLIENTS)
                many = await asyncio.gather(*(user.infer(images.repeat(10, 1, 1, 1), k=1) for _ in range(2)))
                return [late.facts, *(reply.facts for reply in many)]

    try:
        late, *many = asyncio.run(watched())
    finally:
        network.signal(3, signal.SIGCONT)
    assert list(late["absent"]) == ["3"], "this would test nothing"
    assert [sum(facts["took_part"].values()) + facts["fallbacks"] for facts in many] == [400, 400]
