"""Loading classifiers: one seed one model, and errors that name the field."""

from __future__ import annotations

import pickle

import pytest
import torch

from fedexperts.errors import InputError
from fedexperts.moe.auto import new_model
from fedexperts.moe.subset import load_full

SIZES = {
    "vocab_size": 19,
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "num_experts_per_tok": 2,
    "pad_token_id": 18,
    "num_labels": 3,
}
MIXTRAL = {"model_type": "mixtral", "num_local_experts": 3, **SIZES}


def test_random_weights_depend_on_the_seed_alone():
    torch.manual_seed(5)
    a = new_model(MIXTRAL, seed=1).state_dict()
    torch.manual_seed(6)
    b, c = new_model(MIXTRAL, seed=1).state_dict(), new_model(MIXTRAL, seed=2).state_dict()
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert any(not torch.equal(a[name], c[name]) for name in a)


def test_a_new_model_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    new_model(MIXTRAL, seed=1)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"model_type": "no-such-model"}, "no-such-model"),
        ({"num_experts_per_tok": 4}, r"num_experts_per_tok = 4 .* between 1 and num_local_experts = 3"),
        ({"hidden_size": "wide"}, "hidden_size"),
    ],
)
def test_a_wrong_config_is_refused_by_name(change, names):
    with pytest.raises(InputError, match=f"(?s)model.config: .*{names}"):
        new_model({**MIXTRAL, **change}, seed=0)


def test_a_config_without_model_type_is_refused():
    with pytest.raises(InputError, match=r"model\.config"):
        new_model({k: v for k, v in MIXTRAL.items() if k != "model_type"}, seed=0)


def test_a_qwen2_moe_config_is_not_mistaken_for_one_with_too_few_experts():
    """Its config has num_experts and no num_local_experts."""
    qwen2 = {
        "model_type": "qwen2_moe",
        "num_experts": 3,
        "moe_intermediate_size": 8,
        "shared_expert_intermediate_size": 8,
    }
    assert new_model({**qwen2, **SIZES}, seed=0).config.num_experts == 3


def test_a_saved_classifier_loads_to_the_same_weights(tmp_path):
    model = new_model(MIXTRAL, seed=1)
    model.save_pretrained(tmp_path)
    loaded = load_full(tmp_path).state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in model.state_dict().items())


def test_a_missing_folder_is_refused_with_its_path(tmp_path):
    with pytest.raises(InputError, match=r"model\.path = .*nowhere.*config\.json"):
        load_full(tmp_path / "nowhere")


def test_a_pickled_checkpoint_is_never_loaded(tmp_path):
    new_model(MIXTRAL, seed=1).config.save_pretrained(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps({}))
    with pytest.raises(InputError, match=r"pytorch_model\.bin is a pickle"):
        load_full(tmp_path)


def test_a_folder_without_weights_is_refused(tmp_path):
    new_model(MIXTRAL, seed=1).config.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="no safetensors file"):
        load_full(tmp_path)


def test_a_broken_safetensors_file_is_refused(tmp_path):
    new_model(MIXTRAL, seed=1).config.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"not a tensor")
    with pytest.raises(InputError, match=r"model\.safetensors: cannot be loaded"):
        load_full(tmp_path)
