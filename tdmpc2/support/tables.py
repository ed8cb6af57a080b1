"""Tables, written once and shown as Markdown or in a terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from rich.box import SIMPLE
from rich.table import Table
from rich.text import Text

from tdmpc2.support.text import escaped

_FEW_COLUMNS = 7
_HEADING = 7  # letters of a line


class Cells(NamedTuple):
    """One table: texts only, the first column names the rows."""

    title: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    total: Sequence[str] | None = None  # one more row, set apart


def markdown_table(headings: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: bool = True) -> str:
    """Write a Markdown table; columns of numbers, all but the first, are aligned to the right."""
    ruler = ["---", *["---:" if numbers else "---"] * (len(headings) - 1)]
    lines = ([escaped(cell).replace("|", "\\|") for cell in line] for line in (headings, ruler, *rows))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def terminal_table(cells: Cells) -> Table:
    """Arrange a table for the terminal.

    Headings take several lines, and so do cells with spaces in them where the terminal is narrow; names and numbers
    stay whole, because one that is torn in two is not found again.
    """
    space = 1 if len(cells.headings) <= _FEW_COLUMNS else 0  # beside the one that the box has
    table = Table(title=cells.title, title_justify="left", box=SIMPLE, padding=(0, space, 0, 0))
    for index, heading in enumerate(cells.headings):
        lines = "\n".join(textwrap.wrap(heading, _HEADING, break_long_words=False))
        whole = not any(" " in row[index] for row in cells.rows)
        table.add_column(lines, justify="right" if index else "left", overflow="fold", no_wrap=whole)
    for row in cells.rows:
        table.add_row(*(Text(escaped(cell)) for cell in row))  # a text, in which [...] is no style
    if cells.total is not None:
        table.add_section()
        table.add_row(*(Text(escaped(cell)) for cell in cells.total))
    return table
