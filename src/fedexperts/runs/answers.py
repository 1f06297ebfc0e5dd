"""What models say to the same prompts, side by side; of a run also the model that it began with (the paper's Table II)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..moe.answer import Prompt, answers, classifies
from ..moe.checkpoint import resolve
from ..moe.kinds import kind_of
from ..moe.meta import read_config
from ..moe.tasks import TASKS, NamedTask, read_tasks
from ..moe.tokenizer import has_tokenizer
from .ended import initial_folder, is_run, model_folder, scenario_of


@dataclass(frozen=True)
class Shown:
    """A model to be asked: its name in tables, its folder, that of its tokenizer, and the task."""

    name: str
    folder: Path
    tokenizer: Path
    task: NamedTask | None


def ask(
    models: Sequence[str], prompts: Sequence[str], max_new_tokens: int, cluster: str | None = None, second: Sequence[str] = ()
) -> dict[str, Any]:
    """What ``fedexperts try --json`` prints: ``prompts``, for each model its ``answers`` in that order, and ``notes``.

    Args:
        models: checkpoint folders, run directories or hub names.
        prompts: texts; a causal language model continues them, a classifier labels them.
        max_new_tokens: length of a continuation at most.
        cluster: whose task is asked, of a model with several.
        second: the second texts of pairs, one for each prompt.

    Raises:
        InputError: a model or tokenizer cannot be loaded, a run has not ended, a prompt is empty or not there, the cluster is
            not said or unknown, or texts and task do not fit.
    """
    if not prompts:
        raise InputError("--prompt: is missing; give one or several, or --prompt-file")
    if second and len(second) != len(prompts):
        raise InputError(f"--second: is given {len(second)} times for {len(prompts)} prompts; give one for each prompt")
    shown: list[Shown] = []
    notes: list[str] = []
    for model in models:
        folder = model_folder(model)
        if kind_of(read_config(str(folder))) == "image-classifier":
            raise InputError(
                f"{model}: labels images, and a prompt is text; fedexperts eval {model} --task SCENARIO.toml judges it"
            )
        task = _task(model, folder, cluster, bool(second))
        if is_run(Path(model)):
            shown += _before(model, folder, task, notes)
        shown.append(Shown(model, folder, _tokenizer(folder, Path(model)), task))
    asked: list[Prompt] = list(zip(prompts, second, strict=True)) if second else list(prompts)
    said = {one.name: answers(one.folder, one.tokenizer, asked, max_new_tokens, one.task) for one in dict.fromkeys(shown)}
    return {
        "cluster": cluster,
        "prompts": list(prompts),
        "second": list(second),
        "models": {name: {"answers": rows} for name, rows in said.items()},
        "notes": notes,
    }


def _task(model: str, folder: Path, cluster: str | None, pairs: bool) -> NamedTask | None:
    """The task that a model is asked for; None where its whole head, or all its vocabulary, answers."""
    if not classifies(folder):
        if cluster is not None or pairs:
            option = "--second" if cluster is None else "--cluster"
            raise InputError(f"{option}: {model} continues texts, whatever cluster they are of; give it the whole prompt")
        return None
    tasks = read_tasks(folder)
    listed = "; ".join(f"{name} ({task.answers()})" for name, task in tasks.items())
    if cluster is None and len({task.rows for task in tasks.values()}) > 1:
        raise InputError(f"{model}: several tasks share its head; name the cluster to ask with --cluster: {listed}")
    if cluster is not None and cluster not in tasks:
        known = f"it has {listed}" if tasks else f"it has no {TASKS}, which runs on text write beside a model; leave it out"
        raise InputError(f"--cluster {cluster}: {model} has no such cluster; {known}")
    task = tasks[cluster] if cluster is not None else next(iter(tasks.values()), None)
    if task is not None and pairs != (task.text_pair is not None):
        raise InputError(
            f"--second: {model} labels pairs ({task.text} and {task.text_pair}); give the second text of each prompt"
            if task.text_pair is not None
            else f"--second: {model} labels single texts ({task.text}); leave it out"
        )
    return task


def _before(model: str, tuned: Path, task: NamedTask | None, notes: list[str]) -> list[Shown]:
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
        return [Shown(f"{model}, before", folder, _tokenizer(folder, Path(model)), task)]
    return []


def _tokenizer(folder: Path, run: Path) -> Path:
    """The checkpoint's own tokenizer, else the one that the run's scenario names."""
    if not has_tokenizer(folder) and is_run(run):
        scenario = scenario_of(run)
        if scenario.model.tokenizer is not None:
            return resolve(scenario.model.tokenizer, scenario.base)
    return folder
