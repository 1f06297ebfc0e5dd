"""A ledger for other programs: columns in a Parquet file, scalars in TensorBoard's event file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .. import __version__
from ..columns import of_history, of_lines
from ..errors import InputError
from ..events import FORMAT
from ..ledger import read, summary

PARQUET = "ledger.parquet"


def write_parquet(run: Path, to: Path) -> Path:
    """Every line of a ledger as a row; what is no number, text, yes or no is JSON."""
    import pyarrow as pa
    from pyarrow.parquet import write_table

    columns = of_lines(list(read(run / "ledger.jsonl")))
    about = {"fedexperts": __version__, "format": str(FORMAT), "run": json.dumps(run.name)}
    write_table(pa.table(columns).replace_schema_metadata(about), to / PARQUET)
    return to / PARQUET


def check_tensorboard() -> None:
    """Refuse before anything is written.

    Raises:
        InputError: it is not installed.
    """
    try:
        import tensorboard.summary.writer.event_file_writer  # noqa: F401
    except ImportError as error:
        raise InputError("--format tensorboard: needs TensorBoard; pip install 'fedexperts[tensorboard]'") from error


def write_events(run: Path, to: Path) -> None:
    """Numbers of each evaluation as scalars by cycle; the time of a scalar is simulated, from 0 on."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    columns = of_history(summary(run / "ledger.jsonl")["history"])
    writer = EventFileWriter(str(to))
    for i, (cycle, t_s) in enumerate(zip(columns["cycle"], columns["t_s"], strict=True)):
        for tag, values in columns.items():
            if tag not in ("cycle", "t_s") and isinstance(values[i], int | float):
                scalar: Any = Summary(value=[Summary.Value(tag=tag, simple_value=values[i])])
                writer.add_event(Event(wall_time=t_s, step=cycle, summary=scalar))
    writer.close()
