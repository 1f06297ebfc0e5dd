"""MoE models from dense ones: `merge` makes experts of the FFNs of several models (Sec. V-B), `upcycle` copies of one's.

Checkpoints are safetensors, types are kept; how they are planned and written is in `written`.

Shapes: D hidden, F intermediate, E experts of a layer, L layers.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from transformers import AutoModel, MixtralConfig

from ..errors import InputError
from ..writing import check_empty
from .checkpoint import Checkpoint
from .encoder import BertMoEConfig, BertMoEForSequenceClassification
from .gate_rows import hidden_rows, prompts_of, random_rows
from .subset import NEW_HEADS, one_or_more
from .tokenizer import tokenizer_notes
from .written import Plan, copied, given, write

Gate = Literal["random", "hidden"]
DENSE = ("llama", "mistral")
"""Families that are a Mixtral but for the FFN."""
MATRICES = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
"""An expert's matrices as Mixtral publishes them, and as dense models call them."""
HEADS = {"lm_head.weight": "MixtralForCausalLM", "score.weight": "MixtralForSequenceClassification"}
EMBEDDING = "model.embed_tokens.weight"
CARRIED = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "max_position_embeddings",
    "initializer_range",
    "rms_norm_eps",
    "rope_parameters",
    "attention_dropout",
    "tie_word_embeddings",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
    "id2label",
    "label2id",
    "problem_type",
    "dtype",
)
"""What the new config takes over from the dense one. Mistral's ``sliding_window`` comes on top."""


@dataclass(frozen=True)
class Built:
    """What was written.

    Attributes:
        out: the checkpoint folder.
        parameters: how many numbers it holds.
        experts, top_k: M and K.
        layers: the layers that are MoE.
        notes: what the user should know.
    """

    out: Path
    parameters: int
    experts: int
    top_k: int
    layers: tuple[int, ...]
    notes: tuple[str, ...] = ()


def merge(
    base: Path,
    experts: Sequence[Path],
    out: Path,
    gate: Gate = "random",
    prompts: Path | None = None,
    top_k: int = 1,
    seed: int = 0,
) -> Built:
    """A Mixtral checkpoint whose experts are the FFNs of dense models; attention, norms, embeddings and head are the base's.

    Args:
        base: folder of a Llama or Mistral checkpoint.
        experts: two or more folders of checkpoints of the base's architecture and size; expert m is the m-th.
        out: the folder to write, new or empty.
        gate: ``"random"`` draws the gate's rows from a normal distribution with the base's ``initializer_range``;
            ``"hidden"`` takes the mean input of each layer's FFN in the base while it reads the expert's prompts, as a unit
            vector: tokens go to the expert whose prompts they resemble.
        prompts: for ``"hidden"``, a JSONL file; line m is the list of expert m's prompts, ``["…", "…"]``.
        top_k: K.
        seed: of the random gate.

    Raises:
        InputError: too few experts, models that do not fit together, a family that Mixtral cannot express, other tokenizers,
            prompts that are missing or not needed, a folder that is not empty, or a checkpoint that cannot be read.
    """
    if len(experts) < 2:
        raise InputError(f"--experts names {len(experts)} folder; name at least two, one for each expert")
    _check_top_k(top_k, len(experts))
    check_empty(out, "--out")
    root, sources = dense(base), [dense(path) for path in experts]
    notes = [note for source in sources if not source.path.samefile(root.path) for note in _notes(root, source)]
    if (gate == "hidden") != (prompts is not None):
        raise InputError("--gate hidden and --prompts FILE go together; give both or none")
    plan = backbone_plan(root) | experts_plan(root, sources)
    rows = (
        random_rows(root, len(experts), None, seed) if prompts is None else hidden_rows(root, prompts_of(prompts, len(experts)))
    )
    return write_mixtral(root, plan | gate_plan(root, rows), len(experts), top_k, out, notes)


