"""The scenario's model, and whether data fit it."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..data.classify import Classification
from ..data.images import shape_text
from ..data.objective import Objective
from ..data.source import Samples, first
from ..errors import InputError
from ..moe.auto import AUTO, new_model
from ..moe.checkpoint import resolve
from ..moe.kinds import FOR_TASK
from ..moe.lora import LoRA
from ..moe.subset import load_full
from ..moe.view import View
from ..scenario import Scenario, Tasks
from ..tables import Model


def lora_of(table: Model) -> LoRA | None:
    """How experts are adapted, if they are."""
    return LoRA(table.lora.rank, table.lora.alpha, table.lora.average) if table.lora else None


def load_model(scenario: Tasks, outputs: int | None, dense: bool = False) -> nn.Module:
    """The scenario's model, where it is computed; ``outputs`` is what the data need of a classifier's head.

    ``dense``: a checkpoint without an MoE layer will do, to be judged.

    Raises:
        InputError: there is no such model or accelerator.
    """
    table, seed, kind = scenario.model, scenario.seed, FOR_TASK[scenario.task.kind]
    dtype, where = getattr(torch, table.precision), accelerator(table)
    if table.path is None:
        return new_model(table.config or {}, seed, dtype, kind, outputs).to(where)
    path = resolve(table.path, scenario.base)
    return load_full(path, AUTO[kind], dtype, seed, outputs, dense).to(where)


def accelerator(table: Model) -> torch.device:
    """Where the model is to be computed.

    Raises:
        InputError: there is no such accelerator.
    """
    if table.accelerator == "cuda" and not torch.cuda.is_available():
        raise InputError("model.accelerator = 'cuda': no GPU that torch can use is here; use \"cpu\" or install torch for CUDA")
    return torch.device(table.accelerator)


def model_view(scenario: Scenario, outputs: int | None) -> View:
    """The scenario's model, part by part; raises `InputError` where train.shared or the warm-up do not fit it."""
    table = scenario.model
    view = View(load_model(scenario, outputs), table.top1, table.mask, table.noise_std, scenario.assignment.granularity)
    if unknown := scenario.train.shared - set(view.parts):
        raise InputError(f"train.shared = {sorted(unknown)}: the model has no such part; it has {sorted(view.parts)}")
    if scenario.warmup and scenario.warmup.gate_fit > 0 and len(scenario.warmup.data) > view.experts:
        raise InputError(
            f"warmup.data has {len(scenario.warmup.data)} domains but the model only {view.experts} experts; "
            "gate_fit needs at least one expert for each domain"
        )
    return view


def check_fit(view: View, what: str, samples: Samples, objective: Objective) -> None:
    """Whether the model has an output for every label, and an input for every image, token and position.

    Raises:
        InputError: with ``what``, the value and the remedy.
    """
    config: Any = view.model.config
    if isinstance(objective, Classification) and not samples["labels"].is_floating_point():
        outputs = min(objective.labels, config.num_labels - objective.first)
        if wrong := [int(label) for label in torch.unique(samples["labels"]) if not 0 <= int(label) < outputs]:
            raise InputError(
                f"{what}: label {wrong[0]} is outside 0…{outputs - 1}, the model's head; set num_labels or correct the labels"
            )
    if "pixel_values" in samples:
        _check_images(config, what, samples["pixel_values"].shape[1:])
        return
    sequences = [samples[name] for name in ("input_ids", "question", "option") if name in samples]
    length = _longest(samples)
    most = getattr(config, "max_position_embeddings", length)
    if length > most:
        raise InputError(
            f"{what}: up to {length} tokens, but the model has seen at most {most} (max_position_embeddings); "
            f"lower task.max_length to {most} or shorten the data"
        )
    for tokens in sequences:
        if wrong := [int(token) for token in torch.unique(tokens) if not 0 <= int(token) < config.vocab_size]:
            raise InputError(
                f"{what}: token {wrong[0]} is outside the model's vocabulary of {config.vocab_size}; "
                "use the model's own tokenizer or a model with a larger vocab_size"
            )


def _check_images(config: Any, what: str, shape_CHW: torch.Size) -> None:
    wanted = (config.in_channels, config.image_size, config.image_size)
    if tuple(shape_CHW) != wanted:
        raise InputError(
            f"{what}: images of {shape_text(shape_CHW)}, but the model takes {shape_text(wanted)}; "
            "set in_channels and image_size of model.config, or use images of that size"
        )


def _longest(samples: Samples) -> int:
    """Tokens of the longest sequence; a question and one of its options are read as one."""
    if "question" in samples:
        return int((samples["question_mask"].sum(dim=-1) + samples["option_mask"].sum(dim=-1).amax(dim=-1)).max())
    return samples["input_ids"].shape[1]


def check_forward(view: View, samples: Samples, objective: Objective) -> None:
    """Two samples through the model: what a config gets wrong shows here and not after work has begun."""
    try:
        with torch.no_grad():
            objective.loss(view, {key: value.to(view.device) for key, value in first(samples, 2).items()})
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        raise InputError(f"model: cannot run two samples ({error}); correct model.config or the checkpoint") from error
