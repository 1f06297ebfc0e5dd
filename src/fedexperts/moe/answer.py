"""What a model says to a prompt, by plain transformers: a greedy continuation, or a label with probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ..errors import InputError
from ..reading import read_json
from .auto import AUTO
from .checkpoint import Checkpoint
from .config import refusing
from .kinds import kind_of
from .meta import read_config
from .store import check_finite
from .tasks import NamedTask
from .tokenizer import load_tokenizer

Answer = dict[str, Any]
Prompt = str | tuple[str, str]
"""A text, or two of them for a model that labels pairs."""


def classifies(folder: Path) -> bool:
    """Whether a checkpoint is a sequence classifier, by its config; else it is taken for a causal language model."""
    return kind_of(read_config(str(folder))) == "classifier"


def answers(
    folder: Path, tokenizer: Path, prompts: Sequence[Prompt], max_new_tokens: int, task: NamedTask | None = None
) -> list[Answer]:
    """For each prompt ``{"text"}``, or of a classifier ``{"label", "probabilities"}``, or ``{"score"}`` of a regression.

    Args:
        folder: the model's.
        tokenizer: the folder of its tokenizer.
        prompts: texts, or pairs of them.
        max_new_tokens: length of a continuation at most.
        task: answer within its rows of the head, by its names, and read no more tokens than it does.

    Raises:
        InputError: there is no tokenizer or no loadable model, or they, the task and the prompts do not fit.
    """
    classifier = classifies(folder)
    reader = load_tokenizer(tokenizer)
    cut = {"truncation": True, "max_length": task.max_length} if task and task.max_length and classifier else {}
    coded = [reader(*_sides(prompt), return_tensors="pt", **cut) for prompt in prompts]
    model = _load(folder, AUTO["classifier" if classifier else "language-model"])
    for prompt, inputs in zip(prompts, coded, strict=True):
        if not inputs["input_ids"].numel():
            raise InputError(f"--prompt {prompt!r}: has no tokens; give a text")
        if int(inputs["input_ids"].max()) >= model.config.vocab_size:
            raise InputError(
                f"{folder}: token {int(inputs['input_ids'].max())} is outside its vocabulary of {model.config.vocab_size}; "
                f"{tokenizer} holds another model's tokenizer"
            )
    with torch.no_grad():
        if classifier:
            if task and max(task.rows, default=0) >= model.config.num_labels:
                raise InputError(
                    f"{folder}: its head has {model.config.num_labels} outputs, and its task's rows end at {max(task.rows)}; "
                    "tasks.json belongs to another model"
                )
            return [_label(model, inputs, task) for inputs in coded]
        return [_continuation(model, reader, inputs, max_new_tokens) for inputs in coded]


def _sides(prompt: Prompt) -> tuple[str, ...]:
    return (prompt,) if isinstance(prompt, str) else prompt


def _label(model: Any, inputs: Any, task: NamedTask | None) -> Answer:
    logits = model(**inputs).logits[0].float()
    if task and task.rows and not task.labels:
        return {"score": round(float(logits[task.rows[0]]), 6)}
    rows = list(task.rows) if task and task.rows else list(range(len(logits)))
    names = task.labels if task and task.labels else [str(model.config.id2label[i]) for i in rows]
    named = {name: round(share, 6) for name, share in zip(names, logits[rows].softmax(dim=-1).tolist(), strict=True)}
    return {"label": max(named, key=lambda name: named[name]), "probabilities": named}


def _continuation(model: Any, tokenizer: Any, inputs: Any, max_new_tokens: int) -> Answer:
    inputs.pop("token_type_ids", None)
    padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    remedy = "correct generation_config.json there, or remove it"
    with refusing(f"{model.name_or_path}: cannot continue a prompt", remedy):
        tokens = model.generate(**inputs, do_sample=False, num_beams=1, max_new_tokens=max_new_tokens, pad_token_id=padding)
    return {"text": tokenizer.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)}


def _load(folder: Path, kind: Any) -> Any:
    """The model, in the types that it is stored in; code beside it is never run."""
    checkpoint = Checkpoint(folder)  # tells what is wrong with config and files, and never loads a pickle
    generation = folder / "generation_config.json"
    if generation.exists() and not isinstance(read_json(generation, "model"), dict):
        raise InputError(f"{generation}: must be a table in JSON; copy it again, or remove it")
    remedy = "correct config.json and generation_config.json there, or give a folder written by save_pretrained"
    with refusing(f"{folder}: cannot be loaded", remedy):
        model = kind.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, trust_remote_code=False, dtype="auto"
        ).eval()
    for name, tensor in model.state_dict().items():
        try:
            check_finite(tensor, name, folder)
        except InputError:
            checkpoint.store.check_finite()  # by the names and files that the tensors lie in
            raise
    return model
