"""What is shown of names, paths and values of others: short, as it is, and nothing that a terminal would obey."""

import json
import logging
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w

import small
from fedexperts import Scenario, run
from fedexperts.cli import common
from fedexperts.cli.main import main
from fedexperts.cli.try_ import answer_table
from fedexperts.data.source import read_jsonl
from fedexperts.errors import Diverged, InputError, InputWarning, RunError, legible, visible
from fedexperts.setup.plan import network_plan

MB = "y" * 900_000
ESC = "\x1b[2J"
NAME = "[/] [red]x :cat:"
Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Exit code, stdout and stderr, in this process."""
    monkeypatch.setattr(common.output, "_width", 250)

    def call(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["fedexperts", *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    return call


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(small.scenario(train={"cycles": 1}), tmp_path_factory.mktemp("done") / NAME.replace("/", "")).directory


# length


@pytest.mark.parametrize("error", [InputError, InputWarning, RunError, Diverged])
def test_values_are_cut_in_the_middle_and_the_rest_of_a_message_is_kept(error: type[Exception]) -> None:
    one, two = repr("ab" + "y" * 10**6 + "cd"), repr("it's\n " * 10**3 + "end")
    said = str(error(f"field = {one}: no file matches {two}; correct it, or don't use it's other"))
    head, _, tail = said.partition(": no file matches ")
    assert head.startswith("field = 'aby")
    assert head.endswith("ycd'")
    assert "more characters" in head
    assert tail.startswith("\"it's")
    assert tail.endswith("end\"; correct it, or don't use it's other")
    assert len(said) < 700
    whole = f"a.b = {'x' * 200!r}: is not what 'k' is; the base's are {', '.join(['e'] * 150)}, and don't fit"
    assert str(error(whole)) == whole


def test_a_message_has_an_end() -> None:
    assert len(legible("\n".join(f"key{i}: unknown key" for i in range(10**5)))) < 2100
    assert len(legible("'" * 10**6)) < 2100
    assert len(legible(" 'a" * 10**6)) < 2100
    assert len(legible(" '\\" * 10**6)) < 2100


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"name": f"{MB} "}, "name = 'y"),
        ({"name": "a b " * 20_000}, "name = 'a b"),
        ({MB: 1}, "unknown key"),
        ({"plan": {MB: 1}}, "plan.y"),
        ({"train": {"cycles": [1] * 20_000}}, "train.cycles = [1"),
        ({"plan": {"kind": "file", "path": MB}}, "cannot be read (File name too long)"),
        ({"model": {"path": MB}}, "y"),
        ({f"key{i}": 1 for i in range(500)}, "key0: unknown key"),
    ],
    ids=range(8),
)
def test_a_scenario_of_long_values_is_refused_in_few_words(
    change: dict[str, Any], field: str, tmp_path: Path, command: Command
) -> None:
    path = tmp_path / "s.toml"
    document = small.document() | {"train": small.document()["train"] | change.pop("train", {})} | change
    path.write_text(tomli_w.dumps(document))
    code, out, said = command("assign", path)
    assert (code, out, field in said) == (2, "", True), said[:3000]
    assert len(said) < 2500


def test_words_of_the_command_line_are_cut(tmp_path: Path, command: Command) -> None:
    path = tmp_path / "s.toml"
    path.write_text(tomli_w.dumps(small.document()))
    word = MB[:100_000]
    for words in (("--set", word), ("--set", f"{word}=1"), ("--seed", word), (f"--{word}",)):
        code, _, said = command("assign", path, *words)
        assert (code, len(said) < 2500) == (2, True), words[0]
    assert len(command("assign", word)[2]) < 2500
    assert len(command(word)[2]) < 2500


def test_a_cell_is_cut(tmp_path: Path) -> None:
    for row in ({"input_ids": [1], "label": MB}, {"input_ids": MB, "label": 1}, {MB: 1}, {"input_ids": [MB], "label": 0}):
        (tmp_path / "x.jsonl").write_text(json.dumps(row) + "\n")
        with pytest.raises(InputError) as refused:
            read_jsonl(tmp_path / "x.jsonl")
        assert len(str(refused.value)) < 2100


# what a terminal obeys


def test_controls_are_shown_as_escapes() -> None:
    assert visible("a\tb\nc\x1b[2J\x07\r\x9b\u202e\ud800é✓👍") == "a\tb\nc\\x1b[2J\\x07\\r\\x9b\\u202e\\ud800é✓👍"


def test_no_escape_sequence_of_a_scenario_reaches_the_terminal(tmp_path: Path, command: Command) -> None:
    path = tmp_path / f"s{ESC}.toml"
    documents: list[dict[str, Any]] = [
        small.document(name=ESC),
        small.document(**{ESC: 1}),
        small.document(plan={"kind": "file", "path": ESC}),
        small.document(cluster=[{"name": "a", "data": f"{ESC}.jsonl"}]),
        small.document(cluster=[{"name": "a", "data": f"hub:{ESC}"}]),
    ]
    for document in documents:
        path.write_text(tomli_w.dumps(document))
        code, out, said = command("assign", path)
        assert (code, "\x1b" in out + said, "x1b[2J" in said) == (2, False, True), said
    for words in (("report", ESC), ("eval", ESC, "--task", path), ("inspect", ESC), ("try", ESC, "--prompt", "x"), (ESC,)):
        code, out, said = command(*words)
        assert (code, "\x1b" in out + said, "x1b[2J" in said) == (2, False, True), said


def test_none_of_tables_warnings_and_logs_either(
    tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    document = {"name": "s", "cluster": [{"name": "a"}, {"name": "b"}]}
    (tmp_path / "s.toml").write_text(tomli_w.dumps(document))

    def warned(*arguments: Any) -> Any:
        warnings.warn(f"{ESC} warned", InputWarning, stacklevel=2)
        logging.getLogger("fedexperts.runs.lock").warning("warning: %s: logged", ESC)
        return network_plan(*arguments)

    monkeypatch.setattr("fedexperts.planned.network_plan", warned)
    with warnings.catch_warnings():
        warnings.simplefilter("always", InputWarning)
        code, out, said = command("plan", tmp_path / "s.toml", "--out", tmp_path / ESC)
    assert (code, "\x1b" in out + said) == (0, False), said
    assert "warning: \\x1b[2J warned\n" in said
    assert "warning: \\x1b[2J: logged\n" in said
    assert f"{tmp_path}/\\x1b[2J: plan.html" in said
    common.output.print(
        answer_table({"prompts": [ESC], "second": [ESC], "models": {ESC: {"answers": [{"text": f"{ESC} \x9b"}]}}})
    )
    table = capsys.readouterr().out
    assert (table.count("\\x1b[2J"), "\x1b" in table, "\x9b" in table) == (4, False, False)


# markup


def test_brackets_of_names_and_places_stay(
    done: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, said = command("report", done, "--out", f"{NAME[4:]}[/].html")
    assert (code, done.name in out, said) == (0, True, "[red]x :cat:[/].html\n")
    code, out, said = command("export", done, "--format", "merged", "--to", "[/]")
    assert (code, "('[/]')" in out, said) == (0, True, "[/]: load it with\n")
    code, out, _ = command("inspect", "[/]")
    assert (code, "[/]: " in out) == (0, True)
    (tmp_path / "s.toml").write_text(tomli_w.dumps(small.document()))
    code, out, _ = command("eval", "[/]", "--task", "s.toml")
    assert (code, "[/]: " in out) == (0, True)


def test_a_comparison_may_lie_between_brackets(
    done: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fedexperts.runs.parallel import folder
    from fedexperts.runs.run import run as one

    def serial(jobs: dict[str, Scenario], out: Path, **_: Any) -> dict[str, Any]:
        return {name: one(job, out / folder(name)).summary for name, job in jobs.items()}

    monkeypatch.setattr("fedexperts.runs.grid.run_many", serial)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s.toml").write_text(tomli_w.dumps(small.document(train={"cycles": 1})))
    code, _, said = command("compare", "s.toml", "--protocol", "sync", "--out", "[/] [bold]")
    assert (code, said.splitlines()[-1][:28]) == (0, "[/] [bold]/report.html: curv")


def test_chosen_experts_may_lie_between_brackets(tmp_path: Path, command: Command) -> None:
    (tmp_path / "s.toml").write_text(tomli_w.dumps(small.document(cluster=small.document()["cluster"][:1])))
    (tmp_path / "[red]x.json").write_text(
        json.dumps({"experts": {"0": [1], "1": [2]}, "shared_experts": False, "non_expert_modules": False})
    )
    code, out, said = command("assign", tmp_path / "s.toml", "--experts-from", tmp_path / "[red]x.json")
    assert (code, "[red]x.json: experts chosen for " in out) == (0, True), said
