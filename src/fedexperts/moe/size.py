"""How large a model's parts, its uploads and the memory of its devices are: arithmetic over an outline.

Letters: T tokens (batch·length), D hidden, F intermediate of an expert, E experts of a layer, K picks per token, P = T·K picks,
H and G heads of queries and of keys, d numbers of a head, V vocabulary, r rank, e bytes of a number at the precision.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

from ..errors import InputError
from .outline import ACTIVATIONS, Outline, Shape, count
from .parts import GATE, NotMoEError, expert, is_expert

PRECISION_B = {"bfloat16": 2, "float32": 4}
"""Bytes of a number."""
LINK_B = 2
"""Uploads travel in bfloat16."""
FLOAT32_B = 4
ADAMW_B = 2 * FLOAT32_B
"""AdamW keeps two float32 numbers for each trained one."""
STREAMED = 2
"""Experts of one layer that a streamed pass holds at a time: one that computes and one that is being read."""


def parts(model: Outline, precision: str) -> dict[str, dict[str, int]]:
    """Parameters and bytes of every part at the precision; a head tied to the embedding counts with the backbone."""
    return {
        name: {"parameters": count(tensors), "bytes": PRECISION_B[precision] * count(tensors)}
        for name, tensors in model.parts.items()
    }


def adapter_numbers(model: Outline, rank: int) -> int:
    """Numbers of the adapters of an expert: r·(in + out) for its gate, up and down projection, factored apart, in every layer.

    Raises:
        InputError: the rank is below 1 or above a projection's smaller side, where an adapter adds nothing.
    """
    sizes = model.projections.values()
    if not sizes:
        raise InputError(f"rank = {rank}: the experts of a {model.model_type!r} model have no linear layer to adapt")
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


def uploads(model: Outline, rank: int) -> Uploads:
    """Upload sizes with adapters of rank r.

    Raises:
        InputError: see `adapter_numbers`.
    """
    lora_B = dict.fromkeys(map(expert, range(model.experts)), LINK_B * adapter_numbers(model, rank))
    return Uploads(lora_B, LINK_B * count(model.parts[GATE]))


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


def forward_flops(model: Outline, length: int) -> int | None:
    """FLOPs of a token on its way through the model, in sequences of a length; None of models that convolve images.

    Matrix products at 2·m·n·k, as `torch.utils.flop_counter` counts, attention as its products where its heads are known.
    """
    if any(len(size) > 3 for size in model.rest.values()):
        return None
    flat = sum(count({n: size}) for n, size in model.rest.items() if len(size) == 2 and "embed" not in n)
    routed = sum(count(layer.gate) + model.top_k * count(layer.experts[0].tensors) for layer in model.layers)
    s = model.shape
    return 2 * (flat + routed) + (4 * length * s.H * s.d * s.layers if s else 0)


def step_flops(model: Outline, length: int, own: int, masked: bool, rank: int, gate: bool) -> int | None:
    """About the FLOPs of a token in a gradient step that trains ``own`` experts: forward, back to the inputs, and to weights.

    Behind an open gate experts are taken to be picked alike.
    """
    forward = forward_flops(model, length)
    if forward is None:
        return None
    each = sum(count(layer.experts[0].tensors) for layer in model.layers)
    picks = min(model.top_k, own) if masked else model.top_k
    forward -= 2 * (model.top_k - picks) * each if masked and own else 0
    mine = picks if masked else picks * own / model.experts
    weights = 6 * adapter_numbers(model, rank) if rank else 2 * each
    return round(2 * forward + mine * weights + gate * 2 * count(model.parts[GATE]))


Phase = dict[str, int]
"""Bytes by purpose, and ``total_B``."""


@dataclass(frozen=True)
class Training:
    """What a device trains, and how: adapters of a ``rank``, or with 0 the experts' own weights, with one optimiser or another.

    ``load`` is how much of the model it loads, where that is not left to the protocol; ``cache`` how many others stay.
    """

    rank: int = 4
    load: str | None = None
    adamw: bool = True
    cache: int = 0


def memory(model: Outline, experts: Collection[int], work: Work, how: Training = Training()) -> dict[str, dict[str, Phase]]:
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
        NotMoEError: the attention or feed-forward layers of this model type are not known here.
    """
    mine = owned(model, experts)
    full = model.shape
    if full is None:
        raise NotMoEError(
            f"model_type = {model.model_type!r}: the memory of its layers is not known yet; {', '.join(ACTIVATIONS)} are"
        )
    held = Held(model, len(mine), work, how)
    enhanced = {
        "trial": held.trial(held.apart),
        "training": held.training(held.loaded, len(mine), len(mine), masked=True),
        "gate_tail": held.training(held.apart, full.E, 0, gate=True),
    }
    if how.load in ("own", "stream"):
        return {"ems-fl-enhanced": {name: one for name, one in enhanced.items() if how.load == "stream" or name == "training"}}
    return {
        "ems-fl-enhanced": enhanced,
        "ems-fl": {
            "trial": held.trial(held.complete),
            "training": held.training(held.complete, full.E, len(mine), gate=True),
        },
        "sync": {"training": held.training(held.complete, full.E, full.E, gate=True)},
    }


