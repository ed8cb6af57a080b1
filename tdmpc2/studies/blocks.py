"""Parts of a report, written once and shown as Markdown or as HTML."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from html import escape
from typing import NamedTuple

from tdmpc2.support.tables import markdown_table
from tdmpc2.support.text import escaped

_CODE = re.compile(r"`([^`]+)`")


class Heading(NamedTuple):
    """A heading; level 1 is the title."""

    text: str
    level: int = 2


class Paragraph(NamedTuple):
    """A paragraph; what stands between backticks is code."""

    text: str


class Table(NamedTuple):
    """A table; ``numbers``: all columns but the first hold numbers."""

    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: bool = True


class Lines(NamedTuple):
    """A list of remarks, which may quote the names of files."""

    items: Sequence[str]


class Figure(NamedTuple):
    """A figure beside the report: its title and the name of its file."""

    title: str
    name: str


Block = Heading | Paragraph | Table | Lines | Figure


def as_markdown(blocks: Iterable[Block]) -> str:
    """Write blocks as Markdown."""
    return "\n\n".join(map(_markdown, blocks)) + "\n"


def as_html(block: Block) -> str:
    """Write one block as HTML, in which nothing of its text is markup; a figure is left to who has its pixels."""
    match block:
        case Heading(text, level):
            return f"<h{level}>{safe(text)}</h{level}>"
        case Paragraph(text):
            return f"<p>{_with_code(text)}</p>"
        case Lines(items):
            return f"<ul>{''.join(f'<li>{_with_code(item)}</li>' for item in items)}</ul>"
        case Table():
            return _html_table(block)
        case Figure(title, _):
            return f"<p>{safe(title)}</p>"


def safe(text: str) -> str:
    """Write a text, such as a name from a file, so that a browser shows it and does nothing else with it."""
    return escape(escaped(text, keep="\n"), quote=True)


def _markdown(block: Block) -> str:
    match block:
        case Heading(text, level):
            return f"{'#' * level} {text}"
        case Paragraph(text):
            return text
        case Lines(items):
            return "\n".join(f"- {escaped(item)}" for item in items)
        case Table(headings, rows, numbers):
            return markdown_table(headings, rows, numbers=numbers)
        case Figure(title, name):
            return f"![{title}]({name})"


def _with_code(text: str) -> str:
    return _CODE.sub(r"<code>\1</code>", safe(text))


def _html_table(table: Table) -> str:
    kinds = ["text", *(["number" if table.numbers else "text"] * (len(table.headings) - 1))]
    head = "".join(f'<th class="{kind}">{safe(cell)}</th>' for kind, cell in zip(kinds, table.headings, strict=True))
    body = "".join(
        f"<tr>{''.join(f'<td class={kind}>{safe(cell)}</td>' for kind, cell in zip(kinds, row, strict=True))}</tr>"
        for row in table.rows
    )
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
