"""Merged and upcycled models: dense models are in them, plain transformers loads them, wrong input is refused by name."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedTokenizerFast

from families import SIZES, batch, plain, saved
from fedexperts.errors import InputError, RunError
from fedexperts.moe import written
from fedexperts.moe.build import merge, upcycle
from fedexperts.moe.checkpoint import Checkpoint
from fedexperts.moe.parts import expert
from fedexperts.moe.subset import load_full, load_subset
from fedexperts.moe.view import View

DENSE: dict[str, Any] = {name: value for name, value in SIZES.items() if name != "num_experts_per_tok"}
ROPE = {"rope_type": "linear", "rope_theta": 500.0, "factor": 4.0}
X = {"input_ids": batch()["input_ids"]}


def dense(folder: Path, seed: int = 0, family: str = "llama", kind: Any = AutoModelForCausalLM, **options: Any) -> Any:
    """A dense model with random weights, and its checkpoint."""
    layout = options.pop("layout", {})
    torch.manual_seed(seed)
    config = AutoConfig.for_model(family, **{**DENSE, **options})
    model = kind.from_config(config, dtype=options.get("dtype", torch.float32)).eval()
    model.save_pretrained(folder, **layout)
    return model


def with_ffns(model: Any, other: Any) -> Any:
    """The first model with the FFNs of the other."""
    model.load_state_dict({**model.state_dict(), **{n: t for n, t in other.state_dict().items() if ".mlp." in n}})
    return model


def folders(root: Path, n: int = 3, **options: Any) -> list[Path]:
    """Checkpoints of n different dense models."""
    for i in range(n):
        dense(root / f"dense{i}", i, **options)
    return [root / f"dense{i}" for i in range(n)]


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model(**X).logits


def same(ours: Tensor, wanted: Tensor) -> bool:
    """Equal but for rounding: an expert's products are taken over other groups of tokens than the dense model's."""
    return bool((ours - wanted).abs().max() <= 1e-6 * wanted.abs().max())


@pytest.mark.parametrize("top_k", [1, 2])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"rope_parameters": ROPE, "rms_norm_eps": 1e-2, "head_dim": 8, "tie_word_embeddings": True},
        {"layout": {"max_shard_size": "4KB"}},
        {"family": "mistral", "sliding_window": 3},
        {"family": "mistral", "sliding_window": None},
    ],
    ids=["plain", "other constants, tied", "sharded", "mistral's window", "mistral"],
)
def test_equal_ffns_give_the_dense_model(options, top_k, tmp_path):
    model = dense(tmp_path / "dense", **options)
    merge(tmp_path / "dense", [tmp_path / "dense"] * 3, tmp_path / "moe", top_k=top_k)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "moe")
    assert type(loaded).__name__ == "MixtralForCausalLM"
    assert (loaded.config.num_local_experts, loaded.config.num_experts_per_tok) == (3, top_k)
    assert same(logits(loaded), logits(model))


def test_a_forced_expert_is_the_base_with_its_ffns(tmp_path):
    base = dense(tmp_path / "base", 9)
    experts = folders(tmp_path)
    merge(tmp_path / "base", experts, tmp_path / "moe")
    view = View(AutoModelForCausalLM.from_pretrained(tmp_path / "moe"))
    for m, path in enumerate(experts):
        view.route({expert(m)})
        wanted = logits(with_ffns(base, AutoModelForCausalLM.from_pretrained(path)))
        assert same(view(X), wanted)


def test_a_forced_expert_is_a_dense_model_with_the_bases_attention(tmp_path):
    base = dense(tmp_path / "base")
    for m in range(2):
        with_ffns(base, dense(tmp_path / "other", m + 1)).save_pretrained(tmp_path / f"tuned{m}")
    merge(tmp_path / "base", [tmp_path / "tuned0", tmp_path / "tuned1"], tmp_path / "moe")
    view = View(AutoModelForCausalLM.from_pretrained(tmp_path / "moe"))
    for m in range(2):
        view.route({expert(m)})
        wanted = logits(AutoModelForCausalLM.from_pretrained(tmp_path / f"tuned{m}"))
        assert same(view(X), wanted)


def test_the_gate_learns_at_one_pick_and_plain_transformers_computes_the_same(tmp_path):
    experts = folders(tmp_path)
    merge(experts[0], experts, tmp_path / "moe", seed=3)
    view = View(AutoModelForCausalLM.from_pretrained(tmp_path / "moe"), top1="straight-through")
    leaves = [leaf for _, _, leaf in view.freeze({"gate"})]
    optimizer = torch.optim.SGD(leaves, lr=0.1)
    view(X).square().mean().backward()
    assert all(leaf.grad.abs().max() > 1e-4 for leaf in leaves)
    optimizer.step()
    view.model.save_pretrained(tmp_path / "tuned")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "tuned")
    assert same(logits(again), view(X))


def test_every_tensor_is_where_it_belongs_and_keeps_its_type(tmp_path):
    experts = folders(tmp_path, dtype=torch.bfloat16)
    built = merge(experts[1], experts, tmp_path / "moe")
    checkpoint = Checkpoint(tmp_path / "moe")
    assert {checkpoint.store.dtypes[name] for name in checkpoint.store.dtypes} == {"BF16"}
    assert checkpoint.config.dtype == torch.bfloat16
    assert NO_TOKENIZER in built.notes[0]
    for m, path in enumerate(experts):
        stored, fused = load_file(path / "model.safetensors"), checkpoint.read("model.layers.1.mlp.experts.gate_up_proj")
        gate, up = (stored[f"model.layers.1.mlp.{name}_proj.weight"] for name in ("gate", "up"))
        assert torch.equal(fused[m], torch.cat([gate, up]))
    base = load_file(experts[1] / "model.safetensors")
    assert all(torch.equal(checkpoint.read(name), tensor) for name, tensor in base.items() if ".mlp." not in name)
    assert built.parameters == sum(p.numel() for p in AutoModelForCausalLM.from_pretrained(tmp_path / "moe").parameters())
    assert (built.experts, built.top_k, built.layers) == (3, 1, (0, 1))


NO_TOKENIZER = "not both it and the base have one of tokenizer.json, vocab.txt, tokenizer.model"


def test_the_random_gate_depends_on_the_seed_alone(tmp_path):
    experts = folders(tmp_path, 2)
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        merge(experts[0], experts, tmp_path / name, seed=seed)
    a, b, c = ((tmp_path / name / "model.safetensors").read_bytes() for name in "abc")
    assert a == b
    assert a != c
    gate = Checkpoint(tmp_path / "a").read("model.layers.0.mlp.gate.weight")
    assert 0.15 < gate.std() < 0.45  # initializer_range is 0.3


def test_large_models_are_written_in_shards(tmp_path, monkeypatch):
    experts = folders(tmp_path, 2)
    merge(experts[0], experts, tmp_path / "one")
    monkeypatch.setattr(written, "SHARD_B", 4000)
    merge(experts[0], experts, tmp_path / "many")
    files = sorted(tmp_path.glob("many/*.safetensors"))
    assert len(files) > 3
    assert all(path.stat().st_size < 6000 for path in files)
    one, many = (AutoModelForCausalLM.from_pretrained(tmp_path / name) for name in ("one", "many"))
    assert torch.equal(logits(one), logits(many))


def test_classifiers_and_headless_models_merge_too(tmp_path):
    reference = dense(tmp_path / "classifier", kind=AutoModelForSequenceClassification)
    merge(tmp_path / "classifier", [tmp_path / "classifier"] * 2, tmp_path / "a")
    assert same(logits(load_full(tmp_path / "a")), logits(reference))
    reference.model.save_pretrained(tmp_path / "headless")
    merge(tmp_path / "headless", [tmp_path / "headless"] * 2, tmp_path / "b")
    model = load_subset(tmp_path / "b", [0])
    model.score.weight.data.copy_(reference.score.weight.data)
    assert same(logits(model), logits(reference))


# ---- upcycling


@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_an_upcycled_model_computes_what_the_dense_one_does(top_k, tmp_path):
    model = dense(tmp_path / "dense", rope_parameters=ROPE)
    built = upcycle(tmp_path / "dense", 4, tmp_path / "moe", top_k)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "moe")
    assert same(logits(loaded), logits(model))
    assert (built.experts, built.top_k, built.layers) == (4, top_k, (0, 1))
    assert built.parameters == sum(p.numel() for p in loaded.parameters())


@pytest.mark.parametrize("top_k", [1, 2])
def test_an_upcycled_gate_gets_a_gradient_once_experts_differ(top_k, tmp_path):
    dense(tmp_path / "dense")
    upcycle(tmp_path / "dense", 4, tmp_path / "moe", top_k)
    view = View(AutoModelForCausalLM.from_pretrained(tmp_path / "moe"))
    leaves = view.freeze(view.parts)
    optimizer = torch.optim.SGD([leaf for _, _, leaf in leaves], lr=0.01)
    losses = []
    for _ in range(4):
        optimizer.zero_grad()
        losses.append(view(X).square().mean())
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < losses[0]
    assert all(leaf.grad.abs().max() > 1e-6 for part, _, leaf in leaves if part == "gate")


def test_the_gates_spread_can_be_chosen(tmp_path):
    dense(tmp_path / "dense")
    upcycle(tmp_path / "dense", 8, tmp_path / "moe", gate_std=0.001)
    assert 0.0005 < Checkpoint(tmp_path / "moe").read("model.layers.1.mlp.gate.weight").std() < 0.002


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"experts": 1}, "--experts 1: must be at least 2"),
        ({"top_k": 5}, "--top-k 5: must lie between 1 and the number of experts, 4"),
        ({"gate_std": -1.0}, "--gate-std -1.0: must be a number of at least 0"),
        ({"layers": [0, 2]}, "--layers 0,2: name layers in 0…1"),
        ({"layers": []}, "at least one"),
        ({"layers": [1]}, "--layers 1: every layer of a Mixtral is MoE, .* leave out --layers"),
    ],
)
def test_wrong_numbers_are_refused(options, message, tmp_path):
    dense(tmp_path / "dense")
    with pytest.raises(InputError, match=message):
        upcycle(**{"model": tmp_path / "dense", "experts": 4, "out": tmp_path / "moe", **options})


def test_other_families_cannot_be_upcycled(tmp_path):
    dense(tmp_path / "dense", family="qwen2")
    with pytest.raises(InputError, match="model_type 'qwen2'"):
        upcycle(tmp_path / "dense", 2, tmp_path / "moe")


# ---- the gate from hidden states


WORDS = ["<pad>", "</s>", "satellite", "orbit", "beam", "vitamin", "dose", "liver"]


def tokenizer(folder: Path, words: list[str] = WORDS) -> None:
    raw = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<pad>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", eos_token="</s>").save_pretrained(folder)


def test_hidden_rows_send_tokens_to_the_expert_whose_prompts_they_resemble(tmp_path):
    experts = folders(tmp_path, 2)
    for path in experts:
        tokenizer(path)
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('["satellite orbit", "beam orbit satellite"]\n["vitamin dose", "liver dose"]\n')
    built = merge(experts[0], experts, tmp_path / "moe", "hidden", prompts)
    assert built.notes == ()
    checkpoint = Checkpoint(tmp_path / "moe")
    assert (tmp_path / "moe" / "tokenizer.json").read_bytes() == (experts[0] / "tokenizer.json").read_bytes()
    gate = checkpoint.read("model.layers.0.mlp.gate.weight")
    assert torch.allclose(gate.norm(dim=-1), torch.ones(2))
    picks = View(load_full(checkpoint, AutoModelForCausalLM)).observe
    for m, ids in enumerate([[2, 3, 4], [5, 6, 7]]):
        counts_LM, tokens = picks([{"input_ids": torch.tensor([ids])}])
        assert (counts_LM[0, m], tokens) == (3, 3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('["a"]\n', "has 1 lines for 2 experts"),
        ('["a"]\n{"a": 1}\n', "line 2: must be a list of texts"),
        ('["a"]\n[]\n', "line 2: must be a list of texts"),
        ("a\n", r"prompts\.jsonl': is not JSON .*one line for each expert"),
        ('["satellite"]\n[""]\n', "has no tokens"),
    ],
)
def test_wrong_prompts_are_refused(text, message, tmp_path):
    experts = folders(tmp_path, 2)
    tokenizer(experts[0])
    (tmp_path / "prompts.jsonl").write_text(text)
    with pytest.raises(InputError, match=message):
        merge(experts[0], experts, tmp_path / "moe", "hidden", tmp_path / "prompts.jsonl")
    assert not (tmp_path / "moe").exists()


def test_hidden_needs_prompts_and_a_tokenizer(tmp_path):
    experts = folders(tmp_path, 2)
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('["a"]\n["b"]\n')
    for gate, given in (("hidden", None), ("random", prompts)):
        with pytest.raises(InputError, match="go together"):
            merge(experts[0], experts, tmp_path / "moe", gate, given)
    with pytest.raises(InputError, match="needs the base's tokenizer"):
        merge(experts[0], experts, tmp_path / "moe", "hidden", prompts)


# ---- wrong input


def test_experts_of_another_size_are_refused_with_file_tensor_shapes_and_remedy(tmp_path):
    dense(tmp_path / "base")
    dense(tmp_path / "wide", intermediate_size=20)
    message = (
        r"wide/model\.safetensors: tensor 'model\.layers\.0\.mlp\.gate_proj\.weight' has shape \[20, 12\], "
        r"the base's config\.json asks for \[16, 12\]; give checkpoints of one architecture and size"
    )
    with pytest.raises(InputError, match=message):
        merge(tmp_path / "base", [tmp_path / "base", tmp_path / "wide"], tmp_path / "moe")
    dense(tmp_path / "deep", num_hidden_layers=3)
    with pytest.raises(InputError, match=r"deep/config\.json: num_hidden_layers is 3, the base's is 2"):
        merge(tmp_path / "base", [tmp_path / "base", tmp_path / "deep"], tmp_path / "moe")
    assert not list(tmp_path.glob("moe*"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([*WORDS[:3], "moon", *WORDS[4:]], "3 is 'moon' there and 'orbit' in"),
        ([*WORDS, "kidney"], "8 is 'kidney' there and None in"),
    ],
)
def test_other_tokenizers_are_refused_by_their_first_difference(words, message, tmp_path):
    experts = folders(tmp_path, 2)
    tokenizer(experts[0])
    tokenizer(experts[1], words)
    with pytest.raises(InputError, match=f"tokenizer\\.json: differs from the base's: {message}"):
        merge(experts[0], experts, tmp_path / "moe")


def test_tokenizers_of_older_formats_are_compared_as_files(tmp_path):
    experts = folders(tmp_path, 2)
    for file, key in (("tokenizer.model", "SHA-256 is 'df7e70e5"), ("vocab.txt", "0 is 'B' there and 'A'")):
        for path, text in zip(experts, "AB", strict=True):
            (path / file).write_text(text)
        with pytest.raises(InputError, match=f"{file}: differs from the base's: {key}"):
            merge(experts[0], experts, tmp_path / "moe")


def test_a_model_in_another_type_is_converted_and_the_user_is_told(tmp_path):
    experts = folders(tmp_path, 2)
    dense(tmp_path / "half", dtype=torch.bfloat16, rope_parameters=ROPE)
    built = merge(experts[0], [*experts, tmp_path / "half"], tmp_path / "moe")
    assert f"{tmp_path / 'half'}: stored in torch.bfloat16; converted to the base's torch.float32" in built.notes
    assert f"{tmp_path / 'half'}: its rope_parameters differ from the base's, which are used" in built.notes


@pytest.mark.parametrize(
    ("family", "options", "message"),
    [
        ("qwen2", {}, "model_type 'qwen2' is not dense, or cannot become MoE"),
        ("llama", {"attention_bias": True}, "attention_bias is true in config.json"),
        ("llama", {"mlp_bias": True}, "mlp_bias is true in config.json"),
    ],
)
def test_what_mixtral_cannot_express_is_refused(family, options, message, tmp_path):
    dense(tmp_path / "dense", family=family, **options)
    with pytest.raises(InputError, match=message):
        merge(tmp_path / "dense", [tmp_path / "dense"] * 2, tmp_path / "moe")


def test_a_model_that_is_moe_already_is_refused(tmp_path):
    saved(plain("mixtral"), tmp_path / "mixtral")
    with pytest.raises(InputError, match="model_type 'mixtral' is not dense"):
        merge(tmp_path / "mixtral", [tmp_path / "mixtral"] * 2, tmp_path / "moe")


def test_pickles_and_incomplete_checkpoints_are_refused(tmp_path):
    experts = folders(tmp_path, 3)
    (experts[1] / "model.safetensors").unlink()
    torch.save({}, experts[1] / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"pytorch_model\.bin is a pickle"):
        merge(experts[0], experts, tmp_path / "moe")
    tensors = load_file(experts[2] / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, experts[2] / "model.safetensors")
    with pytest.raises(InputError, match=r"dense2.*'model\.layers\.1\.mlp\.up_proj\.weight' is missing"):
        merge(experts[0], [experts[0], experts[2]], tmp_path / "moe")


def test_numbers_and_folders_are_checked_before_anything_is_read(tmp_path):
    nowhere, out = tmp_path / "nowhere", tmp_path / "moe"
    with pytest.raises(InputError, match="names 1 folder; name at least two"):
        merge(nowhere, [nowhere], out)
    with pytest.raises(InputError, match="--top-k 3: must lie between 1 and the number of experts, 2"):
        merge(nowhere, [nowhere] * 2, out, top_k=3)
    out.mkdir()
    (out / "mine.txt").write_text("")
    with pytest.raises(InputError, match="already holds files; name another folder"):
        merge(nowhere, [nowhere] * 2, out)
    (out / "mine.txt").unlink()
    with pytest.raises(InputError, match=r"no config\.json there"):
        merge(nowhere, [nowhere] * 2, out)
    experts = folders(tmp_path, 2)
    assert merge(experts[0], experts, out).out == out
    assert json.loads((out / "config.json").read_text())["model_type"] == "mixtral"


def test_a_writing_that_fails_leaves_nothing(tmp_path, monkeypatch):
    experts = folders(tmp_path, 2)

    def fail(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "disk full")

    monkeypatch.setattr(written, "save_file", fail)
    with pytest.raises(RunError, match="moe: disk full; make room"):
        merge(experts[0], experts, tmp_path / "moe")
    assert not list(tmp_path.glob("moe*"))
