"""New checkpoints: planned first, then written tensor by tensor.

A plan has every tensor's source, shape and type, so that wrong input shows before anything is written; memory holds one shard
of at most `SHARD_B`.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from ..errors import InputError
from ..writing import on_disk
from .checkpoint import INDEX, SINGLE, Checkpoint
from .parts import Tensors
from .tokenizer import files_of_tokenizer

SHARD_B = 2 * 10**9


@dataclass(frozen=True)
class Planned:
    """One tensor of the new checkpoint: its shape and type, and how to get it when it is written."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    get: Callable[[], Tensor]

    @property
    def numel(self) -> int:
        """How many numbers."""
        return torch.Size(self.shape).numel()

    @property
    def size_B(self) -> int:
        """Bytes of the numbers."""
        return self.numel * self.dtype.itemsize


Plan = dict[str, Planned]


def copied(source: Checkpoint, name: str, shape: tuple[int, ...], dtype: torch.dtype | None = None) -> Planned:
    """A tensor of a checkpoint as it is, or in another type.

    Raises:
        InputError: it is missing or of another shape.
    """
    found = source.shape(name)
    if found != shape:
        raise InputError(
            f"{source.file(name)}: tensor {name!r} has shape {list(found)}, the base's config.json asks for {list(shape)}; "
            "give checkpoints of one architecture and size"
        )
    dtype = dtype or source.dtype(name)
    return Planned(shape, dtype, lambda: source.read(name, dtype=dtype))


def given(tensor: Tensor) -> Planned:
    """A tensor that exists already."""
    return Planned(tuple(tensor.shape), tensor.dtype, lambda: tensor)


def write(plan: Plan, config: Any, tokenizer: Path, out: Path) -> None:
    """Write a checkpoint folder: safetensors in shards, config.json and the files of a tokenizer; all or nothing.

    Raises:
        InputError: ``out`` cannot be written.
        RunError: the machine refuses, as a full disk does.
    """
    with on_disk(out, "make room, or name another folder", "--out"):
        _write(plan, config, tokenizer, out.resolve())


def _write(plan: Plan, config: Any, tokenizer: Path, out: Path) -> None:
    unfinished = out.with_name(f".{out.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)  # left by a process that was killed
    unfinished.mkdir(parents=True)
    try:
        _write_shards(plan, unfinished)
        config.save_pretrained(unfinished)
        generation = tokenizer / "generation_config.json"
        for path in [*files_of_tokenizer(tokenizer), *([generation] if generation.is_file() else [])]:
            shutil.copyfile(path, unfinished / path.name)
        unfinished.rename(out)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise


def save(tensors: Tensors, file: Path, metadata: dict[str, str] | None = None) -> None:
    """A safetensors file with the permissions that other new files get."""
    save_file(dict(tensors), file, metadata=metadata)
    readable(file)


def readable(file: Path) -> None:
    """Give a file the permissions of a new one: safetensors makes its files for their owner alone."""
    mask = os.umask(0)
    os.umask(mask)
    file.chmod(0o666 & ~mask)


def _write_shards(plan: Plan, folder: Path) -> None:
    shards = _shards(plan)
    files = (
        [f"model-{i:05}-of-{len(shards):05}.safetensors" for i in range(1, len(shards) + 1)] if len(shards) > 1 else [SINGLE]
    )
    for file, names in zip(files, shards, strict=True):
        save({name: plan[name].get() for name in names}, folder / file, metadata={"format": "pt"})
    if len(shards) > 1:
        weight_map = {name: file for file, names in zip(files, shards, strict=True) for name in names}
        index = {"metadata": {"total_size": sum(tensor.size_B for tensor in plan.values())}, "weight_map": weight_map}
        (folder / INDEX).write_text(json.dumps(index, indent=2))


def _shards(plan: Plan) -> list[list[str]]:
    """Names in their order, a new shard wherever the next tensor would make it larger than `SHARD_B`."""
    shards: list[list[str]] = [[]]
    held_B = 0
    for name, tensor in plan.items():
        if shards[-1] and held_B + tensor.size_B > SHARD_B:
            shards.append([])
            held_B = 0
        shards[-1].append(name)
        held_B += tensor.size_B
    return shards
