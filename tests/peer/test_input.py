"""Wrong input to the commands: one clear error, exit code 2, and nothing is started or written."""

import shlex
import shutil
import socket
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
import tomli_w
from conftest import CLIENTS, PATIENCE, fedexperts, ports
from cryptography.hazmat.primitives import serialization

import pictures
from fedexperts.errors import InputError
from fedexperts.peer import tls
from fedexperts.peer.address import free_ports
from fedexperts.peer.home import Home
from fedexperts.peer.links import Links
from fedexperts.peer.network import init, peers_text, ways_to_start
from fedexperts.peer.peers_file import Network
from fedexperts.peer.tls import Authority, identity, names_of
from fedexperts.scenario import read_toml


def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str]:
    """Exit code and what was said, on one line."""
    code, _, err = fedexperts(monkeypatch, capsys, *words)
    return code, " ".join(err.split())


@pytest.fixture(scope="module")
def run_hash(trained: Path) -> str:
    return Home(trained, None).run


@pytest.fixture
def document(run_hash: str) -> dict[str, object]:
    peers = [{"client": i, "address": f"127.0.0.1:{7300 + i}"} for i in range(CLIENTS)]
    return {"run": run_hash, "patience": dict(PATIENCE), "peer": peers}


def _changed(document: dict[str, object], i: int, **row: object) -> dict[str, object]:
    peers = [dict(peer) for peer in document["peer"]]  # type: ignore[attr-defined]
    peers[i] |= row
    return {**document, "peer": peers}


