"""From a finished run to a folder that other programs load: its model, PEFT's adapter beside its base, or its ledger."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, Literal

from ..errors import InputError
from ..moe.auto import AUTO, PEFT
from ..moe.checkpoint import Checkpoint, files_of
from ..moe.kinds import FOR_TASK, MODULES
from ..moe.parts import HEAD, Piece, is_expert
from ..moe.peft import parts_of, peft_adapter
from ..moe.store import Store
from ..moe.tasks import copy_tasks
from ..moe.tokenizer import copy_tokenizer
from ..moe.written import save
from ..scenario import Scenario
from ..tables import Adapters
from ..writing import check_empty, filled
from .ended import ADAPTERS, check_ended, initial_folder, scenario_of
from .records import check_tensorboard, write_events, write_parquet

Format = Literal["merged", "peft", "parquet", "tensorboard"]


def save_adapters(file: Path, model: dict[str, Piece], classifier: bool) -> None:
    """Write the adapters, the other parts that were trained, and a classifier's head, which a base may lack."""
    kept = [p for p in model.values() if is_expert(p.part) or p.version > 0 or (classifier and p.part == HEAD)]
    temporary = file.with_suffix(".unfinished")
    save({f"{p.part}/{name}": tensor.contiguous() for p in kept for name, tensor in p.tensors.items()}, temporary)
    temporary.replace(file)


def export(run: str | Path, form: Format, to: str | Path) -> dict[str, Any]:
    """Write the final model of a run, or its ledger; what ``fedexperts export --json`` prints.

    ``merged`` is a plain checkpoint. ``peft`` is an adapter for the model that the run started from: ``base``, which is the
    scenario's checkpoint or, after a warm-up or from random weights, the run's own ``base/``. ``parquet`` is the ledger, a row
    for each line, and ``tensorboard`` (an extra) the numbers of each evaluation by cycle, at simulated times.

    ``load`` is Python that loads it in a new process.

    Raises:
        InputError: no run, or one that has not ended; ``to`` is no folder or holds files; a run whose change is no adapter, or
            whose numbers are not finite; TensorBoard is missing.
        RunError: the machine refuses, as a full disk does; nothing is left in ``to`` then.
    """
    run, to = Path(run), Path(to)
    check_ended(run)
    check_empty(to, "--to")
    if form == "parquet" or form == "tensorboard":
        return _records(run, form, to)
    scenario = scenario_of(run)
    kind = FOR_TASK[scenario.task.kind]
    auto = AUTO[kind].__name__
    if form == "merged":
        Store(files_of(run / "model")).check_finite()
        with filled(to, "--to"):
            _copy(run / "model", to)
        load = f"{_imports(run, auto)}{auto}.from_pretrained({str(to)!r})"
        return {"format": form, "directory": str(to), "base": None, "load": load}
    base = _write_adapter(run, scenario, to, PEFT[kind])
    headed = kind != "language-model"  # the base may lack a head
    labels = f", num_labels={Checkpoint(run / 'model').config.num_labels}" if headed else ""
    start = f"{auto}.from_pretrained({base!r}{labels})"
    load = f"{_imports(run, auto)}from peft import PeftModel\nPeftModel.from_pretrained({start}, {str(to)!r})"
    return {"format": form, "directory": str(to), "base": base, "load": load}


def _records(run: Path, form: Format, to: Path) -> dict[str, Any]:
    """The ledger for other programs."""
    if form == "tensorboard":
        check_tensorboard()
        with filled(to, "--to"):
            write_events(run, to)
        name = "tensorboard.backend.event_processing.event_accumulator"
        load = f"from {name} import EventAccumulator\nEventAccumulator({str(to)!r}).Reload()"
        return {"format": form, "directory": str(to), "base": None, "load": load}
    with filled(to, "--to"):
        path = write_parquet(run, to)
    load = f"import pandas\npandas.read_parquet({str(path)!r})"
    return {"format": form, "directory": str(to), "base": None, "load": load}


def _imports(run: Path, auto: str) -> str:
    """Lines before the one that loads a run's model; transformers knows our own model types once their module is there."""
    model_type = Checkpoint(run / "model").config.model_type
    own = f"import {__package__.partition('.')[0]}.moe.{MODULES[model_type]}\n" if model_type in MODULES else ""
    return f"{own}from transformers import {auto}\n"


def _copy(folder: Path, to: Path) -> None:
    """Copy a checkpoint; the copies have the permissions of new files."""
    for path in sorted(folder.rglob("*")):  # folders before what is in them
        target = to / path.relative_to(folder)
        if path.is_dir():
            target.mkdir()
        else:
            shutil.copyfile(path, target)


def _write_adapter(run: Path, scenario: Scenario, to: Path, task_type: str) -> str:
    """PEFT's two files, the tokenizer and what the tasks are called; returns the base model's folder or hub name."""
    table = _adapters(run, scenario)
    base = _base(run, scenario)
    stored = Store({run / ADAPTERS: None})
    parts = parts_of({name: stored.tensor(name) for name in stored.shapes})
    config, tensors = peft_adapter(parts, table.rank, table.alpha)
    config |= {"task_type": task_type, "base_model_name_or_path": base}
    with filled(to, "--to"):
        save(tensors, to / "adapter_model.safetensors", metadata={"format": "pt"})
        (to / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")
        copy_tokenizer(run / "model", to)
        copy_tasks(run / "model", to)
    return base


def _adapters(run: Path, scenario: Scenario) -> Adapters:
    """How the run's experts were adapted, if what was trained can leave it as adapters."""
    table = scenario.model.lora
    if table is None:
        raise InputError(f"{run}: was trained in full (no model.lora), which is no adapter; use --format merged")
    if table.average == "merge":
        raise InputError(
            f"{run}: model.lora.average = 'merge' adds adapters to the weights round by round, so that there is none of rank "
            f'{table.rank}; use --format merged, or run again with average = "refactor"'
        )
    if not (run / ADAPTERS).is_file():
        raise InputError(f"{run}: holds no {ADAPTERS}; use --format merged, or run the scenario again")
    return table


def _base(run: Path, scenario: Scenario) -> str:
    """The run's own base, else the scenario's checkpoint by its folder or hub name."""
    if (run / "base").is_dir():
        return str((run / "base").resolve())
    name = scenario.model.path or ""
    folder = initial_folder(run, scenario)
    return str(folder) if scenario.file(name).is_dir() else name
