"""Plain rows of a table: from a JSONL, CSV or Parquet file, or from a data set on the hub; and checks of what columns hold.

The ending of a file's name says what it is: ``.jsonl`` and ``.json`` hold one JSON object on each line (blank lines count for
nothing), or one list of objects; ``.csv`` and ``.tsv`` have a header line, an empty field is a value that is not there, and
all values are text; ``.parquet`` is Parquet. In ``.csv`` double quotes stand around whatever contains separators; in ``.tsv``
quotes are text, as in GLUE's files. ``hub:org/name:split`` or ``hub:org/name:config:split`` is a split of a data set on the
Hugging Face hub, read by the extra ``datasets``. How large files may be: `files`.
"""

from __future__ import annotations

import csv
import math
import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal

from ..errors import InputError, warn_input
from ..reading import short
from . import files
from .parquet import read_parquet

Row = dict[str, Any]

HUB = re.compile(r"hub:(?P<name>\w[\w.-]*/\w[\w.-]*)(?::(?P<config>[^:\[]+))?:(?P<split>[^:\[]+(?:\[[^\]]*\])?)")
"""``hub:org/name[:config]:split``; a split may be a slice of it, like ``train[:1000]``."""
NUMBER = re.compile(r"[+-]?\d+(?:\.\d*)?")
"""How a text spells a label that is a number."""
MOST_CLASSES = 10_000
"""More classes than that are row numbers or scores by mistake."""

MOST_ROWS = 20_000_000
"""Of a data set on the hub."""
OLDEST_DATASETS = 4
"""The library's first version that never runs a script that comes with data."""


def read_rows(spec: str, base: Path) -> list[Row]:
    """All rows of a file, or of several (see `files`), or of a split on the hub, as dictionaries from column to value.

    Raises:
        InputError: the file cannot be read, is not what its name says, holds no rows, or the hub's data are not to be had.
    """
    if spec.startswith("hub:"):
        where, rows = f"data = {spec!r}", _hub(spec)
    else:
        paths = files.files(spec, base)
        where, rows = f"data = {str(paths[0])!r}", [row for path in paths for row in _file(path)]
    if not rows:
        raise InputError(f"{where}: holds no rows; every cluster needs data")
    return rows


def columns(rows: Sequence[Row], names: Sequence[str], where: str) -> list[list[Any]]:
    """The values of the named columns, every row's, each column of one kind (text, number, list, …); ``where`` opens errors.

    Raises:
        InputError: there is no such column, or a row has no value, NaN, infinity or a value of another kind in it.
    """
    present = sorted({name for row in rows for name in row})
    for name in names:
        if name not in present:
            raise InputError(f"{where}: there is no column {name!r}; the columns are {', '.join(map(repr, present))}")
    return [_column(rows, name, where) for name in names]


def missing(value: Any) -> bool:
    """Whether a row has no value there: null, or a number that is none."""
    return value is None or (isinstance(value, float) and not math.isfinite(value))


def texts(rows: Sequence[Row], names: Sequence[str], where: str) -> list[list[str]]:
    """The named columns as `columns` gives them, of text; numbers count as text.

    Raises:
        InputError: as `columns`, or a column holds lists, say, or bytes.
    """
    return [
        [_text(value, f"{where}, row {n}: column {name!r}") for n, value in enumerate(column, start=1)]
        for name, column in zip(names, columns(rows, names, where), strict=True)
    ]


def numbers(values: Sequence[Any], where: str) -> list[float]:
    """Values of one column as numbers (scores of a regression); text that spells a number counts, as CSV knows only text.

    Raises:
        InputError: a value is not a finite number.
    """
    return [_number(value, f"{where}, row {row}") for row, value in enumerate(values, start=1)]


Place = Callable[[int], str]


def pooled(parts: Sequence[tuple[str, int]]) -> Place:
    """Where a row lies, by its number from 1, in data that are pooled: what each part is called, and how many rows it has."""
    ends = list(accumulate(rows for _, rows in parts))

    def place(row: int) -> str:
        part = bisect_left(ends, row)
        name, rows = parts[part]
        return f"{name}, row {row - ends[part] + rows}"

    return place


