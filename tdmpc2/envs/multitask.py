"""One environment for a whole task set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box

from tdmpc2.envs.registry import build_env
from tdmpc2.envs.wrappers import Action, Info, Observation, PadEnv, check_sizes
from tdmpc2.tasks import TaskSpec, nearest, padded_sizes


class MultiTaskEnv(gymnasium.Env[Observation, Action]):
    """The tasks of a set, one at a time: ``reset(options={"task": "walker-walk"})`` says which.

    Observations are zero-padded to the largest of the set and actions cut to the task's own size. A task's environment
    is built, with the common ``seed``, when it is first asked for, and goes on with its own episodes afterwards.
    ``info`` has ``task`` and ``task_id``, the position in the set.
    """

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012

    def __init__(self, specs: Sequence[TaskSpec], seed: int | None = None, render_mode: str | None = None) -> None:
        self.specs = {spec.name: spec for spec in specs}
        self.render_mode = render_mode
        self._seed = seed
        self._obs_dim, self._action_dim = padded_sizes(specs)
        self.observation_space = Box(-np.inf, np.inf, (self._obs_dim,), np.float32)
        self.action_space = Box(-1.0, 1.0, (self._action_dim,), np.float32, seed=seed)
        self._envs: dict[str, PadEnv] = {}
        self._task: dict[str, Any] = {}

    def reset(self, *, seed: int | None = None, options: Info | None = None) -> tuple[Observation, Info]:
        """Start an episode of ``options["task"]``; with ``seed``, the first one of an environment built with it.

        Raises:
            ValueError: no task given, or one that is not in the set.
        """
        super().reset(seed=seed)
        task = (options or {}).get("task")
        if task is None:
            raise ValueError('This environment has several tasks: say which, as in reset(options={"task": "..."}).')
        if task not in self.specs:
            raise ValueError(f"Task '{task}' is not in this task set.{nearest(str(task), self.specs)}")
        if task not in self._envs:
            self._envs[task] = self._build(task)
        self._task = {"task": task, "task_id": list(self.specs).index(task)}
        if seed is not None:
            self.action_space.seed(seed)
        obs, info = self._envs[task].reset(seed=seed)
        return obs, info | self._task

    def step(self, action: Action) -> tuple[Observation, float, bool, bool, Info]:
        obs, reward, terminated, truncated, info = self._current().step(action)
        return obs, reward, terminated, truncated, info | self._task

    def render(self) -> Any:
        return self._current().render()

    def close(self) -> None:
        for env in self._envs.values():
            env.close()

    def _current(self) -> PadEnv:
        if not self._task:
            raise gymnasium.error.ResetNeeded('Choose a task first: reset(options={"task": "..."}).')
        return self._envs[self._task["task"]]

    def _build(self, task: str) -> PadEnv:
        env = build_env(task, self._seed, self.render_mode)
        check_sizes(env, self.specs[task])
        return PadEnv(env, self._obs_dim, self._action_dim)
