"""Command lines of the commands that compose no configuration: help, verbs, options."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from tdmpc2.commands.options import Option, parse
from tdmpc2.commands.pages import Row, Section, page, show, shown, wants_help
from tdmpc2.tasks import nearest

_HEADING = "Keys"


class Verb(NamedTuple):
    """One of the things a command does: ``tdmpc2 data VERB``."""

    purpose: str
    options: Sequence[Option]


def read_options(
    name: str, doc: str | None, argv: Sequence[str] | None, options: Sequence[Option], others: Sequence[str] = ()
) -> tuple[dict[str, Any], dict[str, str]]:
    """Read the command line of a command, or show its help and exit.

    Args:
        name: of the command.
        doc: docstring of its module.
        argv: words; None: those the program was called with.
        options: its keys.
        others: see :func:`tdmpc2.commands.options.parse`, which this returns.

    Raises:
        ValueError: see there.
    """
    words = sys.argv[1:] if argv is None else argv
    if wants_help(words):
        show(page(name, doc, [Section(_HEADING, rows(options))]))
    return parse(words, options, others)


def read_verb(
    name: str, doc: str | None, argv: Sequence[str] | None, verbs: Mapping[str, Verb]
) -> tuple[str, dict[str, Any]]:
    """Read the command line of a command with verbs, or show its help and exit.

    Returns:
        The verb, and its options' values.

    Raises:
        ValueError: no verb, an unknown one, or see :func:`tdmpc2.commands.options.parse`.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    verb = words[0] if words else ""
    if wants_help(words):
        chosen = {verb: verbs[verb]} if verb in verbs else verbs
        sections = [Section(f"{name} {verb}: {v.purpose}", rows(v.options)) for verb, v in chosen.items()]
        show(page(f"{name} {verb}" if verb in verbs else name, doc, sections))
    if verb not in verbs:
        known = ", ".join(verbs)
        said = f"'{verb}' is none of them.{nearest(verb, verbs)}" if verb else f"as in `tdmpc2 {name} {min(verbs)}`"
        raise ValueError(f"tdmpc2 {name} does one of {known}: {said}")
    return verb, parse(words[1:], verbs[verb].options)[0]


def rows(options: Sequence[Option]) -> list[Row]:
    """The lines of some options on a help page."""
    lines = []
    for option in options:
        choices = f": {', '.join(option.choices)}" if option.choices else ""
        lines.append(Row(option.key, shown(option.default), f"{option.help}{choices}"))
    return lines
