"""Embedding and head of one tensor or of two: whatever config.json says, we load what plain transformers loads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from families import FAMILIES, SIZES, batch, plain, saved
from fedexperts.errors import InputError
from fedexperts.moe.build import merge, upcycle
from fedexperts.moe.checkpoint import Checkpoint
from fedexperts.moe.subset import load_full, load_streamed, load_subset
from fedexperts.moe.view import View

X = {"input_ids": batch()["input_ids"]}
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
KEEP = (2, 5)


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model(**X).logits


def theirs(folder: Path) -> Any:
    """What plain transformers makes of the folder."""
    return AutoModelForCausalLM.from_pretrained(folder).eval()


def other_head(folder: Path) -> Path:
    """A checkpoint whose config says that the head is the embedding, and that holds another head."""
    tensors = load_file(folder / "model.safetensors")
    tensors[HEAD] = -2 * tensors[EMBEDDING] + 0.5
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def tied(family: str, folder: Path) -> Path:
    return saved(plain(family, AutoModelForCausalLM, tie_word_embeddings=True), folder)


def test_another_head_in_the_file_is_kept_though_the_config_says_tied(family, tmp_path):
    reference = theirs(other_head(tied(family, tmp_path)))
    model = load_full(tmp_path, AutoModelForCausalLM)
    assert (logits(reference) - logits(plain(family, AutoModelForCausalLM, tie_word_embeddings=True))).abs().max() > 1
    assert torch.allclose(logits(model), logits(reference), atol=1e-5)
    assert model.lm_head.weight is not model.model.embed_tokens.weight
    assert set(View(model).parts["head"]) == {HEAD}


def test_a_subset_and_a_streamed_model_keep_it_too(family, tmp_path):
    checkpoint = Checkpoint(other_head(tied(family, tmp_path)))
    full = View(theirs(tmp_path))
    streamed = View(load_streamed(checkpoint, KEEP, AutoModelForCausalLM), kept=KEEP, stream=checkpoint)
    assert torch.allclose(streamed(X), full(X), atol=1e-5)
    full.route({f"expert:{m}" for m in KEEP})
    subset = View(load_subset(checkpoint, KEEP, AutoModelForCausalLM), kept=KEEP)
    assert torch.allclose(subset(X), full(X), atol=1e-5)


def test_a_saved_model_keeps_it_and_says_so(family, tmp_path):
    model = load_full(other_head(tied(family, tmp_path / "base")), AutoModelForCausalLM)
    expected = logits(model)
    View(model).model.save_pretrained(tmp_path / "saved")
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["tie_word_embeddings"] is False
    assert torch.allclose(logits(theirs(tmp_path / "saved")), expected, atol=1e-5)
    assert torch.allclose(logits(load_full(tmp_path / "saved", AutoModelForCausalLM)), expected, atol=1e-5)


@pytest.mark.parametrize("held", [{HEAD, EMBEDDING}, {EMBEDDING}, {HEAD}], ids=["both, equal", "embedding", "head"])
def test_one_tensor_under_either_name_or_both_stays_one(family, held, tmp_path):
    tied(family, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    one = tensors.pop(EMBEDDING)
    save_file(tensors | {name: one.clone() for name in held}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    reference, model = theirs(tmp_path), load_full(tmp_path, AutoModelForCausalLM)
    assert torch.equal(model.lm_head.weight, reference.lm_head.weight)
    assert torch.allclose(logits(model), logits(reference), atol=1e-5)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert "head" not in View(model).parts


def test_a_head_that_is_missing_is_not_drawn_as_transformers_would(tmp_path):
    saved(plain("mixtral", AutoModelForCausalLM), tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors[HEAD]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=r"lm_head\.weight' is missing.*tie_word_embeddings = true in config\.json"):
        load_full(tmp_path, AutoModelForCausalLM)


# ---- models built from dense ones


def dense(folder: Path, seed: int = 0, **options: Any) -> Path:
    torch.manual_seed(seed)
    sizes = {name: value for name, value in SIZES.items() if name != "num_experts_per_tok"}
    config = AutoConfig.for_model("llama", **{**sizes, "tie_word_embeddings": True, **options})
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("how", ["merge", "upcycle"])
@pytest.mark.parametrize("file", ["another head", "the same head", "head alone"])
def test_built_models_have_the_head_that_transformers_gives_the_dense_one(how, file, tmp_path):
    folder = dense(tmp_path / "dense")
    if file == "another head":
        other_head(folder)
    else:
        tensors = load_file(folder / "model.safetensors")
        one = tensors[EMBEDDING] if file == "the same head" else tensors.pop(EMBEDDING)
        save_file(tensors | {HEAD: one.clone()}, folder / "model.safetensors", metadata={"format": "pt"})
    reference = logits(theirs(folder))
    if how == "merge":
        merge(folder, [folder, folder], tmp_path / "moe", top_k=2)
    else:
        upcycle(folder, 2, tmp_path / "moe")
    for model in (theirs(tmp_path / "moe"), load_full(tmp_path / "moe", AutoModelForCausalLM)):
        assert torch.allclose(logits(model), reference, atol=1e-5)
        assert (model.lm_head.weight is model.model.embed_tokens.weight) == (file != "another head")
    assert json.loads((tmp_path / "moe" / "config.json").read_text())["tie_word_embeddings"] == (file != "another head")
