"""A model's outline from its config alone, without torch and transformers: what the meta model has, in a hundredth of the time.

What is not understood to the last field (another model type, a field of an unusual kind, a number out of range) has no outline
here, and whoever asks goes on with the meta model, which refuses what is wrong in the right words.

Letters as in `outline`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .document import MOST_EXPERTS, Fields, UnclearError
from .kinds import Kind, kind_of
from .layouts import FAMILIES, Family, heads, swiglu
from .outline import ACTIVATIONS, Body, Layer, Outline, Shape, Shapes
from .own_types import OWN_TYPES


def outline(document: Any, kind: Kind | None = None, outputs: int | None = None) -> Outline | None:
    """The outline of the model that a config describes; None where only transformers can tell.

    Args:
        document: what config.json holds.
        kind: what the model is for; what the config says if left out.
        outputs: of a classifier's head, where the data say it.
    """
    if not isinstance(document, Mapping) or not isinstance(document.get("model_type"), str):
        return None
    document = {**document, **({} if outputs is None else {"num_labels": outputs})}
    if document["model_type"] == "qwen3_5_moe":  # with pictures; its text model is what is tuned
        nested = document.get("text_config")
        if kind is not None or not isinstance(nested, Mapping):
            return None
        document = {**nested, "model_type": "qwen3_5_moe_text", "architectures": document.get("architectures")}
    try:
        names = document.get("architectures")
        if names is not None and not (isinstance(names, list) and all(isinstance(word, str) for word in names)):
            return None
        return _outline(document, kind or kind_of(document))
    except UnclearError:
        return None


def _outline(document: Mapping[str, Any], kind: Kind) -> Outline:
    model_type = document["model_type"]
    if own := OWN_TYPES.get(model_type):
        fields = Fields(document, own.defaults)
        fields.plain()
        if kind != own.kind:
            raise UnclearError
        top_k, layers, rest = own.tensors(fields)
        _check_experts(top_k, layers)
        return Outline(model_type, top_k, layers, rest, None)
    if model_type not in FAMILIES:
        raise UnclearError
    family = FAMILIES[model_type]
    fields = Fields(document, family.defaults)
    fields.plain()
    if kind == "image-classifier" or (kind == "classifier" and not family.classifies):
        raise UnclearError
    return _decoder(model_type, family, fields, kind)


def _decoder(model_type: str, family: Family, c: Fields, kind: Kind) -> Outline:
    D, V, number = c.count("hidden_size"), c.count("vocab_size"), c.count("num_hidden_layers")
    E, K, F = c.experts(family.experts, family.alias), c.count("num_experts_per_tok"), c.count(family.width)
    rest: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (V, D)}
    layers, sparse = [], [i for i in range(number) if family.sparse(c, i)]
    for i in range(number):
        at = f"model.layers.{i}."
        rest |= {at + "self_attn." * (":" not in name) + name.lstrip(":"): s for name, s in family.attention(c, i).items()}
        rest |= {at + name + ".weight": (D,) for name in family.norms}
        if i in sparse:
            layers.append(_moe_layer(f"{at}{family.block}.", family.gate, D, F, E))
            rest |= {at + name: size for name, size in family.beside(c).items()}
        else:
            rest |= swiglu(f"{at}mlp.", D, c.count("intermediate_size"))
    rest["model.norm.weight"] = (D,)
    if kind == "classifier":
        rest["score.weight"] = (c.labels(), D)
    elif not c.flag("tie_word_embeddings"):
        rest["lm_head.weight"] = (V, D)
    _check_experts(K, tuple(layers))
    shape = _shape(c, kind, rest, sparse, (D, F, E, K)) if model_type in ACTIVATIONS else None
    return Outline(model_type, K, tuple(layers), rest, shape)


def _check_experts(top_k: int, layers: tuple[Layer, ...]) -> None:
    if not layers or top_k > len(layers[0].experts) or len(layers[0].experts) * len(layers) > MOST_EXPERTS:
        raise UnclearError


def _moe_layer(at: str, gate: str, D: int, F: int, E: int) -> Layer:
    tensors = {f"{at}experts.gate_up_proj": (2 * F, D), f"{at}experts.down_proj": (D, F)}
    projections = {f"{at}experts.gate_proj": (F, D), f"{at}experts.up_proj": (F, D), f"{at}experts.down_proj": (D, F)}
    return Layer({f"{at}{gate}.weight": (E, D)}, (Body(tensors, projections),) * E)


def _shape(c: Fields, kind: Kind, rest: Shapes, sparse: list[int], sizes: tuple[int, int, int, int]) -> Shape:
    D, F, E, K = sizes
    H, G, d = heads(c)
    after = set(range(sparse[0] + 1, c.count("num_hidden_layers")))
    shared = c.count_or("shared_expert_intermediate_size", 0)
    normalised = c.get("norm_topk_prob")
    return Shape(
        D=D,
        F=F,
        E=E,
        K=K,
        H=H,
        G=G,
        d=d,
        V=c.count("vocab_size") if kind == "language-model" else 0,
        layers=c.count("num_hidden_layers"),
        blocks=len(after),
        moe_blocks=len(sparse),
        dense_F=c.count("intermediate_size") * len(after - set(sparse)),
        shared_F=shared * (len(sparse) - 1),
        normed=any("q_norm" in name for name in rest),
        renormalised=True if normalised is None else c.flag("norm_topk_prob"),
    )