def upcycle(
    model: Path,
    experts: int,
    out: Path,
    top_k: int = 2,
    layers: Sequence[int] | None = None,
    gate_std: float | None = None,
    seed: int = 0,
    labels: int | None = None,
) -> Built:
    """Sparse upcycling: every expert starts as a copy of the dense FFN, so that outputs stay what they were.

    A Llama or Mistral becomes a Mixtral, a BERT a classifier with layers of our own (see `encoder`).

    Args:
        model: folder of the dense checkpoint.
        experts: M.
        out: the folder to write, new or empty.
        top_k: K; the weights of the picks sum to one.
        layers: numbers of the layers that become MoE; None: all. Mixtral knows no other.
        gate_std: standard deviation of the gate's rows; None: the model's ``initializer_range``.
        seed: of the gate.
        labels: how many classes there will be, where the model is no classifier yet; its head is drawn when it is loaded.

    Raises:
        InputError: numbers out of range, a family that cannot be upcycled, or a checkpoint that cannot be read.
    """
    if experts < 2:
        raise InputError(f"--experts {experts}: must be at least 2")
    _check_top_k(top_k, experts)
    if gate_std is not None and not (gate_std >= 0 and math.isfinite(gate_std)):
        raise InputError(f"--gate-std {gate_std}: must be a number of at least 0")
    check_empty(out, "--out")
    root = Checkpoint(model)
    if labels is not None:
        _set_labels(root, labels)
    chosen = _layers(layers, root.config.num_hidden_layers)
    rows = random_rows(root, experts, gate_std, seed)
    if root.config.model_type == "bert":
        return _upcycle_encoder(root, rows, top_k, chosen, out)
    _check_dense(root, (*DENSE, "bert"))
    if len(chosen) < root.config.num_hidden_layers:
        raise InputError(
            f"--layers {','.join(map(str, chosen))}: every layer of a Mixtral is MoE, so a {root.config.model_type} can only "
            "be upcycled as a whole; leave out --layers"
        )
    plan = backbone_plan(root) | experts_plan(root, [root] * experts) | gate_plan(root, rows)
    return write_mixtral(root, plan, experts, top_k, out)


def _upcycle_encoder(root: Checkpoint, rows_LED: Sequence[Tensor], top_k: int, layers: tuple[int, ...], out: Path) -> Built:
    if root.config.is_decoder or root.config.add_cross_attention:
        raise InputError(
            f"{root.path}: is_decoder or add_cross_attention is true in config.json; only encoders can be upcycled"
        )
    experts = len(rows_LED[0])
    dense_fields = {name: value for name, value in root.config.to_dict().items() if name != "model_type"}
    config = BertMoEConfig(
        **{**dense_fields, "architectures": [BertMoEForSequenceClassification.__name__]},
        num_experts=experts,
        num_experts_per_tok=top_k,
        moe_layers=list(layers),
    )
    plan = encoder_plan(root, config, rows_LED)
    write(plan, config, root.path, out)
    return Built(out, sum(tensor.numel for tensor in plan.values()), experts, top_k, layers)


def encoder_plan(root: Checkpoint, config: BertMoEConfig, rows_LED: Sequence[Tensor]) -> Plan:
    """A BERT with the chosen FFNs copied; a pooler or classifier that it lacks is left out, and made when it is loaded."""
    with torch.device("meta"):
        blank = BertMoEForSequenceClassification(config).state_dict()
    plan = {}
    for name, tensor in blank.items():
        stored = re.sub(r"\.moe\.experts\.\d+\.(intermediate|output)\.", r".\1.dense.", name)
        if name.endswith(".moe.gate.weight"):
            layer = int(name.split(".")[3])
            plan[name] = given(rows_LED[layer].to(root.dtype(f"bert.encoder.layer.{layer}.intermediate.dense.weight")))
        elif stored in root or not name.startswith(NEW_HEADS):
            plan[name] = copied(root, stored, tuple(tensor.shape))
    return plan


def _set_labels(root: Checkpoint, labels: int) -> None:
    if labels < 1:
        raise InputError(f"--labels {labels}: must be at least 1")
    if head := [name for name in ("score.weight", "classifier.weight") if name in root]:
        raise InputError(f"--labels {labels}: {root.path} has a head already, {head[0]}; leave out --labels")
    root.config.num_labels = labels


def _layers(layers: Sequence[int] | None, count: int) -> tuple[int, ...]:
    chosen = tuple(range(count)) if layers is None else tuple(sorted(set(layers)))
    if not chosen or chosen[0] < 0 or chosen[-1] >= count:
        raise InputError(f"--layers {','.join(map(str, chosen))}: name layers in 0…{count - 1}, at least one")
    return chosen


def dense(path: Path) -> Checkpoint:
    """The checkpoint of a dense model that Mixtral can express.

    Raises:
        InputError: it is of another family, has biases, or cannot be read.
    """
    checkpoint = Checkpoint(path)
    _check_dense(checkpoint, DENSE)
    return checkpoint


def _check_dense(checkpoint: Checkpoint, families: Sequence[str]) -> None:
    path, config = checkpoint.path, checkpoint.config
    if config.model_type not in DENSE:
        raise InputError(
            f"{path}: model_type {config.model_type!r} is not dense, or cannot become MoE without changing what it computes; "
            f"give a checkpoint of model_type {' or '.join(families)}"
        )
    if biased := [name for name in ("attention_bias", "mlp_bias") if getattr(config, name, False)]:
        raise InputError(f"{path}: {biased[0]} is true in config.json, and Mixtral has no biases; use a model without them")


