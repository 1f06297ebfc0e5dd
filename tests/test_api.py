"""The calls of Python: each command has one, all are documented, and they give what the commands print."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import pytest
import tomli_w

import fedexperts
import small
from fedexperts.cli.lazy import PANELS
from processes import program
from scripts import loaded

ROOT = Path(__file__).resolve().parent.parent
CALLS = {"eval": "evaluate", "try": "ask"}
"""Commands whose calls have other names."""
NO_CALL = {"demo", "init", "explain", "report", "inspect", "assign", "build", "peer", "deploy"}
"""What is looked at or written by hand; `build` has calls in `fedexperts.moe.build`."""


def test_every_command_that_computes_has_a_call() -> None:
    commands = {name for names in PANELS.values() for name in names} - NO_CALL
    assert {CALLS.get(name, name) for name in commands} <= set(fedexperts.__all__)


def test_all_names_are_there_and_say_what_they_raise() -> None:
    for name in fedexperts.__all__:
        found = getattr(fedexperts, name)
        if inspect.isfunction(found):
            assert "Raises:" in (inspect.getdoc(found) or ""), name
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        fedexperts.nothing  # noqa: B018


def test_the_page_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    page = loaded(ROOT / "docs" / "api_page.py", monkeypatch).page()
    assert page == (ROOT / "docs" / "api.md").read_text()
    assert all(f"### fedexperts.{name}\n" in page for name in fedexperts.__all__ if name != "__version__")
    assert "- `resume`: go on with the run in `out`" in page


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("api")
    (folder / "s.toml").write_text(tomli_w.dumps(small.document(train={"cycles": 1})))
    fedexperts.run(folder / "s.toml", folder / "run")
    return folder


def printed(folder: Path, *words: str) -> Any:
    done = program(*words, "--json", folder=folder)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_check_plan_and_evaluate_give_what_their_commands_print(folder: Path) -> None:
    scenario = fedexperts.Scenario.load(folder / "s.toml")
    assert fedexperts.plan(folder / "s.toml") == printed(folder, "plan", "s.toml")
    assert fedexperts.plan(scenario) == fedexperts.plan(folder / "s.toml")
    told, asked = fedexperts.check(folder / "s.toml"), printed(folder, "check", "s.toml")
    assert told.keys() == asked.keys()
    assert (told["steps"], told["uplink_B"]) == (asked["steps"], asked["uplink_B"])
    judged = fedexperts.evaluate(folder / "run", folder / "s.toml")
    assert {**judged, "model": "run"} == printed(folder, "eval", "run", "--task", "s.toml")


@pytest.mark.slow
def test_a_comparison_gives_medians_and_runs_and_is_resumed_for_nothing(folder: Path) -> None:
    compared = fedexperts.compare(folder / "s.toml", ["sync", "ems-fl"], out=folder / "compared")
    assert list(compared.runs) == ["sync", "ems-fl"]
    assert compared.document["protocols"]["sync"]["uplink_B"] == compared.runs["sync"][0].summary["uplink_B"]
    words = ("compare", "s.toml", "--protocol", "sync,ems-fl", "--out", "compared", "--resume")
    assert {**compared.document, "directory": "compared"} == printed(folder, *words)
    with pytest.raises(fedexperts.InputError, match="already holds files"):
        fedexperts.compare(folder / "s.toml", ["sync"], out=folder / "compared")


def test_an_export_is_what_the_command_writes(folder: Path) -> None:
    document = fedexperts.export(folder / "run", "merged", folder / "model")
    assert document.keys() == printed(folder, "export", "run", "--format", "merged", "--to", "again").keys()
    files = [sorted(path.name for path in (folder / name).iterdir()) for name in ("model", "again")]
    assert files[0] == files[1]
