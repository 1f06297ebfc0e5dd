"""The convolutional MoE as a model of transformers and under a view: parts, routing by image, adapters, subsets, meta."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForImageClassification

from fedexperts.errors import InputError
from fedexperts.moe.auto import new_model
from fedexperts.moe.checkpoint import Checkpoint
from fedexperts.moe.conv import ConvMoEConfig, ConvMoEForImageClassification, normalised
from fedexperts.moe.lora import LoRA
from fedexperts.moe.meta import meta_view, read_config
from fedexperts.moe.parts import BACKBONE, GATE, HEAD, expert, is_expert
from fedexperts.moe.subset import load_full, load_subset
from fedexperts.moe.view import View
from pictures import CONFIG, images


def model(seed: int = 0, **options):
    return new_model({**CONFIG, **options}, seed, kind="image-classifier", outputs=4)


def batch(n: int = 12) -> dict[str, Tensor]:
    x, y = images(n)
    return {"pixel_values": torch.from_numpy(x).permute(0, 3, 1, 2), "labels": torch.from_numpy(y)}


def logits(net) -> Tensor:
    with torch.no_grad():
        return net(pixel_values=batch()["pixel_values"]).logits


def test_the_parts_are_backbone_gate_experts_and_head():
    view = View(model())
    assert set(view.parts) == {BACKBONE, GATE, HEAD, *map(expert, range(4))}
    assert all(name.startswith("stem.") for name in view.parts[BACKBONE])
    assert {name: tuple(t.shape) for name, t in view.parts[GATE].items()} == {"moe.gate.weight": (4, 4 * 16)}
    assert (view.experts, view.top_k, view.layers) == (4, 1, 1)
    assert set(view.parts[HEAD]) == {"head.weight", "head.bias"}


def test_the_forward_pass_is_stem_picked_expert_head():
    net, x = model().eval(), batch(5)["pixel_values"]
    with torch.no_grad():
        stem = net.stem(x.float() / 127.5 - 1)
        gate = net.moe.gate(F.adaptive_avg_pool2d(stem, 4).flatten(1))
        picked = [net.moe.experts[int(m)](one.relu().reshape(1, -1)) for one, m in zip(stem, gate.argmax(dim=1), strict=True)]
        wanted = net.head(torch.cat(picked).relu())
        assert torch.allclose(net(x).logits, wanted, atol=1e-6)


def test_an_expert_is_conv_relu_pool_twice_and_a_linear_layer():
    net = model()
    body, x = net.moe.experts[1], torch.randn(3, 4, 4, 4)
    h = F.max_pool2d(body.first(x).relu(), 2)
    wanted = body.output(F.max_pool2d(body.second(h).relu(), 2).flatten(1))
    assert torch.allclose(body(x.flatten(1)), wanted, atol=1e-6)


def test_pixels_become_numbers_from_minus_one_to_one_and_floats_stay():
    assert normalised(torch.tensor([0, 255], dtype=torch.uint8)).tolist() == [-1.0, 1.0]
    x = batch()["pixel_values"]
    with torch.no_grad():
        assert torch.equal(model()(normalised(x)).logits, model()(x).logits)


def test_an_image_s_logits_do_not_depend_on_its_batch():
    """Normalised over groups of channels, not over the batch."""
    net, x = model().train(), batch()["pixel_values"]
    with torch.no_grad():
        assert torch.allclose(net(x).logits[:1], net(x[:1]).logits, atol=1e-6)


def test_training_moves_every_part_and_learns():
    view = View(model())
    leaves = [leaf for _, _, leaf in view.freeze(but=view.parts)]
    before = {part: view.export(part) for part in view.parts}
    optimizer, data = torch.optim.AdamW(leaves, lr=1e-2), batch(64)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = F.cross_entropy(view(data), data["labels"])
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]
    met = [part for part in view.parts if any(not torch.equal(before[part][n], t) for n, t in view.export(part).items())]
    assert {BACKBONE, GATE, HEAD} < set(met)


def test_frozen_parts_get_no_gradient_and_a_mask_decides_who_is_met():
    view = View(model())
    view.freeze(but=[expert(2)])
    view.route([expert(2)])
    F.cross_entropy(view(batch()), batch()["labels"]).backward()
    with_gradient = {part for part, leaves in view.parts.items() if any(leaf.grad is not None for leaf in leaves.values())}
    assert with_gradient == {expert(2)}


@pytest.mark.parametrize("top_k", [1, 2])
def test_a_trial_pass_counts_one_token_for_each_image(top_k):
    view = View(model(num_experts_per_tok=top_k))
    counts_LM, tokens = view.observe([batch(7), batch(5)])
    assert tokens == 12
    assert counts_LM.shape == (1, 4)
    assert counts_LM.sum() == 12 * top_k


def test_transformers_saves_and_loads_it(tmp_path):
    net = model(seed=3)
    net.save_pretrained(tmp_path)
    theirs = AutoModelForImageClassification.from_pretrained(tmp_path)
    assert type(theirs) is ConvMoEForImageClassification
    assert torch.equal(logits(theirs), logits(net))
    assert torch.equal(logits(load_full(tmp_path, AutoModelForImageClassification, outputs=4)), logits(net))
    assert (
        load_full(tmp_path, AutoModelForImageClassification, torch.bfloat16)(batch()["pixel_values"]).logits.dtype
        == torch.bfloat16
    )
    with pytest.raises(InputError, match="its head has 4 outputs, the tasks need 10"):
        load_full(tmp_path, AutoModelForImageClassification, outputs=10)


def test_the_seed_decides_on_the_weights():
    assert torch.equal(logits(model(1)), logits(model(1)))
    assert not torch.equal(logits(model(1)), logits(model(2)))
    assert float(model().stem[0].weight.detach().std()) > 0.05  # fan-in, not a constant 0.02


def test_a_subset_computes_what_the_mask_computes(tmp_path):
    net = model(num_experts_per_tok=2)
    net.save_pretrained(tmp_path)
    part = View(load_subset(Checkpoint(tmp_path), [1, 3], AutoModelForImageClassification), kept=(1, 3))
    full = View(net)
    full.route([expert(1), expert(3)])
    with torch.no_grad():
        assert torch.allclose(part(batch()), full(batch()), atol=1e-6)
    assert set(part.parts) == {BACKBONE, GATE, HEAD, expert(1), expert(3)}


def test_adapters_hang_on_the_linear_layer_of_an_expert():
    view = View(model())
    view.adapt(LoRA(2, 4.0, "refactor"), seed=0)
    before = view(batch()).detach()
    leaves = view.freeze(but=[expert(m) for m in range(4)])
    assert {name for _, name, _ in leaves} == {
        f"moe.experts.{m}.output.{factor}" for m in range(4) for factor in ("lora_A", "lora_B")
    }
    for _ in range(2):  # B starts at zero, so that A has a gradient from the second step on
        for _, _, leaf in leaves:
            leaf.grad = None
        F.cross_entropy(view(batch()), batch()["labels"]).backward()
        with torch.no_grad():
            for _, _, leaf in leaves:
                leaf -= 0 if leaf.grad is None else leaf.grad
    adapted = view(batch()).detach()
    assert not torch.allclose(adapted, before)
    view.merge()
    assert torch.allclose(view(batch()), adapted, atol=1e-5)


def test_its_sizes_come_from_the_config_alone(tmp_path):
    view = meta_view({**CONFIG, "num_labels": 4})
    wanted = {part: sum(t.numel() for t in tensors.values()) for part, tensors in View(model()).parts.items()}
    assert {part: sum(t.numel() for t in tensors.values()) for part, tensors in view.parts.items()} == wanted
    assert all(tensor.is_meta for part in filter(is_expert, view.parts) for tensor in view.parts[part].values())
    model().save_pretrained(tmp_path)
    assert meta_view(read_config(str(tmp_path))).experts == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 7}, "image_size = 7: must be at least 8"),
        ({"channels": 6}, "channels = 6: must be a multiple of 4"),
        ({"num_experts_per_tok": 5}, r"num_experts_per_tok = 5 \(K\) must lie between 1 and num_experts = 4"),
    ],
)
def test_configs_that_cannot_be_built_are_told(options, message):
    with pytest.raises(InputError, match=rf"model.config: .*{message}"):
        model(**options)


def test_a_config_says_what_it_leaves_out():
    config = ConvMoEConfig(num_labels=10)
    assert (config.image_size, config.in_channels, config.num_experts, config.num_experts_per_tok) == (32, 3, 8, 1)
