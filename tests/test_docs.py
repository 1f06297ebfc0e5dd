"""Every command and snippet in the docs, and every example, runs."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fedexperts import Scenario

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(language: str) -> list[str]:
    return [b for page in PAGES for b in re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)]


def commands() -> list[str]:
    lines = [line.split("  #")[0].strip() for block in blocks("sh") for line in block.splitlines()]
    return [line for line in lines if line and not line.startswith("make ")]


def execute(command: list[str], folder: Path) -> str:
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


def test_readme_commands_in_order(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    found = commands()
    assert len(found) >= 5
    for command in found:
        out = execute(["bash", "-c", command], tmp_path)
        if "--json" in command:
            json.loads(out)


def test_python_snippets(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    for snippet in blocks("python"):
        execute([sys.executable, "-c", snippet], tmp_path)


def test_make_targets_named_in_the_docs_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {t for page in PAGES for t in re.findall(r"`make ([a-z ]+)`", page.read_text())}
    named |= {line.split()[1] for block in blocks("sh") for line in block.splitlines() if line.startswith("make ")}
    assert {word for entry in named for word in entry.split()} <= targets


def test_a_protocol_of_ones_own(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    assert "accuracy" in execute([sys.executable, "examples/my_protocol.py"], tmp_path)


NEED_WEIGHTS = ("llama3-medical", "mixtral-glue", "minilm-glue", "alignment-cifar10", "nmoe-cifar10", "nmoe-fashion")
"""Scenarios of models and data that are not here: they are checked, not run."""


@pytest.mark.parametrize("path", sorted(ROOT.glob("examples/*.toml")), ids=lambda p: p.stem)
def test_examples_are_named_in_the_readme_commands(path: Path) -> None:
    if path.stem in NEED_WEIGHTS:
        assert Scenario.load(path).name == path.stem
        assert path.name in (ROOT / "README.md").read_text()
        return
    assert any(f"examples/{path.name}" in command for command in commands())
