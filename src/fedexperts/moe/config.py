"""Configs of models, checked before anything is built from them: a number that is out of range never takes memory.

No code beside a config is ever run: an ``auto_map`` is ignored where transformers has the model type, and refused elsewhere.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import CONFIG_MAPPING, AutoConfig, PretrainedConfig, __version__
from transformers.utils import logging as transformers_logging

from ..errors import InputError, unknown_key, warn_input
from ..reading import read_json
from . import conv, encoder, resnet  # noqa: F401  # they tell transformers of our own model types
from .document import BOUNDS, EXPERTS, FILE_B, MOST_EXPERTS, first_line
from .kinds import OWN
from .parts import NotMoEError

transformers_logging.disable_progress_bar()
HARMLESS = frozenset(
    (
        *("architectures", "auto_map", "dtype", "torch_dtype", "transformers_version", "use_cache", "quantization_config"),
        *("rope_theta", "rope_scaling", "rope_parameters", "partial_rotary_factor", "original_max_position_embeddings"),
        *("pretraining_tp", "initializer_range", "tie_word_embeddings", "gradient_checkpointing", "classifier_dropout"),
        *("bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "task_specific_params", "use_sliding_window"),
    )
)
"""Keys of a config.json that say nothing of a model's size, or that transformers reads under another name."""