def backbone_plan(root: Checkpoint) -> Plan:
    """All that is no FFN, from the base; if its head is another tensor than its embedding, its config says so from here on."""
    with torch.device("meta"):
        blank = AutoModel.from_config(root.config, trust_remote_code=False).state_dict()
    shapes = {f"model.{name}": tuple(tensor.shape) for name, tensor in blank.items() if ".mlp." not in name}
    rows = {"lm_head.weight": root.config.vocab_size, "score.weight": root.config.num_labels}
    shapes |= {name: (rows[name], root.config.hidden_size) for name in HEADS if name in root}
    if not root.config.tie_word_embeddings:
        return {name: copied(root, name, shape) for name, shape in shapes.items()}
    stored = {EMBEDDING: EMBEDDING if EMBEDDING in root else "lm_head.weight"}
    if "lm_head.weight" in one_or_more((EMBEDDING, "lm_head.weight"), root):
        root.config.tie_word_embeddings = False
    else:
        shapes.pop("lm_head.weight", None)
    return {name: copied(root, stored.get(name, name), shape) for name, shape in shapes.items()}


def experts_plan(root: Checkpoint, sources: Sequence[Checkpoint]) -> Plan:
    """Expert m of every layer is the FFN of source m, in the type in which the base's lies."""
    d, f = root.config.hidden_size, root.config.intermediate_size
    plan = {}
    for layer in range(root.config.num_hidden_layers):
        for theirs, name in MATRICES.items():
            stored = f"model.layers.{layer}.mlp.{name}.weight"
            shape = (d, f) if name == "down_proj" else (f, d)
            dtype = copied(root, stored, shape).dtype
            for m, source in enumerate(sources):
                to = f"model.layers.{layer}.block_sparse_moe.experts.{m}.{theirs}.weight"
                plan[to] = copied(source, stored, shape, dtype)
    return plan


def gate_plan(root: Checkpoint, rows_LED: Sequence[Tensor]) -> Plan:
    """The gates, in the type of the base's FFNs."""
    dtype = root.dtype("model.layers.0.mlp.gate_proj.weight")
    return {
        f"model.layers.{layer}.block_sparse_moe.gate.weight": given(rows_ED.to(dtype)) for layer, rows_ED in enumerate(rows_LED)
    }


def _check_top_k(top_k: int, experts: int) -> None:
    if not 1 <= top_k <= experts:
        raise InputError(f"--top-k {top_k}: must lie between 1 and the number of experts, {experts}")


def _notes(root: Checkpoint, source: Checkpoint) -> Iterator[str]:
    """Check that two models belong together; yield what is no error and yet worth knowing."""
    for name in ("num_hidden_layers", "hidden_act"):
        ours, theirs = getattr(root.config, name), getattr(source.config, name)
        if ours != theirs:
            raise InputError(
                f"{source.path / 'config.json'}: {name} is {theirs!r}, the base's is {ours!r}; "
                "give checkpoints of one architecture and size"
            )
    if root.config.rope_parameters != source.config.rope_parameters:
        yield f"{source.path}: its rope_parameters differ from the base's, which are used"
    name = "model.layers.0.mlp.gate_proj.weight"
    if root.dtype(name) != source.dtype(name):
        yield f"{source.path}: stored in {source.dtype(name)}; converted to the base's {root.dtype(name)}"
    yield from tokenizer_notes(root.path, source.path)


def write_mixtral(root: Checkpoint, plan: Plan, experts: int, top_k: int, out: Path, notes: Sequence[str] = ()) -> Built:
    """Write the planned tensors as a Mixtral checkpoint with the base's config and tokenizer."""
    fields = {name: getattr(root.config, name) for name in CARRIED if hasattr(root.config, name)}
    config = MixtralConfig(
        **fields,
        sliding_window=getattr(root.config, "sliding_window", None),
        num_local_experts=experts,
        num_experts_per_tok=top_k,
        architectures=[_architecture(root)],
    )
    write(plan, config, root.path, out)
    layers = tuple(range(root.config.num_hidden_layers))
    return Built(out, sum(tensor.numel for tensor in plan.values()), experts, top_k, layers, tuple(notes))


def _architecture(root: Checkpoint) -> str:
    tied = "MixtralForCausalLM" if root.config.tie_word_embeddings else "MixtralModel"
    return next((name for head, name in reversed(HEADS.items()) if head in root), tied)
