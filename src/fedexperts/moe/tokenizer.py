"""The tokenizer in a checkpoint folder: its files, loading it, and whether two models read the same tokens."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from ..errors import InputError
from ..reading import check_depth, read_bytes, read_json, read_text, short
from .config import refusing

FILES = ("tokenizer*", "*.model", "merges.txt", "vocab.*", "special_tokens_map.json", "added_tokens.json", "chat_template*")
"""The files of a tokenizer."""
TOKENIZER_B = 2**28
"""The largest published tokenizers have 35 MB."""


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder holds a tokenizer's vocabulary."""
    return any((folder / name).is_file() for name in VOCABULARIES)


def files_of_tokenizer(folder: Path) -> list[Path]:
    """A tokenizer's files, but no programs."""
    found = {path for pattern in FILES for path in folder.glob(pattern)}
    return sorted(path for path in found if path.is_file() and path.suffix != ".py")


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy a tokenizer's files, if there are any, from one checkpoint folder to another."""
    for path in files_of_tokenizer(source) if has_tokenizer(source) else ():
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
    words = _numbered(stored) if isinstance(stored, dict) else dict(enumerate(word for word, _ in stored))
    return words | _numbered({token["content"]: token["id"] for token in document.get("added_tokens") or ()})


def _numbered(words: Mapping[str, Any]) -> dict[Any, str]:
    if odd := [(word, i) for word, i in words.items() if not isinstance(i, int)]:
        raise ValueError(f"the number of token {odd[0][0]!r} is {odd[0][1]!r}")
    return {i: word for word, i in words.items()}


def _from_table(path: Path) -> dict[Any, str]:
    return _numbered(read_json(path, "tokenizer", TOKENIZER_B))


def _from_lines(path: Path) -> dict[Any, str]:
    return dict(enumerate(read_text(path, "tokenizer", TOKENIZER_B).split("\n")))


def _from_bytes(path: Path) -> dict[Any, str]:
    return {"SHA-256": hashlib.sha256(read_bytes(path, "tokenizer", TOKENIZER_B)).hexdigest()}


VOCABULARIES = {
    "tokenizer.json": _from_json,
    "vocab.txt": _from_lines,
    "tokenizer.model": _from_bytes,
    "vocab.json": _from_table,
}
"""How to read the text of each token, by file; of a binary file, its digest."""


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> Any:
    """A byte-level BPE tokenizer of the texts, with ``<pad>``, ``<s>`` and ``</s>`` as tokens 0, 1 and 2."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special, alphabet = ["<pad>", "<s>", "</s>"], pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=special, initial_alphabet=sorted(alphabet), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    pad, begin, end = special
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=pad, bos_token=begin, eos_token=end)
