"""Checkpoints: nested containers with tensors, as safetensors plus JSON; never a pickle.

A checkpoint is a folder that appears by one atomic rename, so that a kill at any instant leaves the previous one whole. It
carries checksums, and the one before it is kept: where the disk or a hand has changed the newest, that one is taken.
Tensors that are shared between places in the tree stay shared after loading.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..errors import InputError
from ..events import FORMAT
from ..moe.parts import Piece
from ..protocol.rounds import Ordered
from ..train.task import Task, Update
from .sums import damage, write_sums

log = logging.getLogger(__name__)
VALUES: dict[str, Any] = {kind.__name__: kind for kind in (Ordered, Piece, Task, Update)}
"""Dataclasses that a tree may hold."""
TAG = "!"
STATE, TENSORS = "state.json", "tensors.safetensors"
ALIGNED_B = 64
"""Memory that torch takes begins at a multiple of this."""


def save(folder: Path, number: int, tree: Any) -> None:
    """Write checkpoint ``number``; of those before it the last is kept.

    Raises:
        OSError, SafetensorError: the disk refuses; the checkpoints before are as they were.
    """
    packer = Packer()
    document = packer.pack(tree)
    temporary = folder / "unfinished"
    remove(temporary)
    temporary.mkdir(parents=True)
    try:
        (temporary / STATE).write_text(json.dumps({"format": FORMAT, "tree": document}))
        save_file(packer.tensors, temporary / TENSORS)
        shutil.copymode(temporary / STATE, temporary / TENSORS)  # safetensors leaves it to its owner alone
        write_sums(temporary, (STATE, TENSORS))
        for path in temporary.iterdir():
            _sync(path)
        remove(folder / f"{number:08d}")  # a damaged one, after which another was taken
        temporary.rename(folder / f"{number:08d}")
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    _sync(folder)
    for old in numbers(folder):
        if old not in (number, number - 1):
            remove(folder / f"{old:08d}")


AFRESH = "delete this folder to train from the beginning with --resume"


def load(folder: Path, fault: Callable[[Any], str | None] = lambda tree: None, remedy: str = AFRESH) -> tuple[int, Any] | None:
    """The latest checkpoint that is whole, its number and tree; None if there is none at all.

    Args:
        folder: where `save` has written.
        fault: why a tree does not belong to what else was found, if so.
        remedy: what can be done where all are damaged, beside putting them back.

    Raises:
        InputError: there are checkpoints, and all of them are damaged.
    """
    wrong: list[str] = []
    for number in reversed(numbers(folder)):
        at = folder / f"{number:08d}"
        why = damage(at, (STATE, TENSORS))
        if why is None:
            try:
                state = json.loads((at / STATE).read_bytes())
                if (form := state.get("format", 1)) != FORMAT:
                    why = f"of format {form}, and this fedexperts goes on from format {FORMAT} alone"
                else:
                    tree = unpack(state["tree"], aligned(load_file(at / TENSORS)))
                    why = fault(tree)
            except (ValueError, LookupError, TypeError, AttributeError, SafetensorError, RecursionError) as error:
                why = f"of another version ({error!r})"
        if why is None:
            for message in wrong:
                log.warning("warning: checkpoint %s; going on from the one before, %s", message, at.name)
            return number, tree
        wrong.append(f"{at.name}: {why}")
    if wrong:
        raise InputError(
            f"{folder}: no checkpoint can be gone on from ({'; '.join(wrong)}); put the files back as they were, or {remedy}"
        )
    return None


def remove(path: Path) -> None:
    """Remove a folder with all that is in it, or whatever stands in its place; links are not followed."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def numbers(folder: Path) -> list[int]:
    """Numbers of checkpoints; a stray file is none."""
    names = [path.name for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []
    return sorted(int(name) for name in names if re.fullmatch("[0-9]{8}", name))


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


def aligned(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """As torch places them itself: in a file they lie anywhere, and there products of matrices differ in their last bit."""
    return {name: tensor.clone() if tensor.data_ptr() % ALIGNED_B else tensor for name, tensor in tensors.items()}


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
