"""Experts that another tool has chosen for a task, layer by layer, beside our own relevance.

The format is that of ESFT (expert-specialised fine-tuning): ``{"experts": {"1": [12, 40], …}, "shared_experts": false,
"non_expert_modules": false}``. Layers are numbers of the decoder's layers, dense ones included, so that a file may begin at 1.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..moe.parts import expert_index
from ..moe.view import View
from ..reading import read_json

OPTION = "--experts-from"
NUMBER = re.compile(r"[0-9]{1,5}")
LAYER = re.compile(r"(?:^|\.)(?:layers?|h|blocks?)\.([0-9]+)\.")
ALSO = ("shared_experts", "non_expert_modules")
"""What a file can say to be trained beside experts that the gate picks."""


@dataclass(frozen=True)
class Choice:
    """A file's choice: experts by layer, both as the file numbers them, and what else it says is trained."""

    path: Path
    by_layer: Mapping[int, tuple[int, ...]]
    also: tuple[str, ...] = ()


def choices(options: Sequence[str], clusters: Sequence[str]) -> dict[str, Choice]:
    """The choices by cluster, from options such as ``lisbon=law.json``; with one cluster its name can be left out.

    Raises:
        InputError: a file is not of the format, or it is not clear which cluster it belongs to.
    """
    found: dict[str, Choice] = {}
    for option in options:
        name, sign, path = option.partition("=")
        if not sign or name not in clusters:
            if len(clusters) > 1:
                what = f"there is no cluster {name!r};" if sign else "whose choice is it?"
                raise InputError(
                    f"{OPTION} {option}: {what} write CLUSTER=FILE, once for each cluster that has one; "
                    f"the clusters are {', '.join(clusters)}"
                )
            name, path = clusters[0], option
        if name in found:
            raise InputError(f"{OPTION} {option}: cluster {name} has {found[name].path} already; give one file for a cluster")
        found[name] = read_choice(Path(path))
    return found


def read_choice(path: Path) -> Choice:
    """The choice in a file.

    Raises:
        InputError: it cannot be read, or is not of ESFT's format.
    """
    where = f"{OPTION} = {str(path)!r}"
    document = read_json(path, OPTION)
    if not isinstance(document, dict) or not isinstance(document.get("experts"), dict):
        raise InputError(f'{where}: must be {{"experts": {{"LAYER": [EXPERT, …], …}}, …}}, as ESFT writes it')
    by_layer: dict[int, tuple[int, ...]] = {}
    for key, experts in document["experts"].items():
        if not NUMBER.fullmatch(key) or int(key) in by_layer:
            raise InputError(f"{where}: experts.{key}: must be the number of a layer, each once")
        by_layer[int(key)] = _experts(experts, f"{where}: experts.{key}")
    if not by_layer:
        raise InputError(f"{where}: experts = {{}}: names no layer")
    also = {name: document.get(name, False) for name in ALSO}
    for name, value in also.items():
        if not isinstance(value, bool):
            raise InputError(f"{where}: {name} = {value!r}: must be true or false")
    return Choice(path, dict(sorted(by_layer.items())), tuple(name for name, value in also.items() if value))


def _experts(found: Any, where: str) -> tuple[int, ...]:
    if not isinstance(found, list):
        raise InputError(f"{where} = {found!r}: must be a list of numbers of experts")
    for m in found:
        if type(m) is not int or not 0 <= m < 10**5:
            raise InputError(f"{where}: holds {m!r}: must be numbers of experts, 0 or above")
    if len(set(found)) < len(found):
        raise InputError(f"{where} = {found}: names an expert twice")
    return tuple(sorted(found))


def layer_numbers(view: View) -> list[int]:
    """The number that each MoE layer has among all layers of the model; its place, if names have none."""
    names = [next(iter(block.gate), "") for block in view.blocks]
    found = [LAYER.search(name) for name in names]
    numbers = [int(match[1]) if match else place for place, match in enumerate(found)]
    return numbers if len(set(numbers)) == len(numbers) else list(range(len(names)))


def check_layers(found: Mapping[str, Choice], layers: Sequence[int]) -> None:
    """Whether files and model have a MoE layer in common.

    Raises:
        InputError: one has none.
    """
    for choice in found.values():
        if not set(choice.by_layer) & set(layers):
            raise InputError(
                f"{OPTION} {choice.path}: none of its layers, {_list(choice.by_layer)}, is a MoE layer of the model, which has "
                f"{_list(layers)}; is it for another model?"
            )


def choice_report(choice: Choice, counts_LM: NDArray[np.int64], layers: Sequence[int], owned: frozenset[str]) -> dict[str, Any]:
    """A file's choice for a cluster beside the cluster's own relevance: what ``fedexperts assign --json`` has of it.

    In each layer our own choice is of as many experts as the file has there: those that the gate picks most often.

    Args:
        choice: the file's.
        counts_LM: how often the gate of each MoE layer picked each expert in the cluster's trial pass.
        layers: numbers of the model's MoE layers.
        owned: experts that the cluster owns by our split.
    """
    M = counts_LM.shape[1]
    mine = [expert_index(part) for part in owned]
    rows: dict[str, dict[str, Any]] = {}
    for place, layer in enumerate(layers):
        given = choice.by_layer.get(layer)
        if given is None:
            continue
        theirs = [m for m in given if m < M]
        ours = sorted(np.argsort(-counts_LM[place], kind="stable")[: len(theirs)].tolist())
        picks = int(counts_LM[place].sum())
        held = {m for at, m in mine if at in (None, place)}
        rows[str(layer)] = {
            "experts": theirs,
            "unknown": [m for m in given if m >= M],
            "ours": ours,
            "shared": len(set(ours) & set(theirs)),
            "owned": len(held & set(theirs)),
            "picks": round(int(counts_LM[place, theirs].sum()) / picks, 6) if picks else None,
        }
    chosen = sum(len(row["experts"]) for row in rows.values())
    told = [row["picks"] for row in rows.values() if row["picks"] is not None]
    return {
        "file": str(choice.path),
        "layers": rows,
        "missing_layers": [layer for layer in layers if layer not in choice.by_layer],
        "unknown_layers": [layer for layer in choice.by_layer if layer not in layers],
        "layers_by_expert": [sum(m in row["experts"] for row in rows.values()) for m in range(M)],
        "also": list(choice.also),
        "chosen": chosen,
        "overlap": _share(sum(row["shared"] for row in rows.values()), chosen),
        "overlap_by_chance": _share(sum(len(row["experts"]) ** 2 / M for row in rows.values()), chosen),
        "owned": _share(sum(row["owned"] for row in rows.values()), chosen),
        "picks": round(float(np.mean(told)), 6) if told else None,
    }


def _share(part: float, whole: int) -> float | None:
    return round(part / whole, 6) if whole else None


def _list(numbers: Any) -> str:
    numbers = sorted(numbers)
    return ", ".join(map(str, numbers[:30])) + (", …" if len(numbers) > 30 else "")
