"""The share of cores and memory that a container gives its processes: control groups of Linux, of both versions."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

_MEMORY_FILES = (  # limit, use and, in memory.stat, what can go of it; of each version
    ("memory.max", "memory.current", ("inactive_file", "active_file", "slab_reclaimable")),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", ("total_inactive_file", "total_active_file")),
)


@functools.cache
def quota_cores(root: Path = Path("/")) -> int | None:
    """Count the cores that the control groups of this process allow, as they were when first asked.

    Args:
        root: of the file system.

    Returns:
        The quota of the process's own group or of one above it, whichever is strictest, to the nearest core and at
        least one; None: there is no quota.
    """
    strictest = min((_quota(folder) for folder in _groups(root, "cpu")), default=math.inf)
    return None if strictest == math.inf else max(1, round(strictest))


def quota_memory(root: Path = Path("/")) -> int | None:
    """Count the bytes that the control groups of this process leave it now; pages of files that can go count as free.

    Args:
        root: of the file system.

    Returns:
        What is left in the strictest of its own group and those above it; None: there is no limit.
    """
    strictest = min((_memory(folder) for folder in _groups(root, "memory")), default=math.inf)
    return None if strictest == math.inf else int(strictest)


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """Folders of the groups that this process is in, with those above them; not all need be there."""
    text = _read(root / "proc/self/cgroup") or ""
    mounted = root / "sys/fs/cgroup"
    yield mounted  # of a container that sees its own group as the top one
    for line in text.splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and controller not in controllers.split(","):
            continue
        tops = (mounted / controllers, mounted / controller) if controllers else (mounted, mounted / "unified")
        group = PurePosixPath(path.lstrip("/"))
        for top in tops:
            yield top
            if ".." not in group.parts:  # outside of what this container sees
                yield from (top / part for part in (group, *group.parents))


def _quota(folder: Path) -> float:
    """Cores that one group allows; infinite if it sets no limit, or is not one."""
    if (text := _read(folder / "cpu.max")) is not None:
        limit, _, period = text.partition(" ")
    else:
        limit, period = _read(folder / "cpu.cfs_quota_us") or "", _read(folder / "cpu.cfs_period_us") or ""
    if not (limit.isdecimal() and period.isdecimal() and int(limit) and int(period)):
        return math.inf  # "max", -1, or no such file
    return int(limit) / int(period)


def _memory(folder: Path) -> float:
    """Bytes that one group leaves its processes; infinite if it sets no limit, or is not one."""
    for limit_name, used_name, can_go in _MEMORY_FILES:
        limit, used = _read(folder / limit_name) or "", _read(folder / used_name) or ""
        if limit.isdecimal() and used.isdecimal():  # and not "max"
            lines = (line.partition(" ") for line in (_read(folder / "memory.stat") or "").splitlines())
            cached = sum(int(value) for name, _, value in lines if name in can_go)
            return max(int(limit) - max(int(used) - cached, 0), 0)
    return math.inf


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return None