@contextmanager
def refusing(what: str, remedy: str) -> Iterator[None]:
    """Turn whatever transformers raises on input it cannot use into one `InputError`."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # the code of hundreds of families, each with checks and slips of its own
        raise InputError(f"{what} ({first_line(error)}); {remedy}") from error


def read_document(path: Path) -> dict[str, Any]:
    """A config in JSON, checked by `check_document`.

    Raises:
        InputError: the file cannot be read, is no config of transformers, or has a field that is out of range.
    """
    document = read_json(path, "model", FILE_B)
    if not isinstance(document, dict) or not isinstance(document.get("model_type"), str):
        raise InputError(f"{path}: holds no model_type; give a config.json in the format of transformers")
    check_document(document, str(path))
    return document


def check_document(document: Mapping[str, Any], where: str) -> None:
    """Check what a config says of sizes, before transformers makes lists of that length.

    Raises:
        InputError: with the field, its value and its bound.
    """
    kind = document.get("model_type")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        code = " auto_map names code beside the config, which is never run;" if "auto_map" in document else ""
        raise InputError(
            f"{where}: model_type = {kind!r}: transformers {__version__} has no such model;{code} use a type that it has"
        )
    for nested in ("", *(name for name, value in document.items() if name.endswith("_config") and isinstance(value, Mapping))):
        fields = document[nested] if nested else document
        for name, most in BOUNDS.items():
            value = fields.get(name)
            if value is None:
                continue
            at = f"{where}: {nested}.{name}" if nested else f"{where}: {name}"
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
                raise InputError(f"{at} = {value!r}: must be a whole number between 1 and {most:,}")
    names = document.get("architectures")
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise InputError(f"{where}: architectures = {names!r}: must be a list of names such as ['MixtralForCausalLM']")
    labels, named = document.get("num_labels"), document.get("id2label")
    if named is not None and not isinstance(named, dict):
        raise InputError(f'{where}: id2label = {named!r}: must be a table such as {{"0": "no", "1": "yes"}}')
    if labels is not None and named is not None and labels != len(named):
        raise InputError(f"{where}: num_labels = {labels} beside {len(named)} labels in id2label; leave one of them out")


def check_keys(document: Mapping[str, Any], where: str) -> None:
    """Whether a config written by hand has keys that its model type does not read, which transformers keeps and ignores.

    It warns of them, as families also read keys that their class does not name; of our own types all are known.

    Raises:
        InputError: one of our own types has no such key.
    """
    kind = CONFIG_MAPPING[document["model_type"]]
    usual = kind()
    fields = [name for name in usual.to_dict() if not name.startswith("_")]
    plain = {*PretrainedConfig().to_dict(), "num_labels"}
    own = [name for name in fields if name not in plain]
    passed = plain | HARMLESS
    if document["model_type"] not in OWN:
        passed |= BOUNDS.keys() - {*EXPERTS}  # which some families read without naming them
    for key in document:
        if key in passed or key.startswith("_") or key.endswith("_config") or hasattr(usual, key):
            continue
        if document["model_type"] in OWN:
            raise InputError(unknown_key(f"{where}.{key}", key, [*own, "num_labels"]))
        near = difflib.get_close_matches(key, [*own, *usual.attribute_map], 1, 0.6)
        warn_input(
            f"{where}.{key}: a {document['model_type']!r} model has no such key, and takes its usual value; "
            + (f"did you mean {near[0]}?" if near else "remove it or correct its spelling")
        )


def parsed(document: Mapping[str, Any], where: str, **fields: Any) -> Any:
    """The config of transformers that a document describes, with other ``fields``; of a Qwen3.5-MoE its text model's.

    Raises:
        InputError: it is out of range or inconsistent.
    """
    check_document(document, where)
    with refusing(f"{where}: is not a config of a {document['model_type']!r} model", "correct the config"):
        config = AutoConfig.for_model(**{**document, **fields})
    return checked(config, where)


def checked(config: Any, where: str) -> Any:
    """A config whose numbers fit each other; of a Qwen3.5-MoE its text model's.

    Raises:
        InputError: with the field, its value and its bound.
    """
    if config.model_type == "qwen3_5_moe":
        config = config.get_text_config()
    if hasattr(config, "auto_map"):
        del config.auto_map  # what is saved of the model names no code that does not come with it
    vocabulary, padding = getattr(config, "vocab_size", None), getattr(config, "pad_token_id", None)
    if padding is not None and vocabulary is not None and not 0 <= padding < vocabulary:
        raise InputError(
            f"{where}: pad_token_id = {padding}: must be a number between 0 and vocab_size - 1 = {vocabulary - 1}, or null"
        )
    name, layers = field_of_experts(config), getattr(config, "num_hidden_layers", 1)
    if name is None:
        return config
    experts, top_k = getattr(config, name), getattr(config, "num_experts_per_tok", 1)
    if not isinstance(top_k, int) or isinstance(top_k, bool) or not 1 <= top_k <= experts:
        raise InputError(
            f"{where}: num_experts_per_tok = {top_k} (K) must lie between 1 and {name} = {experts} (M); "
            "the gate cannot pick more experts than there are"
        )
    if experts * layers > MOST_EXPERTS:
        raise InputError(
            f"{where}: {name} = {experts} in num_hidden_layers = {layers}: must be at most {MOST_EXPERTS:,} experts together"
        )
    return config


def field_of_experts(config: Any) -> str | None:
    """The config's name for the number of experts; None for a dense model."""
    return next((name for name in EXPERTS[:2] if getattr(config, name, None)), None)


def experts_field(config: Any, where: str) -> str:
    """As `field_of_experts`, of a MoE model.

    Raises:
        NotMoEError: it has none.
    """
    name = field_of_experts(config)
    if name is None:
        raise NotMoEError(
            f"{where}: model_type {config.model_type!r} has no Mixture-of-Experts layer; "
            "build one of a dense model with fedexperts build"
        )
    return name


def machine_B() -> int:
    """Memory of this machine."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def check_memory(model: nn.Module, dtype: torch.dtype, where: str, copies: int = 1) -> None:
    """Whether a model that has no memory yet would fit into the machine's, as often as it is held there.

    Raises:
        InputError: with both sizes.
    """
    size_B = sum(parameter.numel() for parameter in model.parameters()) * dtype.itemsize
    memory_B = machine_B()
    if copies * size_B > memory_B:
        held = "" if copies == 1 else f", and a run holds them {copies} times"
        raise InputError(
            f"{where}: its weights take {size_B / 1e9:,.1f} GB, this machine has {memory_B / 1e9:,.1f} GB{held}; take a "
            "smaller model"
        )
