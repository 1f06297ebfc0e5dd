"""The settings of runs, as a page shows them: what differs between runs, and of each all, folded away."""

from __future__ import annotations

import html
import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..reading import read_text
from .page import html_table, text_row

FILE = "scenario.toml"
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
        return _flattened(tomllib.loads(read_text(path, "file")), "")
    except (InputError, ValueError, RecursionError) as error:  # ValueError: no TOML, or thousands of digits
        return f"cannot be read: {error}"


def _flattened(value: Any, at: str) -> dict[str, str]:
    if isinstance(value, dict):
        return {k: v for key, inner in value.items() for k, v in _flattened(inner, f"{at}.{key}" if at else key).items()}
    if isinstance(value, list) and value and all(isinstance(one, dict) for one in value):
        return {k: v for i, inner in enumerate(value) for k, v in _flattened(inner, f"{at}[{i}]").items()}
    return {at: json.dumps(value, ensure_ascii=False, default=str)}


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
    return f"<details><summary>{head}: all settings, with every default</summary>{table}</details>"
