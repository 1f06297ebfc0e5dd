"""Rows of Parquet files, in batches, so that what they unpack to is bounded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError
from .files import check, unpacked_most_B, unreadable

BATCH = 1024
BUFFER_B = 2**12
VALUE_B = 8
"""About what a value takes, of a list too; in the file it may take nothing."""


NO_VALUE = (ValueError, OverflowError, TypeError, NotImplementedError)
"""What Arrow raises where Python has no such value: dates beyond its own, text that is not UTF-8, types without a twin."""


def read_parquet(path: Path, wanted: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """All rows, with the wanted columns or with all.

    Raises:
        InputError: the file cannot be read, is damaged, lacks a column, has two of one name, holds what Python has no value
            for, or unpacks to more than `files.unpacked_most_B` allows.
    """
    from pyarrow.parquet import ParquetFile  # 0.2 s that other sources need not wait for

    where, most_B = f"data = {str(path)!r}", unpacked_most_B(check(path))
    rows: list[dict[str, Any]] = []
    unpacked_B = 0
    try:
        with ParquetFile(path, buffer_size=BUFFER_B) as file:
            for i in range(file.metadata.num_row_groups):
                # No rows: opens every column, and what its metadata get wrong is an exception. Asked for by
                # ``RowGroupMetaData.column``, as below, it would end the process (Arrow 24).
                list(file.reader.iter_batches(0, [i], None, False))
        with ParquetFile(path) as file:
            names = file.schema_arrow.names
            _check_names(names, wanted or (), where)
            at_once = _rows_at_once(file.metadata, wanted, most_B, where)
            for batch in map(_plain, file.iter_batches(at_once, columns=wanted, use_threads=False)):
                unpacked_B += batch.nbytes
                if unpacked_B > most_B:
                    raise InputError(
                        f"{where}: unpacks to more than {most_B:,} bytes; split it into several files, or take a part"
                    )
                rows += _values(batch, where)
    except InputError:
        raise
    except Exception as error:  # Arrow's, and what Python says of names that are not UTF-8
        if isinstance(error, OSError) and error.errno is not None:
            raise unreadable(path, error) from error
        raise InputError(f"{where}: is damaged or not Parquet ({error}); fetch or write it again") from error
    return rows


def _check_names(names: Sequence[str], wanted: Sequence[str], where: str) -> None:
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise InputError(f"{where}: column {twice[0]!r} is there twice; rename one")
    if missing := [name for name in wanted if name not in names]:
        raise InputError(f"{where}: there is no column {missing[0]!r}; the columns are {', '.join(map(repr, names))}")


def _rows_at_once(metadata: Any, wanted: Sequence[str] | None, most_B: int, where: str) -> int:
    """So few rows that a long value which they share is not unpacked for more of them than may be."""
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    chunks = [group.column(i) for group in groups for i in range(group.num_columns)]
    if wanted is not None:
        chunks = [chunk for chunk in chunks if chunk.path_in_schema.split(".")[0] in wanted]
    values = sum(chunk.num_values for chunk in chunks)
    if values * VALUE_B > most_B:
        raise InputError(f"{where}: holds {values:,} values; at most {most_B // VALUE_B:,} for a file of this size")
    largest_B = max((chunk.total_uncompressed_size for chunk in chunks), default=0)
    return max(1, min(BATCH, most_B // max(1, largest_B)))


def _plain(batch: Any) -> Any:
    """Categories as their values, so that what is counted is what they take as rows."""
    for i, column in enumerate(batch.columns):
        if hasattr(column, "dictionary_decode"):
            batch = batch.set_column(i, batch.schema.names[i], column.dictionary_decode())
    return batch


def _values(batch: Any, where: str) -> list[dict[str, Any]]:
    try:
        rows: list[dict[str, Any]] = batch.to_pylist()
    except NO_VALUE as error:
        raise InputError(
            f"{where}: a column of {', '.join(batch.schema.names)} holds what cannot be read as a value ({error}); "
            "convert it to numbers or text, or leave it out"
        ) from error
    return rows
