"""How the families of `families.SUPPORTED` lay their decoders out: defaults, attention, dense and MoE layers.

Letters as in `outline`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from .document import Fields, UnclearError
from .outline import Shapes


@dataclass(frozen=True)
class Family:
    """How a family of transformers lays its decoder out.

    Attributes:
        defaults: of the fields that sizes depend on.
        attention: tensors of a layer's attention, without their prefix.
        experts, alias: the field that counts experts, and another name that transformers takes for it.
        width: the field with an expert's F.
        sparse: whether a layer has experts.
        beside: tensors beside the experts in an MoE layer, such as shared experts.
        block, gate: names of an MoE layer and of its router.
        norms: names of a layer's norms.
        classifies: whether transformers has a classifier of it.
    """

    defaults: Mapping[str, Any]
    attention: Callable[[Fields, int], Shapes]
    experts: str = "num_experts"
    alias: str | None = "num_local_experts"
    width: str = "moe_intermediate_size"
    sparse: Callable[[Fields, int], bool] = lambda c, i: True
    beside: Callable[[Fields], Shapes] = lambda c: {}
    block: str = "mlp"
    gate: str = "gate"
    norms: tuple[str, ...] = ("input_layernorm", "post_attention_layernorm")
    classifies: bool = True


def swiglu(at: str, D: int, F: int) -> dict[str, tuple[int, ...]]:
    """A dense feed-forward layer."""
    return {f"{at}gate_proj.weight": (F, D), f"{at}up_proj.weight": (F, D), f"{at}down_proj.weight": (D, F)}


# --- attention --------------------------------------------------------------------------------------------------------


def heads(c: Fields) -> tuple[int, int, int]:
    """H, G and d."""
    H = c.count("num_attention_heads")
    D, G = c.count("hidden_size"), c.count_or("num_key_value_heads", H)
    if (c.get("head_dim") is None and D % H) or H % G:
        raise UnclearError
    return H, G, c.count_or("head_dim", D // H)


def _linear(name: str, out: int, into: int, bias: bool) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (out, into), **({f"{name}.bias": (out,)} if bias else {})}


def _projections(c: Fields, bias: bool, out_bias: bool, doubled: int = 1) -> dict[str, tuple[int, ...]]:
    D, (H, G, d) = c.count("hidden_size"), heads(c)
    return {
        **_linear("q_proj", doubled * H * d, D, bias),
        **_linear("k_proj", G * d, D, bias),
        **_linear("v_proj", G * d, D, bias),
        **_linear("o_proj", D, H * d, out_bias),
    }


def _without_bias(c: Fields, i: int) -> Shapes:
    return _projections(c, False, False)


def _with_bias(c: Fields, i: int) -> Shapes:
    return _projections(c, c.flag("attention_bias"), c.flag("attention_bias"))


def _qwen2(c: Fields, i: int) -> Shapes:
    return _projections(c, c.flag("qkv_bias"), False)


def _norms_of_heads(c: Fields, i: int) -> Shapes:
    d = heads(c)[2]
    return {**_with_bias(c, i), "q_norm.weight": (d,), "k_norm.weight": (d,)}


def _norms_of_all(c: Fields, i: int) -> Shapes:
    H, G, d = heads(c)
    return {**_with_bias(c, i), "q_norm.weight": (H * d,), "k_norm.weight": (G * d,)}


def _olmoe(c: Fields, i: int) -> Shapes:
    D, (H, G, _) = c.count("hidden_size"), heads(c)
    return {**_with_bias(c, i), "q_norm.weight": (D,), "k_norm.weight": (D // H * G,)}


def _is_linear(c: Fields, i: int, usual: Callable[[int], bool]) -> bool:
    """Whether a layer has linear attention: as the config lists them, or else as is usual."""
    number, names = c.count("num_hidden_layers"), ("full_attention", "linear_attention")
    return c.listed("layer_types", number, names, [names[usual(layer)] for layer in range(number)])[i] == names[True]


def _delta(c: Fields, apart: bool) -> dict[str, tuple[int, ...]]:
    """The gated delta rule: keys and values have heads of their own."""
    D, keys, values = c.count("hidden_size"), c.count("linear_num_key_heads"), c.count("linear_num_value_heads")
    k, v = keys * c.count("linear_key_head_dim"), values * c.count("linear_value_head_dim")
    mixed = 2 * k + v
    inputs = (
        {"in_proj_qkv": mixed, "in_proj_z": v, "in_proj_b": values, "in_proj_a": values}
        if apart
        else {"in_proj_qkvz": mixed + v, "in_proj_ba": 2 * values}
    )
    tensors: dict[str, tuple[int, ...]] = {
        "dt_bias": (values,),
        "A_log": (values,),
        "conv1d.weight": (mixed, 1, c.count("linear_conv_kernel_dim")),
        "norm.weight": (c.count("linear_value_head_dim"),),
        "out_proj.weight": (D, v),
        **{f"{name}.weight": (out, D) for name, out in inputs.items()},
    }
    return {f":linear_attn.{name}": size for name, size in tensors.items()}


def _next(apart: bool) -> Callable[[Fields, int], Shapes]:
    def attention(c: Fields, i: int) -> Shapes:
        every = c.count_or("full_attention_interval", 4)
        if _is_linear(c, i, lambda layer: (layer + 1) % every != 0):
            return _delta(c, apart)
        d, bias = heads(c)[2], c.flag("attention_bias")
        return {**_projections(c, bias, bias, doubled=2), "q_norm.weight": (d,), "k_norm.weight": (d,)}

    return attention


def _minimax(c: Fields, i: int) -> Shapes:
    if not _is_linear(c, i, lambda layer: layer % 2 == 1):
        return _without_bias(c, i)
    D, (H, _, d) = c.count("hidden_size"), heads(c)
    sizes = {"qkv_proj": (3 * H * d, D), "out_proj": (D, H * d), "output_gate": (H * d, D)}
    return {"norm.weight": (H * d,), **{f"{name}.weight": size for name, size in sizes.items()}}


def _latent(c: Fields, i: int) -> Shapes:
    """DeepSeek's attention: keys and values through a latent of rank kv_lora_rank, queries too where q_lora_rank is given."""
    D, H, bias = c.count("hidden_size"), c.count("num_attention_heads"), c.flag("attention_bias")
    nope, rope, v, rank = (c.count(f) for f in ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "kv_lora_rank"))
    if D % H:
        raise UnclearError
    if c.get("q_lora_rank") is None:
        queries = _linear("q_proj", H * (nope + rope), D, False)
    else:
        low = c.count("q_lora_rank")
        queries = {
            **_linear("q_a_proj", low, D, bias),
            "q_a_layernorm.weight": (low,),
            **_linear("q_b_proj", H * (nope + rope), low, False),
        }
    return {
        **queries,
        **_linear("kv_a_proj_with_mqa", rank + rope, D, bias),
        "kv_a_layernorm.weight": (rank,),
        **_linear("kv_b_proj", H * (nope + v), rank, False),
        **_linear("o_proj", D, H * v, bias),
    }


