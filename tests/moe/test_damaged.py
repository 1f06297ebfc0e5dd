"""Damaged and lying files: every reader reads them or says which file is wrong, and no other error leaves it."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

import readers
import text
from families import batch, plain, saved
from fedexperts.errors import InputError
from fedexperts.moe.checkpoint import Checkpoint
from fedexperts.moe.store import Store
from fedexperts.moe.subset import load_full
from fedexperts.moe.tokenizer import load_tokenizer, tokenizer_notes
from fedexperts.moe.view import View

FUZZ = settings(
    max_examples=40, derandomize=True, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
INDEX, WEIGHTS = "model.safetensors.index.json", "model.safetensors"
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**12), 10**12) | st.floats(allow_nan=False) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
BYTES = (
    st.binary(max_size=60)
    | JSON.map(lambda value: json.dumps(value).encode())
    | st.integers(1, 4000).map(lambda n: b"[" * n)
    | st.integers(1, 4000).map(lambda n: b'{"a":' * n + b"1" + b"}" * n)
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model with a tokenizer."""
    return text.saved(tmp_path_factory.mktemp("damaged") / "model")


def refused_or(read: Callable[[], Any], file: str) -> Any:
    """What a reader returns, or the one error it may raise, which names the file."""
    try:
        return read()
    except InputError as error:
        assert file in str(error) or "model.path" in str(error), error  # noqa: PT017  # both outcomes are right
        return None


