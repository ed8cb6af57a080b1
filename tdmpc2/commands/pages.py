"""Help pages: the purpose of a command, examples, and its keys with their explanations.

Purpose and examples are those of the command's module docstring: its first paragraph, and its lines that begin with
``tdmpc2``. So a reader of the code and a reader of ``--help`` see the same.
"""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

_DIALECT = "key=value, --key=value and --key value mean the same."
_KEY_WIDTH = 24
_WIDEST = 110


class Row(NamedTuple):
    """One key on a help page; ``default`` None: not shown."""

    key: str
    default: str | None
    explanation: str


class Section(NamedTuple):
    """Rows under a heading."""

    heading: str
    rows: Sequence[Row]


def page(name: str, doc: str | None, sections: Iterable[Section], note: str = "") -> str:
    """Lay out a help page.

    Args:
        name: of the command.
        doc: docstring of its module.
        sections: its keys.
        note: last paragraph.
    """
    program = program_of(name)
    paragraphs = (doc or "").strip().split("\n\n")
    lines = [line.strip() for line in (doc or "").splitlines()]
    examples = [
        line.replace(f"tdmpc2 {name}", program, 1) for line in lines if f"{line} ".startswith(f"tdmpc2 {name} ")
    ]
    parts = [
        _wrapped(" ".join(paragraphs[0].split())),
        "\n".join(("Examples", *(f"  {line}" for line in examples), "", _DIALECT)) if examples else "",
        *(_section(section) for section in sections),
        _wrapped(note),
    ]
    return "\n\n".join(part for part in parts if part)


def show(text: str) -> None:
    """Print a help page and end the program, as argparse does."""
    print(text)
    sys.exit(0)


def program_of(name: str) -> str:
    """Return the words the command was called by: ``python train.py`` from that script, else ``tdmpc2 train``."""
    return f"python {name}.py" if Path(sys.argv[0]).name == f"{name}.py" else f"tdmpc2 {name}"


def wants_help(argv: Sequence[str]) -> bool:
    """True for ``--help`` or ``-h`` anywhere on the line."""
    return "--help" in argv or "-h" in argv


def shown(value: Any) -> str | None:
    """A default as it would be typed; None where there is nothing to say."""
    if value is None or value == ():
        return None
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return ",".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _section(section: Section) -> str:
    lines = [section.heading]
    for row in section.rows:
        default = f" (default: {row.default})" if row.default is not None else ""
        text = _wrapped(f"{row.explanation}{default}", _KEY_WIDTH + 2)
        key = f"  {row.key}"
        lines += [key, text] if len(key) > _KEY_WIDTH else [key + text[len(key) :]]
    return "\n".join(lines)


def _wrapped(text: str, indent: int = 0) -> str:
    width = min(shutil.get_terminal_size().columns, _WIDEST)
    space = " " * indent
    return textwrap.fill(text, width, initial_indent=space, subsequent_indent=space, break_on_hyphens=False)
