"""Text of others in messages: short, on one line, and without characters that command a terminal."""

from __future__ import annotations

from typing import Any

_LONGEST = 80  # letters of a value in a message


def shown(value: Any, longest: int = _LONGEST) -> str:
    """Write a value for a message as Python writes it, cut in the middle to ``longest`` letters.

    Works for what ``repr`` refuses, such as numbers of 5,000 digits and lists within lists without end.
    """
    if isinstance(value, int) and value.bit_length() > 1000:
        return f"a number of {value.bit_length() * 0.30103:.0f} digits"
    if isinstance(value, str) and len(value) > 4 * longest:
        value = value[: 2 * longest] + value[-2 * longest :]
    elif isinstance(value, (list, tuple, set, frozenset, dict)):
        if len(value) > longest:
            return f"a {type(value).__name__} of {len(value):,} entries"
        if _entries(value, longest) > longest:  # lists within lists may hold one another a million times
            return f"a {type(value).__name__} that is too large to show"
    try:
        text = repr(value)
    except (ValueError, RecursionError):
        return f"a {type(value).__name__} that is too large to show"
    return cut(text, longest)


def _entries(value: Any, most: int) -> int:
    """Count what a container holds, and what that holds, up to a little more than ``most``."""
    waiting, count = [value], 0
    while waiting and count <= most:
        held = waiting.pop()
        if isinstance(held, (list, tuple, set, frozenset, dict)):
            count += len(held)
            waiting += list(held.values() if isinstance(held, dict) else held)[: most + 1]
    return count


def cut(text: str, longest: int = 3 * _LONGEST) -> str:
    """Cut a text in the middle to ``longest`` letters, and escape what is not printable."""
    if len(text) > longest:
        tail = longest // 3
        text = f"{text[: longest - tail - 5]} ... {text[-tail:]}"
    return escaped(text)


def escaped(text: str, keep: str = "") -> str:
    """Write characters that are not printable as Python does, line breaks among them, but for those to keep."""
    return "".join(letter if letter.isprintable() or letter in keep else ascii(letter)[1:-1] for letter in text)