WRONG = {
    "a client twice": (lambda d: _changed(d, 2, client=1), "client = 1 is there 2 times"),
    "an address twice": (lambda d: _changed(d, 2, address="127.0.0.1:7301"), "of clients 1, 2"),
    "a missing expert": (lambda d: {**d, "peer": d["peer"][:3]}, "no [[peer]] for client 3"),
    "an unknown expert": (lambda d: _changed(d, 3, client=9), "the run has experts 0…3"),
    "no port": (lambda d: _changed(d, 0, address="127.0.0.1"), "peer[0].address"),
    "port 0": (lambda d: _changed(d, 0, address="127.0.0.1:0"), "the port must lie in 1…65535"),
    "port 70000": (lambda d: _changed(d, 0, address="127.0.0.1:70000"), "the port must lie in 1…65535"),
    "no peers": (lambda d: {**d, "peer": []}, "peer"),
    "another run": (lambda d: {**d, "run": "0" * 32}, "is of another run"),
    "an unknown key": (lambda d: {**d, "perr": 1}, "did you mean peer?"),
    "no patience": (lambda d: {**d, "patience": {"deadline_s": 0}}, "patience.deadline_s"),
    "too patient": (lambda d: {**d, "patience": {"k_min": 2}}, "patience.k_min = 2: is above the 1 experts"),
    "plain, unasked": (lambda d: {**d, "tls": {}}, "--insecure was given"),
    "no links": (lambda d: {**d, "links": "nowhere.toml"}, "nowhere.toml"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_file_of_peers_that_cannot_be_is_refused(
    kind: str,
    trained: Path,
    document: dict[str, object],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    change, said = WRONG[kind]
    path = tmp_path / "peers.toml"
    path.write_text(tomli_w.dumps(change(document)))
    words = ("--run", trained, "--client", 0, "--peers", path, "--listen", "127.0.0.1:0", "--insecure")
    code, err = refused(monkeypatch, capsys, "peer", "serve", *words)
    assert code == 2, err
    assert said in err
    assert err.count("error:") == 1
    assert str(tmp_path) in err


def test_tls_is_not_left_out_unasked(
    trained: Path,
    document: dict[str, object],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "peers.toml"
    path.write_text(tomli_w.dumps(document))
    code, err = refused(monkeypatch, capsys, "peer", "serve", "--run", trained, "--client", 0, "--peers", path)
    assert code == 2
    assert "has no [tls], so that anybody could ask and answer" in err


def test_a_client_or_port_that_is_not_there_or_in_use_is_refused(
    trained: Path, files: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    capsys = capfd  # so that what gRPC itself prints is seen too
    words = ["peer", "serve", "--run", trained, "--peers", files]
    code, err = refused(monkeypatch, capsys, *words, "--client", CLIENTS)
    assert (code, f"experts 0…{CLIENTS - 1}" in err) == (2, True)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, err = refused(monkeypatch, capsys, *words, "--client", 0, "--listen", f"127.0.0.1:{port}")
        assert code == 2
        assert err.startswith(f"error: --listen 127.0.0.1:{port}: cannot be had (Address already in use); name another port"), (
            err
        )
    code, err = refused(monkeypatch, capsys, *words, "--client", 0, "--listen", "192.0.2.1:7300")
    assert (code, "--listen 192.0.2.1:7300: cannot be had (Cannot assign requested address)" in err) == (2, True), err
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        (free,) = free_ports(1)
        metrics = f"127.0.0.1:{port}"
        code, err = refused(monkeypatch, capsys, *words, "--client", 0, "--listen", f"127.0.0.1:{free}", "--metrics", metrics)
        assert (code, f"--metrics {metrics}: cannot be had" in err) == (2, True), err
    code, err = refused(monkeypatch, capsys, *words, "--client", 0, "--listen", "7300")
    assert (code, "must be HOST:PORT" in err) == (2, True)


def test_a_run_of_another_kind_is_refused(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    other = tmp_path / "run"
    shutil.copytree(trained, other)
    (other / "SHA256SUMS").unlink()
    text = (other / "scenario.toml").read_text()
    for changed, said in (
        (text.replace('protocol = "networked"', 'protocol = "sync"'), "is a run of sync"),
        (text.replace("[networked]", '[networked]\ncontrol = "local"'), "networked.control = local"),
    ):
        (other / "scenario.toml").write_text(changed)
        code, err = refused(monkeypatch, capsys, "peer", "init", "--run", other, "--out", tmp_path / "out")
        assert (code, said in err) == (2, True), err
        assert not (tmp_path / "out").exists()
    for nowhere in (tmp_path / "nowhere", tmp_path):
        code, err = refused(monkeypatch, capsys, "peer", "init", "--run", nowhere, "--out", tmp_path / "out")
        assert (code, f"error: {nowhere}: is no run directory" in err) == (2, True), err
    conv = tmp_path / "conv"
    from fedexperts.moe.auto import new_model

    new_model(dict(pictures.CONFIG), 0, kind="image-classifier", outputs=4).save_pretrained(conv)
    code, err = refused(monkeypatch, capsys, "peer", "init", "--run", conv, "--out", tmp_path / "out")
    assert (code, "model_type 'conv_moe'" in err) == (2, True), err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--host", "a", "--host", "b"], "2 given"),
        (["--host", "a b"], "--host 'a b': must be a name or an address"),
        (["--host", ""], "--host '': must be"),
        (["--host", "::1"], "--host '::1': must be"),
        (["--port", "65535"], "--port 65535"),
        (["--days", "0"], "--days 0"),
        (["--ca", "ca.pem"], "belong together"),
    ],
)
def test_options_of_init_are_checked_first(
    words: list[str],
    said: str,
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, err = refused(monkeypatch, capsys, "peer", "init", "--run", trained, "--out", tmp_path / "out", *words)
    assert (code, said in err) == (2, True), err
    assert not (tmp_path / "out").exists()


def test_init_overwrites_nothing_and_keeps_keys_to_their_owner(
    trained: Path, files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, err = refused(monkeypatch, capsys, "peer", "init", "--run", trained, "--out", files.parent)
    assert (code, "already holds files" in err) == (2, True)
    keys = list(files.parent.glob("certificates/*.key"))
    assert len(keys) == CLIENTS + 2
    assert all(key.stat().st_mode & 0o077 == 0 for key in keys)
    assert "--client 2 " in (files.parent / "client-2.sh").read_text()
    assert "ExecStart=" in (files.parent / "client-2.service").read_text()


def test_the_users_own_authority_signs(trained: Path, run_hash: str, tmp_path: Path) -> None:
    own = Authority.new("own", 2)
    (tmp_path / "ca.pem").write_bytes(tls.pem(own.certificate))
    (tmp_path / "ca.key").write_bytes(tls.key_pem(own.key))
    out = tmp_path / "out"
    init(trained, out, ["h0", "h1", "h2", "10.0.0.3"], 7300, 1, tmp_path / "ca.pem", tmp_path / "ca.key")
    network = Network(out / "peers.toml", CLIENTS, run_hash)
    assert [row.address for row in network.peers.values()] == ["h0:7300", "h1:7300", "h2:7300", "10.0.0.3:7300"]
    assert network.identity("client-1", network.name(1)) is not None
    assert not (out / "certificates" / "ca.key").exists()
    certificate = tls.certificate_of(out / "certificates" / "client-1.pem")
    certificate.verify_directly_issued_by(own.certificate)
    assert names_of(certificate) == [f"client-1.{run_hash}", "h1"]
    with pytest.raises(InputError, match="is no certificate of an authority"):
        Authority.read(out / "certificates" / "client-1.pem", out / "certificates" / "client-1.key")
    with pytest.raises(InputError, match="is not the key of"):
        Authority.read(tmp_path / "ca.pem", out / "certificates" / "client-1.key")


def test_a_certificate_that_is_wrong_is_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = Authority.new("a", 1), Authority.new("b", 1)
    paths = {name: tmp_path / name for name in ("ca", "other", "leaf", "key", "strange", "strange.key")}
    paths["ca"].write_bytes(tls.pem(ours.certificate))
    paths["other"].write_bytes(tls.pem(theirs.certificate))
    for one, other, authority in (("leaf", "key", ours), ("strange", "strange.key", theirs)):
        for path, data in zip((paths[one], paths[other]), authority.leaf("client-0.x", ("h",), 1), strict=True):
            path.write_bytes(data)
    assert identity(paths["ca"], paths["leaf"], paths["key"], "client-0.x").certificate == paths["leaf"].read_bytes()
    for given, said in (
        ((paths["ca"], paths["strange"], paths["strange.key"], None), "is not signed by"),
        ((paths["ca"], paths["leaf"], paths["strange.key"], None), "is not the key of"),
        ((paths["ca"], paths["leaf"], paths["key"], "client-1.x"), "and not of client-1.x"),
        ((paths["ca"], paths["key"], paths["key"], None), "holds no certificate"),
        ((paths["ca"], paths["leaf"], paths["leaf"], None), "holds no private key"),
        ((paths["ca"], tmp_path / "none", paths["key"], None), "cannot be read"),
    ):
        with pytest.raises(InputError, match=said):
            identity(*given)

    for days, said in ((2, "expired on"), (-2, "is good from")):
        monkeypatch.setattr(tls, "datetime", _clock(timedelta(days=days)))
        with pytest.raises(InputError, match=said):
            identity(paths["ca"], paths["leaf"], paths["key"], None)


def _clock(ahead: timedelta) -> type[datetime]:
    class Ahead(datetime):
        @classmethod
        def now(cls, tz: object = None) -> datetime:  # type: ignore[override]
            return datetime.now(UTC) + ahead

    return Ahead


def test_an_expired_certificate_stops_serve(
    trained: Path, run_hash: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    init(trained, out, ["127.0.0.1"], 7300, 1)
    authority = Authority.read(out / "certificates" / "ca.pem", out / "certificates" / "ca.key")
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes

    old = tls.certificate_of(out / "certificates" / "client-0.pem")
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder().subject_name(old.subject).issuer_name(old.issuer).public_key(old.public_key())
    builder = builder.serial_number(7).not_valid_before(now - timedelta(days=9)).not_valid_after(now - timedelta(days=8))
    expired = builder.sign(authority.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    (out / "certificates" / "client-0.pem").write_bytes(expired)
    code, err = refused(monkeypatch, capsys, "peer", "serve", "--run", trained, "--client", 0, "--peers", out / "peers.toml")
    assert (code, "client-0.pem: expired on" in err) == (2, True), err


def test_infer_names_what_is_wrong_with_files_and_addresses(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures.npz(tmp_path / "a.npz", 4)
    np.savez(tmp_path / "b.npz", x=np.zeros((2, 9, 9, 3), np.uint8), y=np.zeros(2, np.int64))
    (tmp_path / "c.png").write_bytes(b"no picture")
    at = f"127.0.0.1:{ports(files)[1]}"
    for words, code, said in (
        (["--client", at, tmp_path / "none.npz"], 2, "none.npz"),
        (["--client", at, tmp_path / "c.png"], 2, "is not an image"),
        (["--client", at, tmp_path / "a.npz", tmp_path / "b.npz"], 2, "all must be alike"),
        (["--client", "127.0.0.1", tmp_path / "a.npz"], 2, "must be HOST:PORT"),
        (["--client", "127.0.0.1:1", tmp_path / "a.npz"], 2, "is no address in"),
        (["--client", at, tmp_path / "a.npz"], 1, "cannot be reached"),
    ):
        found, err = refused(monkeypatch, capsys, "peer", "infer", "--peers", files, *words)
        assert (found, said in err) == (code, True), err


def test_names_of_certificates_need_the_run(document: dict[str, object], tmp_path: Path) -> None:
    path = tmp_path / "peers.toml"
    path.write_text(tomli_w.dumps({"tls": {}, "peer": document["peer"]}))
    with pytest.raises(InputError, match=r"peers\.toml: run: is missing.* client 1"):
        Network(path).name(1)


def test_pages_and_doors_are_checked_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for option in ("--listen", "--metrics"):
        words = ("--run", tmp_path / "nowhere", "--client", 0, option, "h:70000")
        code, err = refused(monkeypatch, capsys, "peer", "serve", *words)
        assert (code, f"{option} 'h:70000': the port must lie in 0…65535" in err) == (2, True), err


@pytest.mark.parametrize(
    ("host", "listen"),
    [
        ("127.0.0.1", "127.0.0.1:7300"),
        ("localhost", "localhost:7300"),
        ("h", "0.0.0.0:7300"),
        ("10.0.0.3", "0.0.0.0:7300"),
        ("[::1]", "[::1]:7300"),
        ("[fe80::1]", "[::]:7300"),
    ],
)
def test_clients_listen_to_others_only_where_others_reach_them(host: str, listen: str) -> None:
    found = ways_to_start(Path("/r"), Path("/n"), [f"{host}:7300"])
    assert all(listen in shlex.split(text, comments=True) for text in found.values())


def test_scripts_and_units_name_paths_as_they_are(tmp_path: Path) -> None:
    """Of a folder with all that a shell or systemd would take for something else."""
    folder = tmp_path / 'it\'s 100% $HOME \\ "net"'
    found = ways_to_start(folder / "run", folder, ["h:7300"])
    words = shlex.split(found["client-0.sh"].splitlines()[-1])
    assert words[1:5] == [sys.executable, "-m", "fedexperts", "peer"]
    assert str(folder / "run") in words
    assert str(folder / "peers.toml") in words
    (line,) = (line for line in found["client-0.service"].splitlines() if line.startswith("ExecStart="))
    assert str(folder / "run").replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$") in line
    if shutil.which("systemd-analyze"):
        (tmp_path / "client-0.service").write_text(found["client-0.service"])
        told = subprocess.run(["systemd-analyze", "verify", tmp_path / "client-0.service"], capture_output=True, text=True)
        assert not [line for line in told.stderr.splitlines() if "client-0.service" in line]


LINKS_WRONG = {
    "a link to itself": ({"link": [{"between": ["0", "0"]}]}, "a link has two ends"),
    "a link twice": ({"link": [{"between": ["0", "1"]}, {"between": ["1", "0"]}]}, "two [[link]] between 0 and 1"),
    "all is lost": ({"default": {"loss": 1.0}}, "default.loss"),
    "a plan without places": ({"plan": "plan.json"}, "needs a table [place]"),
    "no such plan": ({"plan": "plan.json", "place": {"0": "a"}}, "plan.json"),
    "three ends": ({"link": [{"between": ["0", "1", "2"]}]}, "link[0].between"),
}


@pytest.mark.parametrize("kind", LINKS_WRONG)
def test_a_file_of_links_that_cannot_be_is_refused(kind: str, tmp_path: Path) -> None:
    document, said = LINKS_WRONG[kind]
    (tmp_path / "links.toml").write_text(tomli_w.dumps(document))
    with pytest.raises(InputError) as error:
        Links(tmp_path / "links.toml")
    assert said in str(error.value)


@pytest.mark.parametrize(("key", "address"), [("listen", "h:70000"), ("to", "h:0"), ("to", "h:70000")])
def test_a_route_names_ports_that_can_be(key: str, address: str, tmp_path: Path) -> None:
    route = {"between": ["0", "1"], "listen": "h:1", "to": "h:2", key: address}
    (tmp_path / "links.toml").write_text(tomli_w.dumps({"route": [route]}))
    with pytest.raises(InputError, match=rf"links\.toml: route\[0\]\.{key} = 'h:\d+': the port must lie in"):
        Links(tmp_path / "links.toml").relays()


def test_a_text_of_peers_is_read_as_it_was_written(run_hash: str, tmp_path: Path) -> None:
    path = tmp_path / "peers.toml"
    path.write_text(peers_text(run_hash, [f"h:{i + 1}" for i in range(CLIENTS)], patience={"deadline_s": 3.5}))
    assert Network(path, CLIENTS, run_hash, insecure=True).table.patience.deadline_s == 3.5
    assert read_toml(path)["run"] == run_hash
