"""What report, export and run write over, and what they say when a path or the disk refuses: one message, no traceback."""

import errno
import os
import stat
import sys
from pathlib import Path
from typing import Any

import pytest

import small
from fedexperts import run
from fedexperts.cli.main import main
from fedexperts.writing import MARK
from obstacles import KINDS, put


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    lora = {"lora": {"rank": 2, "alpha": 4.0}}
    return run(small.scenario(train={"cycles": 1}, model=lora), tmp_path_factory.mktemp("done") / "run").directory


def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str]:
    """Exit code and stderr, in this process."""
    monkeypatch.setattr(sys, "argv", ["fedexperts", *map(str, words)])
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0), capsys.readouterr().err


@pytest.mark.parametrize("kind", KINDS)
def test_report_replaces_its_own_pages_alone(
    kind: str, done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page, target = tmp_path / "page.html", tmp_path / "target"
    put(kind, page)
    before = page.lstat()
    code, said = command(monkeypatch, capsys, "report", done, "--out", page)
    assert (code, page.lstat().st_ino, target.read_text()) == (2, before.st_ino, "mine")
    assert f"--out {page}: " in said
    assert "name a" in said
    code, said = command(monkeypatch, capsys, "report", done, "--out", page, "--force")
    assert code == (0 if kind == "file" else 2)  # links, devices and folders are not replaced in any case
    assert target.read_text() == "mine"
    if kind == "file":
        assert MARK in page.read_text()[:1000]
        assert command(monkeypatch, capsys, "report", done, "--out", page)[0] == 0  # it is ours now
    assert {p.name for p in tmp_path.iterdir()} == {"page.html", "target"}


@pytest.mark.parametrize("form", ["merged", "peft"])
@pytest.mark.parametrize("kind", KINDS)
def test_export_replaces_nothing(
    kind: str, form: str, done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    to, target = tmp_path / "to", tmp_path / "target"
    put(kind, to)
    before = to.lstat()
    code, said = command(monkeypatch, capsys, "export", done, "--format", form, "--to", to)
    assert (code, to.lstat().st_ino, target.read_text()) == (2, before.st_ino, "mine")
    assert f"--to {to}: " in said
    assert "name another folder" in said


@pytest.mark.parametrize("form", ["merged", "peft"])
def test_an_export_that_the_disk_refuses_leaves_nothing_and_one_that_it_takes_can_be_read_by_others(
    form: str, done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("shutil.copyfile" if form == "merged" else "fedexperts.runs.export.save", refuse)
        code, said = command(patch, capsys, "export", done, "--format", form, "--to", tmp_path / "to")
    assert (code, (tmp_path / "to").exists()) == (1, False)
    assert "to: No space left on device; make room" in said
    to = tmp_path / "again"
    assert command(monkeypatch, capsys, "export", done, "--format", form, "--to", to)[0] == 0
    modes = {stat.S_IMODE(path.stat().st_mode) for path in [*to.iterdir(), *done.rglob("*.safetensors")]}
    assert modes == {stat.S_IMODE((done / "scenario.toml").stat().st_mode)}


@pytest.mark.parametrize(
    "words", [("report", "--out"), ("export", "--format", "merged", "--to"), ("export", "--format", "peft", "--to")]
)
def test_a_read_only_place_is_wrong_input(
    words: tuple[str, ...], done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(path: Path, *_: Any, **__: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(Path, "mkdir", refuse)
    to = tmp_path / "place" / "to"
    code, said = command(monkeypatch, capsys, words[0], done, *words[1:], to)
    assert (code, f"{words[-1]} {to}: cannot be written (Read-only file system)" in said) == (2, True)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.W_OK)
    code, said = command(monkeypatch, capsys, words[0], done, *words[1:], to)
    assert (code, f"{tmp_path} cannot be written; name another place" in said) == (2, True)


LONG = "x" * 300


@pytest.mark.parametrize(
    "words",
    [
        ("run", "scenario.toml", "--out", LONG),
        ("report", "{run}", "--out", LONG),
        ("report", LONG),
        ("report", "{run}", "--out", "file/page.html"),
        ("export", "{run}", "--format", "merged", "--to", LONG),
        ("export", LONG, "--format", "merged", "--to", "to"),
        ("try", LONG, "--prompt", "a"),
        ("eval", LONG, "--task", "scenario.toml"),
        ("run", LONG),
        ("compare", "scenario.toml", "--protocol", "sync,ems-fl", "--out", LONG),
        ("demo", "--out", LONG),
        ("demo", "--out", "file"),
    ],
)
def test_a_path_that_cannot_be_is_one_message(
    words: tuple[str, ...], done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import tomli_w

    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    (tmp_path / "scenario.toml").write_text(tomli_w.dumps(small.document()))
    code, said = command(monkeypatch, capsys, *(word.format(run=done) for word in words))
    assert code == 2
    assert "error" in said.lower()
    assert {path.name for path in tmp_path.iterdir()} == {"file", "scenario.toml"}


def test_a_full_disk_under_a_report_is_one_message(
    done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    opened = Path.open

    def refuse(path: Path, mode: str = "r", **named: Any) -> Any:
        if mode == "xb":
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return opened(path, mode, **named)

    monkeypatch.setattr(Path, "open", refuse)
    code, said = command(monkeypatch, capsys, "report", done, "--out", tmp_path / "page.html")
    assert code == 1
    assert "page.html" in said
    assert "No space left on device" in said
    assert list(tmp_path.iterdir()) == []
