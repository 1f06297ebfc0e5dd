"""A model of any size from its config alone: on the meta device, where tensors have shapes and no numbers."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from ..errors import InputError
from .auto import AUTO, kind_of
from .checkpoint import HUB_NAME
from .config import first_line, parsed, read_document, refusing
from .families import check_family
from .view import View


def read_config(model: str) -> dict[str, Any]:
    """The config of a checkpoint folder, of a ``config.json``, or of a model on the hub, of which nothing else is fetched.

    Raises:
        InputError: there is no such config, the hub cannot be reached, or it is not a config in JSON.
    """
    path = Path(model)
    path = path / "config.json" if os.path.isdir(path) else path  # of a path that cannot be one, pathlib raises
    return read_document(path if os.path.isfile(path) else _fetched(model))


def _fetched(model: str) -> Path:
    """A hub model's config.json, from the cache or the network."""
    if os.path.isdir(model):
        raise InputError(f"{model}: no config.json there; give a checkpoint folder, a config.json or a hub name")
    if not HUB_NAME.fullmatch(model) or model.endswith(".json"):
        raise InputError(f"{model}: no such file or folder; give a checkpoint folder, a config.json or a hub name, owner/name")
    try:
        return Path(hf_hub_download(model, "config.json"))
    except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
        raise InputError(
            f"{model}: no such folder, and no config.json of that name in the Hugging Face cache or on the hub "
            f"({first_line(error)}); correct the name, go online once, unset HF_HUB_OFFLINE, or give the path of a config.json"
        ) from error


def meta_view(document: dict[str, Any]) -> View:
    """The model that a config describes, as a view without numbers.

    Raises:
        InputError: the config is inconsistent or of a model type that transformers does not know.
        NotMoEError: the model has no MoE layer that the view knows.
    """
    where = f"model_type = {document.get('model_type')!r}"
    config = parsed(document, where)
    check_family(config, where)
    with refusing(f"{where}: no model can be built from this config", "correct the config"), torch.device("meta"):
        return View(AUTO[kind_of(document)].from_config(config, trust_remote_code=False))
