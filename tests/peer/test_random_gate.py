"""RanGate: a client draws the experts that it asks, by the run's prior, whatever the images."""

import asyncio
from pathlib import Path

import pytest
import tomli_w
import torch
from conftest import CLIENTS, PATIENCE, scenario

from fedexperts.errors import InputError
from fedexperts.moe.auto import AUTO
from fedexperts.moe.resnet import log_mixture
from fedexperts.moe.subset import load_full
from fedexperts.peer.address import free_ports
from fedexperts.peer.answer import Answer
from fedexperts.peer.demo import demo
from fedexperts.peer.home import Home
from fedexperts.peer.local import Local
from fedexperts.peer.network import peers_text
from fedexperts.peer.peer import Peer
from fedexperts.runs.run import run
from fedexperts.scenario import read_toml
from processes import CONTEXT

PRIOR = (0.5, 0.0, 0.25, 0.25)


@pytest.fixture(scope="module")
def drawn(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a random gate that never draws expert 1, on the same images."""
    given = scenario(trained.parent, num_experts_per_tok=CLIENTS).changed(networked={"gate": "random", "prior": PRIOR})
    return run(given, tmp_path_factory.mktemp("drawn") / "run").directory


@pytest.fixture(scope="module")
def peers(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("peers") / "peers.toml"
    addresses = [f"127.0.0.1:{port}" for port in free_ports(CLIENTS)]
    path.write_text(peers_text(Home(drawn, None).run, addresses, patience=PATIENCE))
    return path


def test_experts_are_drawn_by_the_prior_and_answer_with_equal_weights(drawn: Path, peers: Path, images: torch.Tensor) -> None:
    many = images.repeat(10, 1, 1, 1)
    at = {i: int(row.address.rpartition(":")[2]) for i, row in Peer(drawn, 0, peers, insecure=True).network.peers.items()}

    async def asked() -> list[Answer]:
        async with Peer(drawn, 0, peers, insecure=True) as peer:
            return [await peer.infer(many, k) for k in (1, 1, 2)]

    with Local(drawn, dict.fromkeys(at, peers), at, insecure=True, context=CONTEXT) as local:
        local.start(range(1, CLIENTS))
        first, second, two = asyncio.run(asked())
    assert first.absent == second.absent == two.absent == {}
    shares = torch.bincount(first.indices_TK.flatten(), minlength=CLIENTS) / len(many)
    assert shares.tolist() == pytest.approx(PRIOR, abs=0.08)  # of 400 draws; 3 standard deviations
    assert not torch.equal(first.indices_TK, second.indices_TK), "every request draws anew"
    assert (two.indices_TK[:, 0] != two.indices_TK[:, 1]).all()
    assert (two.weights_TK == 0.5).all()
    model = load_full(drawn / "model", AUTO["image-classifier"]).eval()
    with torch.no_grad():
        latents = model.latents(many)
        log_q_TEL = torch.stack([expert(latents) for expert in model.moe.experts], dim=1)
        picked_TKL = log_q_TEL.gather(1, two.indices_TK[..., None].expand(-1, -1, log_q_TEL.shape[2]))
    assert torch.allclose(two.log_p_TL, log_mixture(picked_TKL, two.weights_TK), atol=1e-5, rtol=0)


def test_no_more_experts_are_asked_than_the_prior_lets_draw(drawn: Path, peers: Path, images: torch.Tensor) -> None:
    """As in the run itself: the model asks four, and three can be drawn."""
    assert Home(drawn, 0).k == 3

    async def refused() -> None:
        async with Peer(drawn, 0, peers, insecure=True) as peer:
            await peer.infer(images, k=4)

    with pytest.raises(InputError, match="k = 4: must lie in 1…3"):
        asyncio.run(refused())


def test_a_draw_that_minds_no_channel_is_not_told_of_one(drawn: Path, peers: Path, tmp_path: Path) -> None:
    path = tmp_path / "peers.toml"
    path.write_text(tomli_w.dumps({**read_toml(peers), "patience": {"channel_tolerance_s": 0.1}}))
    with pytest.raises(InputError, match=r"patience\.channel_tolerance_s = 0\.1: this run's gate draws"):
        Peer(drawn, 0, path, insecure=True)


def test_the_demo_compares_no_draws(drawn: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="its gate draws experts at random"):
        demo(drawn, tmp_path, lambda _: None)
