"""What a scenario's data and test may name."""

from __future__ import annotations

import pytest

from fedexperts.data.files import files
from fedexperts.data.rows import read_rows
from fedexperts.data.source import load
from fedexperts.errors import InputError


@pytest.fixture
def folder(tmp_path):
    for name in ("train-1-of-2.jsonl", "train-0-of-2.jsonl", "test.jsonl"):
        (tmp_path / name).write_text(f'{{"input_ids": [{len(name)}, {int("1-of" in name)}], "label": 0}}\n')
    return tmp_path


def test_a_path_is_relative_to_the_scenario(folder):
    assert files("test.jsonl", folder) == [(folder / "test.jsonl").resolve()]
    assert files(str(folder / "test.jsonl"), folder / "elsewhere") == [(folder / "test.jsonl").resolve()]
    assert files("none.jsonl", folder) == [(folder / "none.jsonl").resolve()]  # whoever reads it says that it is missing


def test_a_pattern_joins_files_in_sorted_order(folder):
    assert [path.name for path in files("train-*-of-2.jsonl", folder)] == ["train-0-of-2.jsonl", "train-1-of-2.jsonl"]
    assert [row["input_ids"][1] for row in read_rows("train-*-of-2.jsonl", folder)] == [0, 1]
    assert load("train-*-of-2.jsonl", folder).train["input_ids"].tolist() == [[18, 0], [18, 1]]


def test_a_name_that_looks_like_a_pattern_is_a_name_first(folder):
    (folder / "a[1].jsonl").write_text("{}")
    assert [path.name for path in files("a[1].jsonl", folder)] == ["a[1].jsonl"]


def test_environment_variables_are_expanded(folder, tmp_path_factory, monkeypatch):
    monkeypatch.setenv("FEDEXPERTS_HERE", str(folder))
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    for spec in ("$FEDEXPERTS_HERE/train-*.jsonl", "${FEDEXPERTS_HERE}/train-*.jsonl"):
        assert [path.parent for path in files(spec, elsewhere)] == [folder.resolve()] * 2


def test_an_unset_variable_and_a_pattern_without_files_are_told(folder, monkeypatch):
    monkeypatch.delenv("FEDEXPERTS_NOWHERE", raising=False)
    with pytest.raises(
        InputError, match=r"data = '\$FEDEXPERTS_NOWHERE/x.npz': the environment variable FEDEXPERTS_NOWHERE is"
    ):
        files("$FEDEXPERTS_NOWHERE/x.npz", folder)
    with pytest.raises(InputError, match=r"no file matches '.*train-\*\.csv'; correct the pattern"):
        files("train-*.csv", folder)
