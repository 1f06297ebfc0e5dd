"""What a run can be repeated from: its settings, those that differ from other runs', and what it ran on."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..reading import read_text, settings
from .page import cell, cell_row, html_table, text_row
from .work import runtime_lines

FILE = "scenario.toml"
MOST_B = 100_000
"""Of a scenario that a page carries."""
MOST_DIFFERENCES = 40
"""Settings that are shown where runs differ; runs of two scenarios have little in common."""


def settings_html(runs: Mapping[str, Path]) -> str:
    """From the resolved scenarios in run directories; a run without one, or with one that cannot be read, has a note."""
    found = {name: _flat(directory / FILE) for name, directory in runs.items()}
    known = {name: values for name, values in found.items() if isinstance(values, dict)}
    folded = "".join(_folded(name, values) for name, values in found.items())
    return f"<h2>Settings</h2>{_differences(known)}{folded}"


def _flat(path: Path) -> dict[str, str] | str:
    """Every key with its value, both as TOML has them; or why there are none."""
    if not path.is_file():
        return f"no {FILE}"
    try:
        found = settings(tomllib.loads(read_text(path, "file")))
        return {key: json.dumps(value, ensure_ascii=False, default=str) for key, value in found if value != {}}
    except (InputError, ValueError, RecursionError) as error:  # ValueError: no TOML, or thousands of digits
        return f"cannot be read: {error}"


def _differences(found: Mapping[str, Mapping[str, str]]) -> str:
    keys = dict.fromkeys(key for values in found.values() for key in values)
    other = [key for key in keys if len({values.get(key) for values in found.values()}) > 1]
    if not other:
        return "<p class='note'>All runs have the same.</p>" if len(found) > 1 else ""
    rows = [text_row([key, *(values.get(key, "–") for values in found.values())]) for key in other[:MOST_DIFFERENCES]]
    more = f"<p class='note'>and {len(other) - MOST_DIFFERENCES} more.</p>" if len(other) > MOST_DIFFERENCES else ""
    return f"<p>Where runs differ:</p>{html_table([text_row(['', *found], 'th')], rows)}{more}"


def _folded(name: str, values: Mapping[str, str] | str) -> str:
    head = html.escape(name)
    if isinstance(values, str):
        return f"<p class='note'>{head}: {html.escape(values)}</p>"
    table = html_table([text_row(("key", "value"), "th")], (text_row(pair) for pair in values.items()))
    return f"<details class='settings'><summary>{head}: all settings, with every default</summary>{table}</details>"


def environment_html(runs: Mapping[str, Path], lines: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """What a run can be repeated from: its resolved scenario, seed, versions, and the ledger's checksum to compare with."""
    machines = {name: _environment(directory) for name, directory in runs.items()}
    keys = list(dict.fromkeys(key for machine in machines.values() for key in machine))
    body = []
    for name, directory in runs.items():
        run = next(line for line in lines[name] if line["event"] == "run")
        digest = hashlib.sha256((directory / "ledger.jsonl").read_bytes()).hexdigest()
        cells = [name, str(run["protocol"]), str(run["seed"]), str(run.get("version", "–"))]
        cells += [machines[name].get(key, "–") for key in keys]
        body.append(cell_row([*map(cell, cells), _download(directory / FILE), cell(digest[:16])]))
    heads = ["run", "protocol", "seed", "fedexperts", *keys, "scenario", "ledger, SHA-256"]
    return (
        f"<h2>To repeat it</h2>{html_table([text_row(heads, 'th')], body)}"
        "<p class='note'>fedexperts run scenario.toml gives the same ledger, byte for byte, with the same versions on a "
        "machine of the same kind; relative paths of a scenario start from its folder. Of checksums the first 16 digits.</p>"
    )


def _environment(directory: Path) -> dict[str, str]:
    found = next((line["environment"] for line in reversed(runtime_lines(directory)) if "environment" in line), None)
    return {str(key): str(value) for key, value in found.items()} if isinstance(found, dict) else {}


def _download(path: Path) -> str:
    try:
        data = path.read_bytes() if path.is_file() and path.stat().st_size <= MOST_B else b""
    except OSError:
        data = b""
    if not data:
        return "<td>–</td>"
    coded = base64.b64encode(data).decode()
    return f"<td><a download='scenario.toml' href='data:application/toml;base64,{coded}'>scenario.toml</a></td>"
