"""A deployment over machines as it is made: its files, what is refused, who is let in, how far it is."""

from __future__ import annotations

import json
import math
import os
import re
import shlex
import shutil
import socket
import ssl
import stat
import subprocess
import sys
import threading
import time
from contextlib import suppress
from datetime import timedelta
from email.utils import formatdate
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import small
from fedexperts import Scenario, run
from fedexperts.cli.main import main
from fedexperts.deploy import app, keys, worker
from fedexperts.deploy.init import init, node_folder
from fedexperts.deploy.keys import KEY, Keyed, nodes_of, read_keys, write_keys
from fedexperts.deploy.links import links_of, rates_missing
from fedexperts.deploy.place import Place, create, load, local_address
from fedexperts.deploy.status import collect, status
from fedexperts.deploy.superlink import OnlyNodes, checked
from fedexperts.deploy.worker import scenario_of
from fedexperts.errors import InputError, RunError
from fedexperts.method.elsewhere import host
from fedexperts.peer.tls import Authority, identity, key_pem, pem, ssh_public
from fedexperts.runs.lock import claimed

pytest.importorskip("flwr", reason="needs the extra: pip install 'fedexperts[flower]'")
NAMES = ("plain", "rotated")
SERVER = "ground.example.org:9000"


def scenario_in(folder: Path, rate: Any = 1e6, rows: Any = None, **tables: Any) -> Scenario:
    """Two clusters, whose plan is a file with rates."""
    rows = rows or [
        {"cluster": NAMES[i % 2], "start_s": 60.0 * i, "end_s": 60.0 * i + 60, "uplink_bps": rate, "downlink_bps": rate}
        for i in range(4)
    ]
    (folder / "plan.json").write_text(json.dumps({"contacts": rows}))
    document = {
        "train": {"cycles": 1, "local_steps": 1, "batch_size": 8, "final_flush": False},
        "cluster": [{"name": name, "devices": 1, "data": f"digits:{name}"} for name in NAMES],
        "evaluation": {"target": None},
        "plan": {"kind": "file", "path": "plan.json"},
        **tables,
    }
    return Scenario.parse(small.document(**document), folder)


@pytest.fixture
def made(tmp_path: Path) -> Path:
    init(tmp_path / "there", scenario_in(tmp_path), SERVER, 60.0)
    return tmp_path / "there"


