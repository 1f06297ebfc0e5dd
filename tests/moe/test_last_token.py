"""A classifier without a padding token is one with it: the mask says where a sequence ends."""

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from fedexperts.moe.view import View

SIZES: dict[str, Any] = {
    "vocab_size": 40, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2, "num_labels": 3, "max_position_embeddings": 16,
}  # fmt: skip
PAD = 39


def model(**padding: Any) -> Any:
    torch.manual_seed(3)
    return AutoModelForSequenceClassification.from_config(AutoConfig.for_model("mixtral", **SIZES, **padding)).eval()


def batch() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    mask_BT = (torch.arange(7) < torch.tensor([7, 3, 1, 5])[:, None]).long()
    tokens_BT = torch.randint(0, PAD, (4, 7), generator=generator) * mask_BT + PAD * (1 - mask_BT)
    return {"input_ids": tokens_BT, "attention_mask": mask_BT, "labels": torch.tensor([0, 1, 2, 0])}


def test_logits_and_gradients_are_those_of_a_model_with_a_padding_token() -> None:
    views = View(model(pad_token_id=PAD)), View(model(pad_token_id=None))
    gradients = []
    for view in views:
        view.freeze(but=set(view.parts))
        logits = view(batch())
        torch.nn.functional.cross_entropy(logits, batch()["labels"]).backward()
        gradients.append({(part, name): leaf.grad for part, tensors in view.parts.items() for name, leaf in tensors.items()})
    with torch.no_grad():
        assert torch.allclose(views[0](batch()), views[1](batch()), atol=1e-6)
    for key, gradient in gradients[0].items():
        theirs = gradients[1][key]
        assert (gradient is None) == (theirs is None)
        if gradient is not None and "embed" not in key[1]:  # the padding token's own row is not trained where it is known
            assert theirs is not None
            assert torch.allclose(gradient, theirs, atol=1e-6), key


def test_what_stands_in_masked_places_changes_nothing_and_the_config_stays() -> None:
    view, given = View(model(pad_token_id=None)), batch()
    other = {**given, "input_ids": torch.where(given["attention_mask"] == 1, given["input_ids"], 5)}
    with torch.no_grad():
        assert torch.equal(view(given), view(other))
        alone = torch.cat(
            [view({"input_ids": row[mask.bool()][None]}) for row, mask in zip(*list(given.values())[:2], strict=True)]
        )
        assert torch.allclose(view(given), alone, atol=1e-6)
    assert view.model.config.pad_token_id is None  # type: ignore[union-attr]
    assert not view.model.score._forward_hooks  # type: ignore[union-attr]


def test_sequences_of_one_length_need_no_mask() -> None:
    tokens_BT = torch.randint(0, PAD, (3, 5), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.allclose(
            View(model(pad_token_id=None))({"input_ids": tokens_BT}), model(pad_token_id=PAD)(tokens_BT).logits
        )


def test_transformers_alone_refuses_it() -> None:
    with pytest.raises(ValueError, match="padding token"):
        model(pad_token_id=None)(batch()["input_ids"])
