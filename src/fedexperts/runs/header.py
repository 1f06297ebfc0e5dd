"""What a run says first: in ``scenario.toml`` what was run, and the format of its folder; in ``runtime.jsonl`` on what."""

from __future__ import annotations

import platform
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from ..events import FORMAT
from ..lines import check_format
from ..reading import read_text

WRITTEN = re.compile(r"# Resolved scenario of a run with protocol .*, format ([0-9]{1,9}); paths are relative ")


def header(label: str, form: int = FORMAT) -> str:
    """The line, for a protocol; format 1 did not name itself."""
    named = f", format {form}" if form > 1 else ""
    return f"# Resolved scenario of a run with protocol {label}{named}; paths are relative to the original file.\n"


def format_of(directory: Path) -> int:
    """The format of a run directory.

    Raises:
        InputError: it is newer than ours, or ``scenario.toml`` cannot be read.
    """
    path = directory / "scenario.toml"
    found = WRITTEN.match(read_text(path, "file"))
    form = int(found[1]) if found else 1
    check_format(form, str(path))
    return form


def environment() -> dict[str, str]:
    """What a run depends on beside its scenario: Python, libraries that compute, the machine."""
    found = {"python": platform.python_version()}
    for name in ("torch", "transformers", "numpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # installed in another way
            continue
    return {**found, "machine": f"{platform.system()} {platform.machine()}"}
