"""How large a model's parts, its uploads and the memory of its devices are: arithmetic over a view, also a meta one.

Letters: T tokens (batch·length), D hidden, F intermediate of an expert, E experts of a layer, K picks per token, P = T·K picks,
H and G heads of queries and of keys, d numbers of a head, V vocabulary, r rank, e bytes of a number at the precision.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

from ..errors import InputError
from .parts import GATE, NotMoEError, Tensors, expert, is_expert
from .view import View

PRECISION_B = {"bfloat16": 2, "float32": 4}
"""Bytes of a number."""
LINK_B = 2
"""Uploads travel in bfloat16."""
FLOAT32_B = 4
ADAMW_B = 2 * FLOAT32_B
"""AdamW keeps two float32 numbers for each trained one."""
STREAMED = 2
"""Experts of one layer that a streamed pass holds at a time: one that computes and one that is being read."""
FAMILIES = ("mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "flex_olmo", "mellum", "granitemoe")
"""Model types whose attention and feed-forward layers `activations_B` describes."""


def numbers(tensors: Tensors) -> int:
    """Parameters of a part."""
    return sum(tensor.numel() for tensor in tensors.values())


def parts(view: View, precision: str) -> dict[str, dict[str, int]]:
    """Parameters and bytes of every part at the precision; a head tied to the embedding counts with the backbone."""
    return {
        name: {"parameters": numbers(tensors), "bytes": PRECISION_B[precision] * numbers(tensors)}
        for name, tensors in view.parts.items()
    }


def adapter_numbers(view: View, m: int, rank: int) -> int:
    """Numbers of the adapters of expert m: r·(in + out) for its gate, up and down projection, factored apart, in every layer.

    Raises:
        InputError: the rank is below 1 or above a projection's smaller side, where an adapter adds nothing.
    """
    sizes = [projection.weight_OI.shape for block in view.blocks for projection in block.projections[m]]
    most = min(min(size) for size in sizes)
    if not 1 <= rank <= most:
        raise InputError(
            f"rank = {rank}: must lie between 1 and {most}, the smaller dimension of the experts' projections; a higher rank "
            "holds no more than full parameters"
        )
    return sum(rank * sum(size) for size in sizes)


@dataclass(frozen=True)
class Uploads:
    """Bytes that one device sends in a contact, in bfloat16 (Table I)."""

    lora_B: dict[str, int]
    gate_B: int

    @property
    def baseline_B(self) -> int:
        """Every expert's adapter and the full-rank gate."""
        return sum(self.lora_B.values()) + self.gate_B

    @property
    def ratio(self) -> float:
        """The baseline's upload over that of enhanced EMS-FL for one expert, the largest."""
        return self.baseline_B / max(self.lora_B.values())


def uploads(view: View, rank: int) -> Uploads:
    """Upload sizes with adapters of rank r.

    Raises:
        InputError: see `adapter_numbers`.
    """
    lora_B = {expert(m): LINK_B * adapter_numbers(view, m, rank) for m in range(view.experts)}
    return Uploads(lora_B, LINK_B * numbers(view.parts[GATE]))


@dataclass(frozen=True)
class Shape:
    """What activations depend on; see the module's letters.

    Of the ``layers``, ``moe_blocks`` have experts. Below the first trained tensor autograd saves nothing, so of the first MoE
    layer only the experts count, and ``blocks`` are the attention blocks after it. ``dense_F`` and ``shared_F`` sum the
    intermediate sizes of dense layers and of shared experts after it; ``normed`` says that queries and keys have norms.
    """

    D: int
    F: int
    E: int
    K: int
    H: int
    G: int
    d: int
    V: int
    layers: int
    blocks: int
    moe_blocks: int
    dense_F: int
    shared_F: int
    normed: bool
    renormalised: bool
    """Whether the weights of the picks sum to one: a single pick under a frozen gate then weighs 1, without a gradient."""


def shape(view: View) -> Shape:
    """The shape of a Hugging Face model.

    Raises:
        NotMoEError: the attention or feed-forward layers of this model type are not known here.
    """
    config: Any = view.model.config
    if config.model_type not in FAMILIES:
        raise NotMoEError(
            f"model_type = {config.model_type!r}: the memory of its layers is not known yet; {', '.join(FAMILIES)} are"
        )
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


@dataclass(frozen=True)
class Work:
    """What a device works on at once: ``padded`` says that the sequences have several lengths, hence an attention mask."""

    batch: int = 1
    length: int = 384
    precision: str = "bfloat16"
    padded: bool = False

    @property
    def tokens(self) -> int:
        """T."""
        return self.batch * self.length

    @property
    def e(self) -> int:
        """Bytes of a number."""
        return PRECISION_B[self.precision]


