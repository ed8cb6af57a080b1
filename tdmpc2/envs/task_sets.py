"""Task sets that users make: a YAML file, or a table in an installed package (:mod:`tdmpc2.envs.plugins`).

A file is a few lines::

    name: arms
    tasks: [mw-reach, mw-push, reacher-easy, "my_tasks:Mine-v0"]
    padding: {obs: 64, action: 8} # at least; by default the largest of the tasks
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import yaml  # type: ignore[import-untyped]

from tdmpc2.envs.plugins import task_sets
from tdmpc2.support.reading import read_text
from tdmpc2.support.text import shown
from tdmpc2.tasks import TASK_SETS, TASKS, TaskSpec, is_padding, nearest

_ENDINGS = (".yaml", ".yml")
_MOST = 10_000  # tasks of a set


class OwnSet(NamedTuple):
    """A task set that is not in the table: its tasks in id order, and the sizes they are padded to at least."""

    name: str
    tasks: tuple[str, ...]
    padding: tuple[int, int] | None = None  # (observation, action)

    def padded(self, specs: Sequence[TaskSpec]) -> tuple[TaskSpec, ...]:
        """Write the set's padding into the facts of its tasks, with which models and stores keep it.

        Raises:
            ValueError: a task is larger, or two names are of one task.
        """
        of = dict(zip(self.tasks, (spec.name for spec in specs), strict=True))
        if twice := next((name for name, times in Counter(of.values()).items() if times > 1), None):
            names = "' and '".join(name for name, own in of.items() if own == twice)
            raise ValueError(f"the task set {self.name} has the task {twice} twice, as '{names}'")
        if self.padding is None:
            return tuple(specs)
        for spec in specs:
            for kind, own, most in zip(("obs", "action"), (spec.obs_dim, spec.action_dim), self.padding, strict=True):
                if own > most:
                    raise ValueError(
                        f"the task set {self.name} pads to {kind}: {most}, and its task '{spec.name}' has {own}: write "
                        "a larger number, or leave padding out"
                    )
        return tuple(replace(spec, padding=self.padding) for spec in specs)


def names_file(task: str) -> bool:
    """Tell if a task's name is that of a YAML file."""
    return task.lower().endswith(_ENDINGS)


def own_set(task: str) -> OwnSet | None:
    """Find a set that is not in the table; None if ``task`` names none.

    Args:
        task: what the user typed: the path of a YAML file, or a name. A name in a file is not to be passed here.

    Raises:
        ValueError: the file cannot be read, or does not describe a task set.
    """
    if names_file(task):
        return _read(Path(task).expanduser())
    if task in TASKS or task in TASK_SETS or task in gymnasium.registry:
        return None
    tasks = task_sets().get(task)
    return None if tasks is None else OwnSet(task, _checked(tasks, f"the task set '{task}'"))


def _read(path: Path) -> OwnSet:
    try:
        content = yaml.safe_load(read_text(path))
    except OSError as error:
        raise ValueError(f"the task set {path} cannot be read: {error.strerror or error}") from error
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no YAML file: {' '.join(str(error).split())[:200]}") from error
    if not isinstance(content, Mapping) or not isinstance(content.get("tasks"), list):
        raise ValueError(f"{path} describes no task set: expected a line 'tasks: [walker-walk, ...]'")
    if strange := [key for key in content if key not in ("name", "tasks", "padding")]:
        raise ValueError(f"{path}: unknown entry {shown(strange[0])}; a task set has a name, tasks and padding")
    name = content.get("name", path.stem)
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}", name):
        raise ValueError(f"{path}: name={shown(name)} must be up to 100 letters, digits, '_', '-' or '.'")
    if name in TASK_SETS or name in TASKS:
        raise ValueError(f"{path}: name={name} is a task set or task already; give it another name")
    return OwnSet(name, _checked(content["tasks"], str(path)), _padding(content.get("padding"), path))


def _padding(value: Any, path: Path) -> tuple[int, int] | None:
    if value is None:
        return None
    sizes = (value["obs"], value["action"]) if isinstance(value, Mapping) and set(value) == {"obs", "action"} else None
    if sizes is None or not is_padding(sizes):
        raise ValueError(f"{path}: padding={shown(value)} must be two sizes, as in 'padding: {{obs: 39, action: 6}}'")
    return sizes


def _checked(tasks: Any, origin: str) -> tuple[str, ...]:
    if wrong := [task for task in tasks if not isinstance(task, str)]:
        raise ValueError(f"{origin}: {shown(wrong[0])} is no name of a task")
    names = tuple(task.strip() for task in tasks)
    if not 2 <= len(names) <= _MOST:
        raise ValueError(f"{origin} has {len(names)} tasks, and a task set has from 2 to {_MOST:,}: name one as task=")
    if twice := next((name for name, times in Counter(names).items() if times > 1), None):
        raise ValueError(f"{origin} names the task '{twice}' twice")
    if inner := next((name for name in names if name in TASK_SETS or names_file(name)), None):
        raise ValueError(f"{origin} names '{inner}', a task set: list its tasks{nearest(inner, TASKS)}")
    return names
