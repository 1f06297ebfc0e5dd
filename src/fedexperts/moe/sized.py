"""The outline of a model that is not loaded: by arithmetic where that knows the model type, else on the meta device.

The second takes seconds, for torch and transformers have to be imported; it judges what the first leaves open.
"""

from __future__ import annotations

from typing import Any

from ..reading import read_json
from .arithmetic import outline
from .document import FILE_B, config_path
from .kinds import OWN, Kind
from .outline import Outline


def named(model: str, kind: Kind | None = None, outputs: int | None = None) -> Outline:
    """Of a checkpoint folder, a ``config.json``, or a model on the hub, of which nothing but the config is fetched.

    Raises:
        InputError: there is no such config, the hub cannot be reached, or the config is wrong.
        NotMoEError: the model has no MoE layer that is known.
    """
    path = config_path(model)
    return described(read_json(path, "model", FILE_B), kind, outputs, where=model)


def described(document: Any, kind: Kind | None = None, outputs: int | None = None, where: str | None = None) -> Outline:
    """Of what a config holds; ``kind`` and ``outputs`` are what the model is for and the outputs of a classifier's head.

    Raises:
        InputError, NotMoEError: see `named`.
    """
    if isinstance(document, dict) and isinstance(document.get("model_type"), str) and document["model_type"] in OWN:
        kind = None  # which are for one thing alone
    found = outline(document, kind, outputs)
    if found is None:
        from .meta import meta_view, outline_of, read_config

        checked: dict[str, Any] = read_config(where) if where is not None else dict(document)
        found = outline_of(meta_view(checked if outputs is None else {**checked, "num_labels": outputs}, kind))
    return found