def activations_B(s: Shape, work: Work, own: float = 1.0, rank: int = 0, gate: bool = False) -> dict[str, int]:
    """Bytes that autograd saves in one forward pass over a frozen base, by term; parameters are not counted.

    For every token, in each block after the first MoE layer:

    - ``attention``: SDPA keeps queries and its output, e·d·H each, keys and values, e·d·G each, and the log-sum of each head
      in float32, 4·H. A mask makes keys and values as wide as the queries and is kept itself, e·length.
    - ``norms``: RMSNorm works in float32 and keeps its input and one factor, 4·(D + 1); two norms a block, one before the
      head. With norms of queries and keys, 4·(d + 1)·(H + G) more.
    - ``dense``: SwiGLU of dense layers and shared experts keeps gate, up and SiLU(gate), 3·e·F; a shared expert also its
      output and weight, e·(D + 1).

    In each MoE layer, for every pick:

    - ``experts``: gate, up and SiLU(gate), 3·e·F; in the first layer only of trained experts. A trained expert also keeps
      the input of its down projection, e·F, and what lies between the factors of its adapters, 3·e·r. The input of gate
      and up is a slice of the gathered picks, which then stay whole: e·D for every pick.
    - ``outputs``: where each pick goes back to, 8; and the experts' results in token order, e·D, wherever the picks' weights
      have a gradient: in all layers but the first, or all if the gate is trained; in none where a single pick weighs 1.
    - ``gate``, in the same layers: the softmax in float32, 4·E a token; and order, indices, probabilities and weights,
      28 + e for each pick; its input, e·D a token, if it is trained.

    Once: ``logits``, the log-probabilities of a language model's loss in float32, 4·V for every token. Left out: rotary
    tables, and the copies of float32 adapters at the precision.

    Args:
        s: the model's shape; K there is what the gate may pick, at most the number of experts behind a masked gate.
        own: share of the picks that meet a trained expert, 0…1.
        rank: r of the adapters; 0 trains the experts' own weights.
        gate: whether the gate is trained.
    """
    e, T, P = work.e, work.tokens, work.tokens * s.K
    after = s.moe_blocks - 1
    weighted = s.moe_blocks if gate else 0 if s.K == 1 and s.renormalised else after
    keys = s.H if work.padded else s.G
    trained = s.moe_blocks * (own * (s.F + 3 * rank) + (own > 0) * s.D)
    terms = {
        "attention": s.blocks * T * (2 * e * s.d * (s.H + keys) + FLOAT32_B * s.H + work.padded * e * work.length),
        "norms": T * FLOAT32_B * ((2 * s.blocks + 1) * (s.D + 1) + s.blocks * s.normed * (s.d + 1) * (s.H + s.G)),
        "dense": T * e * (3 * (s.dense_F + s.shared_F) + bool(s.shared_F) * after * (s.D + 1)),
        "experts": P * e * (3 * s.F * (after + own) + trained),
        "outputs": P * (e * s.D * weighted + 8 * (s.moe_blocks if own > 0 else after)),
        "gate": weighted * (T * FLOAT32_B * s.E + P * (28 + e)) + gate * weighted * T * e * s.D,
        "logits": T * FLOAT32_B * s.V,
    }
    return {name: round(size) for name, size in terms.items()}


def working_B(s: Shape, work: Work, gradients: bool) -> int:
    """Bytes of temporaries at the worst moment, on top of what autograd saves: an upper estimate.

    With gradients the larger of the loss (two float32 copies of the logits), the float32 tensors in which norms and combined
    picks go back, and an expert's SwiGLU going back. Without: the logits or one MoE layer with all tokens in one expert, and
    the keys and values that the model caches.
    """
    e, T = work.e, work.tokens
    if gradients:
        return T * max(2 * FLOAT32_B * s.V, 2 * FLOAT32_B * (s.K + 2) * s.D, 2 * e * s.F)
    layer = max(4 * s.F + 2 * (1 + s.K) * s.D, 2 * (1 + 3 * s.K) * s.D)
    return T * e * (max(s.V + 3 * s.D, layer) + 2 * s.G * s.d * s.layers)


Phase = dict[str, int]
"""Bytes by purpose, and ``total_B``."""