def fedexperts(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: object) -> tuple[Any, str, str]:
    monkeypatch.setattr(sys, "argv", ["fedexperts", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        main()
    found = capsys.readouterr()
    return ended.value.code, found.out, found.err


def test_private_keys_are_their_owners_alone(made: Path) -> None:
    secret = {path.relative_to(made).as_posix() for path in made.rglob("*.key")}
    assert secret == {"certificates/ca.key", "certificates/server.key", "nodes/0/node.key", "nodes/1/node.key"}
    for name in secret:
        assert stat.S_IMODE((made / name).stat().st_mode) == 0o600
    assert stat.S_IMODE((made / "nodes/0").stat().st_mode) == 0o700
    for path in made.rglob("*"):
        assert path.suffix == ".key" or not path.is_file() or b"PRIVATE KEY" not in path.read_bytes()


def test_the_certificate_is_good_for_nodes_and_for_the_servers_own_programs(made: Path) -> None:
    folder = made / "certificates"
    identity(folder / "ca.pem", folder / "server.pem", folder / "server.key", "ground.example.org")
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context(cafile=str(made / "nodes/1/ca.pem"))
    server.load_cert_chain(folder / "server.pem", folder / "server.key")
    for name in ("ground.example.org", "127.0.0.1", "::1", "localhost"):
        _shake_hands(client, server, name)
    with pytest.raises(ssl.SSLCertVerificationError):
        _shake_hands(client, server, "elsewhere.example.org")
    with pytest.raises(ssl.SSLCertVerificationError):
        _shake_hands(ssl.create_default_context(), server, "ground.example.org")


def _shake_hands(client: ssl.SSLContext, server: ssl.SSLContext, name: str) -> None:
    """In memory."""
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [client.wrap_bio(down, up, server_hostname=name), server.wrap_bio(up, down, server_side=True)]
    for _ in range(4):
        for end in ends:
            with suppress(ssl.SSLWantReadError):
                end.do_handshake()


def test_a_user_may_bring_an_authority(tmp_path: Path) -> None:
    own = Authority.new("own", 10)
    (tmp_path / "own.pem").write_bytes(pem(own.certificate))
    (tmp_path / "own.key").write_bytes(key_pem(own.key))
    names = init(
        tmp_path / "there", scenario_in(tmp_path), SERVER, 60.0, 5, ca=tmp_path / "own.pem", ca_key=tmp_path / "own.key"
    )
    assert "certificates/ca.key" not in names
    folder = tmp_path / "there" / "certificates"
    identity(tmp_path / "own.pem", folder / "server.pem", folder / "server.key", "ground.example.org")
    assert (tmp_path / "there/nodes/0/ca.pem").read_bytes() == pem(own.certificate)


def test_a_nodes_folder_works_where_it_is_put(made: Path, tmp_path: Path) -> None:
    moved = tmp_path / "another machine" / "node"
    moved.parent.mkdir()
    (made / "nodes" / "1").rename(moved)
    (tmp_path / "plan.json").unlink()
    place = load(moved)
    assert place.link == "rotated"
    assert place.node("rotated") == moved / "work"
    assert host(scenario_of(place), "rotated").devices == ("rotated/0",)
    assert ssh_public(moved / KEY).decode() == read_keys(load(made))["rotated"].public


def test_a_nodes_data_are_where_its_document_says(made: Path, tmp_path: Path) -> None:
    folder = made / "nodes" / "0"
    (tmp_path / "data").mkdir()
    (folder / "plan.json").rename(tmp_path / "data" / "plan.json")
    document = json.loads((folder / "deployment.json").read_text())
    (folder / "deployment.json").write_text(json.dumps({**document, "base": str(tmp_path / "data")}))
    host(scenario_of(load(folder)), "plain")


def test_a_node_without_its_data_says_which_and_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = "".join(json.dumps({"input_ids": [i % 7, 1, 2], "label": i % 2}) + "\n" for i in range(40))
    for name in NAMES:
        (tmp_path / f"{name}.jsonl").write_text(rows)
    cluster = [{"name": name, "devices": 1, "data": f"{name}.jsonl", "test": f"{name}.jsonl"} for name in NAMES]
    scenario = scenario_in(tmp_path, cluster=cluster)
    init(tmp_path / "there", scenario, SERVER, 60.0)
    text = (tmp_path / "there" / "README.md").read_text()
    assert "- `plain.jsonl`\n- `rotated.jsonl`\n" in text
    monkeypatch.setattr(sys, "argv", ["worker", str(tmp_path / "there/nodes/0"), "plain"])
    with pytest.raises(SystemExit, match=r"^plain: .*there/nodes/0/plain.jsonl"):
        worker.main()


def test_nothing_is_overwritten_and_nothing_is_left_of_what_cannot_be_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scenario = scenario_in(tmp_path)
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "mine").write_text("mine")
    with pytest.raises(InputError, match="already holds files"):
        init(tmp_path / "there", scenario, SERVER, 60.0)
    assert [path.name for path in (tmp_path / "there").iterdir()] == ["mine"]
    monkeypatch.setattr("fedexperts.deploy.init.readme", lambda *words: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        init(tmp_path / "fails", scenario, SERVER, 60.0)
    assert not (tmp_path / "fails").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"server": "nowhere"}, r"--server 'nowhere': must be HOST:PORT"),
        ({"server": "a:0"}, r"--server 'a:0': the port must lie in 1…65535"),
        ({"server": "a b:9000"}, r"--server 'a b:9000': must be a name or an address"),
        ({"server": "0.0.0.0:9000"}, r"--server '0.0.0.0:9000': is no address that nodes find"),
        ({"days": 0}, r"--days 0: must lie in 1…7300"),
        ({"ca": Path("a")}, r"--ca and --ca-key belong together"),
    ],
)
def test_options_that_cannot_be_are_refused_before_anything_is_written(
    changes: dict[str, Any], words: str, tmp_path: Path
) -> None:
    options = {"server": SERVER, "patience_s": 60.0, **changes}
    with pytest.raises(InputError, match=words):
        init(tmp_path / "there", scenario_in(tmp_path), **options)
    assert not (tmp_path / "there").exists()


def test_a_plan_without_rates_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"\[plan\] kind = 'file': gives plain, rotated no rate.*uplink_bps and downlink_bps"):
        init(tmp_path / "there", scenario_in(tmp_path, "unlimited"), SERVER, 60.0)
    assert rates_missing(scenario_in(tmp_path)) is None
    assert "round-robin" in str(rates_missing(small.scenario()))


