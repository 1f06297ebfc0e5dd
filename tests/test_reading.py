"""Files that others wrote: refused with their place before a parser sees what it cannot bear."""

import json
import os
from pathlib import Path

import pytest

from fedexperts.errors import InputError
from fedexperts.reading import MOST_DEPTH, number, parse_json, read_bytes, read_json, read_text


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def test_text_is_read_without_its_byte_order_mark_and_with_one_kind_of_line_end(tmp_path: Path) -> None:
    assert read_text(write(tmp_path / "a", b"\xef\xbb\xbfa\r\nb\rc\n"), "f") == "a\nb\nc\n"


def test_text_that_is_not_utf_8_is_refused_with_line_and_byte(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"f = '.*a', line 3: is not UTF-8 text \(.* at byte 8\); save it as UTF-8"):
        read_text(write(tmp_path / "a", "ab\ncd\nNaïrobi".encode("latin1")), "f")


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")  # to open it would wait for ever
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/zero")):
        with pytest.raises(InputError, match=r"f = .*: is not a regular file"):
            read_text(path, "f")
    for path, message in (
        (tmp_path / "none", "No such file"),
        (tmp_path / "x\0y", "null byte"),
        (tmp_path / ("x" * 999), "long"),
    ):
        with pytest.raises(InputError, match=f"cannot be read.*{message}"):
            read_bytes(path, "f")


def test_size_is_bounded(tmp_path: Path) -> None:
    path = write(tmp_path / "a", b"12345")
    assert read_bytes(path, "f", most_B=5) == b"12345"
    with pytest.raises(InputError, match="larger than 4 bytes"):
        read_bytes(path, "f", most_B=4)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a":\n nonsense}', r"f = .*: is not JSON \(line 2"),
        ("", r"is not JSON \(line 1"),
        ("[" * 100_000, r"line 1: is nested deeper than 64"),
        ('{"a": [\n' + '{"b": ' * MOST_DEPTH, r"line 2: is nested deeper than 64"),
        ('{"a": 1, "b": {"c": 1, "c": 2}}', r"has 'c' twice in one object"),
        ('{"a": [1, {"b": NaN}]}', r"a\[1\]\.b = nan: must be a finite number"),
        ('{"a": -Infinity}', r"a = -inf: must be a finite number"),
        ('{"a": 1e400}', r"a = inf"),
        ('{"a": 1' + "0" * 400 + "}", r"a = inf"),
        ('{"a": 1' + "0" * 5000 + "}", r"a = inf"),  # Python itself reads no integer of so many digits
        ("-1e300", r"the document = -1e\+300"),
        ('["\\ud800"]', r"\[0\] = '\\ud800': holds half of a character"),
        ('{"a": {"\\udc00": 1}}', r"a key of a = '\\udc00': holds half"),
    ],
)
def test_json_that_cannot_be_used_is_refused_with_its_place(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_json(write(tmp_path / "a.json", text.encode()), "f")


def test_json_is_read_as_it_stands() -> None:
    document = {"a": [1, -2.5, "[" * 99, None, True, 10**299, "\U0001f6f0"], "b": {"a": '\\"}]'}}
    assert parse_json(json.dumps(document), "f") == document
    deep = "[" * MOST_DEPTH + "]" * MOST_DEPTH
    assert parse_json(f"[{deep[1:-1]}, {deep[1:-1]}]", "f")  # as many in all do not make it deeper
    assert parse_json('"' + '\\"' * 10_000 + '"', "f") == '"' * 10_000


@pytest.mark.parametrize(("text", "value"), [("1", 1), (" -2.5e3 ", -2500), (".5", 0.5), ("+3.", 3), ("0" * 400, 0)])
def test_a_number_is_digits_point_and_exponent(text: str, value: float) -> None:
    assert number(text) == value


@pytest.mark.parametrize(
    "text", ["", "nan", "inf", "Infinity", "1_0", "１", "0x10", "1e400", "-1e300", "9" * 400, "1 2", "e5", ".", "1\n"]
)
def test_what_else_python_takes_for_a_number_is_none(text: str) -> None:
    with pytest.raises(ValueError, match="is no number below 1e\\+300"):
        number(text)