# --- what lies beside experts -----------------------------------------------------------------------------------------


def _stepped(c: Fields, i: int) -> bool:
    number = c.count("num_hidden_layers")
    return i not in c.numbers("mlp_only_layers", number) and (i + 1) % c.count("decoder_sparse_step") == 0


def _mellum_sparse(c: Fields, i: int) -> bool:
    number = c.count("num_hidden_layers")
    return c.listed("mlp_layer_types", number, ("sparse", "dense"), ["sparse"] * number)[i] == "sparse"


def _shared(c: Fields) -> Shapes:
    D = c.count("hidden_size")
    inner = swiglu("mlp.shared_expert.", D, c.count("shared_expert_intermediate_size"))
    return {**inner, "mlp.shared_expert_gate.weight": (1, D)}


def _granite_shared(c: Fields) -> Shapes:
    D, F = c.count("hidden_size"), c.count("shared_intermediate_size", least=0)
    sizes = {"shared_mlp.input_linear.weight": (2 * F, D), "shared_mlp.output_linear.weight": (D, F)}
    return sizes if F else {}


def _deepseek_shared(c: Fields) -> Shapes:
    if c.get("n_shared_experts") is None or c.flag("mlp_bias"):
        raise UnclearError
    return swiglu("mlp.shared_experts.", c.count("hidden_size"), c.count("moe_intermediate_size") * c.count("n_shared_experts"))


def _deepseek_sparse(c: Fields, i: int) -> bool:
    if c.get("topk_method") != "greedy" or c.get("routed_scaling_factor") != 1:
        raise UnclearError
    return i >= c.count("first_k_dense_replace", least=0)


