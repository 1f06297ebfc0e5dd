"""Checkpoints: nested containers with tensors, as safetensors plus JSON; never a pickle.

A checkpoint is a folder that appears by one atomic rename, so that a kill at any instant leaves the previous one whole.
Tensors that are shared between places in the tree stay shared after loading.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..moe.parts import Piece
from ..train.task import Task, Update

VALUES: dict[str, Any] = {"Piece": Piece, "Task": Task, "Update": Update}
TAG = "!"


def save(folder: Path, number: int, tree: Any) -> None:
    """Write checkpoint ``number`` and remove those before it."""
    packer = Packer()
    document = packer.pack(tree)
    temporary = folder / "unfinished"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    save_file(packer.tensors, temporary / "tensors.safetensors")
    (temporary / "state.json").write_text(json.dumps(document))
    for path in temporary.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    temporary.rename(folder / f"{number:08d}")
    for old in _numbers(folder):
        if old != number:
            shutil.rmtree(folder / f"{old:08d}")


def load(folder: Path) -> tuple[int, Any] | None:
    """The latest checkpoint's number and tree; None if there is none."""
    numbers = _numbers(folder)
    if not numbers:
        return None
    at = folder / f"{numbers[-1]:08d}"
    return numbers[-1], unpack(json.loads((at / "state.json").read_text()), load_file(at / "tensors.safetensors"))


def _numbers(folder: Path) -> list[int]:
    return sorted(int(path.name) for path in folder.glob("[0-9]*")) if folder.is_dir() else []


class Packer:
    """Turns a tree into JSON and a flat dict of tensors."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self.names: dict[int, str] = {}
        self.shared: dict[int, Any] = {}  # keeps the objects alive while their ids are in use

    def pack(self, value: Any) -> Any:
        """JSON for one value."""
        match value:
            case None | bool() | int() | str():
                return value
            case float():
                return value if math.isfinite(value) else {TAG: "float", "value": repr(value)}
            case Tensor():
                return {TAG: "tensor", "name": self._tensor(value)}
            case np.ndarray():
                return {TAG: "array", "name": self._tensor(torch.from_numpy(np.ascontiguousarray(value)))}
            case list():
                return [self.pack(v) for v in value]
            case tuple():
                return {TAG: "tuple", "items": [self.pack(v) for v in value]}
            case set() | frozenset():
                return {TAG: type(value).__name__, "items": [self.pack(v) for v in sorted(value)]}
            case dict():
                return {TAG: "dict", "items": [[self.pack(k), self.pack(v)] for k, v in value.items()]}
            case _ if type(value).__name__ in VALUES:
                return {TAG: type(value).__name__, "fields": self.pack({f.name: getattr(value, f.name) for f in fields(value)})}
        raise TypeError(
            f"{type(value).__name__}: cannot be written to a checkpoint; a protocol's attributes must be tensors, numbers, "
            "strings, pieces, tasks or containers of these (names that begin with _ are left out)"
        )

    def _tensor(self, tensor: Tensor) -> str:
        if id(tensor) not in self.names:
            self.names[id(tensor)] = str(len(self.names))
            self.shared[id(tensor)] = tensor
            self.tensors[self.names[id(tensor)]] = tensor.detach().clone().contiguous()
        return self.names[id(tensor)]


def unpack(document: Any, tensors: dict[str, Tensor]) -> Any:
    """Inverse of `Packer.pack`."""
    if isinstance(document, list):
        return [unpack(v, tensors) for v in document]
    if not isinstance(document, dict):
        return document
    tag = document[TAG]
    if tag == "tensor":
        return tensors[document["name"]]
    if tag == "array":
        return tensors[document["name"]].numpy()
    if tag == "float":
        return float(document["value"])
    if tag == "dict":
        return {unpack(k, tensors): unpack(v, tensors) for k, v in document["items"]}
    if tag in VALUES:
        return VALUES[tag](**unpack(document["fields"], tensors))
    items = [unpack(v, tensors) for v in document["items"]]
    return {"tuple": tuple, "set": set, "frozenset": frozenset}[tag](items)
