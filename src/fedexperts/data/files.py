"""The files that a scenario's ``data`` or ``test`` names."""

from __future__ import annotations

import glob
import os
import re
from pathlib import Path

from ..errors import InputError

VARIABLE = re.compile(r"\$(\w+|\{[^}]*\})")
PATTERN = re.compile(r"[*?\[]")


def files(spec: str, base: Path) -> list[Path]:
    """The file, relative to ``base``, or all files that a pattern (``train-*.parquet``) matches, sorted by name.

    ``$NAME`` and ``${NAME}`` stand for environment variables, so that a scenario need not say where data lie.

    Raises:
        InputError: a variable is not set, or no file matches the pattern.
    """
    path = VARIABLE.sub(lambda found: _variable(found[1].strip("{}"), spec), spec)
    if (base / path).exists() or not PATTERN.search(path):
        return [(base / path).resolve()]
    found = sorted(glob.glob(path, root_dir=base))
    if not found:
        raise InputError(f"data = {spec!r}: no file matches {str(base / path)!r}; correct the pattern or the folder")
    return [(base / name).resolve() for name in found]


def _variable(name: str, spec: str) -> str:
    if not os.environ.get(name):
        raise InputError(
            f"data = {spec!r}: the environment variable {name} is not set; set it to the folder of the data, "
            "or write the path itself"
        )
    return os.environ[name]
