"""Imports run one way: contact, assign, moe ← data ← train ← protocol ← drive ← setup ← method ← runs ← cli.

report knows the ledger only.
"""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent / "src" / "fedexperts"
BASE = {"errors", "units", "reading", "writing"}
LOWER = {"contact", "assign", "moe", "data", "train"}
MAY = {
    "errors": set(),
    "units": set(),
    "reading": {"errors"},
    "writing": {"errors"},
    "events": {"errors"},
    "tables": BASE,
    "scenario": BASE | {"tables"},
    "ledger": BASE | {"events"},
    "contact": BASE,
    "assign": BASE,
    "moe": BASE,
    "data": BASE | {"moe"},
    "train": BASE | {"moe", "data"},
    "protocol": BASE | LOWER,
    "drive": BASE | LOWER | {"protocol", "ledger"},
    "setup": BASE | LOWER | {"drive", "scenario", "tables"},
    "method": BASE | LOWER | {"protocol", "drive", "setup", "scenario", "tables", "ledger"},
    "runs": BASE | LOWER | {"protocol", "drive", "setup", "method", "scenario", "tables", "ledger"},
    "report": BASE | {"ledger"},
    "cli": BASE | LOWER | {"scenario", "tables", "ledger", "setup", "method", "runs", "report"},
}
OUTSIDE = {
    "torch": {"contact", "assign", "report", "ledger", "scenario", "tables", "errors", "units", "reading", "writing", "events"},
    "transformers": set(MAY) - {"moe", "train"},
}


def imports(path: Path) -> set[tuple[int, str]]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            found.add((node.level, node.module or ""))
        elif isinstance(node, ast.Import):
            found |= {(0, alias.name) for alias in node.names}
    return found


def package(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


MODULES = sorted(p for p in ROOT.rglob("*.py") if p.parent != ROOT or p.stem not in ("__init__",))


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_run_one_way(path: Path) -> None:
    mine = package(path)
    depth = len(path.relative_to(ROOT).parts)
    for level, module in imports(path):
        if level == 0:
            assert mine not in OUTSIDE.get(module.split(".")[0], set()), f"{mine} must not import {module}"
        elif level == depth and module:  # relative to the package's root
            other = module.split(".")[0]
            assert other == mine or other in MAY[mine], f"{mine} must not import {other}"


PROTOCOLS = ("sync", "ems_fl", "aligned", "networked")


def test_protocols_do_not_import_each_other() -> None:
    for name in PROTOCOLS:
        for level, module in imports(ROOT / "protocol" / f"{name}.py"):
            assert not (level == 1 and module in PROTOCOLS)


@pytest.mark.parametrize(("library", "file"), [("sgp4", "contact/orbit.py"), ("itur", "contact/atmosphere.py")])
def test_one_file_imports_a_library_that_may_be_replaced(library: str, file: str) -> None:
    users = {p.relative_to(ROOT).as_posix() for p in MODULES if any(m.split(".")[0] == library for _, m in imports(p))}
    assert users == {file}
