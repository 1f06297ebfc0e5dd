"""A model of any size from its config alone: on the meta device, where tensors have shapes and no numbers."""

from __future__ import annotations

from typing import Any

import torch

from .auto import AUTO
from .blocks import Projection
from .config import parsed, read_document, refusing
from .document import config_path
from .families import check_family
from .kinds import Kind, kind_of
from .outline import ACTIVATIONS, Body, Layer, Outline, Shape
from .parts import BACKBONE, GATE, HEAD, Tensors
from .view import View


def read_config(model: str) -> dict[str, Any]:
    """The config of a checkpoint folder, of a ``config.json``, or of a model on the hub, of which nothing else is fetched.

    Raises:
        InputError: there is no such config, the hub cannot be reached, or it is not a config in JSON.
    """
    return read_document(config_path(model))


def outline_of(view: View) -> Outline:
    """The outline of a view's model, in full parameters."""

    def shapes(tensors: Tensors) -> dict[str, tuple[int, ...]]:
        return {name: tuple(tensor.shape) for name, tensor in tensors.items()}

    def body(tensors: Tensors, group: list[Projection]) -> Body:
        return Body(shapes(tensors), {p.name: (p.weight_OI.shape[0], p.weight_OI.shape[1]) for p in group})

    layers = tuple(Layer(shapes(block.gate), tuple(map(body, block.experts, block.projections))) for block in view.blocks)
    rest = {name: s for part in (BACKBONE, HEAD) for name, s in shapes(view.parts.get(part, {})).items()}
    config: Any = view.model.config
    shape = _shape(view) if config.model_type in ACTIVATIONS else None
    return Outline(config.model_type, view.top_k, layers, rest, shape)


def _shape(view: View) -> Shape:
    config: Any = view.model.config
    _, _, down = view.blocks[0].projections[0]
    D, F = down.weight_OI.shape
    heads = config.num_attention_heads
    moe_blocks = sorted({_block(name) for name in view.parts[GATE]})
    after = set(range(moe_blocks[0] + 1, config.num_hidden_layers))
    shared = getattr(config, "shared_expert_intermediate_size", 0)
    return Shape(
        D=D,
        F=F,
        E=view.experts,
        K=view.top_k,
        H=heads,
        G=config.num_key_value_heads,
        d=getattr(config, "head_dim", None) or D // heads,
        V=config.vocab_size if type(view.model).__name__.endswith("CausalLM") else 0,
        layers=config.num_hidden_layers,
        blocks=len(after),
        moe_blocks=len(moe_blocks),
        dense_F=config.intermediate_size * len(after - set(moe_blocks)),
        shared_F=shared * (len(moe_blocks) - 1),
        normed=any("q_norm" in name for name, _ in view.model.named_parameters()),
        renormalised=view.blocks[0].router.renormalise and view.blocks[0].router.top1 != "switch",
    )


def _block(parameter: str) -> int:
    """Number of the block that a parameter such as ``model.layers.3.mlp.gate.weight`` lies in."""
    return next(int(word) for word in parameter.split(".") if word.isdigit())


def meta_view(document: dict[str, Any], kind: Kind | None = None) -> View:
    """The model that a config describes, as a view without numbers; ``kind`` is what it is for, if the config does not say it.

    Raises:
        InputError: the config is inconsistent or of a model type that transformers does not know.
        NotMoEError: the model has no MoE layer that the view knows.
    """
    where = f"model_type = {document.get('model_type')!r}"
    config = parsed(document, where)
    check_family(config, where)
    with refusing(f"{where}: no model can be built from this config", "correct the config"), torch.device("meta"):
        return View(AUTO[kind or kind_of(document)].from_config(config, trust_remote_code=False))
