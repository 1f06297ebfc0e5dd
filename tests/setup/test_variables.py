"""Errors name the environment variable of a path and not what it holds: a variable may hold a token."""

import os
import sys
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w

import small
import text
from fedexperts import InputError, Scenario
from fedexperts.cli.main import main
from fedexperts.data.files import as_given
from fedexperts.setup.samples import datasets

SECRET = "hf_4f$K'q\"ey"
TEXT = {"text": "text"}
GOOD = '{"text": "a", "label": 0}\n{"text": "b", "label": 1}\n'
FILES: dict[str, tuple[str | None, dict[str, Any]]] = {
    "none.jsonl": (None, {}),
    "none-*.jsonl": (None, {}),
    "none.csv": (None, TEXT),
    "none.parquet": (None, TEXT),
    "none.npz": (None, {"kind": "image"}),
    "torn.jsonl": ('{"input_ids": [1], "label": 0}\n{"input_ids"', {}),
    "list.json": ("[1]", {}),
    "short.csv": ("text,label\na\n", TEXT),
    "latin.tsv": ("text\tlabel\n\xe9\t1\n", TEXT),
    "text.parquet": ("no parquet", TEXT),
    "numbers.npz": ("no zip", {"kind": "image"}),
    "unknown.xyz": ("", TEXT),
    "empty.jsonl": ("", TEXT),
}


@pytest.mark.parametrize("where", ["$FEDEXPERTS_SECRET/", "${FEDEXPERTS_SECRET}/", "data/$FEDEXPERTS_SECRET-"])
@pytest.mark.parametrize("name", FILES)
def test_errors_of_data_name_the_variable(name: str, where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content, task = FILES[name]
    (tmp_path / SECRET).mkdir()
    (tmp_path / "data").mkdir()
    value = SECRET if where.startswith("data") else str(tmp_path / SECRET)
    monkeypatch.setenv("FEDEXPERTS_SECRET", value)
    at = where.replace("${FEDEXPERTS_SECRET}", value).replace("$FEDEXPERTS_SECRET", value) + name
    if content is not None:
        (tmp_path / at).write_text(content, encoding="latin1")
    (tmp_path / "good.jsonl").write_text(GOOD)
    text.saved(tmp_path / "start")
    cluster = {"name": "a", "data": where + name, "test": where + name}
    document = small.document(cluster=[cluster], task=task) | {"model": {"path": "start"}}
    with pytest.raises(InputError) as refused:
        datasets(Scenario.parse(document, tmp_path))
    shown = "".join(traceback.format_exception(refused.value))
    assert "SECRET" in str(refused.value)
    assert "hf_4f" not in shown.partition("Error: ")[2]


def test_an_image_that_does_not_fit_is_named_by_the_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDEXPERTS_SECRET", str(tmp_path / SECRET))
    (tmp_path / SECRET).mkdir()
    np.savez(tmp_path / SECRET / "x.npz", x=np.zeros((4, 8, 8, 3), dtype=np.uint8), y=np.array([0, 1, 0, 1]))
    np.savez(tmp_path / SECRET / "z.npz", x=np.zeros((4, 9, 9, 3), dtype=np.uint8), y=np.array([0, 1, 0, 1]))
    cluster = {"name": "a", "data": "$FEDEXPERTS_SECRET/*.npz", "test": "$FEDEXPERTS_SECRET/x.npz"}
    document = small.document(cluster=[cluster], task={"kind": "image"})
    with pytest.raises(InputError, match=r"\$FEDEXPERTS_SECRET/z.npz, row 1: an image of"):
        datasets(Scenario.parse(document, tmp_path))


def test_what_is_no_path_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A short value would occur in the words of a message."""
    monkeypatch.setenv("FEDEXPERTS_SECRET", "data")
    with pytest.raises(InputError) as refused, as_given(["$FEDEXPERTS_SECRET/x.jsonl"], tmp_path):
        raise InputError(f"data = '{tmp_path}/data/x.jsonl': correct the data")
    assert str(refused.value) == "data = '$FEDEXPERTS_SECRET/x.jsonl': correct the data"


def test_what_breaks_unforeseen_shows_no_values(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rich tracebacks show local variables, and there is one with the environment somewhere."""

    def broken(*_: object) -> None:
        value = os.environ["FEDEXPERTS_SECRET"]
        raise RuntimeError("unforeseen" * bool(value))

    (tmp_path / "s.toml").write_text(tomli_w.dumps(small.document()))
    monkeypatch.setenv("FEDEXPERTS_SECRET", "hf_4fK")
    monkeypatch.setattr("fedexperts.setup.samples._read", broken)
    monkeypatch.setattr(sys, "argv", ["fedexperts", "assign", str(tmp_path / "s.toml")])
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)  # and back
    monkeypatch.setattr("fedexperts.cli.main.theirs", lambda error: "")  # as if it were in our code
    with pytest.raises(RuntimeError) as raised:
        main()
    sys.excepthook(raised.type, raised.value, raised.tb)  # as the interpreter does, and ends with 1
    said = capsys.readouterr()
    assert "unforeseen" in said.err
    assert "hf_4fK" not in said.out + said.err
