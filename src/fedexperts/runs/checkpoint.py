"""Checkpoints: nested containers with tensors, as safetensors plus JSON; never a pickle.

A checkpoint is a folder that appears by one atomic rename, so that a kill at any instant leaves the previous one whole. It
carries checksums, and the one before it is kept: where the disk or a hand has changed the newest, that one is taken.
Tensors that are shared between places in the tree stay shared after loading.

Only what has changed is written: files of tensors, named by their content there, are linked from the checkpoint before the
last, which goes then. So the two that are kept have no file in common, and a damaged byte spoils one of them.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Mapping
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
from ..moe.parts import Piece, address
from ..protocol.rounds import Ordered
from ..train.task import Task, Update
from .sums import damage, listed, write_sums

log = logging.getLogger(__name__)
VALUES: dict[str, Any] = {kind.__name__: kind for kind in (Ordered, Piece, Task, Update)}
"""Dataclasses that a tree may hold."""
TAG = "!"
STATE, TENSORS = "state.json", "tensors.safetensors"
ALIGNED_B = 64
"""Memory that torch takes begins at a multiple of this."""
LEAST_B = 2**20
"""What is still wanted of a file that is linked, and half of the file: less is written again, so that disk use is bounded."""
MOST_LINKS = 16
"""Files that are linked into a checkpoint, those that hold most."""


def save(folder: Path, number: int, tree: Any, last: bool = False) -> None:
    """Write checkpoint ``number``; of those before it the last is kept.

    Args:
        folder: for checkpoints.
        number: one more than the last time.
        tree: what is written.
        last: no other follows that could be linked from it, so that contents need no address.

    Raises:
        OSError, SafetensorError: the disk refuses; the checkpoints before are as they were.
    """
    packer = Packer()
    document = packer.pack(tree)
    addresses = {name: name for name in packer.given} if last else packer.addresses()
    temporary = folder / "unfinished"
    remove(temporary)
    temporary.mkdir(parents=True)
    try:
        wanted = frozenset() if last else frozenset(addresses.values())
        there, sums = _linked(folder / f"{number - 2:08d}", temporary, wanted)
        fresh = _separate({at: packer.given[name] for name, at in addresses.items() if at not in there})
        (temporary / STATE).write_text(json.dumps({"format": FORMAT, "tree": document, "addresses": addresses}))
        save_file(fresh, temporary / TENSORS)
        shutil.copymode(temporary / STATE, temporary / TENSORS)  # safetensors leaves it to its owner alone
        write_sums(temporary, (STATE, TENSORS), sums)
        for path in (*temporary.iterdir(), temporary):
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


def _linked(before: Path, to: Path, wanted: frozenset[str]) -> tuple[set[str], dict[str, str]]:
    """Link what holds enough of the wanted tensors from an earlier checkpoint, if it is there; where links fail, copy.

    Returns:
        addresses of the tensors that are there then, and checksums of the files as they were written.
    """
    try:
        sums = listed(before)
        files = {name: _sizes_B(before / name) for name in sums if name != STATE}
    except (InputError, OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return set(), {}  # there is none, or what there is was damaged: all is written
    wanted_B = {name: sum(size_B for at, size_B in held.items() if at in wanted) for name, held in files.items()}
    worth = [name for name, held in files.items() if wanted_B[name] >= max(LEAST_B, sum(held.values()) / 2)]
    there: set[str] = set()
    found = {}
    for name in sorted(worth, key=lambda name: -wanted_B[name])[:MOST_LINKS]:
        as_name = f"tensors-{before.name}.safetensors" if name == TENSORS else name
        try:
            os.link(before / name, to / as_name)
        except OSError:
            shutil.copy(before / name, to / as_name)
        there |= set(files[name])
        found[as_name] = sums[name]
    return there, found


def _sizes_B(path: Path) -> dict[str, int]:
    """Bytes of each tensor in a file."""
    with path.open("rb") as file:
        header = json.loads(file.read(min(int.from_bytes(file.read(8), "little"), path.stat().st_size)))
    rows = {name: row["data_offsets"] for name, row in header.items() if name != "__metadata__"}
    return {name: end - begin for name, (begin, end) in rows.items()}


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
                    tree = unpack(state["tree"], _tensors(at, state.get("addresses")))
                    why = fault(tree)
            except (ValueError, LookupError, TypeError, AttributeError, SafetensorError, RecursionError) as error:
                why = f"of another version ({error!r})"
        if why is None:
            for message in wrong:
                log.warning("warning: checkpoint %s; going on from the one before, %s", message, at.name)
            forget_damaged(folder, number)
            return number, tree
        wrong.append(f"{at.name}: {why}")
    if wrong:
        raise InputError(
            f"{folder}: no checkpoint can be gone on from ({'; '.join(wrong)}); put the files back as they were, or {remedy}"
        )
    return None


def _tensors(folder: Path, addresses: dict[str, str] | None) -> dict[str, Tensor]:
    """By name; what is equal is on disk once, and in memory in each place."""
    if addresses is None:  # of before tensors had addresses
        return aligned(load_file(folder / TENSORS))
    stored: dict[str, Tensor] = {}
    for name in listed(folder):
        if name != STATE:
            stored |= load_file(folder / name)
    first = {at: name for name, at in reversed(addresses.items())}
    return aligned({name: stored[at] if first[at] == name else stored[at].clone() for name, at in addresses.items()})


def forget_damaged(folder: Path, last: int) -> None:
    """Remove what the checkpoint after the last would be linked from, if it is damaged; for who has not just written it."""
    before = folder / f"{last - 1:08d}"
    if before.is_dir() and (why := damage(before, (STATE, TENSORS))):
        log.warning("warning: checkpoint %s: %s; it was the one before the last, and is removed", before.name, why)
        remove(before)


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
    """Turns a tree into JSON and a flat dict of tensors.

    Attributes:
        given: the tree's tensors by name, as they are.
    """

    def __init__(self) -> None:
        self.given: dict[str, Tensor] = {}
        self.names: dict[int, str] = {}
        self.shared: dict[int, Any] = {}  # keeps the objects alive while their ids are in use
        self.pieces: list[Piece] = []

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Copies of the tensors, each in memory of its own."""
        return {name: own(tensor) for name, tensor in self.given.items()}

    def addresses(self) -> dict[str, str]:
        """Of each tensor the `address`; those in pieces never change, and have theirs from the last time."""
        known = {id(tensor): piece.addresses[name] for piece in self.pieces for name, tensor in piece.tensors.items()}
        return {name: known.get(at) or address(self.shared[at]) for at, name in self.names.items()}

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
            case Mapping():
                return {TAG: "dict", "items": [[self.pack(k), self.pack(v)] for k, v in value.items()]}
            case _ if type(value).__name__ in VALUES:
                if isinstance(value, Piece):
                    self.pieces.append(value)
                return {TAG: type(value).__name__, "fields": self.pack({f.name: getattr(value, f.name) for f in fields(value)})}
        raise TypeError(
            f"{type(value).__name__}: cannot be written to a checkpoint; a protocol's attributes must be tensors, numbers, "
            "strings, pieces, tasks or containers of these (names that begin with _ are left out)"
        )

    def _tensor(self, tensor: Tensor) -> str:
        if id(tensor) not in self.names:
            self.names[id(tensor)] = str(len(self.names))
            self.shared[id(tensor)] = tensor
            self.given[self.names[id(tensor)]] = tensor.detach()
        return self.names[id(tensor)]


def own(tensor: Tensor) -> Tensor:
    """A copy in memory of its own, row by row."""
    return tensor.clone(memory_format=torch.contiguous_format)


def _separate(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """As safetensors wants them: row by row, and no two in one piece of memory; only what is not so is copied."""
    users = Counter(tensor.untyped_storage().data_ptr() for tensor in tensors.values())
    return {
        name: tensor if tensor.is_contiguous() and users[tensor.untyped_storage().data_ptr()] == 1 else own(tensor)
        for name, tensor in tensors.items()
    }


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
