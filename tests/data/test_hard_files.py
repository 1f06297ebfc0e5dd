"""Data files as others write them are read; what is no data file is refused at once, whichever reader it meets."""

from __future__ import annotations

import codecs
import io
import itertools
import json
import os
import zipfile
import zlib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from fedexperts.data import files
from fedexperts.data.images import pixels, read_images
from fedexperts.data.rows import read_rows
from fedexperts.data.source import read_jsonl
from fedexperts.errors import InputError
from pictures import encoded, images

ROWS = [{"text": "a", "label": 0}, {"text": "b", "label": 1}]
TOKENS = [{"input_ids": [1, 2], "label": 0}, {"input_ids": [3], "label": 1}]


def write(path: Path, data: str | bytes) -> Path:
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def read(path: Path) -> Any:
    """By the reader that a scenario would use for such a file."""
    if path.suffix == ".npz":
        return read_images(path.name, path.parent, "image", "label")
    return read_rows(path.name, path.parent)


# ---- read


@pytest.mark.parametrize(
    "text", [lines(ROWS) + "\n", "\n" + lines(ROWS), lines(ROWS).replace("\n", "\r\n \t\r\n"), lines(ROWS)[:-1]]
)
def test_blank_lines_are_no_rows(tmp_path: Path, text: str) -> None:
    assert read_rows(write(tmp_path / "a.jsonl", text).name, tmp_path) == ROWS


def test_blank_lines_are_no_samples(tmp_path: Path) -> None:
    samples = read_jsonl(write(tmp_path / "a.jsonl", "\n" + lines(TOKENS) + "\n\n"))
    assert samples["labels"].tolist() == [0, 1]


def test_a_line_is_what_ends_in_a_line_feed(tmp_path: Path) -> None:
    """Not at characters that only Unicode calls an end of line."""
    row = {"text": "one\u2028two\x85three", **TOKENS[0]}
    path = write(tmp_path / "a.jsonl", json.dumps(row, ensure_ascii=False) + "\n")
    assert read_rows("a.jsonl", tmp_path) == [row]
    assert read_jsonl(path)["input_ids"].tolist() == [[1, 2]]


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("before", ["", "\n\n  ", "\ufeff", "\ufeff\r\n"])
def test_a_file_may_be_one_list(tmp_path: Path, name: str, indent: int | None, before: str) -> None:
    assert read_rows(write(tmp_path / name, before + json.dumps(ROWS, indent=indent)).name, tmp_path) == ROWS
    samples = read_jsonl(write(tmp_path / name, before + json.dumps(TOKENS, indent=indent)))
    assert samples["input_ids"].tolist() == [[1, 2], [3, 0]]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[{"a": 1}, 5]', r"a\.json, entry 2: holds 5; must be an object"),
        ('[{"a": 1}', r"a\.json': is not JSON"),
        ("[]", r"a\.json': holds no rows"),
        ('{"data": [\n{"a": 1}\n]}', r"a\.json, line 1.*is not JSON.*one object on every line, or one list of them"),
        ('{"a": 1, "a": 2}\n', r"a\.json, line 1.*'a' twice"),
        ('{"a": 1}\n{"a": ' + "[" * 3000 + "]" * 3000 + "}\n", r"a\.json, line 2.*nested deeper than"),
        ('{"a": "\\ud800"}\n', r"a\.json, line 1.*half of a character"),
        ('{"a": 1}\n{"a": NaN}\n', r"a\.json, line 2.*a = nan"),
    ],
)
def test_json_that_cannot_be_used_is_refused_with_its_place(tmp_path: Path, text: str, words: str) -> None:
    path = write(tmp_path / "a.json", text)
    with pytest.raises(InputError, match=words):
        read_rows("a.json", tmp_path)
    with pytest.raises(InputError, match=r"a\.json"):
        read_jsonl(path)


