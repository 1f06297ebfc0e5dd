"""Imports run one way: contact, assign, moe ← data ← train ← protocol ← drive ← setup ← method ← runs ← peer ← deploy ← cli.

report knows the ledger only.
"""

import ast
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent / "src" / "fedexperts"
BASE = {"errors", "units", "reading", "writing", "seeds", "own"}
LOWER = {"contact", "assign", "moe", "data", "train"}
MAY = {
    "errors": set(),
    "units": set(),
    "seeds": set(),
    "own": {"errors"},
    "overrides": {"errors"},
    "statistics": set(),
    "reading": {"errors"},
    "writing": {"errors"},
    "values": set(),
    "events": {"values"},
    "lines": {"errors", "events"},
    "tables": BASE,
    "scenario": BASE | {"tables", "overrides"},
    "caveats": set(),
    "ledger": BASE | {"caveats", "events", "lines"},
    "columns": set(),
    "recorded": BASE | {"columns", "ledger", "report"},
    "reference": BASE | {"scenario", "tables", "values", "events", "contact", "drive"},
    "contact": BASE,
    "assign": BASE,
    "theory": BASE,
    "moe": BASE,
    "data": BASE | {"moe"},
    "train": BASE | {"moe", "data"},
    "protocol": BASE | LOWER,
    "drive": BASE | LOWER | {"protocol", "ledger"},
    "setup": BASE | LOWER | {"drive", "scenario", "tables"},
    "method": BASE | LOWER | {"protocol", "drive", "setup", "scenario", "tables", "ledger"},
    "runs": BASE
    | LOWER
    | {"protocol", "drive", "setup", "method", "scenario", "tables", "ledger", "caveats", "events", "lines"}
    | {"theory", "overrides", "statistics", "columns"},
    "deploy": BASE | LOWER | {"protocol", "setup", "method", "scenario", "tables", "ledger", "runs", "peer"},
    "peer": BASE | LOWER | {"setup", "method", "scenario", "tables", "runs"},
    "report": BASE | {"caveats", "ledger"},
    "works": BASE | {"contact", "moe", "report"},
    "planned": BASE | LOWER | {"scenario", "setup", "runs", "report", "works"},
    "cli": BASE
    | LOWER
    | {"planned", "theory", "peer", "deploy", "caveats", "overrides"}
    | {"scenario", "tables", "ledger", "setup", "method", "runs", "report", "reference"},
}
OUTSIDE = {
    "torch": {
        *("contact", "assign", "theory", "report", "ledger", "scenario", "tables", "reference"),
        *("errors", "units", "reading", "writing", "own", "values", "events", "lines"),
    },
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


MODULES = sorted(p for p in ROOT.rglob("*.py") if p.parent != ROOT or p.stem not in ("__init__", "__main__"))


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


@pytest.mark.parametrize(
    ("library", "file"), [("sgp4", "contact/orbit.py"), ("itur", "contact/atmosphere.py"), ("ray", "runs/on_ray.py")]
)
def test_one_file_imports_a_library_that_may_be_replaced(library: str, file: str) -> None:
    users = {p.relative_to(ROOT).as_posix() for p in MODULES if any(m.split(".")[0] == library for _, m in imports(p))}
    assert users == {file}


@pytest.mark.parametrize("library", ["grpc", "cryptography", "prometheus_client"])
def test_only_peers_know_the_libraries_of_their_extra(library: str) -> None:
    users = {package(p) for p in MODULES if any(m.split(".")[0] == library for _, m in imports(p))}
    assert users == {"peer"}


def test_only_models_know_hugging_face_and_deployments_flower() -> None:
    for path in MODULES:
        known = {module.split(".")[0] for _, module in imports(path)}
        assert not known & {"flwr", "httpx"} or package(path) == "deploy", path
        assert not known & {"transformers", "peft", "tokenizers"} or package(path) == "moe", path


def test_chance_is_drawn_from_named_streams() -> None:
    for path in MODULES:
        assert "default_rng([" not in path.read_text() or path.name == "seeds.py", f"{path.name}: use seeds.stream"


def cycles(uses: dict[str, set[str]]) -> list[str]:
    """Modules that lead back to themselves."""

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        todo = list(uses[start])
        while todo:
            if (module := todo.pop()) not in seen:
                seen.add(module)
                todo += uses.get(module, ())
        return seen

    return sorted(module for module in uses if module in reached(module))


def test_no_modules_import_each_other() -> None:
    """Imports inside functions and those for types alone count too."""
    names = {".".join(p.relative_to(ROOT).with_suffix("").parts) for p in MODULES}
    uses: dict[str, set[str]] = {name: set() for name in names}
    for path in MODULES:
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level:
                base = name.split(".")[: -node.level]
                module = ".".join([*base, *([node.module] if node.module else [])])
                found = {module, *(f"{module}.{alias.name}".lstrip(".") for alias in node.names)}
                uses[name] |= found & names - {name}
    assert cycles(uses) == []
    assert cycles({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c"]


def overriding(texts: list[str]) -> list[str]:
    """Methods that take the place of a concrete one of a base, in classes of these sources."""
    classes: dict[str, tuple[list[str], dict[str, bool]]] = {}
    for node in (node for text in texts for node in ast.walk(ast.parse(text))):
        if isinstance(node, ast.ClassDef):
            methods = {
                one.name: any("abstract" in ast.unparse(mark) for mark in one.decorator_list)
                for one in node.body
                if isinstance(one, (ast.FunctionDef, ast.AsyncFunctionDef)) and not one.name.startswith("__")
            }
            classes[node.name] = [base.id for base in node.bases if isinstance(base, ast.Name)], methods
    wrong = []
    for name, (bases, methods) in classes.items():
        todo, above = list(bases), []
        while todo:
            base = todo.pop()
            if base in classes:
                above.append(base)
                todo += classes[base][0]
        wrong += [f"{name}.{m} overrides {base}.{m}" for m in methods for base in above if classes[base][1].get(m) is False]
    return wrong


def test_a_concrete_method_is_not_overridden() -> None:
    """A method is abstract or final, in classes of our own; constructors go on with those of their bases."""
    assert overriding([path.read_text() for path in MODULES]) == []
    bases = "class A:\n def f(self): ...\n @abstractmethod\n def g(self): ...\n"
    assert overriding([bases, "class B(A): ...\nclass C(B):\n def f(self): ...\n def g(self): ...\n"]) == ["C.f overrides A.f"]


def test_nothing_of_the_project_is_ignored_by_git() -> None:
    """A wheel leaves out what git ignores, tracked or not, and so does ruff."""
    if shutil.which("git") is None or not (ROOT.parents[1] / ".git").exists():
        pytest.skip("not a clone")
    listed = ["git", "ls-files", "--cached", "--ignored", "--exclude-standard"]
    assert subprocess.run(listed, cwd=ROOT.parents[1], capture_output=True, text=True, check=True).stdout == ""
