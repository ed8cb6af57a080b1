"""Environments: a task name in, a Gymnasium environment out.

Which family a name belongs to, and what follows from that, stands in :mod:`tdmpc2.envs.registry`.
"""

from __future__ import annotations

from typing import Protocol

import gymnasium

from tdmpc2.envs.modules import import_module_of
from tdmpc2.envs.multitask import MultiTaskEnv
from tdmpc2.envs.registry import build_env, checked_seed, family_of
from tdmpc2.envs.task_sets import OwnSet, own_set
from tdmpc2.envs.wrappers import Env
from tdmpc2.tasks import TASK_SETS, TASKS, TaskSpec

__all__ = ["make_env", "register", "task_spec"]


class EnvConfig(Protocol):
    """The part of a configuration that :func:`make_env` reads."""

    @property
    def seed(self) -> int: ...

    @property
    def obs(self) -> str: ...

    @property
    def task_specs(self) -> tuple[TaskSpec, ...]: ...


def make_env(task: str | EnvConfig, seed: int | None = None, *, render_mode: str | None = None) -> Env:
    """Build the environment of a task, of a task set, or of a configuration.

    Observations are float32 [obs_dim], or uint8 images [9, 64, 64] of a configuration with ``obs=rgb``; actions are
    [action_dim] in [-1, 1]. ``reset(seed=s)`` equals a new environment built with seed s and reset; ``reset()`` goes on
    to the next episode of the same random stream. The time limit is reported as ``truncated``. ``info["success"]`` is a
    float, 0.0 where the task has no notion of success. An observation or reward that is not finite, and an error inside
    the environment, raise an error that names task, seed and step.

    Args:
        task: a dm_control task (``walker-walk``), a Gymnasium id (``Pendulum-v1``, ``my_package:Mine-v0``), a task set
            (``mt30``, ``my_set.yaml``: a :class:`~tdmpc2.envs.multitask.MultiTaskEnv`), or a configuration.
        seed: of first states and of ``action_space``; by default the configuration's, or taken from the system.
        render_mode: None, or ``"rgb_array"`` for ``render()`` to return frames.

    Raises:
        ValueError: unknown task, a seed that is no integer from 0 to 2^32 - 1, or rendering without a working OpenGL
            backend.
    """
    if not (isinstance(task, str) or hasattr(task, "task_specs")):
        raise ValueError(f"make_env({task!r:.60}): pass the name of a task or task set, or a configuration")
    if not isinstance(task, str):
        seed = task.seed if seed is None else seed
        if len(task.task_specs) > 1:
            return MultiTaskEnv(task.task_specs, seed, render_mode)
        return build_env(task.task_specs[0].name, seed, render_mode, task.obs)
    if found := OwnSet(task, TASK_SETS[task]) if task in TASK_SETS else own_set(task):
        return MultiTaskEnv(found.padded([task_spec(name) for name in found.tasks]), checked_seed(seed), render_mode)
    import_module_of(task)
    return build_env(task, seed, render_mode)


def check_task(name: str) -> None:
    """Raise ``ValueError`` unless the task has an environment here; none is built."""
    family_of(name).check(name)


def task_spec(name: str, *, from_file: bool = False) -> TaskSpec:
    """Look up the facts of a task in the table, or else read them from its environment, which is built once for it.

    Args:
        name: of the task; a module that it begins with is imported.
        from_file: a file says so, and not the user: then no module is imported.

    Raises:
        ValueError: unknown task, no time limit, or spaces that are not Boxes.
    """
    if not isinstance(name, str):
        raise ValueError(f"task={name!r:.60} must be a name")
    if name in TASKS:
        return TASKS[name]
    if not from_file:
        import_module_of(name)
    return family_of(name).measure(name)


def register() -> None:
    """Register ``tdmpc2/<task>-v0`` with Gymnasium for the tasks of the table; imports nothing else."""
    for name, spec in TASKS.items():
        env_id, entry_point = f"tdmpc2/{name}-v0", family_of(name).entry_point
        if entry_point and env_id not in gymnasium.registry:
            limit = spec.episode_length
            gymnasium.register(env_id, entry_point=entry_point, max_episode_steps=limit, kwargs={"task": name})
