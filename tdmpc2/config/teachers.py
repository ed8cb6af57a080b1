"""Entries of the key ``teachers``: which file teaches which task.

They have two forms of one meaning::

    teachers={walker-walk: a.pt, walker-run: b.pt}
    teachers=[walker-walk a.pt, walker-run b.pt]
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tdmpc2.support.text import shown

_FORM = '{TASK: FILE, ...}, or a list of "TASK FILE"'


@dataclass(frozen=True)
class TaskTeacher:
    """A task, and the checkpoint of the agent that teaches it."""

    task: str
    checkpoint: str


def parse_teachers(value: Any) -> tuple[TaskTeacher, ...]:
    """Read which file teaches which task, in the order of the tasks' names.

    Raises:
        ValueError: no entry, one of neither form, or a task that is there twice; the message names it.
    """
    if isinstance(value, Mapping):
        value = [value]
    elif isinstance(value, str):
        value = value.split(",")
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"teachers={shown(value)} must be {_FORM}")
    pairs = [pair for entry in value for pair in _pairs(entry)]
    if not pairs:
        raise ValueError(f"teachers has no entries: give {_FORM}, or null")
    entries = [_entry(task, file) for task, file in pairs]
    names = [entry.task for entry in entries]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"teachers: '{twice}' is there twice: one file teaches it")
    return tuple(sorted(entries, key=lambda entry: entry.task))


def _pairs(entry: Any) -> list[tuple[Any, Any]]:
    if isinstance(entry, TaskTeacher):
        return [(entry.task, entry.checkpoint)]
    if isinstance(entry, str):
        task, _, file = entry.strip().partition(" ")
        return [(task, file.strip())]
    if isinstance(entry, Mapping):
        recorded = entry.keys() == {"task", "checkpoint"}  # as a run's record has it
        return [(entry["task"], entry["checkpoint"])] if recorded else list(entry.items())
    raise ValueError(f"teachers=[{shown(entry)}] must be {_FORM}")


def _entry(task: Any, file: Any) -> TaskTeacher:
    if not isinstance(task, str) or not isinstance(file, (str, os.PathLike)) or not task.strip() or not str(file):
        raise ValueError(f"teachers={shown({task: file})} must be {_FORM}")
    return TaskTeacher(task.strip(), os.path.expanduser(file))
