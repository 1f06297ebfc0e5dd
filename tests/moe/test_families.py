"""Every family that docs/models.md names: equal to plain transformers, or refused with what it has instead."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

from families import FAMILIES, LATENT, SIZES, M, batch, plain, saved, sizes
from fedexperts.moe.auto import new_model
from fedexperts.moe.families import OTHERS, SUPPORTED
from fedexperts.moe.meta import meta_view
from fedexperts.moe.parts import NotMoEError
from fedexperts.moe.subset import load_full, load_subset
from fedexperts.moe.view import View

TABLE = Path(__file__).parents[2] / "docs" / "models.md"
X = {"input_ids": batch()["input_ids"]}
MOE = {"num_local_experts": M, "head_dim": 6}
DEEPSEEK = {**LATENT, "q_lora_rank": 8, "moe_intermediate_size": 8, "first_k_dense_replace": 0, "n_group": 1, "topk_group": 1}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "deepseek_v3": ({**DEEPSEEK, "n_routed_experts": M, "num_local_experts": M}, "sigmoids, adds a correction bias"),
    "gpt_oss": (MOE, "gate and experts have biases"),
    "jetmoe": ({"num_local_experts": M, "kv_channels": 6}, "attention is a mixture of experts too"),
    "llama4_text": ({**MOE, "intermediate_size_mlp": 16}, "scales what experts are given by a sigmoid"),
    "phimoe": ({"num_local_experts": M}, "SparseMixer"),
    "deepseek_v2 in groups": (
        {**FAMILIES["deepseek_v2"], "topk_method": "group_limited_greedy", "n_group": 2, "topk_group": 1},
        "picks among groups of experts or scales",
    ),
    "deepseek_v2 scaled": (
        {**FAMILIES["deepseek_v2"], "routed_scaling_factor": 16.0},
        "picks among groups of experts or scales",
    ),
    "glm4_moe": (
        {"head_dim": 6, "n_routed_experts": M, "moe_intermediate_size": 8, "first_k_dense_replace": 0, "n_shared_experts": 1},
        "Glm4MoeTopkRouter: this kind of routing is not supported",
    ),
}


def refused(case: str) -> dict[str, Any]:
    return {"model_type": case.split()[0], **SIZES, **REFUSED[case][0]}


def test_the_documented_table_is_what_is_tested():
    rows = dict(re.findall(r"^\| `(\w+)` \|.*\| (yes|no)\b", TABLE.read_text(), re.MULTILINE))
    assert {kind for kind, said in rows.items() if said == "yes"} == set(SUPPORTED)
    assert {kind for kind, said in rows.items() if said == "no"} == set(OTHERS)
    assert {family.split()[0].removesuffix("_text") for family in FAMILIES} == set(SUPPORTED)
    assert {case.split()[0].removesuffix("_text") for case in REFUSED} >= set(OTHERS)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_supported_family_computes_what_plain_transformers_does(family, tmp_path):
    reference = plain(family, AutoModelForCausalLM)
    expected = reference(**X).logits
    assert torch.allclose(View(load_full(saved(reference, tmp_path), AutoModelForCausalLM))(X), expected, atol=1e-5)
    assert meta_view({"model_type": family.split()[0], **sizes(family)}).experts == M


@pytest.mark.parametrize("case", REFUSED)
def test_another_family_is_refused_by_name_with_what_it_has_instead(case, tmp_path):
    options, reason = REFUSED[case]
    config = AutoConfig.for_model(case.split()[0], **{**SIZES, **options})
    model = AutoModelForCausalLM.from_config(config)
    with pytest.raises(NotMoEError, match=reason):
        View(model)
    with pytest.raises(NotMoEError, match=reason):
        meta_view(refused(case))
    if "not supported" not in reason:  # the others, whose names we do not know, when they are viewed
        with pytest.raises(NotMoEError, match=reason):
            new_model(refused(case), seed=0, kind="language-model")
    model.save_pretrained(tmp_path)
    with pytest.raises(NotMoEError, match=reason):
        load_full(tmp_path, AutoModelForCausalLM)


def test_a_refused_family_is_refused_before_transformers_looks_for_a_classifier(tmp_path):
    new = AutoModelForCausalLM.from_config(AutoConfig.for_model("gpt_oss", **{**SIZES, **MOE}))
    new.save_pretrained(tmp_path)
    with pytest.raises(
        NotMoEError, match=r"model\.path = .*'gpt_oss' is not supported: its gate and experts have biases.*mixtral"
    ):
        load_full(tmp_path)


def test_the_text_model_of_a_qwen_3_5_with_a_vision_tower_is_taken(tmp_path):
    """Published checkpoints have both: the config lies deeper, and tensors are called ``model.language_model.…``."""
    vision = {"depth": 1, "hidden_size": 8, "intermediate_size": 8, "num_heads": 2, "out_hidden_size": 12, "patch_size": 2}
    text = sizes("qwen3_5_moe_text")
    config = AutoConfig.for_model("qwen3_5_moe", text_config=text, vision_config={**vision, "num_position_embeddings": 4})
    torch.manual_seed(0)
    AutoModelForImageTextToText.from_config(config).save_pretrained(tmp_path)
    reference = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    view = View(load_full(tmp_path, AutoModelForCausalLM))
    assert (view.experts, view.layers) == (M, 2)
    assert torch.allclose(view(X), reference(**X).logits, atol=1e-5)
    view.route({"expert:1", "expert:4"})
    subset = View(load_subset(tmp_path, (1, 4), AutoModelForCausalLM), kept=(1, 4))
    assert torch.allclose(subset(X), view(X), atol=1e-5)
