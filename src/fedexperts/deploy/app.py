"""The thin Flower app of a deployment, how ``flwr`` finds its SuperLink, and handing the one to the other."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import RunError
from .place import DOCUMENT, LINKS, load

APP = {
    "pyproject.toml": """[project]
name = "fedexperts-app"
version = "1.0.0"
description = "Starts what the package fedexperts, which is installed beside it, has for a ServerApp and for ClientApps."
license = "Apache-2.0"
dependencies = []

[tool.hatch.build.targets.wheel]
packages = ["."]

[tool.flwr.app]
publisher = "local"

[tool.flwr.app.components]
serverapp = "fedexperts_app.server:app"
clientapp = "fedexperts_app.client:app"

[tool.flwr.app.config]
deployment = ""
""",
    "fedexperts_app/__init__.py": "",
    "fedexperts_app/server.py": "from fedexperts.deploy import server_app\n\napp = server_app.app\n",
    "fedexperts_app/client.py": "from fedexperts.deploy import client_app\n\napp = client_app.app\n",
}
"""The thin app: Flower ships it, and nothing of ours travels with it."""
WHOLE_B, APART_B, SHAPED_B = 5 * 2**20, 2**20, 2**18
"""What of a message travels at once, and again if a link fails in between: Flower's own where links are those of this machine;
less between machines, as its 30 seconds for an answer must not be over while a piece is on its way; least where links are said
to be slow, or cut."""
SETTINGS = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.05",
}
HERE = "here"
"""What the SuperLink is called in Flower's configuration of a deployment."""


def connection(address: str, ca: Path | None = None) -> str:
    """Flower's ``config.toml``, which knows this SuperLink alone; in the open without a CA's certificate."""
    # what is quoted as JSON is quoted for TOML
    how = "insecure = true" if ca is None else f"root-certificates = {json.dumps(str(ca), ensure_ascii=False)}"
    return f'[superlink]\ndefault = "{HERE}"\n\n[superlink.{HERE}]\naddress = "{address}"\n{how}\n'


def write_app(folder: Path, config: str) -> None:
    """The app and Flower's configuration into the folder of a deployment."""
    for name, text in APP.items():
        path = folder / "app" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (folder / "flower").mkdir(exist_ok=True)
    (folder / "flower" / "config.toml").write_text(config)


def environment(folder: Path) -> dict[str, str]:
    """Of Flower's programs in a deployment: this Python's own, and all that they keep in its folder."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    size = {"FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE": str(piece_B(folder))}
    return {**os.environ, **SETTINGS, **size, "FLWR_HOME": str((folder / "flower").resolve()), "PATH": path}


def piece_B(folder: Path) -> int:
    """How much of a message travels at once over the links of this deployment."""
    if (folder / LINKS).exists():
        return SHAPED_B
    apart = (folder / DOCUMENT).exists() and load(folder).server is not None
    return APART_B if apart else WHOLE_B


def submit(folder: Path) -> None:
    """Hand the thin app to the SuperLink.

    Raises:
        RunError: it does not take it.
    """
    config = f'deployment="{folder.resolve()}"'
    flwr(["run", str(folder / "app"), HERE, "--run-config", config], folder)


def flwr(words: Sequence[str], folder: Path) -> str:
    """What Flower's command says of the SuperLink of a deployment.

    Raises:
        RunError: it refuses, with its words.
    """
    done = subprocess.run(["flwr", *words], env=environment(folder), capture_output=True, text=True)
    if done.returncode:
        lines = [line.strip(" │╭╮╰╯─") for line in (done.stderr or done.stdout).splitlines()]
        raise RunError(f"flwr {words[0]}: {' '.join(filter(None, lines))}")
    return done.stdout


def asked(words: Sequence[str], folder: Path) -> dict[str, Any]:
    """What Flower's command about SuperNodes answers; where it refuses it says so in JSON, and ends as if all were well.

    Raises:
        RunError: it refuses, with its words, or says nothing that can be read.
    """
    text = flwr(["supernode", *words, "--format", "json"], folder)
    try:
        found: dict[str, Any] = json.loads(text[text.index("{") :])
    except ValueError as error:
        raise RunError(f"flwr supernode {words[0]}: {text.strip()!r} is no answer") from error
    if not found.get("success"):
        raise RunError(f"flwr supernode {words[0]}: {found.get('error-message', found)}")
    return found