def label_index(
    values: Sequence[Any], given: Sequence[Any] | None, where: str, place: Place | None = None
) -> tuple[list[int], list[Any]]:
    """The class of every label, counted from 0, and the labels in the order of the classes.

    Without a ``given`` list whole numbers are classes already, and texts are sorted: let one call see all the data whose
    classes must agree. With it a label's class is its place in the list; numbers are places where the list holds texts.
    ``true``, 1.0 and "1" count as 1, the text only if the list does not hold it. ``place`` says where a row is, if not in
    ``where``.

    Raises:
        InputError: a label is missing, not in the list or cannot be a class, kinds are mixed, or the list repeats itself.
    """
    place = place or pooled([(where, len(values))])
    if given is not None and (not given or len(set(given)) < len(given)):
        raise InputError(f"{where}: labels = {list(given)!r}: must name every class once")
    if all(isinstance(value, str) and NUMBER.fullmatch(value) and value not in (given or ()) for value in values):
        values = [float(value) for value in values]
    labels = [_label(value, place, row) for row, value in enumerate(values, start=1)]
    if len({type(label) for label in labels}) > 1:
        raise InputError(f"{where}: labels are both numbers and texts ({_examples(labels)}); write all of them in one way")
    order = list(given) if given is not None else _order(labels, where, place)
    by_place = all(isinstance(label, str) for label in order) and not isinstance(next(iter(labels), ""), str)
    classes = {label: index for index, label in enumerate(range(len(order)) if by_place else order)}
    for row, label in enumerate(labels, start=1):
        if label not in classes:
            raise InputError(
                f"{place(row)}: label {short(label)} is not one of {_examples(list(classes))}; "
                "correct it, or list all labels in `labels`"
            )
    if given is None and not isinstance(next(iter(labels), ""), str):
        warn_of_no_zero(map(int, labels), where)
    return [classes[label] for label in labels], order


def warn_of_no_zero(labels: Iterable[int], where: str) -> None:
    """Warn where classes or answers are numbers without a 0: they may count from 1, and all would be wrong by one."""
    counts = Counter(labels)
    if counts and not counts[0]:
        first, more = sorted(counts)[:8], ", …" if len(counts) > 8 else ""
        warn_input(
            f"{where}: 0 never occurs ({', '.join(f'{n}: {counts[n]}' for n in first)}{more}), and numbers count from 0; if "
            f"these count from 1, subtract 1, or list classes as they are: labels = [{', '.join(map(str, first))}{more}]"
        )


def _file(path: Path) -> list[Row]:
    match path.suffix.lower():
        case ".jsonl" | ".json":
            return [row for _, row in files.objects(path)]
        case ".csv":
            return _csv(path, ",", csv.QUOTE_MINIMAL)
        case ".tsv":
            return _csv(path, "\t", csv.QUOTE_NONE)
        case ".parquet":
            return read_parquet(path)
    raise InputError(
        f"data = {str(path)!r}: of unknown kind; must end in .jsonl, .json, .csv, .tsv or .parquet, "
        "or be hub:org/name:split for a data set on the hub"
    )


def _csv(path: Path, separator: str, quoting: Literal[0, 3]) -> list[Row]:
    hint = "put double quotes around a field with separators, quotes or line breaks in it, and double the quotes inside"
    if quoting == csv.QUOTE_NONE:
        hint = "a field must not hold a tab or a line break"
    before = csv.field_size_limit(files.MOST_LINE)
    reader = csv.reader(files.lines(path), delimiter=separator, quoting=quoting, strict=True)
    try:
        header = next(reader, [])
        _check_separator(header, separator, path)
        twice = [name for name, count in Counter(header).items() if count > 1]
        if twice:
            raise InputError(f"{path}, line 1: column {twice[0]!r} is there twice; rename one")
        return [_record(header, fields, f"{path}, line {reader.line_num}", hint) for fields in reader if fields]
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num}: {error}; {hint}, or use JSONL") from error
    finally:
        csv.field_size_limit(before)


def _check_separator(header: list[str], separator: str, path: Path) -> None:
    """Raises: InputError, where a .csv has another separator than the comma."""
    line = separator.join(header)
    for other, name in ((";", "semicolons"), ("\t", "tabs"), ("|", "bars")):
        if separator == "," and line.count(other) > line.count(separator):
            remedy = "name it .tsv" if other == "\t" else "write commas"
            raise InputError(
                f"{path}, line 1: {short(line)}: {name} seem to separate the columns, and a .csv has commas; {remedy}, or use "
                "JSONL or Parquet"
            )


