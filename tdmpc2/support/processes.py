"""Names of processes, for files that tell whose they are."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path


def owner_of(process: int | str) -> str:
    """Return a name that no other process of this machine ever has; empty if it has ended, or where that is unknown.

    Args:
        process: its number, or ``self``.
    """
    try:
        started = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19]
        machine = Path("/proc/sys/kernel/random/boot_id").read_text(), os.readlink("/proc/self/ns/pid")
    except (OSError, IndexError):
        return ""
    number = os.getpid() if process == "self" else process
    return f"{hashlib.sha256(repr(machine).encode()).hexdigest()[:8]}-{number}-{started}."


def has_ended(number: int, owner: str) -> bool:
    """Tell whether the process that :func:`owner_of` gave this name is gone; another may have its number by now.

    Where a system hides the processes of other users, one that lives has no name here, and counts as living.
    """
    if now := owner_of(number):
        return now != owner
    try:
        os.kill(number, 0)  # asks, and sends nothing
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        return False
    return False
