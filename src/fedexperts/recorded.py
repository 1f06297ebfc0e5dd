"""A run that has ended, as its ledger tells it: its summary, data frames, a figure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .columns import of_history, of_lines
from .errors import InputError
from .ledger import read, summary

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

    from .report.chart import Line

AXES = {
    "cycle": "orbital cycles",
    "hours": "simulated hours",
    "steps": "gradient steps, of all devices",
    "uplink_MB": "uplink, MB",
    "joules": "J a device, radio and compute",
}
"""What a figure may be drawn against, by the column of `Run.frame`."""


@dataclass(frozen=True)
class Run:
    """A run that has ended, read from its directory; no model is loaded.

    Attributes:
        directory: of the run.
        summary: the keys of ``fedexperts run --json``.
    """

    directory: Path
    summary: dict[str, Any]

    @classmethod
    def load(cls, directory: str | Path) -> Run:
        """Read a run directory.

        Raises:
            InputError: it holds no ledger, a line of it is none of a ledger, or the run has not ended.
        """
        path = Path(directory)
        if not (path / "ledger.jsonl").is_file():
            raise InputError(f"{path}: holds no ledger.jsonl; give a run directory")
        return cls(path, summary(path / "ledger.jsonl"))

    @property
    def label(self) -> str:
        """The protocol and the seed, as a figure's key has them."""
        return f"{self.summary['protocol']}, seed {self.summary['seed']}"

    def frame(self, event: str | None = None) -> pandas.DataFrame:
        """A data frame (extra ``analysis``).

        Args:
            event: lines of the ledger to have, a row each, such as ``"train"``; ``"all"`` for every line. Nothing: a row for
                each evaluation, with what it had cost, the scores, and those of each cluster or client as ``accuracy/NAME``.

        Raises:
            InputError: pandas is missing, or the run has no such event.
        """
        try:
            import pandas as pd
        except ImportError as error:
            raise InputError("Run.frame: needs pandas; pip install 'fedexperts[analysis]'") from error
        if event is None:
            return pd.DataFrame(of_history(self.summary["history"]))
        lines = [line for line in read(self.directory / "ledger.jsonl") if event in ("all", line["event"])]
        if not lines:
            known = sorted({str(line["event"]) for line in read(self.directory / "ledger.jsonl")})
            raise InputError(f"Run.frame: event = {event!r}: {self.directory} has none; it has {', '.join(known)}")
        return pd.DataFrame(of_lines(lines))

    def plot(self, value: str = "accuracy", by: str = "cycle", beside: tuple[Run, ...] = (), width_in: float = 5.0) -> Figure:
        """A figure for a paper: one value of each evaluation against what it had cost.

        Save it with ``figure.savefig("figure.pdf")``.

        Args:
            value: a column of `frame`, as ``"accuracy"``, ``"loss"`` or ``"accuracy/NAME"`` of a cluster.
            by: ``"cycle"``, ``"hours"``, ``"steps"``, ``"uplink_MB"`` or ``"joules"``.
            beside: other runs, to be drawn in the same axes.
            width_in: of the figure, inches.

        Raises:
            InputError: a run has no such value, there is no such axis, or runs are of different tasks.
        """
        from .report.chart import Chart, Panel, looks
        from .report.comparable import check_comparable
        from .report.draw import figure
        from .report.table import axis

        if by not in AXES:
            raise InputError(f"Run.plot: by = {by!r}: must be one of {', '.join(AXES)}")
        if not 1 <= width_in <= 100:
            raise InputError(f"Run.plot: width_in = {width_in:g}: must be from 1 to 100 inches")
        runs = self._named(beside)
        check_comparable({name: run.summary for name, run in runs.items()}, {name: run.directory for name, run in runs.items()})
        scores = value.partition("/")[0] in ("accuracy", "personal_accuracy", "personal_by_client")
        times, unit = axis(self.summary["metric"]) if scores else (1.0, value + (", nats" if value == "loss" else ""))
        label = f"{unit}, {value.partition('/')[2]}" if "/" in value and scores else unit
        own = looks(runs)
        lines = [run._line(name, value, by, times, own) for name, run in runs.items()]
        on = self.summary["judged_on"]
        panel = Panel(AXES[by], f"{label}, on {on} data", lines)
        return figure(Chart(value, label, [panel], columns=1), 72 * width_in, legend=True)

    def _named(self, beside: tuple[Run, ...]) -> dict[str, Run]:
        runs = [self, *beside]
        labels = [run.label for run in runs]
        return {name if labels.count(name) == 1 else str(run.directory): run for name, run in zip(labels, runs, strict=True)}

    def _line(self, name: str, value: str, by: str, times: float, own: Mapping[str, Any]) -> Line:
        from .report.chart import Line

        columns = of_history(self.summary["history"])
        found = columns.get(value)
        if found is None or not all(isinstance(one, int | float | None) for one in found):
            known = ", ".join(key for key, values in columns.items() if isinstance(values[0], int | float))
            raise InputError(f"Run.plot: value = {value!r}: {self.directory} has {known}")
        points = [(x, times * y) for x, y in zip(columns[by], found, strict=True) if y is not None]
        return Line(name, [x for x, _ in points], [y for _, y in points], own[name])