def _record(header: list[str], fields: list[str], where: str, hint: str) -> Row:
    if len(fields) != len(header):
        raise InputError(f"{where}: {len(fields)} fields, but the header names {len(header)}; {hint}, or use JSONL")
    return {name: field or None for name, field in zip(header, fields, strict=True)}


def _hub(spec: str) -> list[Row]:
    match = HUB.fullmatch(spec)
    if match is None:
        raise InputError(f"data = {spec!r}: must be hub:org/name:split or hub:org/name:config:split")
    try:
        import datasets
        from datasets.exceptions import DatasetsError
    except ImportError as error:
        raise InputError(
            f"data = {spec!r}: data sets on the hub need the extra `datasets`: pip install 'fedexperts[datasets]'; "
            "or give a JSONL, CSV or Parquet file"
        ) from error
    if int(datasets.__version__.split(".")[0]) < OLDEST_DATASETS:
        raise InputError(
            f"data = {spec!r}: datasets {datasets.__version__} runs code that comes with data; "
            f"pip install 'datasets>={OLDEST_DATASETS}'"
        )
    try:
        found = datasets.load_dataset(match["name"], match["config"], split=match["split"])
        if len(found) > MOST_ROWS:
            raise InputError(f"data = {spec!r}: {len(found):,} rows; at most {MOST_ROWS:,}: take a slice, [:{MOST_ROWS}]")
        return list(found)
    except InputError:
        raise
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:  # RuntimeError: the data come with a script
        raise InputError(
            f"data = {spec!r}: cannot be loaded from the Hugging Face cache or the hub ({_first_line(error)}); "
            "correct the name, configuration or split, go online once, unset HF_HUB_OFFLINE, or give a file"
        ) from error


def _column(rows: Sequence[Row], name: str, where: str) -> list[Any]:
    values = [row.get(name) for row in rows]
    for number, value in enumerate(values, start=1):
        if missing(value):
            what = "has no value" if value is None else f"holds {value!r}"
            raise InputError(f"{where}, row {number}: column {name!r} {what}; fill it in, or leave the row out")
        if _kind(value) != _kind(values[0]):
            raise InputError(
                f"{where}, row {number}: column {name!r} holds {short(value)}, a {_kind(value)}, but a "
                f"{_kind(values[0])} in row 1 ({short(values[0])}); write all of them in one way"
            )
    return values


def _kind(value: Any) -> str:
    kinds = {str: "text", bool: "truth value", int: "number", float: "number", list: "list", dict: "group of columns"}
    return kinds.get(type(value), type(value).__name__)


def _text(value: Any, where: str) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise InputError(f"{where} holds {short(value)}, a {_kind(value)}; it must be text")
    return str(value)


def _number(value: Any, where: str) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise InputError(f"{where}: score {short(value)}: must be a finite number")
    return number


def _label(value: Any, place: Place, row: int) -> int | str:
    """A label as a whole number or a text."""
    if missing(value):
        what = "has no value" if value is None else f"is {value!r}"
        raise InputError(f"{place(row)}: label {what}; fill it in, or leave the row out")
    if isinstance(value, str):
        if not value.strip():
            raise InputError(f"{place(row)}: label {value!r}: is blank; fill it in, or leave the row out")
        return value
    if isinstance(value, bool | int) or (isinstance(value, float) and value.is_integer()):
        return int(value)
    raise InputError(
        f"{place(row)}: label {short(value)}: must be a whole number or a text; other numbers need a regression, "
        'task.metric = "pearson" or "spearman"'
    )


def _order(labels: Sequence[Any], where: str, place: Place) -> list[Any]:
    """The labels of all classes in order, as the data have them."""
    if len(set(labels)) > MOST_CLASSES:
        raise InputError(f"{where}: {len(set(labels))} different labels; at most {MOST_CLASSES}: is this the label's column?")
    if not labels or isinstance(labels[0], str):
        return sorted(set(labels))
    for row, label in enumerate(labels, start=1):
        if not 0 <= label < MOST_CLASSES:
            raise InputError(
                f"{place(row)}: label {label}: must be from 0 to {MOST_CLASSES - 1} "
                "(-1 is often a label that is kept secret); for other numbers list all labels in `labels`"
            )
    return list(range(max(labels) + 1))


def _examples(values: Sequence[Any]) -> str:
    """A few of the different values."""
    different = list(dict.fromkeys(values))
    return ", ".join(map(short, different[:10])) + (", …" if len(different) > 10 else "")


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
