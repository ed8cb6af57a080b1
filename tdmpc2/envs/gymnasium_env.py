"""Environments registered with Gymnasium, as tasks named by their id."""

from __future__ import annotations

import re

import gymnasium
from gymnasium.spaces import Box

from tdmpc2.envs.wrappers import Env, FlatEnv, sizes
from tdmpc2.tasks import TaskSpec


def is_id(name: str) -> bool:
    """Whether a task name is a Gymnasium id: registered, ending in a version, or with the module that registers it."""
    return name in gymnasium.registry or ":" in name or re.search(r"-v\d+$", name) is not None


def make(name: str, seed: int | None = None, render_mode: str | None = None) -> Env:
    """``gymnasium.make`` with flat float32 observations and actions in [-1, 1].

    Errors of the environment itself are not touched.

    Raises:
        ValueError: a space that is not a Box, or an action space that is not a bounded vector.
    """
    env = gymnasium.make(name) if render_mode is None else gymnasium.make(name, render_mode=render_mode)
    for kind, space in (("observation", env.observation_space), ("action", env.action_space)):
        if not isinstance(space, Box):
            raise ValueError(f"The {kind} space of '{name}' is {space}, but must be a Box: wrap the environment.")
    actions = env.action_space
    if len(actions.shape or ()) != 1 or not actions.is_bounded():  # type: ignore[attr-defined]
        raise ValueError(f"The action space of '{name}' is {actions}, but must be a vector with finite bounds.")
    return FlatEnv(env, seed)


def spec(name: str) -> TaskSpec:
    """Sizes and time limit of a Gymnasium environment, read from one that is built and closed.

    Raises:
        ValueError: as :func:`make`, or no time limit.
    """
    env = make(name)
    limit = env.spec.max_episode_steps if env.spec else None
    env.close()
    if limit is None:
        raise ValueError(f"'{name}' has no time limit: give gymnasium.register(...) its max_episode_steps.")
    return TaskSpec(name, *sizes(env), limit)
