"""Tables, written once and shown as Markdown or in a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from rich.box import SIMPLE
from rich.table import Table


class Cells(NamedTuple):
    """One table: texts only, the first column names the rows."""

    title: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    total: Sequence[str] | None = None  # one more row, set apart


def markdown_table(headings: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: bool = True) -> str:
    """Write a Markdown table; columns of numbers, all but the first, are aligned to the right."""
    ruler = ["---", *["---:" if numbers else "---"] * (len(headings) - 1)]
    escaped = ([cell.replace("|", "\\|") for cell in line] for line in (headings, ruler, *rows))
    return "\n".join(f"| {' | '.join(line)} |" for line in escaped)


def terminal_table(cells: Cells) -> Table:
    """Arrange a table for the terminal: headings take a line for each word, and names in the first column stay whole.

    Where a terminal is too narrow, numbers are folded before names are: a name torn in two is not found again.
    """
    table = Table(title=cells.title, title_justify="left", box=SIMPLE, padding=(0, 1, 0, 0))
    for index, heading in enumerate(cells.headings):
        name = index == 0
        table.add_column(heading.replace(" ", "\n"), justify="left" if name else "right", overflow="fold", no_wrap=name)
    for row in cells.rows:
        table.add_row(*row)
    if cells.total is not None:
        table.add_section()
        table.add_row(*cells.total)
    return table