def test_who_is_a_node() -> None:
    assert links_of(small.scenario()) == ("plain", "inverted")
    assert links_of(small.scenario(protocol="aligned")) == ("plain/0", "plain/1", "inverted/0", "inverted/1")


def test_each_client_of_a_network_has_a_node() -> None:
    scenario = small.scenario().model_copy(update={"protocol": "networked"})
    assert links_of(scenario) == ("plain/0", "plain/1", "inverted/0", "inverted/1")


def test_clients_of_a_cluster_have_scripts_without_strokes(tmp_path: Path) -> None:
    cluster = [{"name": name, "devices": 2, "data": f"digits:{name}"} for name in NAMES]
    names = init(tmp_path / "there", scenario_in(tmp_path, cluster=cluster, protocol="aligned"), SERVER, 60.0)
    assert {"nodes/0/node-plain-0.sh", "nodes/3/node-rotated-1.sh"} <= set(names)


@pytest.mark.parametrize(
    ("server", "here"),
    [
        ("ground.example.org:9000", "127.0.0.1:9000"),
        ("192.0.2.7:9000", "127.0.0.1:9000"),
        ("[2001:db8::7]:9000", "[::1]:9000"),
        ("127.0.0.1:9000", "127.0.0.1:9000"),
        ("localhost:9000", "localhost:9000"),
    ],
)
def test_programs_of_the_servers_machine_call_it_there(server: str, here: str) -> None:
    assert local_address(server) == here


def test_scripts_are_shell_and_quote_what_must_be(tmp_path: Path) -> None:
    folder = tmp_path / "a folder; with 'signs'"
    folder.mkdir()
    init(folder / "there", scenario_in(folder), SERVER, 60.0)
    for path in folder.rglob("*.sh"):
        assert os.access(path, os.X_OK)
        subprocess.run(["sh", "-n", path], check=True)
    last = (folder / "there" / "server.sh").read_text().splitlines()[-1]
    assert shlex.split(last.removeprefix("exec "))[-2] == str(folder / "there")
    for path in folder.rglob("*.service"):
        assert re.search(r"^ExecStart=.*", path.read_text(), re.MULTILINE)
        assert f'"{folder}/there' in path.read_text()


class Flower:
    """`flwr` as far as keys go: numbers by key, those put out forgotten."""

    def __init__(self) -> None:
        self.nodes: dict[int, str] = {}
        self.asked: list[str] = []
        self.refuses = False

    def __call__(self, words: list[str], folder: Path) -> dict[str, Any]:
        if self.refuses:
            raise RunError("flwr: there is no SuperLink")
        self.asked.append(words[0])
        if words[0] == "list":
            return {"nodes": [{"node-id": str(number), "status": "online"} for number in self.nodes]}
        if words[0] == "register":
            number = 2**63 + len(self.asked)
            self.nodes[number] = Path(words[1]).read_text()
            return {"node-id": number}
        del self.nodes[int(words[1])]
        return {}


@pytest.fixture
def flower(monkeypatch: pytest.MonkeyPatch) -> Flower:
    found = Flower()
    monkeypatch.setattr(keys, "asked", found)
    monkeypatch.setattr(keys, "answers", lambda host, port, timeout_s: True)
    return found


def test_nodes_are_let_in_once_and_known_by_their_keys(made: Path, flower: Flower) -> None:
    place = load(made)
    assert keys.register(place) == ["plain", "rotated"]
    assert keys.register(place) == []
    known = nodes_of(place)
    assert known is not None
    assert {link: flower.nodes[number] for number, link in known.items()} == {
        link: ssh_public(node_folder(place, link) / KEY).decode() for link in NAMES
    }
    flower.nodes.clear()  # a SuperLink that has lost its state
    assert keys.register(place) == ["plain", "rotated"]


def test_a_key_that_was_revoked_stays_out_until_it_is_rotated(made: Path, flower: Flower) -> None:
    place = load(made)
    keys.register(place)
    keys.revoke(place, "plain")
    assert list(flower.nodes.values()) == [read_keys(place)["rotated"].public]
    assert keys.register(place) == []
    assert [row["state"] for row in keys.listed(place)] == ["revoked", "online"]
    with pytest.raises(InputError, match="plain: its key is revoked already"):
        keys.revoke(place, "plain")
    keys.rotate(place, "plain", node_folder(place, "plain"))
    assert sorted((nodes_of(place) or {}).values()) == ["plain", "rotated"]


