"""The commands as a user meets them: infer's answers, serve with a page for Prometheus, the relay, help."""

import asyncio
import json
import os
import re
import signal
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tomli_w
import torch
from conftest import CLIENTS, fedexperts, ports

import pictures
from fedexperts.errors import InputError
from fedexperts.moe.auto import AUTO
from fedexperts.moe.subset import load_full
from fedexperts.peer.address import answers, free_ports
from fedexperts.peer.local import Local
from fedexperts.peer.peers_file import Network
from fedexperts.peer.serve import serve
from fedexperts.peer.user import User, images_of
from fedexperts.scenario import read_toml


def test_infer_answers_files_with_predictions_and_who_made_them(
    trained: Path,
    files: Path,
    network: Local,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pictures.npz(tmp_path / "a.npz", 20)
    x, _ = pictures.images(1, seed=9)
    (tmp_path / "b.png").write_bytes(pictures.encoded(x[0]))
    at = f"127.0.0.1:{ports(files)[1]}"
    words = ("peer", "infer", "--peers", files, "--client", at, tmp_path / "a.npz", tmp_path / "b.png", "-k", "2")
    network.start([0])
    try:
        code, out, err = fedexperts(monkeypatch, capsys, *words, "--json")
    finally:
        network.end([0])
    assert code == 0, err
    found = json.loads(out)
    model = load_full(trained / "model", AUTO["image-classifier"]).eval()
    model.moe.router.top_k = 2
    images = torch.cat([torch.from_numpy(pictures.images(20)[0]), torch.from_numpy(x)]).permute(0, 3, 1, 2)
    with torch.no_grad():
        assert found["predictions"] == model(images).logits.argmax(dim=1).tolist()
    assert sum(found["took_part"].values()) == 2 * 21
    assert found["took_part"]["0"] > 0, "this would test nothing"
    assert found["absent"] == {}
    assert found["better"] is None
    assert found["peer_sent_B"] > 0
    assert found["uplink_B"] > 21 * 3 * 64
    assert len(found["latency_s"]) == 1
    code, out, err = fedexperts(monkeypatch, capsys, *words)
    assert code == 0
    assert "21 images;" in " ".join(out.split())
    assert "warning: expert 0 " in err, "client 0 has ended"


def test_images_to_infer_need_no_labels(tmp_path: Path) -> None:
    x, _ = pictures.images(5, seed=9)
    expected = torch.from_numpy(x).permute(0, 3, 1, 2)
    np.savez(tmp_path / "a.npz", x=x)
    rows = [{"bytes": pictures.encoded(one)} for one in x]
    pq.write_table(pa.table({"image": pa.array(rows)}), tmp_path / "b.parquet")
    for name in ("a.npz", "b.parquet"):
        assert torch.equal(images_of([tmp_path / name]), expected)
    (tmp_path / "c.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"c.png, row 1: is not an image that can be read \(of no format that is known\)"):
        images_of([tmp_path / "c.png"])


def test_serve_listens_counts_and_ends_when_it_is_told(
    trained: Path, files: Path, images: torch.Tensor, network: Local
) -> None:
    (page,) = free_ports(1)

    def read() -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{page}/metrics") as answer:
            return str(answer.read().decode())

    async def used() -> tuple[str, dict[str, Any]]:
        ready = asyncio.Event()
        serving = asyncio.create_task(
            serve(trained, 0, files, metrics=f"127.0.0.1:{page}", ready=lambda peer, door: ready.set())
        )
        await ready.wait()
        rows = Network(files)
        async with User(rows.row(0).address, rows.identity("user"), rows.name(0)) as user:
            reply = await user.infer(images, k=CLIENTS)
            with pytest.raises(Exception, match="must be a number"):
                await user.infer(images, k=CLIENTS + 1)
        text = await asyncio.to_thread(read)
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.wait_for(serving, 60)
        return text, reply.facts

    text, facts = asyncio.run(used())
    counted = {name: float(value) for name, value in re.findall(r"^fedexperts_peer_(\S+) (\S+)$", text, re.MULTILINE)}
    assert counted['requests_total{method="Infer"}'] == 1
    assert counted['refused_total{reason="wrong"}'] == 1
    assert counted['bytes_total{direction="sent"}'] == facts["sent_B"] > 0
    assert counted['bytes_total{direction="received"}'] == facts["received_B"] > 0
    assert counted['latency_seconds_count{method="Infer"}'] == 1
    assert counted['expert_answers_total{expert="0",outcome="home"}'] == len(images)
    assert counted['expert_answers_total{expert="3",outcome="answered"}'] == len(images)
    assert counted["fallbacks_total"] == 0


def test_a_relay_without_routes_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "links.toml").write_text("")
    code, _, err = fedexperts(monkeypatch, capsys, "peer", "relay", tmp_path / "links.toml")
    assert (code, "has no [[route]]" in err) == (2, True)


def test_a_network_answers_the_same_over_relays(
    trained: Path, files: Path, images: torch.Tensor, network: Local, tmp_path: Path
) -> None:
    from fedexperts.peer.links import Links
    from fedexperts.peer.peer import Peer
    from fedexperts.peer.relay import relayed

    listen = dict(zip(range(1, CLIENTS), free_ports(CLIENTS - 1), strict=True))
    routes = [
        {"between": ["0", str(m)], "listen": f"127.0.0.1:{port}", "to": f"127.0.0.1:{ports(files)[m]}"}
        for m, port in listen.items()
    ]
    links = {"default": {"rate_bps": 1e8, "delay_s": 0.005, "jitter_s": 0.002}, "route": routes}
    (tmp_path / "links.toml").write_text(tomli_w.dumps(links))
    document = read_toml(files)
    for row in document["peer"]:
        if row["client"] in listen:
            row["address"] = f"127.0.0.1:{listen[row['client']]}"
    path = files.parent / "relayed.toml"
    path.write_text(tomli_w.dumps(document))

    async def both() -> list[torch.Tensor]:
        relaying = asyncio.create_task(relayed(Links(tmp_path / "links.toml").relays()))
        for port in listen.values():
            while not await asyncio.to_thread(answers, "127.0.0.1", port):
                assert not relaying.done()
        found = []
        for at in (files, path):
            async with Peer(trained, 0, at) as peer:
                answer = await peer.infer(images, k=CLIENTS)
                assert answer.absent == {}
                found.append(answer.log_p_TL)
        relaying.cancel()
        await asyncio.gather(relaying, return_exceptions=True)
        return found

    plain, shaped = asyncio.run(both())
    assert torch.equal(plain, shaped)


def test_a_peer_behind_a_slow_link_is_reached(
    trained: Path, files: Path, images: torch.Tensor, network: Local, tmp_path: Path
) -> None:
    """Opening a connection takes some of its delays, and gRPC must not give it up before."""
    from fedexperts.peer.peer import Peer
    from fedexperts.peer.peers_file import Patience
    from fedexperts.peer.relay import Relay, Shape

    async def watched() -> Any:
        async with Relay(("127.0.0.1", 0), ("127.0.0.1", ports(files)[3]), Shape(delay_s=0.25)) as relay:
            document = read_toml(files)
            document["peer"][3]["address"] = f"127.0.0.1:{relay.port}"
            path = files.parent / "behind.toml"
            path.write_text(tomli_w.dumps(document))
            async with Peer(trained, 0, path, patience=Patience(deadline_s=30.0, timeout_after_k_min_s=30.0)) as peer:
                return await peer.infer(images, k=CLIENTS)

    answer = asyncio.run(watched())
    assert answer.absent == {}
    assert answer.seconds > 0.5


def test_without_the_extra_the_commands_say_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("fedexperts.cli.peer.find_spec", lambda name: None if name == "grpc" else object())
    code, _, err = fedexperts(monkeypatch, capsys, "peer", "relay", tmp_path / "links.toml")
    assert (code, "install fedexperts[peer]" in err) == (2, True)
