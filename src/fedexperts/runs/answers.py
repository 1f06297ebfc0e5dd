"""What models say to the same prompts, side by side; of a run also the model that it began with (the paper's Table II)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..moe.answer import answers, classifies
from ..moe.checkpoint import resolve
from ..moe.tokenizer import has_tokenizer
from .ended import initial_folder, is_run, model_folder, scenario_of


@dataclass(frozen=True)
class Shown:
    """A model to be asked: its name in tables, its folder, and that of its tokenizer."""

    name: str
    folder: Path
    tokenizer: Path


def ask(models: Sequence[str], prompts: Sequence[str], max_new_tokens: int) -> dict[str, Any]:
    """What ``fedexperts try --json`` prints: ``prompts``, for each model its ``answers`` in that order, and ``notes``.

    Args:
        models: checkpoint folders, run directories or hub names.
        prompts: texts; a causal language model continues them, a classifier labels them.
        max_new_tokens: length of a continuation at most.

    Raises:
        InputError: a model or tokenizer cannot be loaded, a run has not ended, a prompt is empty or not there.
    """
    if not prompts:
        raise InputError("--prompt: is missing; give one or several, or --prompt-file")
    shown: list[Shown] = []
    notes: list[str] = []
    for model in models:
        folder = model_folder(model)
        if is_run(Path(model)):
            shown += _before(model, folder, notes)
        shown.append(Shown(model, folder, _tokenizer(folder, Path(model))))
    said = {one.name: answers(one.folder, one.tokenizer, prompts, max_new_tokens) for one in dict.fromkeys(shown)}
    return {"prompts": list(prompts), "models": {name: {"answers": rows} for name, rows in said.items()}, "notes": notes}


def _before(model: str, tuned: Path, notes: list[str]) -> list[Shown]:
    """The model that a run began with, or a note why it cannot be shown."""
    try:
        folder = initial_folder(Path(model), scenario_of(Path(model)))
    except InputError as error:
        notes.append(f"{model}: the model before is not where it was ({error})")
        return []
    if folder is None:
        notes.append(f"{model}: began with random weights that were not kept; only the tuned model is shown")
    elif classifies(folder) != classifies(tuned):
        notes.append(f"{model}: the model before has no head for this task; only the tuned model is shown")
    else:
        return [Shown(f"{model}, before", folder, _tokenizer(folder, Path(model)))]
    return []


def _tokenizer(folder: Path, run: Path) -> Path:
    """The checkpoint's own tokenizer, else the one that the run's scenario names."""
    if not has_tokenizer(folder) and is_run(run):
        scenario = scenario_of(run)
        if scenario.model.tokenizer is not None:
            return resolve(scenario.model.tokenizer, scenario.base)
    return folder
