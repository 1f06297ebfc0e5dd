"""Making a deployment over machines: certificates, node keys, the thin app, and a way to start each part on its machine."""

from __future__ import annotations

import secrets
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path

from ..errors import InputError
from ..peer.address import HOST, split_address
from ..peer.network import authority_of, check_signing, secret, systemd, user
from ..peer.tls import Authority, key_pem, pem, ssh_pair
from ..scenario import Scenario
from ..writing import check_empty, filled
from .app import connection, write_app
from .keys import KEY, Keyed, write_keys
from .links import links_of, rates_missing
from .place import CA, CERTIFICATES, Place, local_address, write
from .readme import inside, network_files, readme, script_of

NAME = "fedexperts-server"
LOOPBACK = ("127.0.0.1", "::1", "localhost")


def init(
    folder: Path,
    scenario: Scenario,
    server: str,
    patience_s: float,
    days: int = 365,
    ca: Path | None = None,
    ca_key: Path | None = None,
) -> list[str]:
    """Write a deployment into a new folder; returns the names of what is there.

    Args:
        folder: new or empty; it stays on the server's machine.
        scenario: what is to be trained.
        server: HOST:PORT where nodes find the server.
        patience_s: how long a reply is waited for in a contact.
        days: for which certificates are good.
        ca, ca_key: the user's own authority, certificate and key; a new one is made if left out.

    Raises:
        InputError: with the option or the key, before anything is written.
        RunError: the machine refuses.
    """
    _check_server(server)
    check_signing(days, ca, ca_key)
    links = links_of(scenario)
    if fault := rates_missing(scenario):
        raise InputError(fault)
    authority = authority_of("deployment", days, ca, ca_key)
    check_empty(folder, "DIR")
    place = Place(folder, secrets.token_hex(8), str(scenario.base.resolve()), links, patience_s, server)
    with filled(folder, "DIR"):
        write(place, scenario.to_toml())
        _certificates(place, authority, days, ours=ca is None)
        write_app(folder, connection(local_address(server), folder.resolve() / CERTIFICATES / CA))
        write_keys(place, {link: _node(place, scenario, link, pem(authority.certificate)) for link in links})
        for name, text in {**_server_scripts(place), "README.md": readme(place, scenario)}.items():
            _script(folder / name, text)
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def _check_server(server: str) -> None:
    split_address("--server", server, least=1)
    host = server.rpartition(":")[0]
    if not HOST.fullmatch(host):
        raise InputError(f"--server {server!r}: must be a name or an address that nodes find, as ground.example.org:8000")
    if host in ("0.0.0.0", "[::]"):
        raise InputError(
            f"--server {server!r}: is no address that nodes find; give the name or address of the server's machine"
        )


def _certificates(place: Place, authority: Authority, days: int, ours: bool) -> None:
    folder = place.folder / CERTIFICATES
    folder.mkdir()
    (folder / CA).write_bytes(pem(authority.certificate))
    if ours:
        secret(folder / "ca.key", key_pem(authority.key))
    host, _ = split_address("--server", str(place.server))
    certificate, key = authority.leaf(NAME, tuple(dict.fromkeys((host, *LOOPBACK))), days)
    (folder / "server.pem").write_bytes(certificate)
    secret(folder / "server.key", key)


def node_folder(place: Place, link: str) -> Path:
    """What is copied to the machine of a node."""
    return place.folder / "nodes" / str(place.links.index(link))


def _node(place: Place, scenario: Scenario, link: str, ca: bytes) -> Keyed:
    """All that a node's machine needs but its data; returns its key's public half."""
    folder = node_folder(place, link)
    folder.mkdir(parents=True)
    folder.chmod(0o700)
    write(Place(folder, place.id, ".", place.links, place.patience_s, place.server, link), scenario.to_toml())
    (folder / CA).write_bytes(ca)
    private, public = ssh_pair()
    secret(folder / KEY, private)
    for path in network_files(scenario):
        if (at := inside(path)) is not None:
            (folder / at).parent.mkdir(parents=True, exist_ok=True)
            (folder / at).write_bytes(scenario.file(path).read_bytes())
    for name, text in _node_scripts(folder, link).items():
        _script(folder / name, text)
    return Keyed(public.decode())


def _script(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
    path.chmod(0o755 if path.suffix == ".sh" else 0o644)


def _server_scripts(place: Place) -> Mapping[str, str]:
    found = {}
    for name, verb, what in (("server", "serve", "The SuperLink"), ("run", "submit", "Lets the nodes in, and trains")):
        words = [sys.executable, "-m", "fedexperts", "deploy", verb, str(place.folder.resolve())]
        found[f"{name}.sh"] = f'#!/bin/sh\n# {what}; on the server\'s machine.\nexec {shlex.join(words)} "$@"\n'
        after = "fedexperts-server.service" if name == "run" else "network-online.target"
        restart = "on-failure" if name == "run" else "always"
        found[f"fedexperts-{name}.service"] = _unit(what, words, place.folder, after, restart)
    return found


def _node_scripts(folder: Path, link: str) -> Mapping[str, str]:
    """They work wherever the folder is put; the unit must be told."""
    shown = shlex.quote(sys.executable)
    script = (
        f"#!/bin/sh\n# The node {link}: its worker and its SuperNode. PYTHON: where fedexperts[flower] is installed.\n"
        'here=$(cd "$(dirname "$0")" && pwd) || exit 1\n'
        f"python=${{PYTHON:-{shown}}}\n"
        'command -v "$python" > /dev/null || python=python3\n'
        'exec "$python" -m fedexperts deploy node "$here" "$@"\n'
    )
    words = [str(folder.resolve() / script_of(link))]
    what = f"FedExperts node {link}"
    return {script_of(link): script, "fedexperts-node.service": _unit(what, words, folder, "network-online.target", "always")}


def _unit(what: str, words: list[str], folder: Path, after: str, restart: str) -> str:
    return (
        "# On another machine correct User and the path.\n"
        f"[Unit]\nDescription={what}\nAfter={after}\nWants={after}\n\n"
        f"[Service]\nExecStart={' '.join(map(systemd, words))}\nUser={user()}\nRestart={restart}\nRestartSec=5\n"
        "RestartPreventExitStatus=2\nKillMode=mixed\nEnvironment=OMP_NUM_THREADS=1\n"
        "NoNewPrivileges=true\nProtectSystem=strict\nPrivateTmp=true\n"
        f"ReadWritePaths={systemd(str(folder.resolve()))}\n"
        "\n[Install]\nWantedBy=multi-user.target\n"
    )
