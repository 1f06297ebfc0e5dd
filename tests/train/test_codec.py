"""Uploads as files: sizes, rounding, and error feedback."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load

from fedexperts.moe.lora import A, B
from fedexperts.moe.parts import file_B
from fedexperts.train.codec import SCALE, decode, encode, payload_B

CODECS = ["exact", "bf16", "int8"]
shapes = st.one_of(st.just(()), st.tuples(st.integers(1, 40)), st.tuples(st.integers(1, 30), st.integers(1, 30)))


@settings(max_examples=60, deadline=None)
@given(
    entries=st.dictionaries(st.text(st.characters(codec="utf-8", categories=("L", "N")), min_size=1), shapes, max_size=5),
    codec=st.sampled_from(CODECS),
    seed=st.integers(0, 99),
)
def test_sizes_are_those_of_the_files(entries: dict[str, tuple[int, ...]], codec, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    tensors = {name: torch.randn(shape, generator=g) for name, shape in entries.items()}
    payload = encode(tensors, codec)
    assert payload_B(tensors, codec) == len(payload)
    assert file_B(load(payload)) == len(payload)
    decoded = decode(payload)
    assert {name: t.shape for name, t in decoded.items()} == {name: t.shape for name, t in tensors.items()}
    for name, tensor in tensors.items():
        relative = {"exact": 0.0, "bf16": 2**-8, "int8": 0.5 / 127}[codec]
        bound = relative * float(tensor.abs().max()) * (1 + 1e-5)
        assert float((decoded[name].float() - tensor).abs().max()) <= bound


def test_table_i_to_the_byte() -> None:
    """One Llama-3-8B expert: rank 4, three projections, 32 layers, two bytes per number; the header comes on top."""
    adapters = {}
    for layer in range(32):
        for name, out, into in (("gate", 14336, 4096), ("up", 14336, 4096), ("down", 4096, 14336)):
            adapters[f"{layer}.{name}{A}"] = torch.zeros(4, into, device="meta")
            adapters[f"{layer}.{name}{B}"] = torch.zeros(out, 4, device="meta")
    numbers_B = sum(2 * t.numel() for t in adapters.values())
    assert numbers_B == 14_155_776
    assert numbers_B < payload_B(adapters, "bf16") < 1.002 * numbers_B
    assert payload_B(adapters, "int8") < 0.51 * numbers_B


def test_a_factor_has_a_scale_for_each_component() -> None:
    wire = load(encode({"a": torch.randn(4, 100), "b": torch.randn(100, 4)}, "int8"))
    assert wire["a" + SCALE].shape == (4, 1)
    assert wire["b" + SCALE].shape == (1, 4)


def test_int8_by_hand() -> None:
    tensor = torch.tensor([[1.27, -0.634, 0.004], [0.0, 0.0, 0.0]])
    wire = load(encode({"w": tensor}, "int8"))
    assert wire["w"].tolist() == [[127, -63, 0], [0, 0, 0]]
    assert wire["w" + SCALE].flatten().tolist() == pytest.approx([0.01, 1.0])
