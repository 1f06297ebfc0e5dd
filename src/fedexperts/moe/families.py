"""Which of transformers' MoE families can be used, and what the others have instead.

The view needs a gate without bias whose softmax weighs the Top-K, renormalised or not, and experts of three matrices,
act(x Gᵀ) ⊙ (x Uᵀ) Dᵀ. Shared experts, which every token meets, belong to the backbone.
"""

from __future__ import annotations

from typing import Any

from .parts import NotMoEError

ROUTERS = (
    "Mixtral",
    "Qwen2Moe",
    "Qwen3Moe",
    "Qwen3Next",
    "Qwen3_5Moe",
    "Olmoe",
    "FlexOlmo",
    "GraniteMoe",
    "GraniteMoeShared",
    "Mellum",
    "MiniMax",
    "DeepseekV2",
)
"""How the names of their routers' classes begin."""
SUPPORTED = (
    "mixtral",
    "qwen2_moe",
    "qwen3_moe",
    "qwen3_next",
    "qwen3_5_moe",
    "olmoe",
    "flex_olmo",
    "granitemoe",
    "granitemoeshared",
    "mellum",
    "minimax",
    "deepseek_v2",
)
"""Their model types."""
OTHERS = {
    "deepseek_v3": "its gate takes sigmoids, adds a correction bias and picks among groups of experts",
    "gpt_oss": "its gate and experts have biases, and its experts lie transposed and interleaved",
    "jetmoe": "its attention is a mixture of experts too, and its experts share a bias",
    "llama4": "its gate scales what experts are given by a sigmoid, and every expert runs on every token",
    "phimoe": "its gate, SparseMixer, weighs each pick by a softmax of its own over the scores close to it",
}
"""What families that are asked for have instead, by model type."""
GREEDY = "its gate picks among groups of experts or scales its weights; only topk_method 'greedy' at routed_scaling_factor 1 is"
"""Of DeepSeek-V2; the Lite model is greedy."""


def check_family(config: Any, where: str) -> None:
    """Refuse a config whose routing or experts are known to be of another kind.

    Raises:
        NotMoEError: with the model type and what it has instead.
    """
    kind = config.model_type
    reason = OTHERS.get(kind.removesuffix("_text"))
    if kind == "deepseek_v2" and (config.topk_method != "greedy" or config.routed_scaling_factor != 1):
        reason = GREEDY
    if reason:
        raise NotMoEError(f"{where}: model_type {kind!r} is not supported: {reason}; use one of {', '.join(SUPPORTED)}")


def check_layout(fused: Any, gate: Any) -> None:
    """Refuse a transformers MoE block whose routing or expert layout the view does not know.

    Raises:
        NotMoEError: with the name of its class.
    """
    if _stem(gate) not in ROUTERS:
        raise NotMoEError(
            f"{type(gate).__name__}: this kind of routing is not supported; use a model of one of {', '.join(SUPPORTED)}"
        )
    if fused.is_transposed or fused.has_bias or not fused.is_concatenated or not fused.has_gate:
        raise NotMoEError(
            f"{type(fused).__name__}: this expert layout is not supported; use a model of one of {', '.join(SUPPORTED)}"
        )


def _stem(gate: Any) -> str:
    return type(gate).__name__.removesuffix("TopKRouter").removesuffix("TopkRouter")


def renormalises(gate: Any) -> bool:
    """Whether the weights of a token's picks sum to one."""
    return getattr(gate, "norm_topk_prob", _stem(gate) != "DeepseekV2")


def in_float32(gate: Any) -> bool:
    """Whether the gate multiplies in float32, whatever the precision of the model."""
    return _stem(gate) == "DeepseekV2"


def fused_block(module: Any) -> tuple[Any, str, Any] | None:
    """The fused experts of a transformers MoE block and its router, with the router's name; None if it is no such block."""
    fused = getattr(module, "experts", None)
    if getattr(fused, "gate_up_proj", None) is None or getattr(fused, "down_proj", None) is None:
        return None
    for name in ("gate", "router"):
        if (gate := getattr(module, name, None)) is not None:
            return fused, name, gate
    return None
