"""Comparisons on a Ray cluster: the same folders as without, errors as messages. Real clusters, of this machine, are slow."""

import importlib.util
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tomli_w

import small
from fedexperts.errors import InputError, InputWarning, RunError, warn_input
from fedexperts.runs import on_ray
from fedexperts.runs.lock import LOCK
from fedexperts.runs.on_ray import RayPool, _in_place

ROOT = Path(__file__).resolve().parents[2]
HAS_RAY = importlib.util.find_spec("ray") is not None
needs_ray = pytest.mark.skipif(not HAS_RAY, reason="ray is not installed; pip install 'fedexperts[ray]'")

# what needs no Ray


@pytest.mark.skipif(HAS_RAY, reason="ray is installed")
def test_without_ray_the_extra_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--ray: needs the extra ray .*pip install 'fedexperts\[ray\]', or use --jobs"):
        RayPool("auto", tmp_path, print)


class Refusing(SimpleNamespace):
    """Ray, as far as it is asked before a cluster is found."""

    def is_initialized(self) -> bool:
        return False

    def init(self, **_: Any) -> None:
        raise ConnectionError("Could not find any running Ray instance.\nmore lines")


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("auto", r"--ray auto: cannot be used \(Could not find any running Ray instance\.\); Ray, Python"),
        ("ray://10.0.0.1:10001", r"--ray ray://10\.0\.0\.1:10001: must be auto, local, or HOST:PORT"),
        ("", r"--ray : must be auto, local, or HOST:PORT"),
        ("127.0.0.1:1", r"--ray 127\.0\.0\.1:1: cannot be reached \(.*\); is the cluster up\?"),
        ("127.0.0.1:99999", r"--ray 127\.0\.0\.1:99999: cannot be reached"),
        ("no-such-host.invalid:6379", r"cannot be reached"),
    ],
)
def test_an_address_that_is_none_is_refused(
    address: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(on_ray, "_ray", Refusing)
    with pytest.raises(InputError, match=message):
        RayPool(address, tmp_path, print)


def place(out: Path) -> tuple[str, Path, str]:
    (out / LOCK).write_text("process 7 on a-machine\n")
    return os.getcwd(), out / LOCK, "process 7 on a-machine\n"


def warned(value: int) -> int:
    warn_input("a doubt")
    return value


def refused(kind: type[Exception]) -> None:
    raise kind("as it is")


def test_a_call_on_a_node_gives_its_value_and_what_it_warned_of(tmp_path: Path) -> None:
    assert _in_place(place(tmp_path), warned, (3,)) == (3, None, ["a doubt"])


@pytest.mark.parametrize("kind", [InputError, RunError])
def test_what_a_run_says_comes_back_as_it_is_and_not_as_a_traceback(kind: type[Exception], tmp_path: Path) -> None:
    value, error, _ = _in_place(place(tmp_path), refused, (kind,))
    assert (value, type(error), str(error)) == (None, kind, "as it is")


def test_a_file_that_a_run_cannot_read_is_not_a_folder_that_is_not_shared(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="as it is"):
        _in_place(place(tmp_path), refused, (OSError,))


def test_a_node_that_sees_another_folder_does_nothing(tmp_path: Path) -> None:
    folder, lock, said = place(tmp_path)
    for other in ("process 8 on another-machine\n", None):
        if other is None:
            lock.unlink()
        else:
            lock.write_text(other)
        value, error, _ = _in_place((folder, lock, said), refused, (InputError,))
        assert value is None
        assert f"does not see {tmp_path} as this machine does; name an --out on a file system" in str(error)
    value, error, _ = _in_place((str(tmp_path / "elsewhere"), *place(tmp_path)[1:]), warned, (1,))
    assert value is None
    assert "elsewhere" in str(error)
    assert isinstance(error, InputError)


# real clusters


def compare(scenario: Path, out: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fedexperts", "compare", str(scenario), "--out", str(out), *words]
    where = environment(scenario.parent)
    return subprocess.run(command, capture_output=True, text=True, env=where, cwd=scenario.parent, timeout=500)


def environment(folder: Path) -> dict[str, str]:
    """Of a cluster and who uses it: a token of their own, so that none is made in the user's home."""
    if not (token := folder / "token").exists():
        token.write_text(secrets.token_hex(32))
    of_ray = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "RAY_USAGE_STATS_ENABLED": "0"}
    return {**os.environ, "PYTHONPATH": str(ROOT / "src"), **of_ray}


def is_open(address: str) -> bool:
    host, port = address.split(":")
    with socket.socket() as one:
        return one.connect_ex((host, int(port))) == 0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scenario, a protocol of the user's own beside it, and what its comparison comes to without Ray."""
    folder = tmp_path_factory.mktemp("ray")
    (folder / "s.toml").write_text(tomli_w.dumps(small.document(train={"cycles": 1})))
    (folder / "my_own.py").write_text("from fedexperts.protocol.sync import Sync\n\n\nclass Mine(Sync):\n    pass\n")
    done = compare(folder / "s.toml", folder / "plain", *PROTOCOLS, "--json")
    assert done.returncode == 0, done.stderr
    (folder / "plain.json").write_text(done.stdout)
    return folder


PROTOCOLS = ("--protocol", "sync,my_own:Mine", "--grid", "train.lr_expert=1e-3,1e-2")


@pytest.fixture(scope="module")
def cluster(folder: Path) -> Iterator[str]:
    """An existing cluster: a head of this machine, in a session of its own, of which nothing is left behind."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    at = Path("/tmp") / f"ray-{os.getpid()}"  # sockets have short paths
    words = ["start", "--head", "--block", f"--port={port}", "--num-cpus=2", f"--temp-dir={at}", "--include-dashboard=false"]
    ray = Path(sys.executable).parent / "ray"
    head = subprocess.Popen(
        [ray, *words, "--node-ip-address=127.0.0.1", "--disable-usage-stats"],
        env=environment(folder),
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 120
        while not is_open(f"127.0.0.1:{port}"):
            assert head.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.2)
        time.sleep(5)
        yield f"127.0.0.1:{port}"
    finally:
        os.killpg(head.pid, signal.SIGTERM)
        head.wait(60)


def kept(out: Path) -> dict[str, bytes]:
    """All of a comparison's runs but what says when and where they were made."""
    return {
        str(path.relative_to(out)): path.read_bytes()
        for path in out.rglob("*")
        if path.is_file() and "checkpoints" not in path.parts and path.name not in ("runtime.jsonl", "report.html")
    }


def check_alike(folder: Path, out: Path, done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 0, done.stderr
    found, plain = json.loads(done.stdout), json.loads((folder / "plain.json").read_text())
    assert {**found, "directory": ""} == {**plain, "directory": ""}
    runs = kept(out)
    assert len([name for name in runs if name.endswith("ledger.jsonl")]) == 4
    assert runs == kept(folder / "plain")
    assert {path.name for path in out.iterdir()} == {path.name for path in (folder / "plain").iterdir()}


@needs_ray
@pytest.mark.slow
def test_on_a_local_cluster_the_folders_are_those_of_processes(folder: Path) -> None:
    check_alike(folder, folder / "local", compare(folder / "s.toml", folder / "local", *PROTOCOLS, "--ray", "local", "--json"))


@needs_ray
@pytest.mark.slow
def test_on_a_cluster_that_is_there_too_and_it_stays(folder: Path, cluster: str) -> None:
    words = (*PROTOCOLS, "--ray", cluster, "--json")
    check_alike(folder, folder / "there", compare(folder / "s.toml", folder / "there", *words))
    again = compare(folder / "s.toml", folder / "there", *words, "--resume")  # all has ended
    assert json.loads(again.stdout)["directory"] == str(folder / "there")
    wrong = compare(
        folder / "s.toml", folder / "wrong", "--protocol", "sync", "--ray", cluster, "--set", "cluster.0.data=no.jsonl"
    )
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "no.jsonl" in wrong.stderr
    assert "Traceback" not in wrong.stderr
    assert "RayTaskError" not in wrong.stderr
    assert is_open(cluster)


@needs_ray
@pytest.mark.slow
def test_what_runs_on_a_cluster_warn_of_is_warned_of_here(folder: Path, cluster: str) -> None:
    rows = [{"input_ids": [1, 2 + n], "label": 1 + n % 2} for n in range(20)]  # classes from 1
    (folder / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "y.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    clusters = [{"name": name, "data": "x.jsonl", "test": "y.jsonl"} for name in "ab"]
    (folder / "w.toml").write_text(tomli_w.dumps(small.document(cluster=clusters, train={"cycles": 1})))
    done = compare(folder / "w.toml", folder / "warned", "--protocol", "sync,ems-fl", "--ray", cluster)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("warning: labels of all clusters: 0 never occurs") == 1
    assert InputWarning.__name__ not in done.stderr
