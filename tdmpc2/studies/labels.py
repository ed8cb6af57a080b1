"""Short names for the groups of a study, and lines that fit into a figure."""

from __future__ import annotations

import re
import string
import textwrap
from collections.abc import Sequence

#: Longer names than this make a table or a legend unreadable.
LONGEST = 36


def short_labels(names: Sequence[str]) -> dict[str, str]:
    """Map each name to its label: itself, or a letter where one of the names is too long to stand in a table."""
    if all(len(name) <= LONGEST for name in names):
        return {name: name for name in names}
    return {name: _letter(index) for index, name in enumerate(dict.fromkeys(names))}


def explained(labels: dict[str, str]) -> list[tuple[str, str]]:
    """Pair each label that is not the name itself with the name it stands for."""
    return [(label, name) for name, label in labels.items() if label != name]


def wrapped(text: str, width: int = 30) -> str:
    """Break a name into lines, after a comma where that is possible."""
    lines = [""]
    for part in re.findall(r"[^,]+(?:, ?|$)", text):
        if len((lines[-1] + part).rstrip()) <= width:
            lines[-1] += part
        else:
            lines += textwrap.wrap(part, width, break_on_hyphens=False, drop_whitespace=False)
    return "\n".join(line.rstrip() for line in lines if line)


def _letter(index: int) -> str:
    """A, B, ... Z, AA, AB, ..."""
    letters = ""
    while index >= 0:
        index, rest = divmod(index, 26)
        letters, index = string.ascii_uppercase[rest] + letters, index - 1
    return letters
