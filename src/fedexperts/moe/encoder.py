"""BERT classifiers whose FFNs are MoE layers of our own: what `upcycle` makes of a BERT.

A checkpoint is a folder like any other: config.json of model_type ``bert_moe`` (the dense config with ``num_experts``,
``num_experts_per_tok`` and ``moe_layers``) and safetensors with ``bert.encoder.layer.{i}.moe.gate.weight`` and
``bert.encoder.layer.{i}.moe.experts.{m}.intermediate|output.weight|bias``. Once this module is imported, transformers' auto
classes build and load it too; without it they refuse the type, and do not load a BERT with random FFNs.

Shapes: T tokens, D hidden, F intermediate.
"""

from __future__ import annotations

from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSequenceClassification, BertConfig, BertForSequenceClassification
from transformers.activations import ACT2FN
from transformers.models.bert.modeling_bert import BertLayer

from .layer import MoELayer


class BertMoEConfig(BertConfig):  # type: ignore[misc]  # transformers is untyped
    """A BERT's config with M (``num_experts``), K (``num_experts_per_tok``) and the MoE layers (``moe_layers``; None: all)."""

    model_type = "bert_moe"

    num_experts: int = 8
    num_experts_per_tok: int = 2
    moe_layers: list[int] | None = None


class BertExpert(nn.Module):
    """BERT's FFN on x_TD."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.intermediate = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation = ACT2FN[config.hidden_act]
        self.output = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x_TD: Tensor) -> Tensor:
        """The FFN, without dropout, residual and norm."""
        h_TF = self.activation(self.intermediate(x_TD))
        return self.output(h_TF)  # type: ignore[no-any-return]  # torch's modules return Any


class BertMoELayer(BertLayer):  # type: ignore[misc]
    """A layer of BERT whose FFN is a `MoELayer`; attention, residual and norm keep their names."""

    def __init__(self, config: BertMoEConfig, number: int):
        super().__init__(config, number)
        del self.intermediate, self.output.dense
        experts = [BertExpert(config) for _ in range(config.num_experts)]
        self.moe = MoELayer(config.hidden_size, experts, config.num_experts_per_tok)

    def feed_forward_chunk(self, attention_output: Tensor) -> Tensor:
        """What follows the attention; padding is routed like other tokens, and read by none."""
        y: Tensor = self.output.dropout(self.moe(attention_output))
        return self.output.LayerNorm(y + attention_output)  # type: ignore[no-any-return]


class BertMoEForSequenceClassification(BertForSequenceClassification):  # type: ignore[misc]
    """A BERT classifier with MoE layers.

    Raises:
        ValueError: the config names a layer that does not exist, or more picks than experts.
    """

    config_class = BertMoEConfig

    def __init__(self, config: BertMoEConfig):
        super().__init__(config)
        layers = self.bert.encoder.layer
        for i in range(len(layers)) if config.moe_layers is None else config.moe_layers:
            if not 0 <= i < len(layers):
                raise ValueError(f"moe_layers = {config.moe_layers}: there is no layer {i}; name layers in 0…{len(layers) - 1}")
            layers[i] = BertMoELayer(config, i)
        self.post_init()


AutoConfig.register(BertMoEConfig.model_type, BertMoEConfig)
AutoModelForSequenceClassification.register(BertMoEConfig, BertMoEForSequenceClassification)
