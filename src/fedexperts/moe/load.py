"""Loading classifiers from Hugging Face checkpoints and configs. Never from a pickle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification
from transformers.utils import logging as transformers_logging

from ..errors import InputError

transformers_logging.disable_progress_bar()


def load_classifier(path: Path) -> nn.Module:
    """A sequence classifier from a checkpoint folder.

    Raises:
        InputError: the folder is missing, holds no config, holds only pickled weights, or is not loadable.
    """
    if not (path / "config.json").is_file():
        raise InputError(f"model.path = {str(path)!r}: no config.json there; give a folder written by save_pretrained")
    if not list(path.glob("*.safetensors")):
        pickled = [p.name for p in path.glob("*.bin")]
        hint = f"{pickled[0]} is a pickle, which is never loaded; " if pickled else ""
        raise InputError(f"model.path = {str(path)!r}: no safetensors file there; {hint}save it as safetensors")
    try:
        model: nn.Module = AutoModelForSequenceClassification.from_pretrained(path, dtype=torch.float32)
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError, StrictDataclassError) as error:
        raise InputError(f"model.path = {str(path)!r}: cannot be loaded ({error})") from error
    return model


def new_classifier(config: dict[str, Any], seed: int) -> nn.Module:
    """A sequence classifier with random weights that depend on the seed alone.

    Raises:
        InputError: the config names no known model type or is inconsistent.
    """
    try:
        parsed = AutoConfig.for_model(**config)
        field = next((name for name in ("num_local_experts", "num_experts") if hasattr(parsed, name)), None)
        if field and parsed.num_experts_per_tok > getattr(parsed, field):
            raise ValueError(
                f"num_experts_per_tok = {parsed.num_experts_per_tok} (K) is above {field} = {getattr(parsed, field)} (M); "
                "the gate cannot pick more experts than there are"
            )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model: nn.Module = AutoModelForSequenceClassification.from_config(parsed)
    except (ValueError, TypeError, KeyError, RuntimeError, ZeroDivisionError, StrictDataclassError) as error:
        raise InputError(f"model.config: {error}") from error
    return model
