"""Every command and snippet in the docs, and every example, runs."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fedexperts import Scenario
from marks import some_slow
from processes import program, script

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(language: str) -> list[str]:
    return [b for page in PAGES for b in re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)]


def commands() -> list[str]:
    return [command for block in blocks("sh") for command in commands_in(block)]


def commands_in(block: str) -> list[str]:
    lines = [line.split("  #")[0].strip() for line in block.splitlines()]
    return [line for line in lines if line and not line.startswith("make ")]


def steps(page: Path) -> list[tuple[str, str]]:
    """What a reader of a page does, in its order: a language, and a command or a whole snippet."""
    found = []
    for language, block in re.findall(r"^```(sh|python)\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL):
        found += [("python", block)] if language == "python" else [("sh", command) for command in commands_in(block)]
    return found


def execute(command: str, folder: Path) -> str:
    """As a shell and an interpreter of its own would, but from where torch is loaded."""
    name, *words = shlex.split(command, comments=True)
    match name:
        case "fedexperts":
            done = program(*words, folder=folder)
        case "python":
            done = script(Path(words[0]), *words[1:], folder=folder)
        case _:
            raise AssertionError(f"{name}: a command that this test does not know")
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


LONG = [
    page
    for page in PAGES
    if page.stem in ("running", "compare", "own-protocol", "images-over-classes", "four-text-tasks", "whether-when-cost")
]
"""`.ci/run` has a line for these."""


@pytest.mark.parametrize("page", some_slow([page for page in PAGES if steps(page)], LONG), ids=lambda page: page.stem)
def test_commands_and_snippets_of_a_page_in_order(page: Path, tmp_path: Path) -> None:
    """Whoever opens one page finds there all that its commands need."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    for i, (language, step) in enumerate(steps(page)):
        if language == "python":
            (tmp_path / f"snippet{i}.py").write_text(step)
            assert execute(f"python snippet{i}.py", tmp_path)
            continue
        out = execute(step, tmp_path)
        if "--json" in step:
            json.loads(out)


def test_there_is_something_to_do_on_most_guides() -> None:
    assert sum(bool(steps(page)) for page in PAGES if page.parent.name == "guide") >= 8


def test_tables_of_a_guide_are_those_of_its_example() -> None:
    example = (ROOT / "examples" / "four-text-tasks.toml").read_text()
    page = (ROOT / "docs" / "guide" / "four-text-tasks.md").read_text()
    lines = [
        line for block in re.findall(r"^```toml\n(.*?)^```", page, re.MULTILINE | re.DOTALL) for line in block.splitlines()
    ]
    assert len(lines) > 10
    assert set(lines) <= set(example.splitlines())


def test_the_installed_program_runs(tmp_path: Path) -> None:
    """From a shell, with an interpreter of its own; a plan, as that needs no torch."""
    plan = next(command for command in commands() if command.startswith("fedexperts plan "))
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(["bash", "-c", plan], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "passes and gaps" in done.stdout


def test_make_targets_named_in_the_docs_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {t for page in PAGES for t in re.findall(r"`make ([a-z ]+)`", page.read_text())}
    named |= {line.split()[1] for block in blocks("sh") for line in block.splitlines() if line.startswith("make ")}
    assert {word for entry in named for word in entry.split()} <= targets


def test_a_protocol_of_ones_own(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    assert "accuracy" in execute("python examples/my_protocol.py", tmp_path)


NEED_WEIGHTS = ("llama3-medical", "mixtral-glue", "minilm-glue", "alignment-cifar10", "nmoe-cifar10", "nmoe-fashion")
"""Scenarios of models and data that are not here: they are checked, not run."""


@pytest.mark.parametrize("path", sorted(ROOT.glob("examples/*.toml")), ids=lambda p: p.stem)
def test_examples_are_named_in_the_docs_commands(path: Path) -> None:
    if path.stem in NEED_WEIGHTS:
        assert Scenario.load(path).name == path.stem
        assert any(path.name in page.read_text() for page in PAGES)
        return
    assert any(f"examples/{path.name}" in command for command in commands())
