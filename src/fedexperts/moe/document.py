"""The fields of a config.json, read one by one as transformers would; what is unusual is left to transformers itself."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError

FILE_B = 16 * 2**20
"""A config with the names of 100,000 labels has a quarter of that."""
EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")
BOUNDS = {
    "num_hidden_layers": 1024,
    "num_labels": 2**20,
    "vocab_size": 2**24,
    "hidden_size": 2**20,
    "intermediate_size": 2**24,
    "moe_intermediate_size": 2**24,
    "shared_expert_intermediate_size": 2**24,
    "num_attention_heads": 2**16,
    "num_key_value_heads": 2**16,
    "head_dim": 2**16,
    "max_position_embeddings": 2**32,
    **dict.fromkeys(EXPERTS, 4096),
}
"""The most that a field may be, far above what any model has."""
MOST_EXPERTS = 100_000
"""Of all layers together."""
ROPES = ("default", "llama3", "linear", "dynamic", "yarn")
"""Ways of telling positions, by rope_type, that change no size."""
LONGEST = 300
"""Characters of somebody else's message."""
HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")


class UnclearError(Exception):
    """A config that only transformers can judge."""


def config_path(model: str) -> Path:
    """Where the config of a checkpoint folder, of a ``config.json``, or of a model on the hub lies; nothing else is fetched.

    Raises:
        InputError: there is none, or the hub cannot be reached.
    """
    path = Path(model)
    path = path / "config.json" if os.path.isdir(path) else path  # of a path that cannot be one, pathlib raises
    return path if os.path.isfile(path) else _fetched(model)


def _fetched(model: str) -> Path:
    """A hub model's config.json, from the cache or the network."""
    if os.path.isdir(model):
        raise InputError(f"{model}: no config.json there; give a checkpoint folder, a config.json or a hub name")
    if not HUB_NAME.fullmatch(model) or model.endswith(".json"):
        raise InputError(f"{model}: no such file or folder; give a checkpoint folder, a config.json or a hub name, owner/name")
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return Path(hf_hub_download(model, "config.json"))
    except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
        raise InputError(
            f"{model}: no such folder, and no config.json of that name in the Hugging Face cache or on the hub "
            f"({first_line(error)}); correct the name, go online once, unset HF_HUB_OFFLINE, or give the path of a config.json"
        ) from error


def first_line(error: BaseException) -> str:
    """What an error says, in one line that is not too long."""
    text = " ".join(str(error).split()) or type(error).__name__
    if "trust_remote_code" in text:
        return "it needs code of its own"
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} …"


class Fields:
    """A config's fields over the defaults of its model type. Methods raise `UnclearError` on what is out of the ordinary."""

    def __init__(self, document: Mapping[str, Any], defaults: Mapping[str, Any]):
        self._document, self._defaults = document, defaults
        for name, most in BOUNDS.items():
            self._check(name, most)

    def _check(self, name: str, most: int) -> None:
        value = self._document.get(name)
        if value is not None and (type(value) is not int or not 1 <= value <= most):
            raise UnclearError

    def get(self, name: str) -> Any:
        """A field, or its default."""
        return self._document[name] if name in self._document else self._defaults.get(name)

    def count(self, name: str, least: int = 1) -> int:
        """A whole number."""
        value = self.get(name)
        if type(value) is not int or not least <= value <= BOUNDS.get(name, 2**24):
            raise UnclearError
        return value

    def count_or(self, name: str, otherwise: int) -> int:
        """A whole number, where the field is given and not null."""
        return otherwise if self.get(name) is None else self.count(name)

    def flag(self, name: str) -> bool:
        """True or false."""
        value = self.get(name)
        if type(value) is not bool:
            raise UnclearError
        return value

    def listed(self, name: str, length: int, choices: Sequence[str], otherwise: Sequence[str]) -> Sequence[str]:
        """A list of so many words, where it is given."""
        value = self.get(name)
        if value is None:
            return otherwise
        if type(value) is not list or len(value) != length or not all(word in choices for word in value):
            raise UnclearError
        return value

    def numbers(self, name: str, below: int) -> frozenset[int]:
        """A list of layers' numbers, which may be empty."""
        value = self.get(name) or []
        if type(value) is not list or not all(type(number) is int and 0 <= number < below for number in value):
            raise UnclearError
        return frozenset(value)

    def labels(self) -> int:
        """Outputs of a classifier."""
        named, labels = self._document.get("id2label"), self._document.get("num_labels")
        if named is not None and (not isinstance(named, dict) or not named or labels not in (None, len(named))):
            raise UnclearError
        return len(named) if named is not None else 2 if labels is None else self.count("num_labels")

    def experts(self, name: str, alias: str | None) -> int:
        """E, under its name or the other that transformers takes for it."""
        given = [key for key in EXPERTS if key in self._document]
        if len(given) > 1 or not set(given) <= {name, alias}:
            raise UnclearError
        return self.count(given[0] if given else name)

    def plain(self) -> None:
        """Whether nothing stands in the config that may change the model in a way that is not known here."""
        for name, value in self._document.items():
            if name in ("quantization_config", "per_layer_config", "num_nextn_predict_layers", "num_mtp_layers"):
                if value:
                    raise UnclearError
            elif name in ("rope_parameters", "rope_scaling"):
                _check_rope(value)
            elif isinstance(value, dict) and name not in ("id2label", "label2id", "task_specific_params"):
                raise UnclearError
        padding = self.get("pad_token_id")
        bounded = padding is not None and self.get("vocab_size") is not None
        if bounded and (type(padding) is not int or not 0 <= padding < self.count("vocab_size")):
            raise UnclearError


def _check_rope(value: Any) -> None:
    if value is None:
        return
    if not isinstance(value, dict):
        raise UnclearError
    for inner in value.values() if value and all(isinstance(one, dict) for one in value.values()) else [value]:
        kind = inner.get("rope_type", inner.get("type", "default"))
        words = [one for key, one in inner.items() if key not in ("rope_type", "type")]
        if kind not in ROPES or not all(type(one) in (int, float) for one in words):
            raise UnclearError
