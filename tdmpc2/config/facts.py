"""Facts about a configuration key: each key states its own on its line of :mod:`tdmpc2.config.keys`.

Every table of keys (what a checkpoint stores, what a continued run may change, what ``--help`` shows) is derived from
these records, so that one more key is one more line.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

#: Scope: a MODEL key describes the agent and is stored in its checkpoints; a RUN key says where and how it was made.
MODEL, RUN = "model", "run"
#: When a run is continued: FIXED keys must be as before, MAY_CHANGE keys need not be, since no update reads them;
#: ONE_START keys concern a single start of the program and are not recorded.
FIXED, MAY_CHANGE, ONE_START = "fixed", "may change", "one start"
#: Commands that read keys.
COMMANDS = ("train", "evaluate", "collect", "quantize")
PLAYING = ("evaluate", "collect", "quantize")


@dataclass(frozen=True, kw_only=True)
class Key:
    """One configuration key.

    Attributes:
        name: as typed on a command line.
        default: value of a key that is not typed. Where the key follows another one, it stands for "not typed".
        explanation: one line for ``--help`` and the documentation.
        section: heading it stands under.
        at_least, above, at_most: limits of a number; None: no limit.
        sensible: magnitude beyond which a number is a mistake, since no machine or float32 holds what it asks for.
        choices: the values it may have; empty: any.
        scope: MODEL or RUN.
        on_resume: FIXED, MAY_CHANGE or ONE_START.
        commands: commands it matters to.
        follows: key that sets this one unless it is typed; None: it stands alone.
        decides: True if the weights or the score of a run depend on it, so that reports tell runs apart by it.
        plans: True if it is a setting of the planner's search.
        path: True for the name of a file or directory, in which ``~`` is the home directory.
        parse: conversion of a value that is not of one of the plain types; raises ``ValueError``.
    """

    name: str
    default: Any
    explanation: str
    section: str
    at_least: float | None
    above: float | None
    at_most: float | None
    sensible: float | None
    choices: tuple[str, ...]
    scope: str
    on_resume: str
    commands: tuple[str, ...]
    follows: str | None
    decides: bool
    plans: bool
    path: bool
    parse: Callable[[Any], Any] | None

    def unset(self, value: Any) -> bool:
        """True if ``value`` stands for "not typed": the key is to be derived from the one it follows."""
        return self.follows is not None and (value is None or value == self.default)

    @property
    def limits(self) -> str:
        """Limits in words, such as ``at least 1``; empty without limits."""
        if self.at_least is not None and self.at_most is not None:
            return f"between {self.at_least:g} and {self.at_most:.10g}"
        bounds = {"at least": self.at_least, "above": self.above, "at most": self.at_most}
        return ", ".join(f"{words} {bound:.10g}" for words, bound in bounds.items() if bound is not None)

    def allows(self, number: float) -> bool:
        """True if a number is within the limits."""
        low = -math.inf if self.at_least is None else self.at_least
        high = math.inf if self.at_most is None else self.at_most
        return low <= number <= high and (self.above is None or number > self.above)


def key(
    default: Any,
    explanation: str,
    *,
    section: str | None = None,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    sensible: float | None = None,
    choices: tuple[str, ...] = (),
    scope: str = MODEL,
    on_resume: str = FIXED,
    commands: tuple[str, ...] = ("train",),
    follows: str | None = None,
    decides: bool | None = None,
    plans: bool = False,
    path: bool = False,
    parse: Callable[[Any], Any] | None = None,
) -> Any:
    """Declare a key: a dataclass field that carries the facts of :class:`Key`.

    ``section`` opens a section that lasts until the next one. ``decides`` is true of MODEL keys and false of RUN keys,
    unless it is given.
    """
    facts = {
        "default": default,
        "explanation": explanation,
        "section": section,
        "at_least": at_least,
        "above": above,
        "at_most": at_most,
        "sensible": sensible,
        "choices": choices,
        "scope": scope,
        "on_resume": on_resume,
        "commands": commands,
        "follows": follows,
        "decides": scope == MODEL if decides is None else decides,
        "plans": plans,
        "path": path,
        "parse": parse,
    }
    return dataclasses.field(default=default, metadata={"key": facts})


def key_table(declared: type) -> dict[str, Key]:
    """Read the keys that a dataclass declares, by name and in its order."""
    table: dict[str, Key] = {}
    section = ""
    for field in dataclasses.fields(declared):
        if facts := field.metadata.get("key"):
            section = facts["section"] or section
            table[field.name] = Key(name=field.name, **{**facts, "section": section})
    return table