def mutated(original: bytes) -> st.SearchStrategy[bytes]:
    """A JSON document with one value, somewhere, replaced or removed."""
    document = json.loads(original)

    def paths(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        items = value.items() if isinstance(value, dict) else enumerate(value[:3]) if isinstance(value, list) else ()
        return [at, *(path for key, inner in list(items)[:12] for path in paths(inner, (*at, key)))]

    def changed(path: tuple[Any, ...], value: Any, remove: bool) -> bytes:
        copy = json.loads(original)
        if not path:
            return json.dumps(value).encode()
        at = copy
        for key in path[:-1]:
            at = at[key]
        if remove:
            del at[path[-1]]
        else:
            at[path[-1]] = value
        return json.dumps(copy).encode()

    return st.builds(changed, st.sampled_from(paths(document)), JSON, st.booleans())


READERS = {
    "config.json": readers.READERS["config of a language model"].read,
    **{name: readers.READERS[name].read for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json")},
}


@pytest.mark.parametrize("file", READERS)
@FUZZ
@given(data=st.data())
def test_any_json_beside_a_model_is_read_or_refused(model, file, data):
    original = (model / file).read_bytes()
    try:
        (model / file).write_bytes(data.draw(BYTES | mutated(original)))
        refused_or(lambda: READERS[file](model / file), file.split("_")[0].removesuffix(".json"))
    finally:
        (model / file).write_bytes(original)


def test_a_vocabulary_that_is_one_table_is_compared_like_the_others(tmp_path):
    for name, words in (("a", {"x": 0, "y": 1}), ("b", {"x": 0, "z": 1}), ("c", {"x": 0, "y": "1"})):
        (tmp_path / name).mkdir()
        (tmp_path / name / "vocab.json").write_text(json.dumps(words))
    assert not list(tokenizer_notes(tmp_path / "a", tmp_path / "a"))
    with pytest.raises(InputError, match=r"vocab\.json: differs from the base's: 1 is 'z' there and 'y' in"):
        list(tokenizer_notes(tmp_path / "a", tmp_path / "b"))
    with pytest.raises(InputError, match="the number of token 'y' is '1'"):
        list(tokenizer_notes(tmp_path / "a", tmp_path / "c"))


@FUZZ
@given(data=st.data())
def test_any_vocabulary_is_compared_or_refused(model, data, tmp_path):
    original = (model / "tokenizer.json").read_bytes()
    (tmp_path / "tokenizer.json").write_bytes(data.draw(BYTES | mutated(original)))
    refused_or(lambda: list(tokenizer_notes(model, tmp_path)), "tokenizer.json")


@FUZZ
@given(data=st.data())
def test_any_index_is_read_or_refused(tmp_path_factory, data):
    folder = tmp_path_factory.getbasetemp() / "shards"
    if not folder.exists():
        saved(plain("mixtral"), folder, "as published, sharded")
        (folder / "original").write_bytes((folder / INDEX).read_bytes())
    original = (folder / "original").read_bytes()
    names = data.draw(
        st.dictionaries(st.sampled_from(["model.norm.weight", "x"]), JSON | st.sampled_from(["..", ".", "", "a" * 300, "/"]))
    )
    (folder / INDEX).write_bytes(data.draw(BYTES | mutated(original) | st.just(json.dumps({"weight_map": names}).encode())))
    refused_or(lambda: Checkpoint(folder), INDEX)


HEADERS = st.dictionaries(
    st.text(max_size=4) | st.just("__metadata__"),
    JSON
    | st.fixed_dictionaries(
        {
            "dtype": st.sampled_from(["F32", "BF16", "I8", "F8_E4M3", "X"]),
            "shape": st.lists(st.integers(-1, 2**64), max_size=3),
            "data_offsets": st.lists(st.integers(0, 80), min_size=2, max_size=2),
        }
    ),
    max_size=3,
).map(lambda header: json.dumps(header).encode())


@FUZZ
@given(header=HEADERS | BYTES, says=st.none() | st.integers(0, 2**64 - 1), body=st.binary(max_size=64))
def test_any_safetensors_file_is_read_or_refused(tmp_path_factory, header, says, body):
    file = tmp_path_factory.getbasetemp() / "any.safetensors"
    file.write_bytes(struct.pack("<Q", len(header) if says is None else says) + header + body)

    def read() -> None:
        store = Store({file: None})
        with store.reading() as fill:
            for name, shape in store.shapes.items():
                import torch

                fill(torch.empty(shape, dtype=store.dtype(name)), name, None)

    refused_or(read, file.name)


@pytest.mark.parametrize("cut", [0, 4, 8, 100, -1, -1000])
def test_a_truncated_file(cut, tmp_path):
    file = saved(plain("mixtral"), tmp_path) / WEIGHTS
    file.write_bytes(file.read_bytes()[:cut])
    with pytest.raises(InputError, match=rf"{WEIGHTS}: cannot be loaded \(.*truncated"):
        load_full(tmp_path)


def test_a_header_that_claims_a_gigabyte_takes_no_memory(tmp_path):
    file = saved(plain("mixtral"), tmp_path) / WEIGHTS
    file.write_bytes(struct.pack("<Q", 2**30) + file.read_bytes()[8:])
    with pytest.raises(InputError, match=rf"{WEIGHTS}: cannot be loaded"):
        load_full(tmp_path)


def test_a_pipe_in_place_of_weights_or_config_is_not_waited_for(tmp_path):
    folder = saved(plain("mixtral"), tmp_path, "as published, sharded")
    shard = sorted(folder.glob("*.safetensors"))[0]
    shard.unlink()
    os.mkfifo(shard)
    with pytest.raises(InputError, match=f"{shard.name}: is not a regular file"):
        Checkpoint(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    os.mkfifo(folder / "tokenizer.json")
    with pytest.raises(InputError, match=r"tokenizer\.json': is not a regular file"):
        load_tokenizer(folder)


def test_a_missing_shard_is_named(tmp_path):
    folder = saved(plain("mixtral"), tmp_path, "as published, sharded")
    gone = sorted(folder.glob("*.safetensors"))[-1]
    gone.unlink()
    with pytest.raises(InputError, match=f"{INDEX}: shard '{gone.name}' is missing; copy it to"):
        load_full(folder)


@pytest.mark.parametrize("kind", ["int32", "bool", "float8_e4m3fn", "complex64"])
def test_tensors_of_another_type_are_told_by_file_and_name(kind, tmp_path):
    import torch
    from safetensors.torch import load_file

    saved(plain("mixtral"), tmp_path)
    tensors = load_file(tmp_path / WEIGHTS)
    name = "model.layers.1.self_attn.q_proj.weight"
    tensors[name] = tensors[name].to(getattr(torch, kind))
    save_file(tensors, tmp_path / WEIGHTS)
    with pytest.raises(InputError, match=rf"{WEIGHTS}: tensor '{name}' is stored as \w+; only F64, F32, F16, BF16"):
        load_full(tmp_path)


@pytest.mark.parametrize(
    "content", [b"\xff\xfe", b"[" * 3000, b'{"a":' * 3000 + b"1" + b"}" * 3000, b"7", b"null", b'{"version": 1e999}']
)
@pytest.mark.parametrize("file", READERS)
def test_files_that_are_no_text_too_deep_or_of_another_kind(file, content, tmp_path):
    folder = text.saved(tmp_path)
    (folder / file).write_bytes(content)
    with pytest.raises(InputError, match=file.replace(".", r"\.") + "|no tokenizer can be loaded"):
        READERS[file](folder / file)


def test_a_checkpoint_that_is_whole_computes(tmp_path):
    assert View(load_full(saved(plain("mixtral"), tmp_path)))(batch()).isfinite().all()