def memory(view: View, experts: Collection[int], rank: int, work: Work, load: str | None = None) -> dict[str, dict[str, Phase]]:
    """Peak bytes of a device that owns ``experts``, by protocol and phase.

    - ``ems-fl-enhanced`` loads its experts alone and trains their adapters behind a masked gate. In the trial pass and the
      gate tail experts are streamed layer by layer, `STREAMED` at a time (in the tail again for the backward pass, which uses
      the saved activations); the tail trains the gate and holds everybody's adapters.
    - ``ems-fl`` loads all experts, frozen, and trains its own adapters and, in contact, the gate.
    - ``sync``, the baseline, trains all adapters and the gate.

    With ``load = "all"`` the first loads all experts too; with ``"own"`` or ``"stream"`` it alone can work, and with ``"own"``
    its training alone.

    Weights are at the precision and the gate's gradient too; adapters and their gradients are float32; AdamW. Activations
    assume that every pick meets a trained expert, which owning relevant experts comes close to, and no recomputation.

    Raises:
        InputError: experts or rank are out of range.
        NotMoEError: see `shape`.
    """
    mine = owned(view, experts)
    full = shape(view)
    masked = replace(full, K=min(full.K, len(mine)))
    expert_numbers = numbers(view.parts[expert(0)])
    rest = sum(numbers(tensors) for part, tensors in view.parts.items() if not is_expert(part))
    streamed = rest + min(STREAMED, full.E) * expert_numbers // full.moe_blocks
    loaded, complete = rest + len(mine) * expert_numbers, rest + full.E * expert_numbers
    adapter, gate = adapter_numbers(view, mine[0], rank), numbers(view.parts[GATE])
    own, every = len(mine) * adapter, full.E * adapter
    apart, trained = (complete, complete) if load == "all" else (streamed, loaded)
    enhanced = {
        "trial": _phase(work, apart, working=working_B(full, work, False)),
        "training": _training(masked, work, trained, own, own, 0, rank),
        "gate_tail": _training(full, work, apart, every, 0, gate, rank),
    }
    if load in ("own", "stream"):
        return {"ems-fl-enhanced": {name: phase for name, phase in enhanced.items() if load == "stream" or name == "training"}}
    return {
        "ems-fl-enhanced": enhanced,
        "ems-fl": {
            "trial": _phase(work, complete, working=working_B(full, work, False)),
            "training": _training(full, work, complete, every, own, gate, rank),
        },
        "sync": {"training": _training(full, work, complete, every, every, gate, rank)},
    }


def describe(view: View, experts: Collection[int], rank: int, work: Work, load: str | None = None) -> dict[str, Any]:
    """What ``fedexperts inspect`` prints; ``memory_B`` is None where the memory of this model type is not known.

    Raises:
        InputError: experts or rank are out of range.
    """
    sizes = uploads(view, rank)
    config: Any = view.model.config
    return {
        "parts": parts(view, work.precision),
        "lora_upload_B": sizes.lora_B,
        "gate_upload_B": sizes.gate_B,
        "baseline_upload_B": sizes.baseline_B,
        "ratio": round(sizes.ratio, 4),
        "experts": owned(view, experts),
        "rank": rank,
        "precision": work.precision,
        "batch": work.batch,
        "length": work.length,
        "memory_B": memory(view, experts, rank, work, load) if config.model_type in FAMILIES else None,
    }


def owned(view: View, experts: Collection[int]) -> list[int]:
    """The experts in order, checked.

    Raises:
        InputError: no expert, one twice, or one that the model does not have.
    """
    if not experts or len(set(experts)) < len(experts) or not set(experts) <= set(range(view.experts)):
        raise InputError(
            f"experts = {','.join(map(str, experts)) or 'none'}: must be different numbers between 0 and {view.experts - 1}, "
            f"as the model has {view.experts} experts; correct the list"
        )
    return sorted(experts)


def _training(s: Shape, work: Work, weights: int, held: int, trained: int, gate: int, rank: int) -> Phase:
    """A phase with gradients: ``held`` and ``trained`` adapter numbers, ``gate`` trained gate numbers."""
    saved = activations_B(s, work, float(trained > 0), rank, gate > 0)
    return _phase(work, weights, held, trained, gate, sum(saved.values()), working_B(s, work, True))


def _phase(
    work: Work, weights: int, held: int = 0, trained: int = 0, gate: int = 0, activations: int = 0, working: int = 0
) -> Phase:
    phase = {
        "weights_B": work.e * weights,
        "adapters_B": FLOAT32_B * held,
        "gradients_B": FLOAT32_B * trained + work.e * gate,
        "optimizer_B": ADAMW_B * (trained + gate),
        "activations_B": activations,
        "working_B": working,
    }
    return phase | {"total_B": sum(phase.values())}
