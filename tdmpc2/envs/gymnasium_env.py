"""Environments registered with Gymnasium, as tasks named by their id."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Space, Tuple

from tdmpc2.envs.checked import EnvironmentFault, described
from tdmpc2.envs.wrappers import Env, FlatEnv, sizes
from tdmpc2.tasks import TaskSpec

_FLATTEN = "wrap the environment in gymnasium.wrappers.FlattenObservation"
_OBSERVATION_REMEDIES: dict[type[Space[Any]], str] = {
    Dict: f"{_FLATTEN}, with gymnasium.wrappers.FilterObservation before it to leave out what is no state",
    Tuple: _FLATTEN,
    Discrete: f"{_FLATTEN}, which makes one-hot vectors",
    MultiDiscrete: f"{_FLATTEN}, which makes one-hot vectors",
    MultiBinary: _FLATTEN,
}
_REGISTER = "Register it with gymnasium.register, in a module that the name begins with, as in my_package:Mine-v0"
_CONTINUOUS = (
    "TD-MPC2 plans continuous actions. Wrap the environment in a gymnasium.ActionWrapper whose action space is a Box "
    "and whose action() turns a vector into the environment's own action"
)


def make(name: str, seed: int | None = None, render_mode: str | None = None) -> Env:
    """Call ``gymnasium.make`` and give flat float32 observations and actions in [-1, 1].

    Raises:
        ValueError: not registered, observations that are images or not a Box, or actions that are not a bounded vector
            of numbers.
        ModuleNotFoundError: the module that registers it, or one that it needs, is not installed.
        EnvironmentFault: building it raised an error.
    """
    env = _made(name, render_mode)
    try:
        _check_observations(name, env.observation_space)
        _check_actions(name, env.action_space)
    except ValueError:
        env.close()
        raise
    return FlatEnv(env, seed)


def spec(name: str) -> TaskSpec:
    """Read sizes and time limit of a Gymnasium environment from one that is built and closed.

    An environment whose ``metadata`` says ``"success_score": True`` is scored by success.

    Raises:
        ValueError: as :func:`make`, or no time limit.
    """
    env = make(name)
    limit = env.spec.max_episode_steps if env.spec else None
    by_success = env.metadata.get("success_score", False) is True
    env.close()
    if limit is None:
        raise ValueError(f"'{name}' has no time limit: give gymnasium.register(...) its max_episode_steps.")
    return TaskSpec(name, *sizes(env), limit, by_success)


def _made(name: str, render_mode: str | None) -> gymnasium.Env[Any, Any]:
    try:
        return gymnasium.make(name) if render_mode is None else gymnasium.make(name, render_mode=render_mode)
    except (ModuleNotFoundError, gymnasium.error.DependencyNotInstalled):
        raise
    except gymnasium.error.Error as error:
        text = " ".join(str(error).split())
        raise ValueError(f"'{name}' is no environment that Gymnasium can make here: {text}. {_REGISTER}") from error
    except Exception as error:  # the environment is the user's code: it can raise anything
        raise EnvironmentFault(f"{name}: building the environment raised {described(error)}") from error


def _check_observations(name: str, space: Space[Any]) -> None:
    if not isinstance(space, Box):
        remedy = _OBSERVATION_REMEDIES.get(type(space), "wrap the environment in a gymnasium.ObservationWrapper")
        raise ValueError(f"The observation space of '{name}' is {space}, but must be a Box: {remedy}.")
    if not np.prod(space.shape):
        raise ValueError(f"The observation space of '{name}' is {_short(space)}, which has no numbers to learn from.")
    if _is_image(space):
        raise ValueError(
            f"The observation space of '{name}' is images, {_short(space)}, and flattened images make poor "
            "states. Choose a version of the environment that observes its state (if these numbers are one, "
            f"{_FLATTEN}); give it a method frame(size), and obs=rgb learns from images."
        )


def _check_actions(name: str, space: Space[Any]) -> None:
    if not isinstance(space, Box):
        raise ValueError(f"The action space of '{name}' is {space}, but must be a Box: {_CONTINUOUS}.")
    if len(space.shape) != 1:
        raise ValueError(
            f"The action space of '{name}' is {_short(space)}, but must be a vector: wrap the environment in a "
            "gymnasium.ActionWrapper that reshapes."
        )
    if not space.is_bounded():
        raise ValueError(
            f"The action space of '{name}' is {_short(space)}, but must have finite bounds: give it some, as "
            "gymnasium.wrappers.TransformAction(env, lambda action: action, Box(low, high)) does."
        )
    if not np.issubdtype(space.dtype, np.floating):
        raise ValueError(
            f"The action space of '{name}' is {_short(space)}, but its numbers must be real: {_CONTINUOUS}."
        )
    if not space.shape[0]:
        raise ValueError(f"The action space of '{name}' is {_short(space)}: there is nothing to choose.")
    with np.errstate(over="ignore"):
        spread = space.high.astype(np.float32) - space.low.astype(np.float32)
    if not np.isfinite(spread).all():
        raise ValueError(f"The action space of '{name}' is {_short(space)} with bounds that float32 cannot hold.")
    if not (spread > 0).all():
        index = int(np.argmin(spread))
        raise ValueError(
            f"The action space of '{name}' is {_short(space)}, but dimension {index} is fixed at {space.low[index]}: "
            "leave it out, with a gymnasium.ActionWrapper whose action() puts it back."
        )


def _is_image(space: Box) -> bool:
    """Tell images from states: bytes in two or more dimensions, or height, width and 1, 3 or 4 channels."""
    shape = space.shape
    if space.dtype == np.uint8:
        return len(shape) >= 2
    return len(shape) == 3 and any(channels in (1, 3, 4) and min(sides) >= 8 for channels, sides in _readings(shape))


def _readings(shape: tuple[int, ...]) -> list[tuple[int, tuple[int, ...]]]:
    return [(shape[-1], shape[:-1]), (shape[0], shape[1:])]


def _short(space: Box) -> str:
    """Describe a Box by shape and type: its bounds can be thousands of numbers."""
    return f"Box of shape {space.shape} and type {space.dtype}"
