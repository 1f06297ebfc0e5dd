"""Messages: what is written is read, and nothing else is."""

import json
import struct
from contextlib import suppress
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load

from fedexperts.train.message import MOST_HEADER_B, Message, WireError, decode, encode, number, payload_B, said, text

WANTED = {"a": (torch.float32, (None, 3)), "b": (torch.uint8, (None,))}
TENSORS = {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor([7, 8], dtype=torch.uint8)}
HEAD = {"run": "x", "client": 1, "more": {"text": "äö"}}


def raw(header: Any, numbers: bytes = b"") -> bytes:
    data = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(data)) + data + numbers


def header(**changed: Any) -> dict[str, Any]:
    rows: dict[str, Any] = {
        "__metadata__": {"fedexperts": json.dumps(HEAD)},
        "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
        "b": {"dtype": "U8", "shape": [2], "data_offsets": [24, 26]},
    }
    return {name: {**rows.get(name, {}), **row} if isinstance(row, dict) else row for name, row in {**rows, **changed}.items()}


def test_what_is_written_is_read_by_us_and_by_safetensors() -> None:
    data = encode(HEAD, TENSORS)
    message = decode(data, WANTED, 2)
    assert message.head == HEAD
    assert message.size_B == len(data)
    for tensors in (message.tensors, load(data)):
        assert set(tensors) == set(TENSORS)
        assert all(torch.equal(tensors[name], tensor) for name, tensor in TENSORS.items())
    assert payload_B(TENSORS) == 26


def test_tensors_are_aligned_wherever_they_lie_in_a_message() -> None:
    """Products of matrices differ in their last bit where they are not, and so would networks from one process."""
    for more in range(64):
        tensor = decode(encode({"x": "y" * more}, {"a": torch.ones(2, 3)}), {"a": (torch.float32, (None, 3))}, 2).tensors["a"]
        assert tensor.data_ptr() % 64 == 0
        assert tensor.is_contiguous()


def test_a_head_can_be_written_once_and_is_shared_by_messages_that_cannot_change_it() -> None:
    data = encode(said(HEAD), TENSORS)
    assert data == encode(HEAD, TENSORS)
    one, other = decode(data, WANTED, 2), decode(encode(HEAD, TENSORS), WANTED, 2)
    with pytest.raises(TypeError):
        one.head["run"] = "y"  # type: ignore[index]
    assert other.head == HEAD
    assert one.tensors["a"].data_ptr() != other.tensors["a"].data_ptr()


def test_a_tensor_that_is_no_block_of_memory_is_written_in_its_order() -> None:
    across = torch.arange(6.0).view(3, 2).T
    assert not across.is_contiguous()
    assert torch.equal(decode(encode({}, {"a": across}), {"a": WANTED["a"]}, 2).tensors["a"], across)


def test_no_samples_is_a_message_too() -> None:
    assert decode(encode({}, {"a": torch.empty(0, 3)}), {"a": (torch.float32, (None, 3))}, 2).tensors["a"].shape == (0, 3)
    assert decode(encode({"x": 1}), {}, 0).tensors == {}


WRONG: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "no safetensors file"),
    "half a length": (b"\1\0\0", "no safetensors file"),
    "longer than it is": (struct.pack("<Q", 100) + b"{}", "a header of 100"),
    "longer than allowed": (raw(b" " * (MOST_HEADER_B + 1)), f"at most {MOST_HEADER_B:,}"),
    "no JSON": (raw(b"\x80\x04"), "no JSON"),
    "no UTF-8": (raw(b"\xff{}"), "no JSON"),
    "deep": (raw(b"[" * 60000), "no JSON"),
    "digits": (raw(b'{"a": ' + b"9" * 60000 + b"}"), "no JSON"),
    "a list": (raw([]), "no object"),
    "no head": (raw({"a": {}}), "no head"),
    "a head that is a number": (raw({"__metadata__": {"fedexperts": 1}}), "no head"),
    "a head of a list": (raw(header(__metadata__={"fedexperts": "[]"}), b"\0" * 26), "no object"),
    "a head with NaN": (raw(header(__metadata__={"fedexperts": '{"x": NaN}'}), b"\0" * 26), "no JSON"),
    "key twice": (raw(b'{"a": 1, "a": 2}'), "no head"),
    "no place": (raw(header(a={"data_offsets": None}), b"\0" * 26), "no place"),
    "no shape": (raw(header(a={"shape": 6}), b"\0" * 26), "no shape"),
    "a row that is none": (raw({**header(), "a": 5}, b"\0" * 26), "no shape"),
    "negative": (raw(header(a={"shape": [-2, 3]}), b"\0" * 26), "of shape"),
    "fractions": (raw(header(a={"shape": [2.0, 3]}), b"\0" * 26), "of shape"),
    "true": (raw(header(a={"shape": [True, 3], "data_offsets": [0, 12]}), b"\0" * 14), "of shape"),
    "more dimensions": (raw(header(a={"shape": [2, 3, 1]}), b"\0" * 26), "must be"),
    "other samples": (raw(header(b={"shape": [3], "data_offsets": [24, 27]}), b"\0" * 27), "must be"),
    "other type": (raw(header(a={"dtype": "I32"}), b"\0" * 26), "must be F32"),
    "many": (raw(header(a={"shape": [3, 3]}, b={"shape": [3]}), b"\0" * 39), "at most 2"),
    "a gap": (raw(header(b={"data_offsets": [25, 27]}), b"\0" * 27), "should at"),
    "an overlap": (raw(header(b={"data_offsets": [0, 2]}), b"\0" * 26), "should at"),
    "too short": (raw(header(), b"\0" * 25), "25 bytes of numbers"),
    "too long": (raw(header(), b"\0" * 27), "27 bytes of numbers"),
    "one missing": (raw({k: v for k, v in header().items() if k != "b"}, b"\0" * 24), "must be"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_is_wrong_is_told_in_words(kind: str) -> None:
    data, said = WRONG[kind]
    with pytest.raises(WireError) as error:
        decode(data, WANTED, 2)
    assert said in str(error.value)


def test_the_table_is_of_one_good_message_made_wrong() -> None:
    assert decode(raw(header(), b"\0" * 26), WANTED, 2).head == HEAD


@settings(deadline=None)
@given(st.binary(max_size=200), st.integers(0, 300), st.integers(0, 300))
def test_bytes_made_wrong_end_in_a_wire_error_or_a_message(noise: bytes, at: int, cut: int) -> None:
    data = encode(HEAD, TENSORS)
    mutated = data[: at % len(data)] + noise + data[cut % len(data) :]
    with suppress(WireError):
        assert isinstance(decode(mutated, WANTED, 2), Message)


def test_a_shape_of_terabytes_takes_no_memory() -> None:
    huge = raw(header(a={"shape": [2**40, 3], "data_offsets": [0, 2**40 * 12]}, b={"shape": [2**40]}), b"")
    with pytest.raises(WireError, match="at most 2"):
        decode(huge, WANTED, 2)


@pytest.mark.parametrize("value", [None, 5, "x" * 201, ["a"]])
def test_a_text_of_a_head_is_one(value: Any) -> None:
    with pytest.raises(WireError, match="must be a text"):
        text({"run": value}, "run")


@pytest.mark.parametrize("value", [None, "1", True, -1, 11, 1e9])
def test_a_number_of_a_head_is_one_within_bounds(value: Any) -> None:
    with pytest.raises(WireError, match="must be a number in 0…10"):
        number({"k": value}, "k", 0, 10)
