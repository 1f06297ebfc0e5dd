"""What a user does with a deployment that was made: its README."""

from __future__ import annotations

import shlex
from pathlib import PurePosixPath

from ..scenario import Scenario
from ..setup.samples import named
from .keys import KEY
from .place import Place, listens


def script_of(link: str) -> str:
    """The name of a node's script; clients of a cluster have a stroke in theirs."""
    return f"node-{link.replace('/', '-')}.sh"


def network_files(scenario: Scenario) -> list[str]:
    """Files of the plan and the satellites, as the scenario names them."""
    given = [scenario.plan.path, *(path for one in scenario.satellite for path in (one.tle, one.omm))]
    return [path for path in given if path is not None]


def inside(path: str) -> PurePosixPath | None:
    """A relative path that stays below the scenario's folder."""
    pure = PurePosixPath(path)
    return None if pure.is_absolute() or ".." in pure.parts else pure


def data_files(scenario: Scenario) -> list[str]:
    """What else a scenario names and a node must have: data, and a model that is a folder; in the scenario's own words."""
    given = [spec for spec in named(scenario) if not spec.startswith(("digits:", "hub:"))]
    model = scenario.model.path
    if model is not None and (scenario.base / model).is_dir():
        given.append(model)
    given += [path for path in network_files(scenario) if inside(path) is None]
    return list(dict.fromkeys(given))


def readme(place: Place, scenario: Scenario) -> str:
    """What to do, in order."""
    server, folder = str(place.server), place.folder.resolve()
    _, port = listens(server)
    quoted = shlex.quote(str(folder))
    rows = "\n".join(f"| {link} | `nodes/{i}/` | `./{script_of(link)}` |" for i, link in enumerate(place.links))
    files = data_files(scenario)
    lists = "\n".join(f"- `{path}`" for path in files)
    data = (
        "Nothing: its data come with the package or from a hub."
        if not files
        else f"""What the scenario names, under the same names:

{lists}

Relative names start from the node's folder. If the data are elsewhere, write that folder as `"base"` into the node's
`deployment.json`. A name that is absolute, or has `..` or a `$VARIABLE` in it, must lead to the data on that machine too.
A node reads its own cluster's training data; of others only where classes are words that `task.labels` does not list. It names
the file that lacks."""
    )
    return f"""# {scenario.name} by {scenario.label}, over Flower

This folder stays on the server's machine. Nodes talk to `{server}` by TLS, and are known by their keys.

## Ports

| machine | port | open to |
|---|---|---|
| server | TCP {port} | the nodes |
| nodes | none | |

From other machines the port takes nodes' calls alone. Whoever can log in on the server's machine can give Flower orders.

## Each machine

The same fedexperts and Flower everywhere: `pip install 'fedexperts[flower]'`. Clocks that are set:
calls are signed with the time, and refused if that is more than five seconds ahead of the server's, or five minutes behind.

## In this order

1. On the server's machine, and let it run: `{quoted}/server.sh`
2. Copy each node's folder to its machine, over a channel that others do not read, as its key is in it:
   `scp -r {quoted}/nodes/0 HOST:node`, say. It may be deleted here then.

   | node | folder | start, within it |
   |---|---|---|
{_indented(rows)}
3. Give each node its data, see below, and start its script there. It waits until it is let in.
4. On the server's machine: `{quoted}/run.sh`. It lets the nodes in by their keys, and trains. The same command goes on
   after anything that ended it.
5. `fedexperts deploy status {quoted}` says how far it is, and
   `fedexperts deploy collect {quoted} --out RUN` copies ledger, model and report.

With systemd: put `fedexperts-*.service` of each folder into `/etc/systemd/system`, correct User and path, and
`systemctl enable --now` it. A unit writes to its folder alone: where data or a model come from a hub, add the cache of the
hub to `ReadWritePaths`.

## What a node's folder needs beside what is in it

{data}

## Keys

- `fedexperts deploy keys {quoted} list`: who is let in, and who is there.
- `fedexperts deploy keys {quoted} revoke CLUSTER`: not any more, from this moment on.
- `fedexperts deploy keys {quoted} rotate CLUSTER`: another key, in `nodes/…/{KEY}`; copy it to the node's machine and
  start the node again.

`certificates/ca.key`, if it is there, signs servers' certificates; nobody needs it while the deployment runs, so keep it
elsewhere.
"""


def _indented(text: str) -> str:
    return "\n".join(f"   {line}" for line in text.splitlines())
