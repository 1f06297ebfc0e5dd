"""Over a contact plan: who is out of contact is not asked, an answer says when waiting would help, and waiting does."""

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import pytest
import tomli_w
import torch
from conftest import CLIENTS

from fedexperts.contact.plan import Contact, ContactPlan
from fedexperts.peer.answer import Answer
from fedexperts.peer.local import Local
from fedexperts.peer.peer import Peer
from fedexperts.peer.relay import Clock
from fedexperts.scenario import read_toml


def planned(files: Path, name: str, speed: float, begins: float) -> Path:
    """The same network, of which client 3 is at sea, in contact from minute 9 to minute 40, and client 2 never again."""
    plan = ContactPlan(
        ("town", "sea", "moon"), (Contact("town", 0, 6000), Contact("sea", 540, 2400), Contact("moon", 0, 1)), 6000.0
    )
    (files.parent / f"{name}.json").write_text(json.dumps(plan.to_json()))
    place = {"0": "town", "1": "town", "2": "moon", "3": "sea"}
    links = {"plan": f"{name}.json", "place": place, "begins": begins, "speed": speed}
    (files.parent / f"{name}-links.toml").write_text(tomli_w.dumps(links))
    path = files.parent / f"{name}-peers.toml"
    path.write_text(tomli_w.dumps({**read_toml(files), "links": f"{name}-links.toml"}))
    return path


class Held:
    """A clock of a plan that stands until somebody waits for a later moment, and then goes on at its speed."""

    def __init__(self, now_s: float, speed: float):
        self.began_s, self.speed = now_s, speed
        self.clock: Clock | None = None

    def now_s(self) -> float:
        return self.began_s if self.clock is None else self.clock.now_s()

    def real_s(self, plan_s: float) -> float:
        self.clock = self.clock or Clock(time.time() - self.began_s / self.speed, self.speed)
        return self.clock.real_s(plan_s)


async def asked(trained: Path, path: Path, images: torch.Tensor, clock: Held | None = None, **given: Any) -> tuple[Answer, int]:
    async with Peer(trained, 0, path) as peer:
        if clock is not None:
            peer.network.links.clock = clock  # type: ignore[union-attr, assignment]
        answer = await peer.infer(images, k=CLIENTS, **given)
        return answer, sum(peer.remotes[m].traffic.questions for m in (2, 3))


def test_who_is_out_of_contact_is_not_asked_and_the_answer_says_when_it_is_back(
    trained: Path, files: Path, images: torch.Tensor, network: Local
) -> None:
    path = planned(files, "slow", 1.0, time.time() - 5.0)
    answer, questions = asyncio.run(asked(trained, path, images))
    assert questions == 0
    assert answer.absent == {2: "out of contact for good", 3: "out of contact, next at +9 min"}
    assert answer.better is not None
    assert answer.better.in_s == pytest.approx(523, abs=12)
    assert (answer.better.clients, answer.better.of, str(answer.better)) == ((3,), (2, 3), "expert 3 at +9 min")
    assert set(answer.took_part) == {0, 1}


def test_waiting_asks_those_that_come_into_contact(trained: Path, files: Path, images: torch.Tensor, network: Local) -> None:
    path = planned(files, "fast", 100.0, time.time())
    answer, questions = asyncio.run(asked(trained, path, images, Held(530.0, 100.0), wait_s=600.0))
    assert questions == 1
    assert list(answer.absent) == [2]
    assert set(answer.took_part) == {0, 1, 3}
    assert answer.better is None
    assert answer.seconds > 0.1


def test_nobody_waits_longer_than_was_allowed(trained: Path, files: Path, images: torch.Tensor, network: Local) -> None:
    path = planned(files, "short", 1.0, time.time() - 5.0)
    answer, questions = asyncio.run(asked(trained, path, images, wait_s=300.0))
    assert questions == 0
    assert set(answer.absent) == {2, 3}


def test_the_gate_minds_the_channel_if_it_is_told_to(trained: Path, files: Path, images: torch.Tensor, network: Local) -> None:
    """Discounted are choices: whoever is out of contact is picked last, and whoever takes long by its delay."""
    document = read_toml(planned(files, "aware", 1.0, time.time() - 5.0))
    aware = files.parent / "aware2-peers.toml"
    aware.write_text(tomli_w.dumps({**document, "patience": {**document["patience"], "channel_tolerance_s": 0.1}}))

    async def watched() -> tuple[Answer, Answer, Answer]:
        async with Peer(trained, 0, aware) as peer:
            found = await peer.infer(images, k=2)
            for remote in peer.remotes.values():
                remote.pace.delay_s = 10.0
            alone = await peer.infer(images, k=1)
        async with Peer(trained, 0, files) as peer:
            return found, alone, await peer.infer(images, k=2)

    found, alone, usual = asyncio.run(watched())
    assert set(usual.indices_TK.flatten().tolist()) & {2, 3}, "this would test nothing"
    assert found.absent == {}
    assert set(found.indices_TK.flatten().tolist()) <= {0, 1}
    assert torch.allclose(found.weights_TK.sum(dim=1), torch.ones(len(images)))
    assert alone.indices_TK.unique().tolist() == [0]
