"""A table of the terminal that goes on below itself where it is wider than the terminal, so that no name is broken."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

GAP = 2
"""Characters between columns."""
MOST_NAMES = 0.6
"""Of the width, for names."""


@dataclass(frozen=True)
class Stacked:
    """Texts in columns, whose heads may have two lines; the first ``names`` columns are on the left in each piece.

    ``dim`` are numbers of rows that are beside the point, ``bold`` and ``faint`` of columns to be seen first or last.
    """

    title: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    dim: Collection[int] = ()
    bold: Collection[int] = ()
    faint: Collection[int] = ()
    names: int = 1

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Text(self.title, style="italic")
        widths = self.widths(options.max_width)
        for number, columns in enumerate(self.pieces(widths, options.max_width)):
            if number:
                yield ""
            yield self._table(columns, widths)

    def widths(self, width: int) -> list[int]:
        """Of each column; names that would leave too little to the numbers are folded, the longest first."""
        columns = [[head, *(row[i] for row in self.rows)] for i, head in enumerate(self.heads)]
        found = [max(cell_len(line) for text in texts for line in text.split("\n")) for texts in columns]
        while sum(found[: self.names]) > width * MOST_NAMES and max(found[: self.names]) > 1:
            found[found.index(max(found[: self.names]))] -= 1
        return found

    def pieces(self, widths: Sequence[int], width: int) -> list[list[int]]:
        """Columns of each piece, as many as fit."""
        first = list(range(self.names))
        fixed = sum(widths[: self.names]) + GAP * self.names
        pieces, used = [list(first)], fixed
        for i, needs in enumerate(widths[self.names :], start=self.names):
            if used + needs > width and len(pieces[-1]) > self.names:
                pieces.append(list(first))
                used = fixed
            pieces[-1].append(i)
            used += needs + GAP
        return pieces

    def _table(self, columns: Sequence[int], widths: Sequence[int]) -> Table:
        table = Table(box=None, padding=(0, GAP, 0, 0), pad_edge=False)
        for i in columns:
            style = "bold" if i in self.bold else "dim" if i in self.faint else None
            name = i < self.names
            table.add_column(
                Text(self.heads[i]),
                justify="left" if name else "right",
                style=style,
                overflow="fold",
                max_width=widths[i] if name else None,
            )
        for number, row in enumerate(self.rows):
            if number in self.dim and not any(row[i] for i in columns[self.names :]):
                continue  # a row that says more of the one above it, and here does not
            table.add_row(*(Text(row[i]) for i in columns), style="dim" if number in self.dim else None)
        return table
