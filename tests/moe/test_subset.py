"""Models with some of the experts against the full model: masked, streamed, trained."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from families import FAMILIES, LAYOUTS, D, K, M, auto_class, batch, plain, saved
from fedexperts.errors import InputError
from fedexperts.moe.checkpoint import Checkpoint
from fedexperts.moe.layer import MoELayer
from fedexperts.moe.load import load_classifier, new_classifier
from fedexperts.moe.parts import NotMoEError
from fedexperts.moe.subset import load_full, load_into, load_subset
from fedexperts.moe.view import View

KEEP = (2, 5)


@pytest.fixture(params=FAMILIES)
def family(request) -> str:
    return request.param


def folder_of(family: str, folder: Path, layout: str = "as published", **options) -> Path:
    return saved(plain(family, **options), folder, layout)


def same(a: nn.Module, b: nn.Module) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def inputs(samples: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value for key, value in samples.items() if key != "labels"}


# ---- the whole model


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_full_model_is_what_transformers_loads(family, layout, tmp_path):
    reference = plain(family)
    saved(reference, tmp_path, layout)
    loaded = load_full(tmp_path, auto_class(family))
    assert same(loaded, auto_class(family).from_pretrained(tmp_path))
    assert torch.equal(loaded(**inputs(batch())).logits, reference(**inputs(batch())).logits)
    assert not loaded.training
    assert all(parameter.requires_grad for parameter in loaded.parameters())


def test_other_kinds_of_rotary_embeddings_are_rebuilt_too(tmp_path):
    rope = {"rope_type": "linear", "rope_theta": 500.0, "factor": 4.0}
    reference = plain("mixtral", rope_parameters=rope)
    loaded = load_full(saved(reference, tmp_path))
    assert torch.equal(loaded(**inputs(batch())).logits, reference(**inputs(batch())).logits)


def test_weights_are_of_the_type_asked_for_and_frequencies_stay_exact(tmp_path):
    folder_of("mixtral", tmp_path)
    for model in (load_classifier(tmp_path, torch.bfloat16), load_subset(tmp_path, KEEP, dtype=torch.bfloat16)):
        assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
        assert {buffer.dtype for buffer in model.buffers()} == {torch.float32}
        assert View(model)(batch()).isfinite().all()  # transformers' own grouped product wants larger sizes in bfloat16
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert same(load_classifier(tmp_path, torch.bfloat16), theirs)
    config = {"model_type": "mixtral", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "pad_token_id": 0}
    new = new_classifier({**config, "num_key_value_heads": 2, "vocab_size": 5, "intermediate_size": 8}, 0, torch.bfloat16)
    assert {parameter.dtype for parameter in new.parameters()} == {torch.bfloat16}


def test_tied_weights_stay_tied(tmp_path):
    folder_of("olmoe", tmp_path, tie_word_embeddings=True)
    model = load_subset(tmp_path, KEEP, AutoModelForCausalLM)
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_a_language_model_becomes_a_classifier_whose_head_depends_on_the_seed_alone(tmp_path):
    saved(plain("mixtral", AutoModelForCausalLM), tmp_path)
    state = torch.get_rng_state()
    a, b, c = (load_classifier(tmp_path, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert same(a, b)
    assert not torch.equal(a.score.weight, c.score.weight)
    assert 0.1 < a.score.weight.std() < 0.6  # initializer_range is 0.3
    assert torch.equal(load_subset(tmp_path, KEEP, seed=1).score.weight, a.score.weight)


def test_a_classifier_is_no_language_model(tmp_path):
    with pytest.raises(InputError, match=r"lm_head\.weight' is missing"):
        load_full(folder_of("mixtral", tmp_path), AutoModelForCausalLM)


def test_olmoe_has_no_classifier_and_the_message_says_so(tmp_path):
    with pytest.raises(InputError, match="cannot build AutoModelForSequenceClassification of a 'olmoe' config"):
        load_classifier(folder_of("olmoe", tmp_path))


def test_a_family_that_the_view_does_not_know_is_refused(tmp_path):
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": 9}
    config = {"model_type": "gpt_oss", "head_dim": 4, "num_local_experts": 2, "num_experts_per_tok": 1, "pad_token_id": 0}
    new_classifier({**config, **sizes, "intermediate_size": 8}, seed=0).save_pretrained(tmp_path)
    with pytest.raises(NotMoEError, match="not supported yet"):
        load_classifier(tmp_path)


# ---- some of its experts


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_subset_is_a_plain_model_of_the_kept_experts_and_nothing_else_is_read(family, layout, tmp_path):
    full = plain(family)
    checkpoint = Checkpoint(saved(full, tmp_path, layout))
    model = load_subset(checkpoint, KEEP, auto_class(family))
    assert (checkpoint.experts, model.config.num_experts_per_tok) == (M, 2)
    for name, tensor in model.state_dict().items():
        whole = full.state_dict()[name]
        assert torch.equal(tensor, whole[list(KEEP)] if "mlp" in name else whole), name
    assert checkpoint.read_B == sum(p.numel() * 4 for p in model.parameters())


def test_a_saved_subset_is_loaded_by_plain_transformers(tmp_path):
    model = load_subset(folder_of("mixtral", tmp_path / "full"), KEEP)
    model.save_pretrained(tmp_path / "subset")
    assert same(AutoModelForSequenceClassification.from_pretrained(tmp_path / "subset"), model)


def test_k_is_at_most_the_number_of_kept_experts(tmp_path):
    model = load_subset(folder_of("mixtral", tmp_path), (4,))
    assert (model.config.num_local_experts, model.config.num_experts_per_tok) == (1, 1)


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        ((), r"keep = \(\): a model needs at least one expert"),
        ((1, 6), r"keep = \[1, 6\]: there is no expert 6; give numbers in 0…5"),
        ((-1,), r"there is no expert -1"),
        ((1, 1), r"an expert is named twice"),
    ],
)
def test_a_wrong_choice_of_experts_is_refused(keep, message, tmp_path):
    with pytest.raises(InputError, match=message):
        load_subset(folder_of("mixtral", tmp_path), keep)


# ---- our own layer


def own(experts: int, top_k: int = K) -> nn.Module:
    torch.manual_seed(0)
    bodies = [nn.Sequential(nn.Linear(D, 8), nn.Tanh(), nn.Linear(8, D)) for _ in range(experts)]
    return nn.Sequential(nn.Linear(D, D), nn.BatchNorm1d(D), MoELayer(D, bodies, top_k), nn.Linear(D, 3)).eval()


def test_our_own_layer_is_filled_from_the_file_of_the_full_module(tmp_path):
    full, part = own(M), own(len(KEEP))
    save_file(full.state_dict(), tmp_path / "full.safetensors")
    load_into(part, tmp_path / "full.safetensors", KEEP)
    full[2].router.allowed_E = torch.tensor([m in KEEP for m in range(M)])
    x_TD = torch.randn(9, D)
    assert torch.allclose(part(x_TD), full(x_TD), atol=1e-6)


def test_a_bare_layer_is_filled_too(tmp_path):
    full, part = MoELayer(D, [nn.Linear(D, D) for _ in range(M)], K), MoELayer(D, [nn.Linear(D, D) for _ in KEEP], K)
    save_file(full.state_dict(), tmp_path / "full.safetensors")
    load_into(part, tmp_path / "full.safetensors", KEEP)
    assert torch.equal(part.experts[1].bias, full.experts[5].bias)
    assert torch.equal(part.gate.weight, full.gate.weight[[2, 5]])


@pytest.mark.parametrize(
    ("change", "keep", "message"),
    [
        ({"0.weight": None}, KEEP, r"tensor '0\.weight' is missing"),
        ({"2.experts.5.0.weight": torch.ones(2, 2)}, KEEP, r"'2\.experts\.5\.0\.weight' has shape \[2, 2\]"),
        ({"2.gate.weight": torch.ones(M)}, KEEP, r"'2\.gate\.weight' has shape \[6\]"),
        ({}, (2, 6), r"there is no expert 6; give numbers in 0…5"),
    ],
)
def test_a_file_that_does_not_fit_our_own_layer_is_refused(change, keep, message, tmp_path):
    tensors = {**own(M).state_dict(), **change}
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, tmp_path / "full.safetensors")
    with pytest.raises(InputError, match=message):
        load_into(own(len(KEEP)), tmp_path / "full.safetensors", keep)


def test_a_module_without_our_layer_is_refused(tmp_path):
    with pytest.raises(NotMoEError, match="Linear: no MoELayer in it"):
        load_into(nn.Linear(2, 2), tmp_path / "none.safetensors", KEEP)
