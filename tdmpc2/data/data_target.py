"""The task that episodes are stored as, alone or within a task set."""

from __future__ import annotations

from typing import NamedTuple

from tdmpc2.envs import task_spec
from tdmpc2.envs.task_sets import OwnSet, own_set
from tdmpc2.support.text import shown
from tdmpc2.tasks import TASK_SETS, TaskSpec, nearest


class DataTarget(NamedTuple):
    """The task set that data are stored as, and the task of it that they are of."""

    name: str  # of the set
    specs: tuple[TaskSpec, ...]
    task_id: int

    @property
    def spec(self) -> TaskSpec:
        """The task."""
        return self.specs[self.task_id]

    @classmethod
    def of(cls, task: str, task_set: str | None = None, *, from_file: bool = False) -> DataTarget:
        """Look up a task.

        Args:
            task: its name; a module that it begins with is imported, unless ``from_file``.
            task_set: ``mt30``, ``mt80`` or one of the user's own (``my_set.yaml``); None: data of this task alone.
            from_file: a file names the task, and not the user.

        Raises:
            ValueError: a name that is unknown, or no text.
        """
        for argument, name in (("task", task), ("task_set", "" if task_set is None else task_set)):
            if not isinstance(name, str):
                raise ValueError(f"{argument}={shown(name)} must be a name")
        if task_set is None:
            return cls(task, (task_spec(task, from_file=from_file),), 0)
        found = find_set(task_set)
        if task not in found.tasks:
            raise ValueError(f"'{task}' is not a task of {found.name}.{nearest(task, found.tasks)}")
        return cls(found.name, specs_of(found), found.tasks.index(task))


def find_set(task_set: str) -> OwnSet:
    """Find a task set of the table, or one of the user's own.

    Raises:
        ValueError: there is none of this name, or its file is none.
    """
    found = OwnSet(task_set, TASK_SETS[task_set]) if task_set in TASK_SETS else own_set(task_set)
    if found is None:
        raise ValueError(f"task_set='{task_set}' is not one of {', '.join(TASK_SETS)}.{nearest(task_set, TASK_SETS)}")
    return found


def specs_of(found: OwnSet) -> tuple[TaskSpec, ...]:
    """List the tasks of a set in id order, with its padding."""
    return found.padded([task_spec(name) for name in found.tasks])
