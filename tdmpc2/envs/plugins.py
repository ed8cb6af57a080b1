"""Families and task sets of installed packages: the entry points ``tdmpc2.tasks``.

A package names, in that group of its metadata, a :class:`~tdmpc2.envs.registry.Family` or a table of task sets. All of
them are loaded at the first task that this package does not know itself; no file decides which.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, NamedTuple

GROUP = "tdmpc2.tasks"
_log = logging.getLogger("tdmpc2")


class Offer(NamedTuple):
    """Content of one entry point: a family, or task sets by name."""

    package: str
    content: Any


@cache
def offers() -> tuple[Offer, ...]:
    """Load what installed packages offer, once; one that cannot be loaded costs a warning, not the other tasks."""
    found = []
    for point in sorted(entry_points(group=GROUP), key=lambda point: (_package(point), point.name)):
        try:
            content = point.load()
            _check(content)
            found.append(Offer(_package(point), content))
        except Exception as error:  # it is other people's code
            reason = (str(error).splitlines() or ["no message"])[0]
            _log.warning(
                "The tasks '%s' of the package %s are left out: %s: %s",
                point.name, _package(point), type(error).__name__, reason,
            )  # fmt: skip
    return tuple(found)


def task_sets() -> dict[str, tuple[str, ...]]:
    """Collect the task sets of installed packages: names of tasks by name of the set."""
    sets: dict[str, tuple[str, ...]] = {}
    for _, content in offers():
        if isinstance(content, Mapping):
            for name, tasks in content.items():
                sets.setdefault(name, tuple(tasks))
    return sets


def _check(content: Any) -> None:
    """Raise an error unless this is a family whose pattern can be matched, or a table of task sets."""
    if not isinstance(content, Mapping):
        re.compile(content.pattern)
        return
    for name, tasks in content.items():
        names = isinstance(tasks, (list, tuple)) and all(isinstance(task, str) for task in tasks)
        if not names or not isinstance(name, str):
            raise ValueError(f"the task set '{name}' must be a list of names of tasks")


def _package(point: EntryPoint) -> str:
    return point.dist.name if point.dist is not None else point.value