def test_where_no_superlink_listens_its_script_is_named(
    made: Path, flower: Flower, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And what needs none is done."""
    keys.register(load(made))
    flower.refuses = True
    monkeypatch.setattr(keys, "answers", lambda host, port, timeout_s: False)
    code, out, _ = fedexperts(monkeypatch, capsys, "deploy", "keys", made, "list")
    assert (code, " ".join(out.split())) == (
        0,
        "node state number plain ? {} rotated ? {} ?: no SuperLink answers; {} starts it".format(
            *(one.node for one in read_keys(load(made)).values()), made / "server.sh"
        ),
    )
    before = read_keys(load(made))
    for verb in ("rotate", "revoke"):
        code, _, err = fedexperts(monkeypatch, capsys, "deploy", "keys", made, verb, "plain")
        assert (code, f"no SuperLink listens at port 9000; start {made / 'server.sh'}" in err) == (1, True), err
    assert read_keys(load(made)) == before


def test_a_key_is_rotated_whole_or_not_at_all(made: Path, flower: Flower) -> None:
    place = load(made)
    keys.register(place)
    before, old = read_keys(place)["plain"], (made / "nodes/0" / KEY).read_bytes()
    flower.refuses = True
    with pytest.raises(RunError):
        keys.rotate(place, "plain", node_folder(place, "plain"))
    assert (read_keys(place)["plain"], (made / "nodes/0" / KEY).read_bytes()) == (before, old)
    flower.refuses = False
    path = keys.rotate(place, "plain", node_folder(place, "plain"))
    after = read_keys(place)["plain"]
    assert ssh_public(path).decode() == after.public != before.public
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert before.node not in flower.nodes
    assert flower.nodes[after.node or 0] == after.public


@pytest.mark.parametrize(
    ("printed", "told"),
    [
        ('{"success": false, "error-message": "Node 7 not found"}', "flwr supernode list: Node 7 not found"),
        ("Traceback", "flwr supernode list: 'Traceback' is no answer"),
    ],
)
def test_what_flower_refuses_in_json_is_an_error(printed: str, told: str, tmp_path: Path, monkeypatch: Any) -> None:
    """Its command ends with 0 then."""
    monkeypatch.setattr(app, "flwr", lambda words, folder: printed)
    with pytest.raises(RunError, match=told):
        app.asked(["list"], tmp_path)
    monkeypatch.setattr(app, "flwr", lambda words, folder: 'Listing\n{"success": true, "nodes": []}\n')
    assert app.asked(["list"], tmp_path)["nodes"] == []


def test_keys_of_whom_there_is_none(made: Path, flower: Flower) -> None:
    with pytest.raises(InputError, match="CLUSTER 'mars': is no node of this deployment; known are plain, rotated"):
        keys.revoke(load(made), "mars")
    (made / keys.KEYS).write_text("{}")
    with pytest.raises(InputError, match=r"keys.json: is of other nodes than plain, rotated"):
        read_keys(load(made))


def test_a_node_is_who_its_key_says(made: Path) -> None:
    from fedexperts.deploy.server_app import impostor

    place = load(made)
    write_keys(place, {"plain": Keyed("a", 7), "rotated": Keyed("b", 8)})
    assert impostor(place, 7, "plain") is None
    assert impostor(place, 8, "plain") == (
        "a node says that it is plain, and its key is that of rotated; give it the folder that belongs to its key"
    )
    assert "its key is none of this deployment" in str(impostor(place, 9, "plain"))
    write_keys(place, {"plain": Keyed("a", None, revoked=True), "rotated": Keyed("b", 8)})
    assert "its key is none of this deployment" in str(impostor(place, 7, "plain"))


def test_an_impostor_does_not_become_a_node(made: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    from flwr.app import ConfigRecord, RecordDict
    from flwr.supercore.task_identity import TaskIdentity

    from fedexperts.deploy import server_app
    from fedexperts.deploy.client_app import packed

    place = Place(**{**vars(load(made)), "patience_s": 0.3})
    write_keys(place, {"plain": Keyed("a", 7), "rotated": Keyed("b", 8)})

    class Grid:
        def get_node_ids(self) -> list[int]:
            return [7, 8]

        def push_messages(self, messages: list[Any]) -> list[str]:
            self.sent = {**getattr(self, "sent", {}), **{str(m.metadata.dst_node_id): m for m in messages}}
            return [str(m.metadata.dst_node_id) for m in messages]

        def pull_messages(self, ids: list[str]) -> list[Any]:
            return [self.reply(name) for name in ids]

        def reply(self, name: str) -> Any:
            content: RecordDict = packed(b"facts")
            content["node"] = ConfigRecord({"link": "plain"})  # both say so

            class Reply:
                metadata = type("Metadata", (), {"reply_to_message_id": name})()

                def has_content(self) -> bool:
                    return True

            Reply.content = content  # type: ignore[attr-defined]
            return Reply()

    monkeypatch.setattr(TaskIdentity, "_run_id", 1)
    monkeypatch.setattr(TaskIdentity, "_node_id", 1)
    monkeypatch.setattr(TaskIdentity, "_task_id", 1)
    with pytest.raises(RunError, match=r"rotated: no node has come in 0\.3 s"):
        server_app.found(Grid(), place)  # type: ignore[arg-type]
    assert "a node says that it is plain, and its key is that of rotated" in caplog.text


def test_a_node_whose_key_was_revoked_is_missed_with_the_remedy(made: Path) -> None:
    from fedexperts.deploy import server_app

    class Nobody:
        def get_node_ids(self) -> list[int]:
            return []

    place = Place(**{**vars(load(made)), "patience_s": 0.0})
    write_keys(place, {"plain": Keyed("a", None, revoked=True), "rotated": Keyed("b", 8)})
    with pytest.raises(RunError, match=r"the key of plain was revoked: fedexperts deploy keys .*there rotate plain gives"):
        server_app.found(Nobody(), place)  # type: ignore[arg-type]


async def _asked(path: str, client: Any) -> int:
    seen: list[Any] = []

    async def inner(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200})

    async def send(message: Any) -> None:
        seen.append(message)

    await OnlyNodes(inner)({"type": "http", "path": path, "client": client}, None, send)
    return int(seen[0]["status"])


@pytest.mark.parametrize(
    ("path", "host", "status"),
    [
        ("/v1/fleet/pull-messages", "192.0.2.7", 200),
        ("/v1/control/register-node", "192.0.2.7", 403),
        ("/v1/control/start-run", "2001:db8::7", 403),
        ("/v1/fleet/../control/start-run", "192.0.2.7", 403),
        ("/docs", "192.0.2.7", 403),
        ("/v1/control/start-run", None, 403),
        ("/v1/control/start-run", "127.0.0.1", 200),
        ("/v1/control/start-run", "::1", 200),
        ("/v1/control/start-run", "::ffff:127.0.0.1", 200),
        ("/v1/control/start-run", "::ffff:192.0.2.7", 403),
    ],
)
def test_from_other_machines_nodes_calls_alone_are_answered(path: str, host: str | None, status: int) -> None:
    import asyncio

    assert asyncio.run(_asked(path, None if host is None else (host, 1234))) == status


def test_a_port_in_use_is_told_before_anything_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        init(tmp_path / "there", scenario_in(tmp_path), f"127.0.0.1:{port}", 60.0)
        code, _, err = fedexperts(monkeypatch, capsys, "deploy", "serve", tmp_path / "there")
    assert code == 2
    assert re.search(rf"error: server 127.0.0.1:{port}: cannot be had \(Address already in use\)", err)


def test_folders_are_for_the_command_of_their_machine(made: Path, tmp_path: Path) -> None:
    from fedexperts.deploy.standing import checked as checked_node

    with pytest.raises(InputError, match="is that of node plain; start it with fedexperts deploy node, or give"):
        checked(made / "nodes/0")
    with pytest.raises(InputError, match="is no node's folder"):
        checked_node(made)
    with pytest.raises(InputError, match="is no deployment"):
        checked(tmp_path)
    create(tmp_path / "local", scenario_in(tmp_path).to_toml(), tmp_path, NAMES, 60.0)
    with pytest.raises(InputError, match="is of one machine"):
        checked(tmp_path / "local")
    (made / "nodes/0" / KEY).write_text("no key")
    with pytest.raises(InputError, match=r"node.key: holds no private key of OpenSSH"):
        checked_node(made / "nodes/0")


def test_submit_without_a_server_says_what_to_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    init(tmp_path / "there", scenario_in(tmp_path), f"127.0.0.1:{port}", 60.0)
    code, _, err = fedexperts(monkeypatch, capsys, "deploy", "submit", tmp_path / "there")
    assert code == 1
    assert f"error: no SuperLink listens at port {port}; start {tmp_path / 'there' / 'server.sh'}" in err


def test_status_and_collect_of_what_has_not_begun_and_of_what_has_ended(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    place = load(made)
    assert {key: status(place)[key] for key in ("state", "cycle", "accuracy")} == {"state": "new", "cycle": 0, "accuracy": None}
    with pytest.raises(InputError, match="has not ended"):
        collect(place, tmp_path / "got")
    run(scenario_of(place), place.run)
    lines = (place.run / "ledger.jsonl").read_text().splitlines(keepends=True)
    code, out, _ = fedexperts(monkeypatch, capsys, "deploy", "status", made, "--json")
    found, end = json.loads(out), json.loads(lines[-1])
    assert code == 0
    assert {key: found[key] for key in ("state", "cycle", "cycles", "contacts", "lost", "error")} == {
        "state": "ended",
        "cycle": 1,
        "cycles": 1,
        "contacts": 2,
        "lost": 0,
        "error": None,
    }
    assert (found["uplink_B"], found["accuracy"]) == (end["uplink_B"], end["accuracy"])
    code, _, err = fedexperts(monkeypatch, capsys, "deploy", "collect", made, "--out", tmp_path / "got")
    assert code == 0, err
    assert (tmp_path / "got" / "report.html").is_file()
    assert (tmp_path / "got" / "ledger.jsonl").read_text() == "".join(lines)
    assert not (tmp_path / "got" / "checkpoints").exists()
    code, _, err = fedexperts(monkeypatch, capsys, "deploy", "collect", made, "--out", tmp_path / "got")
    assert code == 2
    assert "already holds files" in err


def test_status_counts_what_the_ledger_has_so_far(made: Path) -> None:
    place = load(made)
    place.run.mkdir()
    lines: list[dict[str, Any]] = [
        {"t_s": 0.0, "event": "evaluate", "cycle": 0, "accuracy": 0.1, "steps": 0, "uplink_B": 1, "downlink_B": 0},
        {"t_s": 5.0, "event": "contact", "cluster": "plain", "satellite": "s", "until_s": 60.0},
        {"t_s": 7.0, "event": "send", "cluster": "plain", "parts": [], "versions": [], "downlink_B": 30},
        {"t_s": 9.0, "event": "collect", "cluster": "plain", "parts": [], "rounds": 0, "uplink_B": 20},
        {"t_s": 9.5, "event": "lost", "cluster": "plain"},
    ]
    (place.run / "ledger.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    wanted = {"state": "stopped", "t_s": 9.5, "contacts": 1, "lost": 1, "uplink_B": 21, "downlink_B": 30, "accuracy": 0.1}
    assert {key: status(place)[key] for key in wanted} == wanted
    place.end("a node has refused")
    assert (status(place)["state"], status(place)["error"]) == ("failed", "a node has refused")


def test_status_knows_processes_of_this_deployment_from_others_with_their_numbers(made: Path) -> None:
    place = load(made)
    (made / "processes.json").write_text(json.dumps({"superlink": os.getpid(), "worker-0": 2**22 + 1}))
    assert status(place)["processes"] == []
    child = subprocess.Popen(["sleep", "60"], env={**os.environ, "FLWR_HOME": str(made / "flower")})
    try:
        (made / "processes.json").write_text(json.dumps({"superlink": child.pid}))
        while not status(place)["processes"]:  # it has no environment until it has begun
            assert child.poll() is None
        assert status(place)["state"] == "running"
    finally:
        child.kill()
        child.wait()


def test_a_folder_is_worked_in_by_one_process(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second would take the first one's sockets, or hand over a run that is handed over."""
    monkeypatch.setattr("fedexperts.runs.lock.WAIT_S", 0.0)
    local = create(tmp_path / "local", scenario_in(tmp_path).to_toml(), tmp_path, NAMES, 60.0)
    for words, folder, told in (
        ("submit", made, "is running already"),
        ("node", made / "nodes/0", "is a node already"),
        ("resume", local.folder, "is at work there"),
    ):
        with claimed(folder):
            code, _, err = fedexperts(monkeypatch, capsys, "deploy", words, folder)
        assert code == 2
        assert told in err
    with claimed(made):
        assert status(load(made))["state"] == "running"
    assert status(load(made))["state"] == "new"


def test_resume_says_which_command_goes_on(
    made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = fedexperts(monkeypatch, capsys, "deploy", "resume", made)
    assert code == 0
    assert f"its server is {SERVER}. Go on with {made / 'run.sh'}" in err
    _, _, err = fedexperts(monkeypatch, capsys, "deploy", "resume", made / "nodes/1")
    assert f"Go on with {made / 'nodes/1/node-rotated.sh'}" in err


@pytest.mark.parametrize(("words", "told"), [(("list", "plain"), "name none"), (("revoke",), "name the CLUSTER")])
def test_keys_asks_for_a_cluster_where_one_is_meant(
    words: tuple[str, ...], told: str, made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = fedexperts(monkeypatch, capsys, "deploy", "keys", made, *words)
    assert code == 2
    assert told in err


def test_without_flower_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "flwr", None)
    code, _, err = fedexperts(monkeypatch, capsys, "deploy", "init", tmp_path / "there", "--scenario", tmp_path / "s.toml")
    assert code == 2
    assert "pip install 'fedexperts[flower]'" in err


def test_certificates_that_have_expired_are_told(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fedexperts.deploy.standing import checked as checked_node
    from fedexperts.peer import tls

    class Later(tls.datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return super().now(tz) + timedelta(days=400)

    monkeypatch.setattr(tls, "datetime", Later)
    with pytest.raises(InputError, match=r"ca.pem: expired on"):
        checked_node(made / "nodes/0")


def test_a_node_tells_another_server_from_none(tmp_path: Path) -> None:
    from fedexperts.deploy.standing import knock

    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        server = f"127.0.0.1:{listening.getsockname()[1]}"
        scenario = scenario_in(tmp_path)
        for name in ("right", "wrong"):
            init(tmp_path / name, scenario, server, 60.0)
        right, wrong = (load(tmp_path / name / "nodes/0") for name in ("right", "wrong"))
        assert knock(right) == f"{server} cannot be reached (Connection refused)"
        listening.listen()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*(tmp_path / "right" / "certificates" / name for name in ("server.pem", "server.key")))

        def answer() -> None:
            for _ in range(2):
                with suppress(OSError), listening.accept()[0] as way, context.wrap_socket(way, server_side=True):
                    pass

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        assert knock(right) is None
        with pytest.raises(InputError, match=r"its certificate is not of this folder's ca.pem"):
            knock(wrong)
        thread.join()


@pytest.mark.parametrize(
    ("off_s", "told"),
    [
        (0, None),
        (300, None),
        (-5, None),
        (None, None),
        (3600, "3,600 s behind"),
        (-3600, "3,600 s ahead of"),
        (-7, "7 s ahead of"),
    ],
)
def test_a_clock_that_is_not_the_servers_is_told(
    off_s: int | None, told: str | None, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flower's SuperNode ends without a word then, with code 0."""
    from fedexperts.deploy import standing

    monkeypatch.setattr(time, "time", lambda: 1.7e9)
    said = "" if off_s is None else formatdate(1.7e9 + off_s, usegmt=True)
    what = f"this machine's clock is {told} that of {SERVER}, which refuses its signatures then: set it"
    assert standing.wrong_clock(said, load(made / "nodes/0")) == (what if told else None)


def test_a_node_asks_the_server_what_the_time_is(tmp_path: Path) -> None:
    from fedexperts.deploy.standing import knock

    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        init(tmp_path / "there", scenario_in(tmp_path), f"127.0.0.1:{listening.getsockname()[1]}", 60.0)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*(tmp_path / "there" / "certificates" / name for name in ("server.pem", "server.key")))

        def answer() -> None:
            with listening.accept()[0] as way, context.wrap_socket(way, server_side=True) as secured:
                assert secured.recv(1000).startswith(b"HEAD / HTTP/1.1")
                date = formatdate(time.time() + 36e4, usegmt=True)
                secured.sendall(f"HTTP/1.1 404 Not Found\r\ndate: {date}\r\nconnection: close\r\n\r\n".encode())

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        found = knock(load(tmp_path / "there" / "nodes/0"))
        thread.join()
    assert re.search(r"clock is 3[56]\d,\d\d\d s behind", str(found))


def test_a_node_with_a_new_key_is_called_from_the_next_contact_on(made: Path) -> None:
    from fedexperts.deploy.server_app import GridWay

    place = load(made)
    write_keys(place, {"plain": Keyed("a", 7), "rotated": Keyed("b", 8)})
    way = GridWay(None, place, "plain", 7, ())  # type: ignore[arg-type]
    write_keys(place, {"plain": Keyed("c", 9), "rotated": Keyed("b", 8)})
    way.begin(0.0, 1.0)
    assert way.node == 9


@pytest.mark.filterwarnings("always::fedexperts.errors.InputWarning")
def test_local_warns_of_a_plan_without_rates_and_resume_goes_on_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    begun: list[Place] = []

    def here(place: Place, show: Any) -> None:
        begun.append(place)
        run(scenario_of(place), place.run, resume=place.run.exists(), listener=show)

    monkeypatch.setattr("fedexperts.deploy.local.deploy_local", here)
    (tmp_path / "s.toml").write_text(scenario_in(tmp_path, "unlimited").to_toml())
    code, _, err = fedexperts(monkeypatch, capsys, "deploy", "local", tmp_path / "s.toml", "--out", tmp_path / "there")
    assert code == 0, err
    assert "warning: [plan] kind = 'file': gives plain, rotated no rate" in err
    shutil.rmtree(tmp_path / "there" / "run" / "model")  # as if it had been killed before its end
    for _ in range(2):
        code, out, err = fedexperts(monkeypatch, capsys, "deploy", "resume", tmp_path / "there", "--json")
        assert code == 0, err
        assert json.loads(out)["directory"] == str(tmp_path / "there" / "run")
        assert [place.folder for place in begun] == [tmp_path / "there"] * 2
    assert "there: its run has ended, and is as it was; to begin anew: fedexperts deploy local with another --out" in " ".join(
        err.split()
    )


def test_submit_of_a_run_that_has_ended_says_so_and_asks_for_nothing(
    made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(scenario_of(load(made)), made / "run")
    code, _, err = fedexperts(monkeypatch, capsys, "deploy", "submit", made)
    assert code == 0, err
    assert "its run has ended, and is as it was; to begin anew: fedexperts deploy init with another folder" in " ".join(
        err.split()
    )


def test_what_takes_long_to_start_is_waited_for_and_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A worker that loads a large model."""
    from fedexperts.deploy import local

    clock_s = iter(range(0, 100_000, 50))
    monkeypatch.setattr(local, "time", SimpleNamespace(monotonic=lambda: next(clock_s), sleep=lambda s: None))
    looks = iter([False] * 8 + [True])
    started: Any = SimpleNamespace(check=lambda: None, logs=tmp_path)
    local.until("the worker of a is ready", lambda: next(looks), started, most_s=math.inf)
    told = [record.getMessage() for record in caplog.records]
    assert told == [
        f"warning: the worker of a is ready: not yet after {s} s; {tmp_path} says what each process is at"
        for s in (150, 250, 400)
    ]
    with pytest.raises(RunError, match="the SuperLink listens: not within 120 s"):
        local.until("the SuperLink listens", lambda: False, started)


def test_logs_do_not_grow_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fedexperts.deploy import local

    monkeypatch.setattr(local, "MOST_LOG_B", 1000)
    place = create(tmp_path / "there", "", tmp_path, ("a",), 10.0)
    code = "import sys\nfor line in sys.stdin: print(line * 30, flush=True)"
    with local.processes(place) as start:
        started = start._started
        monkeypatch.setattr(start, "_started", lambda command, output, given: started(command, output, subprocess.PIPE))
        start("talker", [sys.executable, "-c", code])
        log = start.logs / "talker.log"
        for number in range(5):
            size_B = log.stat().st_size
            start.children["talker"].stdin.write(f"{number} {'x' * 20}\n".encode())  # type: ignore[union-attr]
            start.children["talker"].stdin.flush()  # type: ignore[union-attr]
            until_s = time.monotonic() + 30
            while log.stat().st_size == size_B and time.monotonic() < until_s:
                time.sleep(0.01)
            start.check()
        start.children["talker"].stdin.close()  # type: ignore[union-attr]
        texts = [path.read_text().split() for path in (log, start.logs / "talker.log.1")]
    assert texts[0].count("4") == 30
    assert texts[1].count("3") == texts[1].count("2") == 30
    assert "0" not in texts[0] + texts[1]
