"""Tables of configuration keys, all derived from the keys' own lines in :mod:`tdmpc2.config.keys`."""

from __future__ import annotations

import typing
from collections.abc import Iterable
from typing import Any, NamedTuple

from tdmpc2.config.aliases import key_hint
from tdmpc2.config.facts import COMMANDS, MAY_CHANGE, ONE_START, RUN, Key, key_table
from tdmpc2.config.keys import Keys
from tdmpc2.config.values import type_in_words
from tdmpc2.tasks import nearest

KEYS: dict[str, Key] = key_table(Keys)

#: Keys that describe a run rather than the agent: a file's values for these are not taken over when it is loaded.
RUN_KEYS = frozenset(name for name, key in KEYS.items() if key.scope == RUN)
#: Keys that may change when a run is continued: none of them is read by an update or by the choice of its batch.
#: (Cached and live teachers agree to rounding.)
CHANGEABLE = frozenset(name for name, key in KEYS.items() if key.on_resume == MAY_CHANGE)
#: Keys of a single start of the program, which are no part of what a run is.
ONE_START_KEYS = frozenset(name for name, key in KEYS.items() if key.on_resume == ONE_START)
#: Keys that neither weights nor scores depend on: reports do not tell runs apart by them.
UNDECISIVE = frozenset(name for name, key in KEYS.items() if not key.decides)
#: Settings of the planner's search.
PLANNER_KEYS = tuple(name for name, key in KEYS.items() if key.plans)
#: Keys that say how a file is played, whatever it was trained with.
PLAYING_KEYS = (*PLANNER_KEYS, "planner", "mpc", "precision", "device", "num_threads", "compile")
#: Widths that a model size sets.
WIDTHS = tuple(name for name, key in KEYS.items() if key.follows == "model_size")


class HelpRow(NamedTuple):
    """A key as ``--help`` and the documentation show it.

    Attributes:
        key: its name.
        default: as typed after ``key=``.
        values: what it may be, such as ``at least 1``.
        explanation: one line.
        section: heading; the rows of a section stand together.
    """

    key: str
    default: str
    values: str
    explanation: str
    section: str


def key_names() -> tuple[str, ...]:
    """Names of all configuration keys, in order."""
    return tuple(KEYS)


def defaults() -> dict[str, Any]:
    """Every key with its default, as plain values; None or ``auto`` where it follows another key."""
    return {name: plain(key.default) for name, key in KEYS.items()}


def plain(value: Any) -> Any:
    """A value as YAML and JSON hold it: lists for tuples."""
    return list(value) if isinstance(value, tuple) else value


def check_keys(names: Iterable[str], origin: str) -> None:
    """Raise ``ValueError`` for a name that is not a key, naming its origin and the nearest key."""
    for name in names:
        if name not in KEYS:
            raise ValueError(f"Unknown key '{name}' in {origin}.{key_hint(name, KEYS)}")


def help_rows(command: str | None = None) -> list[HelpRow]:
    """The keys that matter to a command, in order.

    Args:
        command: one of :data:`~tdmpc2.config.facts.COMMANDS`; None: keys of any command.

    Raises:
        ValueError: there is no such command.
    """
    if command is not None and command not in COMMANDS:
        raise ValueError(f"'{command}' is not one of {', '.join(COMMANDS)}.{nearest(command, COMMANDS)}")
    hints = typing.get_type_hints(Keys)
    return [
        HelpRow(name, as_typed(key.default), _values(key, hints[name]), key.explanation, key.section)
        for name, key in KEYS.items()
        if command is None or command in key.commands
    ]


def as_typed(value: Any) -> str:
    """A value as it is typed after ``key=`` on a command line."""
    if isinstance(value, (list, tuple)):
        return f"[{','.join(map(as_typed, value))}]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)


def _values(key: Key, hint: Any) -> str:
    null = " or null" if type(None) in typing.get_args(hint) or (key.unset(None) and not key.choices) else ""
    if key.choices:
        return ", ".join(key.choices)
    return (key.limits or type_in_words(hint)) + null
