"""Programs beside the package, in benchmarks/ and docs/, as modules of a test."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest


def loaded(script: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The program as a module of another name, which finds its neighbours as it does when it is run."""
    monkeypatch.syspath_prepend(str(script.parent))
    spec = importlib.util.spec_from_file_location(f"script_{script.stem}", script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # dataclasses look there
    spec.loader.exec_module(module)
    return module