def test_a_byte_order_mark_is_no_part_of_tokens(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", codecs.BOM_UTF8 + lines(TOKENS).encode())
    assert read_jsonl(path)["labels"].tolist() == [0, 1]


def test_quotes_in_tsv_are_text(tmp_path: Path) -> None:
    """As GLUE has them: a field that begins with a quote need not end with one."""
    text = (
        'id\tsentence1\tsentence2\tlabel\n1\t"Second half , he said\tThe second half\t0\n2\tHe said "no"\tShe said "yes"\t1\n'
    )
    text += '3\tplain\t"whole"\t1\n'
    assert [list(row.values()) for row in read_rows(write(tmp_path / "a.tsv", text).name, tmp_path)] == [
        ["1", '"Second half , he said', "The second half", "0"],
        ["2", 'He said "no"', 'She said "yes"', "1"],
        ["3", "plain", '"whole"', "1"],
    ]


@pytest.mark.parametrize(("name", "separator"), [("a.csv", ","), ("a.tsv", "\t")])
def test_long_fields_are_read(tmp_path: Path, name: str, separator: str) -> None:
    long = "x" * 200_000
    write(tmp_path / name, f"text{separator}label\n{long}{separator}0\n")
    assert read_rows(name, tmp_path) == [{"text": long, "label": "0"}]


def test_the_ends_of_lines_may_be_of_any_kind(tmp_path: Path) -> None:
    for end in ("\n", "\r\n", "\r"):
        assert read_rows(write(tmp_path / "a.csv", f'text,label{end}"a{end}b",0{end}').name, tmp_path)[0]["text"] == f"a{end}b"
        assert len(read_rows(write(tmp_path / "a.tsv", f"text\tlabel{end}a\t0{end}b\t1{end}").name, tmp_path)) == 2


def test_a_link_is_read_as_what_it_is_called(tmp_path: Path) -> None:
    """The hub's cache keeps files under their checksums, and links to them."""
    write(tmp_path / "0a1b2c", lines(ROWS))
    (tmp_path / "a.jsonl").symlink_to(tmp_path / "0a1b2c")
    assert read_rows("a.jsonl", tmp_path) == ROWS


# ---- refused: what is no file


NAMES = ["a.jsonl", "a.json", "a.csv", "a.tsv", "a.parquet", "a.npz"]


@pytest.mark.parametrize("name", NAMES)
def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    os.mkfifo(path)  # to open it would wait for ever
    with pytest.raises(InputError, match=rf"data = '.*{name}': is not a regular file"):
        read(path)
    path.unlink()
    path.symlink_to("/dev/zero")
    with pytest.raises(InputError, match="is not a regular file"):
        read(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(InputError, match="is not a regular file"):
        read(path)
    path.rmdir()
    path.symlink_to(path)
    with pytest.raises(InputError, match=r"cannot be read \(Too many levels of symbolic links"):
        read(path)


@pytest.mark.parametrize("name", ["x" * 300 + ".jsonl", "x" * 300 + ".npz", "a\0b.csv", "a\0*.csv", "d/" * 3000 + "a.jsonl"])
def test_names_that_no_file_can_have_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=r"data = .*(cannot be read|no file matches)"):
        read_images(name, tmp_path, "image", "label") if name.endswith("npz") else read_rows(name, tmp_path)


def test_a_pattern_takes_no_folders_for_files(tmp_path: Path) -> None:
    (tmp_path / "a-1.jsonl").mkdir()
    with pytest.raises(InputError, match=r"a-1\.jsonl': is not a regular file"):
        read_rows("a-*.jsonl", tmp_path)


@pytest.mark.parametrize("name", NAMES)
def test_size_is_bounded(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, "")
    os.truncate(path, files.MOST_FILE_B + 1)  # sparse: it takes no space
    with pytest.raises(InputError, match=rf"data = '.*{name}': is larger than 16,000,000,000 bytes; split it"):
        read(path)


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.tsv"])
def test_a_line_is_bounded(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MOST_LINE", 1000)
    text = {"a.jsonl": lines(ROWS)}.get(name, "text,label\n".replace(",", "\t" if name == "a.tsv" else ","))
    write(tmp_path / name, text + "x" * 1001 + "\n")
    with pytest.raises(InputError, match=rf"{name}, line \d: is longer than 1,000 characters"):
        read_rows(name, tmp_path)


def test_a_list_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MOST_LIST_B", 20)
    path = write(tmp_path / "a.json", json.dumps(ROWS))
    for reader in (lambda: read_rows("a.json", tmp_path), lambda: read_jsonl(path)):
        with pytest.raises(InputError, match=r"a\.json': is larger than 20 bytes; .*one object on each line"):
            reader()


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.tsv"])
def test_text_that_is_not_utf_8_is_named_by_its_line_however_far_it_is(tmp_path: Path, name: str) -> None:
    start = {"a.jsonl": '{"a": 1}\n', "a.csv": "a\n1\n", "a.tsv": "a\n1\n"}[name]
    body = start + "".join(start.splitlines(keepends=True)[-1] for _ in range(20_000))
    write(tmp_path / name, body.encode() + b"Na\xefrobi\n")
    line = body.count("\n") + 1
    with pytest.raises(InputError, match=rf"{name}, line {line}: is not UTF-8 text \(.*byte {len(body) + 2}\); save it as"):
        read_rows(name, tmp_path)


def test_tokens_that_are_not_utf_8_are_named_by_their_line(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.jsonl", lines(TOKENS).encode() + '{"input_ids": [1], "label": 0, "note": "Naïrobi"}'.encode("latin1")
    )
    with pytest.raises(InputError, match=r"a\.jsonl, line 3: is not UTF-8 text"):
        read_jsonl(path)


def test_padding_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One long line among many short ones makes all of them long."""
    from fedexperts.data import source

    monkeypatch.setattr(source, "MOST_TOKENS", 100)
    path = write(tmp_path / "a.jsonl", lines([*TOKENS, {"input_ids": [1] * 50, "label": 0}]))
    with pytest.raises(InputError, match=r"a\.jsonl': 3 samples of up to 50 tokens \(sample 3\).* at most 100"):
        read_jsonl(path)


# ---- refused: Parquet


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array([0]), pa.array([1])], names=["text", "label", "label"])
    parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"a\.parquet': column 'label' is there twice; rename one"):
        read_rows("a.parquet", tmp_path)
    with pytest.raises(InputError, match="column 'label' is there twice"):
        read_images("a.parquet", tmp_path, "text", "label")


def test_two_fields_of_one_name_are_refused(tmp_path: Path) -> None:
    group = pa.StructArray.from_arrays([pa.array([1]), pa.array([2])], names=["x", "x"])
    parquet.write_table(pa.table({"a": group}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"a\.parquet': .*twice|a\.parquet': .*[Dd]uplicate"):
        read_rows("a.parquet", tmp_path)


def test_what_python_cannot_hold_is_refused(tmp_path: Path) -> None:
    for values in (
        pa.array([2**62], pa.timestamp("ms")),
        pa.array([b"Na\xefrobi"]).view(pa.string()),
        *([] if find_spec("pandas") else [pa.array([1], pa.timestamp("ns"))]),  # which pandas can hold
    ):
        parquet.write_table(pa.table({"a": values}), tmp_path / "a.parquet")
        with pytest.raises(InputError, match=r"a\.parquet': .*cannot be read as a value"):
            read_rows("a.parquet", tmp_path)


def test_a_column_whose_name_is_no_text_is_refused(tmp_path: Path) -> None:
    parquet.write_table(pa.table({"naive": [1]}), tmp_path / "a.parquet", store_schema=False)
    write(tmp_path / "b.parquet", (tmp_path / "a.parquet").read_bytes().replace(b"naive", b"na\xefve"))
    with pytest.raises(InputError, match=r"b\.parquet': is damaged or not Parquet \(.*utf-8"):
        read_rows("b.parquet", tmp_path)


def test_parquet_is_bounded_before_it_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A constant column takes no space in the file."""
    monkeypatch.setattr(files, "MOST_UNPACKED_B", 10**6)
    monkeypatch.setattr(files, "MOST_RATIO", 10)
    parquet.write_table(pa.table({"text": ["x" * 1000] * 20_000, "label": [0] * 20_000}), tmp_path / "a.parquet")
    for reader in (lambda: read_rows("a.parquet", tmp_path), lambda: read_images("a.parquet", tmp_path, "text", "label")):
        with pytest.raises(InputError, match=r"a\.parquet': unpacks to more than 1,0\d\d,\d{3} bytes"):
            reader()


def test_lists_are_bounded_before_they_are_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One row may hold any number of values, in a few bytes."""
    monkeypatch.setattr(files, "MOST_UNPACKED_B", 10**6)
    monkeypatch.setattr(files, "MOST_RATIO", 10)
    table = pa.table({"text": ["a"], "label": [0], "list": [[0] * 200_000]})
    parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"a\.parquet': holds 200,002 values; at most 12\d,\d{3} for a file of this size"):
        read_rows("a.parquet", tmp_path)
    assert len(read_images("a.parquet", tmp_path, "text", "label")) == 1  # which reads two columns alone


def test_a_long_value_is_not_unpacked_for_many_rows_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MOST_UNPACKED_B", 10**6)
    monkeypatch.setattr(files, "MOST_RATIO", 10)
    for length, keep in itertools.product((100_000, 10_000), (False, True)):  # read back as text, or as places in a dictionary
        column = pa.DictionaryArray.from_arrays(pa.array([0] * 300, pa.int32()), pa.array(["x" * length]))
        parquet.write_table(pa.table({"text": column}), tmp_path / "a.parquet", compression="zstd", store_schema=keep)
        peak_B = pa.default_memory_pool().max_memory()
        with pytest.raises(InputError, match=r"a\.parquet': unpacks to more than 1,\d{3},\d{3} bytes"):
            read_rows("a.parquet", tmp_path)
        assert pa.default_memory_pool().max_memory() <= max(peak_B, 10**7)


def test_categories_are_read_as_their_values(tmp_path: Path) -> None:
    column = pa.DictionaryArray.from_arrays(pa.array([1, 0, None], pa.int32()), pa.array(["no", "yes"]))
    parquet.write_table(pa.table({"label": column}), tmp_path / "a.parquet")
    assert read_rows("a.parquet", tmp_path) == [{"label": "yes"}, {"label": "no"}, {"label": None}]


# ---- refused: images


def header(shape: tuple[int, ...], dtype: str = "|u1") -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": dtype, "fortran_order": False, "shape": shape})
    return buffer.getvalue()


def archive(path: Path, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in members.items():
            file.writestr(f"{name}.npy", data)
    return path


@pytest.mark.parametrize("shape", [(10**12, 8, 8), (2**62, 2**62, 8), (3, 10**9, 10**9), (-1, 8, 8), (2, 8, 8)])
def test_a_header_that_lies_about_its_size_is_refused_before_memory_is_taken(tmp_path: Path, shape: tuple[int, ...]) -> None:
    y = io.BytesIO()
    np.save(y, np.arange(3))
    path = archive(tmp_path / "a.npz", x=header(shape) + bytes(192), y=y.getvalue())
    with pytest.raises(InputError, match=r"a\.npz': .*x.*192 bytes"):
        read(path)


def test_an_archive_that_unpacks_to_far_more_than_it_holds_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MOST_UNPACKED_B", 10**6)
    monkeypatch.setattr(files, "MOST_RATIO", 10)
    np.savez_compressed(tmp_path / "a.npz", x=np.zeros((2000, 32, 32), np.uint8), y=np.zeros(2000, int))
    with pytest.raises(InputError, match=r"a\.npz': x unpacks to 2,048,128 bytes; at most 1,0\d\d,\d{3}"):
        read(tmp_path / "a.npz")


def bomb(side: int) -> bytes:
    """A whole PNG of few bytes."""
    return encoded(np.zeros((side, side), np.uint8))


def one(tmp_path: Path, data: bytes) -> Any:
    parquet.write_table(pa.table({"image": [data], "label": [0]}), tmp_path / "a.parquet")
    return pixels(read_images("a.parquet", tmp_path, "image", "label"), [0])


def test_an_image_of_too_many_pixels_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    for side in (8_000, 9_500, 14_000):  # Pillow warns from 89 million pixels on, and refuses from twice that
        lying = bytearray(bomb(8))
        lying[16:24] = side.to_bytes(4, "big") * 2
        lying[29:33] = zlib.crc32(lying[12:29]).to_bytes(4, "big")
        with pytest.raises(InputError, match=f"row 1: .*({side:,} × {side:,}|{side**2}) pixels"):
            one(tmp_path, bytes(lying))


def test_all_images_together_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MOST_FILE_B", 10**4)
    parquet.write_table(pa.table({"image": [bomb(100)] * 2, "label": [0, 0]}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"row 1: 2 images of 1 × 100 × 100 .* take 20,000 bytes; at most 10,000"):
        pixels(read_images("a.parquet", tmp_path, "image", "label"), [0, 1])


def test_images_of_more_than_8_bits_are_refused(tmp_path: Path) -> None:
    """Conversion would cut them off at 255."""
    with pytest.raises(InputError, match=r"row 1: .*8 bits"):
        one(tmp_path, encoded(np.full((8, 8), 40_000, np.uint16)))


def test_only_formats_of_images_are_opened(tmp_path: Path) -> None:
    """EPS, say, is a program that another program would run."""
    buffer = io.BytesIO()
    from PIL import Image

    Image.fromarray(images(1)[0][0]).save(buffer, "EPS")
    with pytest.raises(InputError, match="row 1: is not an image that can be read"):
        one(tmp_path, buffer.getvalue())
