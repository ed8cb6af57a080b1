"""Environments: a task name in, a Gymnasium environment out.

Names are looked up by family, and a family's packages are imported when one of its tasks is first built.
"""

from __future__ import annotations

from typing import Protocol

import gymnasium

from tdmpc2.envs import gymnasium_env
from tdmpc2.envs.multitask import MultiTaskEnv
from tdmpc2.envs.wrappers import Env
from tdmpc2.tasks import TASK_SETS, TASKS, TaskSpec, lookup, task_names

__all__ = ["make_env", "register", "task_spec"]


class EnvConfig(Protocol):
    """What :func:`make_env` reads of a configuration."""

    @property
    def seed(self) -> int: ...

    @property
    def task_specs(self) -> tuple[TaskSpec, ...]: ...


def make_env(task: str | EnvConfig, seed: int | None = None, *, render_mode: str | None = None) -> Env:
    """The environment of a task, of a task set, or of a configuration.

    Observations are float32 [obs_dim], actions [action_dim] in [-1, 1]. ``reset(seed=s)`` equals a new environment
    built with seed s and reset; ``reset()`` goes on to the next episode of the same random stream. The time limit is
    reported as ``truncated``. ``info["success"]`` is a float, 0.0 where the task has no notion of success.

    Args:
        task: a dm_control task (``walker-walk``), a Gymnasium id (``Pendulum-v1``, ``my_package:Mine-v0``), a task set
            (``mt30``: a :class:`~tdmpc2.envs.multitask.MultiTaskEnv`), or a configuration.
        seed: of first states and of ``action_space``; by default the configuration's, or taken from the system.
        render_mode: None, or ``"rgb_array"`` for ``render()`` to return frames.

    Raises:
        ValueError: unknown task, or rendering without a working OpenGL backend.
    """
    if not isinstance(task, str):
        seed = task.seed if seed is None else seed
        if len(task.task_specs) > 1:
            return MultiTaskEnv(task.task_specs, seed, render_mode)
        task = task.task_specs[0].name
    if task in TASK_SETS:
        return MultiTaskEnv([lookup(name) for name in task_names(task)], seed, render_mode)
    check_task(task)
    if gymnasium_env.is_id(task):
        return gymnasium_env.make(task, seed, render_mode)
    from tdmpc2.envs import dm_control

    return dm_control.make(task, seed, render_mode)


def check_task(name: str) -> None:
    """Raise ``ValueError`` unless the task has an environment here; none is built."""
    if name.startswith("mw-"):
        raise ValueError(f"Task '{name}': Meta-World environments are not supported yet, only its data and models.")
    if not gymnasium_env.is_id(name):
        from tdmpc2.envs import dm_control

        dm_control.resolve(name)


def task_spec(name: str) -> TaskSpec:
    """The facts of a task: from the table, or else read from its environment, which is built once for it.

    Raises:
        ValueError: unknown task, no time limit, or spaces that are not Boxes.
    """
    if name in TASKS:
        return TASKS[name]
    if gymnasium_env.is_id(name):
        return gymnasium_env.spec(name)
    from tdmpc2.envs import dm_control

    return dm_control.spec(name)


def register() -> None:
    """Registers ``tdmpc2/<task>-v0`` with Gymnasium for the dm_control tasks of the table; imports nothing else."""
    for name, spec in TASKS.items():
        env_id = f"tdmpc2/{name}-v0"
        if not name.startswith("mw-") and env_id not in gymnasium.registry:
            entry_point = "tdmpc2.envs.dm_control:DMControlEnv"
            limit = spec.episode_length
            gymnasium.register(env_id, entry_point=entry_point, max_episode_steps=limit, kwargs={"task": name})
