"""Outlines by arithmetic against the meta model: of every family, with every field of its config changed in turn."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from transformers import CONFIG_MAPPING, BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM

import families
from fedexperts.errors import InputError
from fedexperts.moe import sized
from fedexperts.moe.arithmetic import outline
from fedexperts.moe.build import upcycle
from fedexperts.moe.families import SUPPORTED
from fedexperts.moe.kinds import Kind
from fedexperts.moe.layouts import FAMILIES
from fedexperts.moe.lora import LoRA
from fedexperts.moe.meta import meta_view, outline_of, read_config
from fedexperts.moe.own_types import OWN_TYPES
from fedexperts.moe.parts import is_expert
from fedexperts.moe.view import View

OWN_SIZES: dict[str, dict[str, Any]] = {
    "bert_moe": {
        "vocab_size": 31,
        "hidden_size": 8,
        "intermediate_size": 12,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "max_position_embeddings": 16,
        "num_experts": 4,
        "moe_layers": [0, 2],
    },
    "conv_moe": {"image_size": 16, "channels": 8, "num_experts": 3, "num_labels": 5},
    "networked_moe": {"image_size": 8, "width": 8, "projection_size": 6, "num_experts": 4, "num_labels": 3},
}
DOCUMENTS: dict[str, dict[str, Any]] = {
    **{name: {**families.sizes(name), "model_type": name.split()[0]} for name in families.FAMILIES},
    **{name: {**fields, "model_type": name} for name, fields in OWN_SIZES.items()},
    "dense layers": {**families.sizes("qwen3_moe", num_hidden_layers=5, mlp_only_layers=[1, 4]), "model_type": "qwen3_moe"},
    "every second layer": {
        **families.sizes("qwen2_moe", num_hidden_layers=4, decoder_sparse_step=2),
        "model_type": "qwen2_moe",
    },
    "biases, wide heads": {**families.sizes("qwen3_moe", attention_bias=True, head_dim=10), "model_type": "qwen3_moe"},
    "fewer keys": {**families.sizes("olmoe", num_key_value_heads=1), "model_type": "olmoe"},
    "low queries": {**families.sizes("deepseek_v2", q_lora_rank=4, first_k_dense_replace=1), "model_type": "deepseek_v2"},
    "mellum's dense": {**families.sizes("mellum", mlp_layer_types=["dense", "sparse"]), "model_type": "mellum"},
}


def judged(document: dict[str, Any], kind: Kind | None = None) -> str:
    """What arithmetic says, checked: "known", or "open" where it leaves the config to transformers."""
    found = outline(document, kind)
    if found is None:
        return "open"
    meta = outline_of(meta_view(document, kind))
    assert (found.model_type, found.top_k, found.shape) == (meta.model_type, meta.top_k, meta.shape)
    assert {name: dict(tensors) for name, tensors in found.parts.items()} == meta.parts
    assert found.layers == meta.layers
    return "known"


def test_all_supported_families_are_known() -> None:
    assert {name.removesuffix("_text") for name in FAMILIES} == set(SUPPORTED)
    assert set(OWN_TYPES) == set(OWN_SIZES)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_tensors_by_arithmetic_are_those_of_the_model(name: str) -> None:
    document = DOCUMENTS[name]
    assert judged(document) == "known"
    if name.split()[0] not in OWN_SIZES:
        assert judged({**document, "tie_word_embeddings": True}) == "known"
        expected = "known" if FAMILIES[document["model_type"]].classifies else "open"
        assert judged(document, "classifier") == expected


@pytest.mark.parametrize("name", [*FAMILIES, *OWN_TYPES])
def test_fields_that_are_left_out_have_the_defaults_of_transformers(name: str) -> None:
    few = {"num_hidden_layers": 4, "num_experts_per_tok": 2} if name in FAMILIES else {}
    assert judged({"model_type": name, **few}) == "known"


def test_a_model_with_pictures_is_its_text_model() -> None:
    inner = {**DOCUMENTS["qwen3_5_moe_text"], "model_type": "qwen3_5_moe_text"}
    assert judged({"model_type": "qwen3_5_moe", "text_config": inner}) == "known"


@pytest.mark.parametrize("granularity", ["global", "layer"])
@pytest.mark.parametrize("name", ["mixtral", "dense layers", "bert_moe", "networked_moe"])
def test_adapters_are_those_of_the_view(name: str, granularity: str) -> None:
    document = DOCUMENTS[name]
    found = outline(document)
    assert found is not None
    whole = View(meta_view(document).model, granularity=granularity)
    assert {part: {n: tuple(t.shape) for n, t in ts.items()} for part, ts in whole.parts.items()} == found.split(granularity)
    whole.adapt(LoRA(2, 4.0), seed=0)
    leaves = {part: {n: tuple(t.shape) for n, t in ts.items()} for part, ts in whole.leaves.items() if is_expert(part)}
    assert leaves == found.adapters(2, granularity)


@pytest.mark.parametrize("layers", [None, [1]], ids=["all layers", "one layer"])
def test_an_upcycled_build_is_known(layers: list[int] | None, tmp_path: Path) -> None:
    fields = {k: v for k, v in families.SIZES.items() if k not in ("num_experts_per_tok", "num_labels")}
    LlamaForCausalLM(LlamaConfig(**fields, tie_word_embeddings=True)).save_pretrained(tmp_path / "dense")
    if layers is None:
        upcycle(tmp_path / "dense", 3, tmp_path / "moe")
        assert judged(read_config(str(tmp_path / "moe"))) == "known"
    bert = BertForSequenceClassification(
        BertConfig(**{k: v for k, v in OWN_SIZES["bert_moe"].items() if k not in ("moe_layers", "num_experts")})
    )
    bert.save_pretrained(tmp_path / "bert")
    upcycle(tmp_path / "bert", 3, tmp_path / "bert-moe", layers=layers)
    assert judged(read_config(str(tmp_path / "bert-moe"))) == "known"


def changes(value: Any, rng: random.Random) -> list[Any]:
    """Other values of a field."""
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [2 * value, value + 1, 0]
    if isinstance(value, list):
        return [value[1:], None]
    return [1, None] if value is None or isinstance(value, float) else [None]


def changed(name: str, most: int) -> list[dict[str, Any]]:
    """Configs of a family with one field changed, drawn from all such."""
    document, rng = DOCUMENTS[name], random.Random(name)
    fields = CONFIG_MAPPING[document["model_type"]]().to_dict() | document
    left_out = {"model_type", "transformers_version", "id2label", "label2id"}
    every = [{**document, k: new} for k, v in fields.items() if k not in left_out for new in changes(v, rng)]
    return rng.sample(every, min(most, len(every)))


def check_changes(name: str, most: int) -> None:
    known, documents = 0, changed(name, most)
    for document in documents:
        found = outline(document)
        try:
            meta = outline_of(meta_view(document))
        except InputError:
            continue  # what transformers refuses is refused where it is run; its size may still be told
        if found is not None:
            known += 1
            assert found == meta, {k: v for k, v in document.items() if DOCUMENTS[name].get(k) != v}
    assert known >= len(documents) // 4


@pytest.mark.parametrize("name", ["mixtral", "qwen2_moe", "qwen3_next", "deepseek_v2", "bert_moe", "networked_moe"])
def test_some_changed_field_changes_both_alike(name: str) -> None:
    check_changes(name, 16)


@pytest.mark.slow
@pytest.mark.parametrize("name", DOCUMENTS)
def test_any_changed_field_changes_both_alike(name: str) -> None:
    check_changes(name, 1000)


@pytest.mark.parametrize(
    "change",
    [
        {"model_type": "no-such-type"},
        {"hidden_size": "12"},
        {"num_experts_per_tok": 9},
        {"num_local_experts": 5000},
        {"pad_token_id": 23},
        {"architectures": "MixtralForCausalLM"},
        {"rope_scaling": {"rope_type": "of my own"}},
        {"num_experts": 6},
        {"hidden_size": 13},
    ],
    ids=str,
)
def test_what_is_out_of_the_ordinary_is_left_to_transformers(change: dict[str, Any]) -> None:
    assert outline({**DOCUMENTS["mixtral"], **change}) is None


def test_where_arithmetic_does_not_know_the_meta_model_answers() -> None:
    document = {**DOCUMENTS["mixtral"], "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "note": "mine"}}
    assert outline(document) is None
    found = sized.described(document)
    assert found.parts == sized.described(DOCUMENTS["mixtral"]).parts