# --- the families -----------------------------------------------------------------------------------------------------

_COMMON = {"tie_word_embeddings": False, "attention_bias": False, "pad_token_id": None}


def _sizes(V: int, D: int, F: int | None, layers: int, H: int, G: int, E: int, K: int | None, **others: Any) -> dict[str, Any]:
    counts = dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), E)
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    sizes = dict(zip(names, (V, D, F, layers, H), strict=True))
    return {**_COMMON, **counts, **sizes, "num_key_value_heads": G, "num_experts_per_tok": K, **others}


_NEXT = {
    "moe_intermediate_size": 512,
    "shared_expert_intermediate_size": 512,
    "head_dim": 256,
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
}
_MIXTRAL = Family(
    _sizes(32000, 4096, 14336, 32, 32, 8, 8, 2), _without_bias, "num_local_experts", "num_experts", "intermediate_size"
)
_GRANITE = Family(
    _sizes(32000, 4096, 11008, 32, 32, 32, 8, 2, shared_intermediate_size=0),
    _with_bias,
    "num_local_experts",
    None,
    "intermediate_size",
    block="block_sparse_moe",
    gate="router",
    classifies=False,
)
_STEPS = {"decoder_sparse_step": 1}
FAMILIES: dict[str, Family] = {
    "mixtral": _MIXTRAL,
    "qwen2_moe": Family(
        _sizes(
            151936,
            2048,
            5632,
            24,
            16,
            16,
            60,
            4,
            moe_intermediate_size=1408,
            shared_expert_intermediate_size=5632,
            qkv_bias=True,
            norm_topk_prob=False,
            **_STEPS,
        ),
        _qwen2,
        alias=None,
        sparse=_stepped,
        beside=_shared,
    ),
    "qwen3_moe": Family(
        _sizes(151936, 2048, 6144, 24, 32, 4, 128, 8, moe_intermediate_size=768, norm_topk_prob=False, **_STEPS),
        _norms_of_heads,
        "num_local_experts",
        "num_experts",
        sparse=_stepped,
    ),
    "qwen3_next": Family(
        _sizes(151936, 2048, 5632, 48, 16, 2, 512, 10, **_NEXT, **_STEPS),
        _next(apart=False),
        alias=None,
        sparse=_stepped,
        beside=_shared,
    ),
    "qwen3_5_moe_text": Family(
        _sizes(248320, 2048, None, 40, 16, 2, 256, 8, **_NEXT),
        _next(apart=True),
        alias=None,
        beside=_shared,
        classifies=False,
    ),
    "olmoe": Family(
        _sizes(50304, 2048, 2048, 16, 16, 16, 64, 8, norm_topk_prob=False, pad_token_id=1),
        _olmoe,
        width="intermediate_size",
        classifies=False,
    ),
    "flex_olmo": Family(
        _sizes(100352, 4096, 11008, 32, 32, 32, 7, 5, norm_topk_prob=False, pad_token_id=100277),
        _norms_of_all,
        width="intermediate_size",
        norms=("post_attention_layernorm", "post_feedforward_layernorm"),
        classifies=False,
    ),
    "granitemoe": _GRANITE,
    "granitemoeshared": replace(_GRANITE, beside=_granite_shared),
    "mellum": Family(
        _sizes(98304, 2304, 7168, 28, 32, 4, 64, 8, moe_intermediate_size=896, head_dim=128, norm_topk_prob=True),
        _norms_of_heads,
        "num_local_experts",
        "num_experts",
        sparse=_mellum_sparse,
        classifies=False,
    ),
    "minimax": replace(_MIXTRAL, attention=_minimax),
    "deepseek_v2": Family(
        _sizes(
            102400,
            4096,
            11008,
            32,
            32,
            32,
            64,
            None,
            moe_intermediate_size=1407,
            first_k_dense_replace=0,
            kv_lora_rank=512,
            q_lora_rank=1536,
            n_shared_experts=2,
            qk_nope_head_dim=128,
            qk_rope_head_dim=64,
            v_head_dim=128,
            mlp_bias=False,
            topk_method="greedy",
            routed_scaling_factor=1.0,
        ),
        _latent,
        "n_routed_experts",
        None,
        sparse=_deepseek_sparse,
        beside=_deepseek_shared,
    ),
}
"""Families of transformers that `families.SUPPORTED` names, by model type."""
