"""One number that is not finite, anywhere in a checkpoint, is told by tensor and file when it is read; never trained on."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

import text
from families import FAMILIES, SIZES, D, M, auto_class, batch, plain, saved
from fedexperts.errors import InputError
from fedexperts.moe.answer import answers
from fedexperts.moe.build import merge, upcycle
from fedexperts.moe.checkpoint import Checkpoint
from fedexperts.moe.layer import MoELayer
from fedexperts.moe.subset import load_full, load_into, load_streamed, load_subset
from fedexperts.moe.view import View

X = {"input_ids": batch()["input_ids"]}


def spoilt(folder: Path, name: str, value: float = math.nan, file: str = "model.safetensors") -> Path:
    """The folder, with one number of one tensor changed."""
    tensors = load_file(folder / file)
    tensors[name].view(-1)[-1] = value
    save_file(tensors, folder / file, metadata={"format": "pt"})
    return folder


def told(name: str, file: str = "model.safetensors") -> str:
    return rf"{file}: tensor '{name}' has 1 number that is not finite"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_any_tensor_of_a_checkpoint(value, tmp_path):
    saved(plain("mixtral"), tmp_path)
    whole = load_file(tmp_path / "model.safetensors")
    assert len(whole) == 53
    for name in whole:
        spoilt(tmp_path, name, value)
        with pytest.raises(InputError, match=told(name)):
            load_full(tmp_path)
        save_file(whole, tmp_path / "model.safetensors", metadata={"format": "pt"})
    load_full(tmp_path)


@pytest.mark.parametrize("family", FAMILIES)
def test_any_family_whole_in_part_and_streamed(family, tmp_path):
    saved(plain(family), tmp_path)
    whole = load_file(tmp_path / "model.safetensors")
    ends = (
        "norm.weight",
        "gate.weight",
        "router.layer.weight",
        "experts.5.down_proj.weight",
        "experts.5.w2.weight",
        "output_linear.weight",
        "score.weight",
        "lm_head.weight",
        "embed_tokens.weight",
    )
    kind = auto_class(family)
    for name in [next(n for n in whole if n.endswith(end)) for end in ends if any(n.endswith(end) for n in whole)]:
        spoilt(tmp_path, name)
        for load in (
            lambda: load_full(tmp_path, kind),
            lambda: load_subset(tmp_path, (2, 5), kind),
            lambda: load_streamed(tmp_path, (5,), kind),
        ):
            with pytest.raises(InputError, match=told(name)):
                load()
        save_file(whole, tmp_path / "model.safetensors", metadata={"format": "pt"})


def test_the_shard_that_holds_it_is_named(tmp_path):
    saved(plain("mixtral"), tmp_path, "as published, sharded")
    name = "model.layers.1.block_sparse_moe.experts.3.w1.weight"
    shard = Checkpoint(tmp_path).store.where[name].name
    with pytest.raises(InputError, match=told(name, shard)):
        load_full(spoilt(tmp_path, name, file=shard))


def test_what_is_not_read_is_not_judged_and_a_streamed_expert_is_when_tokens_meet_it(tmp_path):
    saved(plain("mixtral"), tmp_path)
    name = "model.layers.1.block_sparse_moe.experts.3.w1.weight"
    checkpoint = Checkpoint(spoilt(tmp_path, name))
    assert View(load_subset(checkpoint, (2, 5)), kept=(2, 5))(X).isfinite().all()
    view = View(load_streamed(checkpoint, (2, 5)), kept=(2, 5), stream=checkpoint)
    with pytest.raises(InputError, match=told(name)):
        view(X)


def test_a_number_too_large_for_the_precision_that_is_asked_for(tmp_path):
    saved(plain("mixtral").double(), tmp_path)
    with pytest.raises(InputError, match=r"'model\.norm\.weight' has 1 number that is not finite in torch\.float32"):
        load_full(spoilt(tmp_path, "model.norm.weight", 1e200))


def test_a_file_for_layers_of_our_own(tmp_path):
    def own(experts: int) -> nn.Module:
        return nn.Sequential(MoELayer(D, [nn.Linear(D, D) for _ in range(experts)], 2))

    save_file(own(M).state_dict(), tmp_path / "full.safetensors")
    spoilt(tmp_path, "0.experts.5.bias", file="full.safetensors")
    load_into(own(2), tmp_path / "full.safetensors", (1, 2))
    with pytest.raises(InputError, match=told(r"0\.experts\.5\.bias", "full.safetensors")):
        load_into(own(2), tmp_path / "full.safetensors", (1, 5))


def dense(folder: Path, **options: Any) -> Path:
    sizes = {key: value for key, value in SIZES.items() if key != "num_experts_per_tok"}
    AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **{**sizes, **options})).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    "name", ["model.layers.1.mlp.up_proj.weight", "model.layers.0.self_attn.q_proj.weight", "lm_head.weight"]
)
def test_models_to_build_from(name, tmp_path):
    base = dense(tmp_path / "base")
    bad = spoilt(dense(tmp_path / "bad"), name, math.inf)
    with pytest.raises(InputError, match=f"bad/{told(name)}"):
        upcycle(bad, 2, tmp_path / "moe")
    wrong, right = (
        ((base, bad), (bad, base)) if "mlp" in name else ((bad, base), (base, bad))
    )  # FFNs come from the experts alone
    with pytest.raises(InputError, match=f"bad/{told(name)}"):
        merge(wrong[0], [base, wrong[1]], tmp_path / "moe")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad", "base"]
    assert merge(right[0], [base, right[1]], tmp_path / "moe").experts == 2


@pytest.mark.parametrize(
    "name", ["model.layers.1.self_attn.q_proj.weight", "model.layers.0.block_sparse_moe.experts.2.w1.weight"]
)
def test_models_that_are_asked(name, tmp_path):
    spoilt(text.saved(tmp_path), name)
    with pytest.raises(InputError, match=told(name)):
        answers(tmp_path, tmp_path, ["good day"], 3)


def test_the_shard_is_named(tmp_path):
    text.saved(tmp_path / "whole")
    AutoModelForCausalLM.from_pretrained(tmp_path / "whole").save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    index = json.loads((tmp_path / "shards" / "model.safetensors.index.json").read_text())["weight_map"]
    name = "model.layers.1.self_attn.q_proj.weight"
    assert len(set(index.values())) > 1
    spoilt(tmp_path / "shards", name, file=index[name])
    with pytest.raises(InputError, match=told(name, index[name])):
        answers(tmp_path / "shards", tmp_path / "whole", ["good day"], 3)