class Held:
    """Phases of a device that owns so many experts; see `memory`."""

    def __init__(self, model: Outline, mine: int, work: Work, how: Training):
        each = count(model.parts[expert(0)])
        rest = sum(count(tensors) for part, tensors in model.parts.items() if not is_expert(part))
        self._full, self._mine, self._work, self._how = model.shape, mine, work, how
        self._trained = adapter_numbers(model, how.rank) if how.rank else each
        self._gate = count(model.parts[GATE])
        self.complete = rest + model.experts * each
        one_by_one = min(STREAMED, model.experts) * each // len(model.layers)
        streamed = rest + (min(how.cache, model.experts) * each if how.cache else one_by_one)
        self.loaded, self.apart = (self.complete, self.complete) if how.load == "all" else (rest + mine * each, streamed)

    def trial(self, weights: int) -> Phase:
        """A forward pass over numbers that are loaded."""
        return self._phase(weights, working=0 if self._full is None else working_B(self._full, self._work, False))

    def training(
        self, weights: int, held: int, trained: int, gate: bool = False, masked: bool = False, beside: int = 0
    ) -> Phase:
        """Training of so many experts, with adapters of so many in memory, and of ``beside`` other numbers.

        What activations take is left out where it is not known: of other model types, and where more than experts and gate
        is trained.
        """
        rank = self._how.rank
        numbers, other = trained * self._trained, gate * self._gate + beside
        saved = working = 0
        if self._full is not None and not beside:
            s = replace(self._full, K=min(self._full.K, self._mine)) if masked else self._full
            saved = sum(activations_B(s, self._work, float(trained > 0), rank, gate).values())
            working = working_B(s, self._work, True)
        return self._phase(weights, held * self._trained if rank else 0, numbers, other, saved, working)

    def _phase(
        self, weights: int, held: int = 0, trained: int = 0, other: int = 0, activations: int = 0, working: int = 0
    ) -> Phase:
        e = self._work.e
        phase = {
            "weights_B": e * weights,
            "adapters_B": FLOAT32_B * held,
            "gradients_B": (FLOAT32_B if self._how.rank else e) * trained + e * other,
            "optimizer_B": ADAMW_B * (trained + other) if self._how.adamw else 0,
            "activations_B": activations,
            "working_B": working,
        }
        return phase | {"total_B": sum(phase.values())}


def describe(model: Outline, experts: Collection[int], work: Work, how: Training = Training()) -> dict[str, Any]:
    """What ``fedexperts inspect`` prints; ``memory_B`` is None where the memory of this model type is not known.

    Raises:
        InputError: experts or rank are out of range.
    """
    sizes = uploads(model, how.rank)
    return {
        "parts": parts(model, work.precision),
        "lora_upload_B": sizes.lora_B,
        "gate_upload_B": sizes.gate_B,
        "baseline_upload_B": sizes.baseline_B,
        "ratio": round(sizes.ratio, 4),
        "experts": owned(model, experts),
        "rank": how.rank,
        "precision": work.precision,
        "batch": work.batch,
        "length": work.length,
        "memory_B": None if model.shape is None else memory(model, experts, work, how),
    }


def owned(model: Outline, experts: Collection[int]) -> list[int]:
    """The experts in order, checked.

    Raises:
        InputError: no expert, one twice, or one that the model does not have.
    """
    if not experts or len(set(experts)) < len(experts) or not set(experts) <= set(range(model.experts)):
        raise InputError(
            f"experts = {','.join(map(str, experts)) or 'none'}: must be different numbers between 0 and {model.experts - 1}, "
            f"as the model has {model.experts} experts; correct the list"
        )
    return sorted(experts)
