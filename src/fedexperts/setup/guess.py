"""What a user's data files hold: a first guess at the kind of task and its columns, from names and values."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..data.images import pixels, read_images
from ..data.rows import MOST_CLASSES, NUMBER, Row, read_rows
from ..errors import InputError

Kind = Literal["text", "questions", "images"]
LABELS = ("label", "labels", "class", "category", "target", "answer", "y", "score", "fine_label", "cop", "gold", "correct")
"""Usual names of columns with labels or answers, the usual first."""
PAIRS = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("query", "passage"),
    ("text_a", "text_b"),
)
"""Usual names of columns that belong together."""
QUESTIONS = ("question", "query", "stem", "prompt", "sent1", "ctx")
OPTION = re.compile(r"[A-J]|(?i:opt?|option|choice|ending|candidate|answer)[ _-]?(?:[A-Ja-j]|[0-9]{1,2})")
"""How columns with one option each are called: A, B, … or option1, option2, …"""
LONG = 12
"""Characters that a text has on average, and a label or name has not."""
QUESTION = 64
"""Tokens left for a question beside its longest option."""
LOOKED_AT = 2000
"""Rows that are looked at."""


@dataclass(frozen=True)
class Guess:
    """What a file is taken for.

    Attributes:
        kind: of task.
        task: keys of ``[task]`` beside its kind.
        samples: rows or images.
        shape_CHW: of an image.
        columns: all of them, for comments.
        unused: texts that nothing was made of.
        longest: tokens that its texts or options take, roughly.
        rows: all that was read; none of images.
    """

    kind: Kind
    task: Mapping[str, Any]
    samples: int
    shape_CHW: tuple[int, int, int] | None = None
    columns: Sequence[str] = field(default=())
    unused: Sequence[str] = field(default=())
    longest: int = 0
    rows: Sequence[Row] = field(default=(), repr=False)


def guess(path: Path, kind: Kind | None = None) -> Guess:
    """Look at a file, or at one of a pattern's.

    Raises:
        InputError: it cannot be read, or nothing in it looks like the kind that is wanted, or like any.
    """
    if path.suffix == ".npz":
        return _images(path, "image", "label")
    rows = read_rows(str(path), Path())
    seen = rows[:LOOKED_AT]
    names = list(dict.fromkeys(name for row in seen for name in row))
    if image := next((name for name in names if _encoded(seen, name)), None):
        return _images(path, image, _label(seen, [name for name in names if name != image], path))
    options = None if kind == "text" else _options(seen, names)
    if options is not None:
        task = _question(seen, names, options, path)
        listed = [row[options] if isinstance(options, str) else [row.get(name) for name in options] for row in seen]
        longest = max(len(str(option)) for options_of in listed for option in options_of)
        return Guess("questions", task, len(rows), columns=names, longest=longest // 2 + QUESTION, rows=rows)
    if kind in ("questions", "images"):
        raise InputError(
            f"--kind {kind}: {path} has the columns {', '.join(names)}, none of which holds {_NEEDS[kind]}; leave --kind out, "
            "or name other data"
        )
    task = _text(seen, names, path)
    used = [name for name in (task["text"], task.get("text_pair")) if name]
    unused = [name for name in names if _length(seen, name) >= LONG and name not in (*used, task["label"])]
    lengths = sorted(sum(len(str(row.get(name) or "")) for name in used) for row in seen)
    return Guess("text", task, len(rows), None, names, unused, lengths[len(lengths) * 19 // 20] // 3, rows)


_NEEDS = {"questions": "a list of options, or options as A, B, C or option1, option2", "images": "encoded images"}


def _encoded(rows: Sequence[Row], name: str) -> bool:
    value = rows[0].get(name)
    return isinstance(value, bytes) or (isinstance(value, dict) and isinstance(value.get("bytes"), bytes))


def _images(path: Path, image: str, label: str) -> Guess:
    read = read_images(str(path), Path(), image, label)
    channels, height, width = pixels(read, [0]).shape[1:]
    if height != width:
        raise InputError(
            f"{path}: its images have {height}×{width} pixels; the small models that begin here need squares: cut or fill them"
        )
    beside = {} if path.suffix == ".npz" else {"image": image, "label": label}
    return Guess("images", beside, sum(len(one.labels) for one in read), (channels, height, width))


def _options(rows: Sequence[Row], names: Sequence[str]) -> str | list[str] | None:
    """The column with a list of options, or their columns."""
    for name in names:
        if all(isinstance(row.get(name), list) and len(row[name]) > 1 for row in rows):
            return name
    found = [name for name in names if OPTION.fullmatch(name)]
    alike = {re.sub(r"(?:[a-jA-J]|[0-9]{1,2})$", "", name) for name in found}
    return found if len(found) > 1 and len(alike) == 1 else None


def _question(rows: Sequence[Row], names: Sequence[str], options: str | list[str], path: Path) -> dict[str, Any]:
    rest = [name for name in names if name not in ({options} if isinstance(options, str) else set(options))]
    texts = [name for name in rest if _length(rows, name) >= LONG]
    asked = next((name for name in (*QUESTIONS, *texts) if name in rest), None)
    if asked is None:
        raise InputError(
            f"{path}: options stand in {options}, but no column of {', '.join(rest)} looks like the question; call one question"
        )
    answer = _label(rows, [name for name in rest if name != asked], path)
    prompt = {} if asked == "question" else {"prompt": f"Question: {{{asked}}}\nAnswer:"}
    return {**prompt, "options": options, "label": answer}


def _text(rows: Sequence[Row], names: Sequence[str], path: Path) -> dict[str, Any]:
    pair = next((pair for pair in PAIRS if set(pair) <= set(names)), None)
    texts = [name for name in names if _length(rows, name) >= LONG]
    if not (pair or texts):
        raise InputError(
            f"{path}: no column of {', '.join(names)} looks like text; name the kind, or write the scenario by hand"
        )
    if pair is None and len(texts) == 2:
        pair = texts[0], texts[1]
    first, second = pair or (max(texts, key=lambda name: _length(rows, name)), None)
    rest = [name for name in names if name not in (first, second)]
    label = _label(rows, rest, path)
    scores = {"metric": "spearman"} if _fractions(rows, label) else {}
    return {"text": first, **({"text_pair": second} if second else {}), "label": label, **scores}


def _label(rows: Sequence[Row], names: Sequence[str], path: Path) -> str:
    """The column of labels: by its name, else the one of fewest values."""
    lower = {name.lower(): name for name in reversed(names)}
    if found := next((lower[name] for name in LABELS if name in lower), None):
        return found
    counts = {name: len({str(row.get(name)) for row in rows}) for name in names}
    few = [name for name, count in counts.items() if 1 < count <= min(MOST_CLASSES, max(2, len(rows) // 4))]
    if not few:
        raise InputError(
            f"{path}: none of the columns {', '.join(names) or '(there are no others)'} looks like labels; call one label"
        )
    return min(few, key=lambda name: counts[name])


def _length(rows: Sequence[Row], name: str) -> float:
    """Mean number of characters of a column of text; 0 for others."""
    values = [row.get(name) for row in rows]
    if not all(isinstance(value, str) and not NUMBER.fullmatch(value) for value in values):
        return 0
    return sum(len(str(value)) for value in values) / len(values)


def _fractions(rows: Sequence[Row], name: str) -> bool:
    """Whether a column holds numbers with decimals that matter: scores, no classes."""
    found = set()
    for row in rows:
        try:
            found.add(float(str(row.get(name))))
        except ValueError:
            return False
    return any(value % 1 for value in found)


def found_in(folder: Path) -> list[Path]:
    """Training data of a folder and the folders in it: files whose names say "train", or else all data files but tests."""
    data = sorted(
        path
        for pattern in ("*", "*/*")
        for path in folder.glob(pattern)
        if path.suffix in (".csv", ".tsv", ".json", ".jsonl", ".parquet", ".npz") and path.is_file()
    )
    training = [path for path in data if "train" in path.stem.lower()]
    return training or [path for path in data if not any(word in path.stem.lower() for word in HELD)]


HELD = ("test", "dev", "valid", "eval")
"""What names of test data hold."""


def test_beside(path: Path) -> Path | None:
    """The test data that go with training data: of the same name with another word for ``train``, or the only ones there."""
    others = [
        at for at in sorted(path.parent.iterdir()) if at.suffix == path.suffix and any(word in at.stem.lower() for word in HELD)
    ]
    twins = [path.with_name(path.name.replace("train", word)) for word in HELD]
    return next((twin for twin in twins if twin in others), others[0] if len(others) == 1 else None)
