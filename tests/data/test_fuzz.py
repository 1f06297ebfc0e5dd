"""Every reader of data on valid files made wrong: it reads them, or says in an `InputError` what is wrong; nothing else."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from fedexperts.data import choice, classify, language
from fedexperts.data.choice import Columns
from fedexperts.data.images import pixels, read_images, size
from fedexperts.data.rows import columns, label_index, numbers, read_rows
from fedexperts.data.source import read_jsonl
from mutate import as_json, hold, mutated_tree
from pictures import images

pytestmark = pytest.mark.filterwarnings("ignore::fedexperts.errors.InputWarning")
TOKENS: list[Any] = [{"input_ids": [1, 2], "label": 0}, {"input_ids": [3], "label": 1}]
ROWS: list[Any] = [{"text": "good", "label": 0, "score": 0.5}, {"text": "bäd", "label": 1, "score": -1}]
QUESTIONS: list[Any] = [
    {"question": "q?", "choices": ["a", "b", "c"], "answer": 0},
    {"question": "r", "choices": [1, 2], "answer": "B"},
]


def on_lines(rows: Any) -> bytes:
    return b"".join(as_json(row) + b"\n" for row in rows)


def words(*columns: list[str], **_: Any) -> dict[str, list[list[int]]]:
    """A tokenizer: a token for each character."""
    if isinstance(columns[0], str):
        return {"input_ids": [ord(c) % 100 for c in columns[0]]}  # type: ignore[dict-item]
    return {"input_ids": [[ord(c) % 100 for c in value] for value in columns[0]]}


words.bos_token_id = 0  # type: ignore[attr-defined]


def use(path: Path) -> None:
    """Rows, and what a task of classification, regression or language makes of them."""
    rows = read_rows(path.name, path.parent)
    assert rows
    classify.encode(rows, words, "text", None, 16)
    label_index(*columns(rows, ["label"], "data"), None, "data")
    numbers(*columns(rows, ["score"], "data"), "data")
    language.encode(rows, words, "text", 16)


def ask(path: Path) -> None:
    """Rows, and what a task of multiple choice makes of them."""
    choice.encode(read_rows(path.name, path.parent), words, Columns(), 16)


def show(path: Path) -> None:
    """All images of a file."""
    found = read_images(path.name, path.parent, "image", "label")
    label_index([label for file in found for label in file.labels], None, "data")
    pixels(found, range(size(found)))


# ---- text


def test_tokens(tmp_path: Path) -> None:
    hold(
        read_jsonl,
        tmp_path / "a.jsonl",
        on_lines(TOKENS),
        mutated_tree(TOKENS).map(on_lines),
        mutated_tree(TOKENS).map(as_json),
    )


def test_rows_on_lines(tmp_path: Path) -> None:
    hold(use, tmp_path / "a.jsonl", on_lines(ROWS), mutated_tree(ROWS).map(on_lines))


def test_rows_in_a_list(tmp_path: Path) -> None:
    hold(use, tmp_path / "a.json", as_json(ROWS), mutated_tree(ROWS).map(as_json))


def test_questions(tmp_path: Path) -> None:
    hold(ask, tmp_path / "a.jsonl", on_lines(QUESTIONS), mutated_tree(QUESTIONS).map(on_lines))


def test_csv(tmp_path: Path) -> None:
    hold(use, tmp_path / "a.csv", 'text,label,score\r\n"go""od, so",0,0.5\r\nbäd,1,-1\r\n'.encode())


def test_tsv(tmp_path: Path) -> None:
    hold(use, tmp_path / "a.tsv", 'text\tlabel\tscore\n"good\t0\t0.5\nbäd\t1\t-1\n'.encode())


# ---- binary


@pytest.mark.parametrize("codec", ["snappy", "zstd", "none"])
def test_parquet(tmp_path: Path, codec: str) -> None:
    buffer = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(ROWS), buffer, compression=codec)
    hold(use, tmp_path / "a.parquet", buffer.getvalue())


def test_parquet_with_lists(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist([QUESTIONS[0]] * 2), buffer)
    hold(ask, tmp_path / "a.parquet", buffer.getvalue())


@pytest.mark.parametrize("compressed", [False, True])
def test_npz(tmp_path: Path, compressed: bool) -> None:
    x, y = images(3)
    buffer = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(buffer, x=x, y=y)
    hold(show, tmp_path / "a.npz", buffer.getvalue())


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000"])
def test_images(tmp_path: Path, form: str) -> None:
    buffer = io.BytesIO()
    Image.fromarray(images(1)[0][0]).save(buffer, form)

    def decode(path: Path) -> None:
        parquet.write_table(pa.table({"image": [path.read_bytes()], "label": [0]}), tmp_path / "b.parquet")
        show(tmp_path / "b.parquet")

    hold(decode, tmp_path / "a", buffer.getvalue())
