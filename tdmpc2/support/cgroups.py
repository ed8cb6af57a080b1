"""The share of the cores that a container gives its processes: control groups of Linux, of both versions."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from pathlib import Path, PurePosixPath


@functools.cache
def quota_cores(root: Path = Path("/")) -> int | None:
    """Count the cores that the control groups of this process allow, as they were when first asked.

    Args:
        root: of the file system.

    Returns:
        The quota of the process's own group or of one above it, whichever is strictest, to the nearest core and at
        least one; None: there is no quota.
    """
    strictest = min((_quota(folder) for folder in _groups(root)), default=math.inf)
    return None if strictest == math.inf else max(1, round(strictest))


def _groups(root: Path) -> Iterator[Path]:
    """Folders of the groups that this process is in, with those above them; not all need be there."""
    text = _read(root / "proc/self/cgroup") or ""
    mounted = root / "sys/fs/cgroup"
    yield mounted  # of a container that sees its own group as the top one
    for line in text.splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and "cpu" not in controllers.split(","):
            continue
        tops = (mounted / controllers, mounted / "cpu") if controllers else (mounted, mounted / "unified")
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


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return None
