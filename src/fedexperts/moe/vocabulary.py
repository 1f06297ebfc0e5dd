"""Whether two checkpoint folders have the same tokenizer."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..reading import read_bytes, read_json, read_text
from .load import TOKENIZER_B


def tokenizer_notes(base: Path, other: Path) -> Iterator[str]:
    """Check that two models read the same tokens; yield a note where that cannot be told.

    Raises:
        InputError: a token differs, or a vocabulary cannot be read.
    """
    for file, read in VOCABULARIES.items():
        if (base / file).is_file() and (other / file).is_file():
            ours, theirs = _vocabulary(base / file, read), _vocabulary(other / file, read)
            if wrong := sorted(i for i in {**ours, **theirs} if ours.get(i) != theirs.get(i)):
                raise InputError(
                    f"{other / file}: differs from the base's: {wrong[0]} is {theirs.get(wrong[0])!r} there and "
                    f"{ours.get(wrong[0])!r} in {base}; experts must read the same tokens: use models with one tokenizer"
                )
            return
    yield f"{other}: not both it and the base have one of {', '.join(VOCABULARIES)}, so their tokenizers are not compared"


def _vocabulary(path: Path, read: Callable[[Path], dict[Any, str]]) -> dict[Any, str]:
    try:
        return read(path)
    except InputError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: no vocabulary can be read from it ({error}); copy the tokenizer again") from error


def _from_json(path: Path) -> dict[Any, str]:
    document = read_json(path, "tokenizer", TOKENIZER_B)
    stored = document["model"]["vocab"]
    words = {i: word for word, i in stored.items()} if isinstance(stored, dict) else dict(enumerate(word for word, _ in stored))
    words |= {token["id"]: token["content"] for token in document.get("added_tokens") or ()}
    if odd := [i for i in words if not isinstance(i, int)]:
        raise ValueError(f"the number of token {words[odd[0]]!r} is {odd[0]!r}")
    return words


def _from_lines(path: Path) -> dict[Any, str]:
    return dict(enumerate(read_text(path, "tokenizer", TOKENIZER_B).split("\n")))


def _from_bytes(path: Path) -> dict[Any, str]:
    return {"SHA-256": hashlib.sha256(read_bytes(path, "tokenizer", TOKENIZER_B)).hexdigest()}


VOCABULARIES = {"tokenizer.json": _from_json, "vocab.txt": _from_lines, "tokenizer.model": _from_bytes}
"""How to read the text of each token, by file; of a binary file, its digest."""
