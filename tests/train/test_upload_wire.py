"""Uploads as bytes of a node that nobody trusts: what is packed is opened, and nothing else is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedexperts.errors import InputError
from fedexperts.moe.parts import Piece
from fedexperts.train import message, upload
from fedexperts.train.codec import encode, wire
from fedexperts.train.holding import Holding
from fedexperts.train.message import WireError
from fedexperts.train.task import Update
from fedexperts.train.wire import Codec

CODECS: tuple[Codec, ...] = ("exact", "bf16", "int8")
SENT = {"a": torch.linspace(-1, 1, 12).view(3, 4), "b": torch.zeros(5), "scalar": torch.tensor(2.0)}
TRAINED = {name: tensor + 0.125 for name, tensor in SENT.items()}
CHANGE = {name: TRAINED[name] - SENT[name] for name in SENT}
UPDATE = Update("a/0", Piece("expert:3", 7, {}), 2, 40, 0, 1.5, 0.25, 0.5, None)


def packed(codec: Codec) -> tuple[bytes, dict[str, upload.Promise]]:
    return upload.pack(UPDATE, TRAINED if codec == "exact" else CHANGE, codec), {"expert:3": upload.promised(SENT, codec)}


@pytest.mark.parametrize("codec", CODECS)
def test_what_is_packed_is_opened_and_is_what_the_server_has_in_this_process(codec: Codec) -> None:
    data, promises = packed(codec)
    update, coded = upload.opened(data, promises)
    assert update.piece.tensors == {}
    found = upload.arrived(update, coded, SENT, codec)
    assert (found.device, found.piece.part, found.piece.version) == ("a/0", "expert:3", 7)
    assert (found.rounds, found.samples, found.round_s, found.loss, found.pick_share) == (2, 40, 1.5, 0.25, 0.5)
    assert found.held_loss is None
    assert {name: t.dtype for name, t in found.piece.tensors.items()} == {name: t.dtype for name, t in SENT.items()}
    for name, tensor in found.piece.tensors.items():
        assert torch.allclose(tensor, TRAINED[name], atol=2e-3)
        assert codec != "exact" or torch.equal(tensor, TRAINED[name])


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_promise_is_of_the_bytes_that_simulated_runs_count(codec: Codec, dtype: torch.dtype) -> None:
    tensors = {name: tensor.to(dtype) for name, tensor in SENT.items()}
    promise = upload.promised(tensors, codec)
    assert promise.size_B == len(encode(tensors, codec))
    assert promise.numbers_B == message.payload_B(wire(tensors, codec))
    update, coded = upload.opened(upload.pack(UPDATE, tensors, codec), {"expert:3": promise})
    assert set(coded) == set(tensors)
    assert upload.arrived(update, coded, tensors, codec).piece.tensors["a"].dtype == dtype


def test_a_part_of_hundreds_of_tensors_has_a_header_as_long_as_that_takes() -> None:
    many = {f"layer.{i:04d}.a.long.name.of.a.tensor": torch.ones(2) for i in range(2000)}
    data = upload.pack(UPDATE, many, "int8")
    assert int.from_bytes(data[:8], "little") > 2 * message.MOST_HEADER_B
    assert len(upload.opened(data, {"expert:3": upload.promised(many, "int8")})[1]) == 2000


def repacked(head: Mapping[str, Any] | None = None, tensors: Mapping[str, torch.Tensor] | None = None) -> bytes:
    """With another head or other numbers."""
    data, _ = packed("exact")
    said = {**message.head_of(data), **(head or {})}
    return message.encode({k: v for k, v in said.items() if v is not None}, TRAINED if tensors is None else tensors)


def row(name: str, **changed: Any) -> bytes:
    """With another row of the header."""
    data, _ = packed("exact")
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header[name] = {**header[name], **changed}
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


WRONG: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "no safetensors file"),
    "a pickle": (b"\x80\x04\x95" + b"\0" * 40, "a header of"),
    "a part that was not asked for": (repacked({"part": "expert:4"}), "'expert:4' was not asked for"),
    "no part": (repacked({"part": None}), "must be a text"),
    "no version": (repacked({"version": None}), "version = None"),
    "half a round": (repacked({"rounds": 1.5}), "must be a whole number"),
    "true samples": (repacked({"samples": True}), "samples = True"),
    "a version of a thousand digits": (repacked({"version": 10**999}), "version = 1000"),
    "a loss in words": (repacked({"loss": "small"}), "loss = small"),
    "a device that is a list": (repacked({"device": ["a"]}), "must be a text"),
    "a time of less than nothing": (repacked({"round_s": -1}), "round_s = -1"),
    "something more in the head": (repacked({"model": "x"}), "'model' in the head"),
    "a long head": (repacked({"device": "x" * 2**16}), "at most"),
    "one tensor less": (repacked(tensors={"a": TRAINED["a"]}), "tensors ['a']"),
    "one more": (repacked(tensors={**TRAINED, "x": TRAINED["b"]}), "must be"),
    "a tensor of a terabyte": (row("a", shape=[2**20, 2**20], data_offsets=[0, 2**42]), "of shape"),
    "another type": (repacked(tensors={**TRAINED, "b": TRAINED["b"].double()}), "of type 'F64'; must be F32"),
    "another shape": (repacked(tensors={**TRAINED, "b": torch.zeros(6)}), "must be [5]"),
    "an unknown type": (row("a", dtype="OBJ"), "'OBJ'; must be F32"),
    "numbers that overlap": (row("b", data_offsets=[0, 20]), "should"),
    "one number missing": (packed("exact")[0][:-4], "bytes of numbers"),
    "one too many": (packed("exact")[0] + b"\0" * 4, "bytes"),
    "a megabyte more": (packed("exact")[0] + b"\0" * 2**20, "at most"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_is_wrong_is_told_in_words(kind: str) -> None:
    data, said = WRONG[kind]
    with pytest.raises(WireError) as error:
        upload.opened(data, packed("exact")[1])
    assert said in str(error.value)
    assert len(str(error.value)) < 2100
    assert isinstance(error.value, InputError)


@settings(deadline=None)
@given(st.sampled_from(CODECS), st.binary(max_size=300), st.integers(0, 3000), st.integers(0, 3000))
def test_messages_cut_or_with_noise_in_them_end_in_a_wire_error(codec: Codec, noise: bytes, at: int, cut: int) -> None:
    data, promises = packed(codec)
    with suppress(WireError):
        upload.opened(data[: at % (len(data) + 1)] + noise + data[cut % (len(data) + 1) :], promises)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(CODECS), st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 7)), min_size=1, max_size=4))
def test_messages_with_bits_turned_over_end_in_a_wire_error_or_have_what_was_promised(codec: Codec, bits: Any) -> None:
    data, promises = packed(codec)
    turned = bytearray(data)
    for at, bit in bits:
        turned[at % len(turned)] ^= 1 << bit
    with suppress(WireError):
        _, coded = upload.opened(bytes(turned), promises)
        assert {name: t.shape for name, t in coded.items()} == {name: t.shape for name, t in SENT.items()}


@settings(deadline=None)
@given(st.binary(max_size=500))
def test_bytes_that_are_no_message_are_refused(data: bytes) -> None:
    with pytest.raises(WireError):
        upload.opened(data, packed("exact")[1])


ANYTHING = [None, True, 0, -1, 2**64, 10**400, 0.5, -0.0, 1e308, "", "x", "\ud800", "x" * 300, [], [[]], {}, {"a": 1}]


@settings(deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["device", "part", "version", "rounds", "samples", "size_B", "round_s", "loss", "held_loss", "x"]),
        st.sampled_from(ANYTHING),
    )
)
def test_heads_that_say_anything_end_in_a_wire_error_or_an_update(head: dict[str, Any]) -> None:
    data = message.encode({**message.head_of(packed("exact")[0]), **head}, TRAINED)
    with suppress(WireError):
        update, _ = upload.opened(data, packed("exact")[1])
        assert all(type(value) is int for value in (update.rounds, update.samples, update.size_B, update.piece.version))


def test_devices_have_in_this_process_what_a_server_opens() -> None:
    """`Holding` hands over what came through the codec; `upload` makes the same of the file's bytes, bit for bit."""
    import small
    from fedexperts.setup.prepare import prepare
    from fedexperts.train.task import Task

    for codec in CODECS:
        prepared = prepare(small.scenario(model={"config": small.CONFIG, "uplink": codec}))
        prepared.begin()
        device = small.devices(prepared)["plain"][0]
        device.train(Task(frozenset({"expert:0", "gate"})), 1)
        for update in device.snapshot(["expert:0", "gate"]):
            start = prepared.model[update.piece.part].tensors
            promise = {update.piece.part: upload.promised(start, codec)}
            change = device.travelling(update.piece.part)
            assert promise[update.piece.part].size_B == update.size_B == len(encode(change, codec))
            opened, coded = upload.opened(upload.pack(update, change, codec), promise)
            there = upload.arrived(opened, coded, start, codec)
            assert there.piece.digest == update.piece.digest
        assert isinstance(device, Holding)
