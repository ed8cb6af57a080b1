"""Checks of records that come from files: a table of entries, each with what it must be, in code and in words."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

from tdmpc2.support.text import shown

LARGEST = 2**53  # the largest whole number that every reader of JSON keeps


class Entry(NamedTuple):
    """The demand on an entry of a record."""

    allows: Callable[[Any], bool]
    words: str  # completes "expected ..."
    required: bool = True

    @property
    def optional(self) -> Entry:
        """The same entry, which may be missing."""
        return self._replace(required=False)


def check_entries(
    origin: str, content: Any, entries: Mapping[str, Entry], remedy: str = "", others: bool = False
) -> dict[str, Any]:
    """Require that a record is an object with these entries.

    Args:
        origin: the file it is from, for the message.
        content: the record.
        entries: by name.
        remedy: what to do, the end of the message.
        others: whether it may have more.

    Returns:
        The record.

    Raises:
        ValueError: the message names file, entry, value and remedy.
    """
    end = f". {remedy}" if remedy else ""
    if not isinstance(content, Mapping):
        raise ValueError(f"{origin} holds {shown(content)}, expected named entries{end}")
    for name, entry in entries.items():
        if name in content:
            if not entry.allows(content[name]):
                raise ValueError(f"{origin}: {name} is {shown(content[name])}, expected {entry.words}{end}")
        elif entry.required:
            raise ValueError(f"{origin}: {name} is missing, expected {entry.words}{end}")
    if not others and (unknown := [name for name in content if name not in entries]):
        raise ValueError(f"{origin}: {shown(unknown[0])} is not an entry that this version knows{end}")
    return dict(content)


# -- what an entry may be: each returns an Entry ----------------------------------------------------------------------


def whole(low: int = 0, high: int = LARGEST) -> Entry:
    """A whole number within limits."""
    limits = f"{low:,} to {high:,}" if high < LARGEST else f"at least {low:,} and at most 2^53"
    return Entry(lambda v: type(v) is int and low <= v <= high, f"a whole number, {limits}")


def number(low: float = -math.inf, high: float = math.inf) -> Entry:
    """A finite number within limits."""
    bounded = {(True, True): f" from {low:g} to {high:g}", (True, False): f", at least {low:g}"}
    limits = bounded.get((low > -math.inf, high < math.inf), "")

    def allows(value: Any) -> bool:
        if type(value) not in (int, float):
            return False
        try:
            return math.isfinite(value) and low <= value <= high
        except OverflowError:  # a whole number beyond all floats
            return False

    return Entry(allows, f"a finite number{limits}")


def text(pattern: str = r"(?s).{0,4096}", words: str = "text") -> Entry:
    """A text that fits a pattern."""
    compiled = re.compile(pattern)
    return Entry(lambda v: isinstance(v, str) and compiled.fullmatch(v) is not None, words)


def flag() -> Entry:
    """True or false."""
    return Entry(lambda v: isinstance(v, bool), "true or false")


def one_of(values: Collection[Any]) -> Entry:
    """One of some values."""
    listed = ", ".join(map(str, values))
    return Entry(lambda v: any(type(v) is type(known) and v == known for known in values), f"one of {listed}")


def nothing_or(entry: Entry) -> Entry:
    """Nothing (null), or what another entry may be."""
    return Entry(lambda v: v is None or entry.allows(v), f"{entry.words}, or nothing", entry.required)


def list_of(entry: Entry, least: int = 0) -> Entry:
    """A list of at least ``least`` values of one kind."""
    return Entry(
        lambda v: isinstance(v, (list, tuple)) and len(v) >= least and all(map(entry.allows, v)),
        f"a list, each entry {entry.words}",
    )


def table_of(entry: Entry) -> Entry:
    """An object whose values are of one kind, by name."""

    def allows(value: Any) -> bool:
        return isinstance(value, Mapping) and all(isinstance(k, str) and entry.allows(v) for k, v in value.items())

    return Entry(allows, f"named entries, each {entry.words}")


def record() -> Entry:
    """An object whose entries are checked elsewhere."""
    return Entry(lambda v: isinstance(v, Mapping) and all(isinstance(key, str) for key in v), "named entries")


SHA256 = text(r"[0-9a-f]{64}", "64 hexadecimal digits")
