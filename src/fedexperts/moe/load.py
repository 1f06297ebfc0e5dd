"""Loading classifiers from Hugging Face checkpoints and configs. Never from a pickle."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)
from transformers.modeling_layers import GenericForSequenceClassification
from transformers.utils import logging as transformers_logging

from ..errors import InputError
from ..reading import check_depth, read_json, read_text, short
from .config import check_memory, parsed, refusing
from .families import check_family
from .subset import load_full

transformers_logging.disable_progress_bar()

TOKENIZER = ("tokenizer*", "*.model", "merges.txt", "vocab.*", "special_tokens_map.json", "added_tokens.json", "chat_template*")
"""The files of a tokenizer."""
TOKENIZER_B = 2**28
"""The largest published tokenizers have 35 MB."""
Kind = Literal["classifier", "image-classifier", "language-model"]
AUTO: dict[Kind, Any] = {
    "classifier": AutoModelForSequenceClassification,
    "image-classifier": AutoModelForImageClassification,
    "language-model": AutoModelForCausalLM,
}


def load_classifier(path: Path, dtype: torch.dtype = torch.float32, seed: int = 0, outputs: int | None = None) -> nn.Module:
    """A sequence classifier from a checkpoint folder; a head that the checkpoint lacks depends on the seed alone.

    ``outputs`` is what the data need: a new head gets as many, and a head that is there must have as many.

    Raises:
        InputError: the folder is missing, holds no config, holds only pickled weights, or is not loadable.
        NotMoEError: the model is dense, or of a family that the view does not know.
    """
    return load_full(path, AutoModelForSequenceClassification, dtype, seed, outputs)


def load_image_classifier(
    path: Path, dtype: torch.dtype = torch.float32, seed: int = 0, outputs: int | None = None
) -> nn.Module:
    """A classifier of images from a checkpoint folder; arguments and errors as `load_classifier`."""
    return load_full(path, AutoModelForImageClassification, dtype, seed, outputs)


def load_language_model(path: Path, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A causal language model from a checkpoint folder; errors as `load_classifier`."""
    return load_full(path, AutoModelForCausalLM, dtype)


def lacks_padding(model: nn.Module) -> bool:
    """Whether a model is a classifier that finds the last token of a sequence by ``pad_token_id``, and has none."""
    return isinstance(model, GenericForSequenceClassification) and model.config.pad_token_id is None


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder holds a tokenizer's vocabulary."""
    return any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt"))


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy a tokenizer's files, if there are any, from one checkpoint folder to another."""
    for pattern in TOKENIZER if has_tokenizer(source) else ():
        for path in (path for path in source.glob(pattern) if path.suffix != ".py"):
            shutil.copyfile(path, target / path.name)


def load_tokenizer(path: Path) -> Any:
    """The tokenizer of a checkpoint folder; code beside it is never run.

    Raises:
        InputError: there is none, it needs code of its own, or a file of it is broken.
    """
    if not path.is_dir():
        raise InputError(
            f"model.tokenizer = {str(path)!r}: no tokenizer can be loaded, as there is no such folder; name another"
        )
    for name in ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "config.json"):
        if (path / name).exists() and not isinstance(read_json(path / name, "model.tokenizer"), dict):
            raise InputError(f"{path / name}: must be a table in JSON; copy the tokenizer again")
    if (path / "tokenizer.json").exists():
        where = f"model.tokenizer = {str(path / 'tokenizer.json')!r}"
        check_depth(read_text(path / "tokenizer.json", "model.tokenizer", TOKENIZER_B), where)
    code = "; code that lies beside it is never run" if any(path.glob("*.py")) else ""
    remedy = f"copy tokenizer.json and tokenizer_config.json there, or name another folder{code}"
    with refusing(f"model.tokenizer = {str(path)!r}: no tokenizer can be loaded", remedy):
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
        if not isinstance(tokenizer.model_max_length, int | float):  # every call compares with it
            raise InputError(
                f"{path / 'tokenizer_config.json'}: model_max_length = {short(tokenizer.model_max_length)}: must be a number; "
                "correct it, or leave it out"
            )
        return tokenizer


def new_model(
    config: dict[str, Any],
    seed: int,
    dtype: torch.dtype = torch.float32,
    kind: Kind = "classifier",
    outputs: int | None = None,
) -> nn.Module:
    """A classifier of sequences or images, or a causal language model, with random weights that depend on the seed alone.

    Raises:
        InputError: the config names no known model type, is inconsistent, or takes more memory than there is.
        NotMoEError: the model is of a family that the view does not know.
    """
    where = "model.config"
    named = config.get("id2label")
    for field, labels in (
        ("num_labels", config.get("num_labels")),
        ("id2label", len(named) if isinstance(named, dict) else None),
    ):
        if outputs is not None and labels not in (None, outputs):
            raise InputError(f"{where}: {field} = {short(config[field])}: the tasks have {outputs} labels; leave it out")
    parsed_config = parsed(config, where, **({} if outputs is None else {"num_labels": outputs}))
    check_family(parsed_config, where)
    with refusing(f"{where}: no model can be built from it", "correct the config"), torch.random.fork_rng(devices=[]):
        with torch.device("meta"):
            blank = AUTO[kind].from_config(parsed_config, dtype=dtype, trust_remote_code=False)
            check_memory(blank, dtype, where, copies=2)  # the model that computes, and version 0 of its parts
        torch.manual_seed(seed)
        model: nn.Module = AUTO[kind].from_config(parsed_config, dtype=dtype, trust_remote_code=False)
    return model
