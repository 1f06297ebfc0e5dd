"""The settings of runs, as a page shows them: what differs between runs, and of each all, folded away."""

from __future__ import annotations

import html
import json
import tomllib
from collections.abc import Mapping
from pathlib import Path

from ..errors import InputError
from ..reading import read_text, settings
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
    return f"<details><summary>{head}: all settings, with every default</summary>{table}</details>"
