"""Names that are going to end: who uses one is told once by which it is replaced (docs/stability.md)."""

from __future__ import annotations

import warnings
from functools import cache

from tdmpc2.support.output import say


@cache  # so that a process is told once of each name
def deprecated(old: str, new: str, *, command: bool = False) -> None:
    """Tell that a name will be removed.

    Args:
        old: the name, as it was used.
        new: what replaces it.
        command: it was typed, so the user reads a line; else it is a ``DeprecationWarning`` at the caller's caller.
    """
    text = f"{old} is deprecated and will be removed in a later release: use {new}"
    if command:
        say(f"warning: {text}")
    else:
        warnings.warn(text, DeprecationWarning, stacklevel=3)
