"""The SuperLink of a deployment: Flower's own, where other machines reach what nodes need and nothing else.

Nodes, ``flwr`` and ServerApps share one port, and Flower asks ``flwr`` for no key: whoever reaches that port could let
nodes in, or have code run. So whoever is not on this machine is answered under ``/v1/fleet/`` alone, where calls are signed.

``python -m fedexperts.deploy.superlink DIR``
"""

from __future__ import annotations

import ipaddress
import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..peer.address import check_free
from .app import environment
from .place import CA, CERTIFICATES, Place, listens, load

FLEET = "/v1/fleet/"


class OnlyNodes:
    """An ASGI application before which other machines than this one see nodes' calls alone."""

    def __init__(self, app: Callable[..., Awaitable[None]]):
        self.app = app

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """As ASGI has it."""
        if scope["type"] != "lifespan" and not (_is_here(scope) or _is_nodes(scope["path"])):
            await send({"type": "http.response.start", "status": 403, "headers": [(b"content-type", b"text/plain")]})
            await send({"type": "http.response.body", "body": b"from the server's own machine alone\n"})
            return
        await self.app(scope, receive, send)


def _is_nodes(path: str) -> bool:
    return path.startswith(FLEET) and ".." not in path


def _is_here(scope: dict[str, Any]) -> bool:
    host = (scope.get("client") or ("",))[0]
    try:
        at = ipaddress.ip_address(host)
    except ValueError:
        return False
    return (getattr(at, "ipv4_mapped", None) or at).is_loopback


def serve(folder: Path, say: Callable[[str], None]) -> None:
    """Become the SuperLink of a deployment.

    Raises:
        InputError: it is not for this machine, its port cannot be had, or its certificate is not good.
    """
    from ..peer.tls import identity

    place = checked(folder)
    certificates = folder / CERTIFICATES
    identity(certificates / CA, certificates / "server.pem", certificates / "server.key")
    host, port = listens(str(place.server))
    check_free("server", f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
    say(f"the SuperLink listens at {host}:{port}; nodes find it at {place.server}")
    sys.stdout.flush()
    os.execve(sys.executable, [sys.executable, "-m", "fedexperts.deploy.superlink", str(folder)], environment(folder))


def checked(folder: Path) -> Place:
    """A server's folder.

    Raises:
        InputError: it is none that ``deploy init`` has made.
    """
    place = load(folder)
    if place.server is None or place.link is not None:
        one = "of one machine; go on with fedexperts deploy resume"
        node = f"that of node {place.link}; start it with fedexperts deploy node, or give the folder that holds nodes/"
        raise InputError(f"{folder}: is {one if place.server is None else node}")
    return place


def main() -> None:
    """As a program: `flower-superlink` with these options, before it the gate."""
    folder = Path(sys.argv[1])
    host, port = listens(str(load(folder).server))
    certificates = folder / CERTIFICATES
    sys.argv = [
        *("flower-superlink", "--host", host, "--port", str(port), "--ssl-ca-certfile", str(certificates / CA)),
        *("--ssl-certfile", str(certificates / "server.pem"), "--ssl-keyfile", str(certificates / "server.key")),
        *("--enable-supernode-auth", "--disable-runtime-dependency-installation"),
        *("--database", str(folder / "flower" / "superlink.db")),
    ]
    import uvicorn
    from flwr.superlink.cli.flower_superlink import SuperLinkLifespan, _parse_superlink_lifespan_config
    from flwr.superlink.main import create_app

    config = _parse_superlink_lifespan_config()
    app = create_app(config, SuperLinkLifespan)
    app.add_middleware(OnlyNodes)
    uvicorn.run(
        app,
        host=host,
        port=port,
        ssl_certfile=config.ssl_certfile,
        ssl_keyfile=config.ssl_keyfile,
        proxy_headers=False,  # whose word would be another's for where a call comes from
        access_log=False,
    )


if __name__ == "__main__":
    main()
