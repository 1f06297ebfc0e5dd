"""Making a network of a run: peers.toml, certificates, and a way to start each client on its machine."""

from __future__ import annotations

import getpass
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tomli_w

from ..errors import InputError
from ..scenario import table_of
from ..writing import check_empty, filled
from .address import HOST, everywhere, split_address
from .home import Home
from .peers_file import PeersTable, Tls, default_name
from .tls import Authority, key_pem, pem

MOST_DAYS = 20 * 365
FILE, CERTIFICATES, USER = "peers.toml", "certificates", "user"


def peers_text(run: str, addresses: Sequence[str], tls: Tls | None = None, patience: Mapping[str, float] | None = None) -> str:
    """``peers.toml`` of clients that listen at these addresses, in the order of their numbers."""
    document: dict[str, Any] = {"run": run}
    if tls is not None:
        document["tls"] = tls.model_dump()
    if patience:
        document["patience"] = dict(patience)
    document["peer"] = [{"client": i, "address": address} for i, address in enumerate(addresses)]
    return tomli_w.dumps(document)


def addresses(experts: int, hosts: Sequence[str], port: int) -> list[str]:
    """HOST:PORT of each client: with one host all are on it, with ports that follow one another.

    Raises:
        InputError: there are neither one host nor one for each client, one of them is none, or ports end.
    """
    if len(hosts) not in (1, experts):
        raise InputError(
            f"--host: {len(hosts)} given; give one for all clients, or one for each of the {experts}, in their order"
        )
    if wrong := [host for host in hosts if not HOST.fullmatch(host)]:
        raise InputError(f"--host {wrong[0]!r}: must be a name or an address, as laptop-a, 192.0.2.7 or [2001:db8::7]")
    if not 1 <= port <= 65535 - experts:
        raise InputError(f"--port {port}: must lie in 1…{65535 - experts}, so that {experts} clients have one each")
    if len(hosts) == 1:
        return [f"{hosts[0]}:{port + i}" for i in range(experts)]
    return [f"{host}:{port}" if hosts.count(host) == 1 else f"{host}:{port + i}" for i, host in enumerate(hosts)]


def init(
    run: Path, out: Path, hosts: Sequence[str], port: int, days: int, ca: Path | None = None, ca_key: Path | None = None
) -> list[str]:
    """Write a network of a run into a new folder; returns the names of what is there.

    Args:
        run: a run directory that has ended.
        out: new or empty.
        hosts: of the clients; see `addresses`.
        port: of the first, or of each.
        days: for which certificates are good.
        ca, ca_key: the user's own authority, certificate and key; a new one is made if left out.

    Raises:
        InputError: with the option, before anything is written.
        RunError: the machine refuses.
    """
    check_signing(days, ca, ca_key)
    home = Home(run, None)
    at = addresses(home.experts, hosts, port)
    table_of(PeersTable, {"peer": [{"client": i, "address": address} for i, address in enumerate(at)]}, "--host")
    authority = authority_of(home.run, days, ca, ca_key)
    check_empty(out, "--out")
    with filled(out, "--out"):
        folder = out / CERTIFICATES
        folder.mkdir()
        (folder / "ca.pem").write_bytes(pem(authority.certificate))
        if ca is None:
            secret(folder / "ca.key", key_pem(authority.key))
        for i, address in enumerate(at):
            host, _ = split_address("--host", address)
            _leaf(folder, authority, f"client-{i}", default_name(f"client-{i}", home.run), (host,), days)
        _leaf(folder, authority, USER, default_name(USER, home.run), (), days)
        (out / FILE).write_text(peers_text(home.run, at, Tls()), encoding="utf-8")
        for name, text in ways_to_start(run.resolve(), out.resolve(), at).items():
            (out / name).write_text(text, encoding="utf-8")
            (out / name).chmod(0o755 if name.endswith(".sh") else 0o644)
    return sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())


def check_signing(days: int, ca: Path | None, ca_key: Path | None) -> None:
    """Raises: InputError, where certificates cannot be good for so many days, or one of the authority's files is not given."""
    if not 1 <= days <= MOST_DAYS:
        raise InputError(f"--days {days}: must lie in 1…{MOST_DAYS}")
    if (ca is None) != (ca_key is None):
        raise InputError("--ca and --ca-key belong together: give the authority's certificate and its key, or neither")


def authority_of(name: str, days: int, ca: Path | None, ca_key: Path | None) -> Authority:
    """The user's own authority, or a new one where none is given.

    Raises:
        InputError: as `Authority.read`.
    """
    return Authority.new(name, days) if ca is None or ca_key is None else Authority.read(ca, ca_key)


def _leaf(folder: Path, authority: Authority, who: str, name: str, hosts: tuple[str, ...], days: int) -> None:
    certificate, key = authority.leaf(name, hosts, days)
    (folder / f"{who}.pem").write_bytes(certificate)
    secret(folder / f"{who}.key", key)


def secret(path: Path, data: bytes) -> None:
    """A file that only its owner can read, from its first byte on."""
    path.touch(0o600)
    path.write_bytes(data)


def ways_to_start(run: Path, out: Path, at: Sequence[str]) -> Mapping[str, str]:
    """A script and a unit of systemd for each client; Python, run, folder and user as they are called here."""
    found = {}
    for i, address in enumerate(at):
        words = [sys.executable, "-m", "fedexperts", "peer", "serve", "--run", str(run), "--client", str(i)]
        words += ["--listen", everywhere(address), "--peers", str(out / FILE)]
        mend = f"# Client {i}; on its own machine correct {{}}. It needs ca.pem and its own pair, and no other key.\n"
        found[f"client-{i}.sh"] = f'#!/bin/sh\n{mend.format("the three paths")}exec {shlex.join(words)} "$@"\n'
        found[f"client-{i}.service"] = (
            f"{mend.format('User and the three paths')}"
            f"[Unit]\nDescription=FedExperts client {i}\nAfter=network-online.target\nWants=network-online.target\n\n"
            f"[Service]\nExecStart={' '.join(map(systemd, words))}\nUser={user()}\nRestart=on-failure\nRestartSec=2\n"
            "RestartPreventExitStatus=2\nEnvironment=OMP_NUM_THREADS=1\n"
            "NoNewPrivileges=true\nProtectSystem=strict\n\n[Install]\nWantedBy=multi-user.target\n"
        )
    return found


def systemd(word: str) -> str:
    """A word of a command in a unit: quoted, and without the variables and specifiers that systemd would put in."""
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return escaped if escaped == word and not set(word) & set(" \t';") else f'"{escaped}"'


def user() -> str:
    """Whose keys they are; where nobody has a name, as in a container, the number."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())
