"""The reader against what save_pretrained writes: every layout, only the bytes asked for, and errors that teach."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForSequenceClassification

from families import FAMILIES, LAYOUTS, PER_EXPERT, SIZES, D, M, hub_folder, plain, saved
from fedexperts.errors import InputError
from fedexperts.moe.checkpoint import Checkpoint, resolve
from fedexperts.moe.parts import NotMoEError
from fedexperts.moe.subset import load_full

UP, GATE = "model.layers.1.mlp.experts.gate_up_proj", "model.layers.0.mlp.gate.weight"


@pytest.fixture(params=[family for family in FAMILIES if " " not in family])
def family(request) -> str:
    return request.param


@pytest.fixture
def mixtral(tmp_path) -> Path:
    return saved(plain("mixtral"), tmp_path / "mixtral")


@pytest.fixture
def shards(tmp_path) -> Path:
    return saved(plain("mixtral"), tmp_path / "shards", "as published, sharded")


# ---- what is read


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_parameter_reads_as_it_is_in_the_model(family, layout, tmp_path):
    model = plain(family)
    checkpoint = Checkpoint(saved(model, tmp_path, layout))
    assert checkpoint.experts == M
    assert ((tmp_path / "model.safetensors.index.json").exists()) == ("sharded" in layout)
    for name, tensor in model.state_dict().items():
        assert name in checkpoint
        assert checkpoint.shape(name) == tuple(tensor.shape)
        assert torch.equal(checkpoint.read(name), tensor), name
    assert checkpoint.read_B == sum(tensor.numel() * 4 for tensor in model.state_dict().values())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_rows_are_read_in_the_order_asked_and_nothing_else_is_read(family, layout, tmp_path):
    model = plain(family)
    checkpoint = Checkpoint(saved(model, tmp_path, layout))
    whole = model.state_dict()
    for name in [name for name in whole if name.endswith(PER_EXPERT)]:
        before = checkpoint.read_B
        rows = checkpoint.read(name, (5, 2))
        assert torch.equal(rows, whole[name][[5, 2]])
        assert checkpoint.read_B - before == rows.numel() * 4
        assert checkpoint.read(name, ()).shape == (0, *whole[name].shape[1:])


def test_values_are_converted_and_the_stored_type_is_the_default(tmp_path):
    model = plain("mixtral").to(torch.bfloat16)
    checkpoint = Checkpoint(saved(model, tmp_path))
    assert checkpoint.read(UP).dtype == torch.bfloat16
    assert torch.equal(checkpoint.read(UP, (1,), torch.float32)[0], model.state_dict()[UP][1].float())


def test_what_was_read_outlives_the_file(mixtral):
    tensor = Checkpoint(mixtral).read(GATE)
    expected = tensor.clone()
    (mixtral / "model.safetensors").write_bytes(b"\0" * (mixtral / "model.safetensors").stat().st_size)
    assert torch.equal(tensor, expected)


def test_a_model_saved_without_its_head_is_read_by_the_same_names(tmp_path):
    model = plain("mixtral")
    model.model.save_pretrained(tmp_path)
    assert torch.equal(Checkpoint(tmp_path).read(UP, (3,)), model.state_dict()[UP][3:4])


# ---- what is refused


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match=r"model\.path = .*nowhere.*no config\.json"):
        Checkpoint(tmp_path / "nowhere")


def test_a_config_that_is_no_config(mixtral):
    (mixtral / "config.json").write_text("{")
    with pytest.raises(InputError, match=r"config\.json': is not JSON"):
        Checkpoint(mixtral)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "last.ckpt", "weights.pth"])
def test_a_pickle_is_never_loaded(mixtral, name):
    (mixtral / "model.safetensors").unlink()
    (mixtral / name).write_bytes(pickle.dumps({}))
    with pytest.raises(InputError, match=f"(?s){name} is a pickle, which is never loaded.*save_pretrained"):
        Checkpoint(mixtral)


def test_weights_under_another_name_without_an_index(mixtral):
    (mixtral / "model.safetensors").rename(mixtral / "mine.safetensors")
    with pytest.raises(InputError, match=r"mine\.safetensors is neither"):
        Checkpoint(mixtral)


def test_a_truncated_file(mixtral):
    file = mixtral / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"model\.safetensors: cannot be loaded .* truncated"):
        Checkpoint(mixtral)


def test_a_truncated_shard(shards):
    file = next(iter(sorted(shards.glob("model-00002*"))))
    file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(InputError, match=rf"{file.name}: cannot be loaded"):
        Checkpoint(shards)


def test_a_missing_shard(shards):
    gone = sorted(shards.glob("*.safetensors"))[1]
    gone.unlink()
    with pytest.raises(InputError, match=f"shard '{gone.name}' is missing; copy it"):
        Checkpoint(shards)


def test_a_renamed_shard(shards):
    first, second = sorted(shards.glob("*.safetensors"))[:2]
    first.write_bytes(second.read_bytes())
    with pytest.raises(InputError, match=rf"{first.name}: tensor '.*' is not in it .*renamed"):
        Checkpoint(shards)


def test_an_index_that_leads_out_of_the_folder(shards):
    index = shards / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../other.safetensors"}}))
    with pytest.raises(InputError, match=r"'\.\./other\.safetensors' lies outside the folder"):
        Checkpoint(shards)


@pytest.mark.parametrize("text", ["{", "[]", '{"weight_map": 3}', '{"weight_map": {}}', "\x00"])
def test_an_index_without_a_map(shards, text):
    (shards / "model.safetensors.index.json").write_text(text)
    with pytest.raises(InputError, match=r"index\.json'?: (is not JSON|no weight_map)"):
        Checkpoint(shards)


def without(folder: Path, gone: str) -> None:
    file = folder / "model.safetensors"
    tensors = {name: tensor for name, tensor in load_file(file).items() if gone not in name}
    save_file(tensors, file)


@pytest.mark.parametrize(
    ("gone", "named"),
    [
        ("norm.weight", "norm.weight"),
        ("experts.3.", "gate_up_proj of expert 3"),
        ("experts.3.w3", r"experts\.3\.w3"),
        ("layers.1.block_sparse_moe.experts", "layers.1.mlp.experts.gate_up_proj"),
        ("gate.weight", "mlp.gate.weight"),
    ],
)
def test_a_missing_tensor_is_named(mixtral, gone, named):
    without(mixtral, gone)
    with pytest.raises(InputError, match=f"tensor .*{named}.* is missing; .*copy it again"):
        load_full(mixtral)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [("model.norm.weight", r"has shape \[13\], the config asks for \[12\]"), ("experts.4.w1.weight", r"experts\.4\.w1")],
)
def test_a_tensor_of_a_wrong_shape_is_named(mixtral, wrong, named):
    tensors = load_file(mixtral / "model.safetensors")
    for name in tensors:
        if name.endswith(wrong):
            tensors[name] = torch.ones(D + 1, *tensors[name].shape[1:])
    save_file(tensors, mixtral / "model.safetensors")
    with pytest.raises(InputError, match=named):
        load_full(mixtral)


def test_a_config_with_another_number_of_experts(mixtral):
    config = json.loads((mixtral / "config.json").read_text())
    (mixtral / "config.json").write_text(json.dumps({**config, "num_local_experts": 4}))
    with pytest.raises(InputError, match=r"gate.weight' has shape \[6, 12\], the config asks for \[4, 12\]"):
        load_full(mixtral)


def test_quantised_weights(mixtral):
    tensors = load_file(mixtral / "model.safetensors")
    save_file({name: tensor.to(torch.int8) for name, tensor in tensors.items()}, mixtral / "model.safetensors")
    with pytest.raises(InputError, match=r"stored as I8; .*before it was quantised"):
        load_full(mixtral)


def test_a_dense_model(tmp_path):
    config = AutoConfig.for_model("llama", **{k: v for k, v in SIZES.items() if k != "num_experts_per_tok"})
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(NotMoEError, match=r"model_type 'llama' has no Mixture-of-Experts layer"):
        load_full(tmp_path)


@pytest.mark.parametrize("m", [-1, 6])
def test_an_expert_that_does_not_exist(mixtral, m):
    with pytest.raises(InputError, match=f"no row {m}; give numbers in 0…5"):
        Checkpoint(mixtral).read(UP, (0, m))


# ---- folders and hub names


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Path:
    """A Hugging Face cache without network that holds ``org/tiny``."""
    return saved(plain("mixtral"), hub_folder(tmp_path / "hub", monkeypatch))


def test_a_folder_is_found_from_the_base(mixtral):
    assert resolve("mixtral", mixtral.parent) == mixtral
    assert resolve(str(mixtral), Path("/elsewhere")) == mixtral


def test_a_hub_name_is_found_in_the_cache(hub, tmp_path):
    assert resolve("org/tiny", tmp_path) == hub
    assert Checkpoint(resolve("org/tiny", tmp_path)).experts == M


def test_a_folder_comes_before_a_hub_name(hub, mixtral):
    folder = mixtral.parent / "org" / "tiny"
    folder.mkdir(parents=True)
    assert resolve("org/tiny", mixtral.parent) == folder


def test_a_hub_name_that_is_nowhere(hub, tmp_path):
    with pytest.raises(InputError, match=r"model\.path = 'org/none'.*cache or on the hub.*go online.*or give a folder"):
        resolve("org/none", tmp_path)


@pytest.mark.parametrize("name", ["nowhere", "../a/b", "a/b/c", "/x"])
def test_what_is_neither_a_folder_nor_a_hub_name(name, tmp_path):
    with pytest.raises(InputError, match=r"no folder .*no config\.json"):
        resolve(name, tmp_path)
