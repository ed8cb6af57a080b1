"""Checks of observations, rewards and frames before they are computed with; a fault names task, seed and step."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from tdmpc2.envs.wrappers import TASK_REWARDS, Action, Env, Info, Observation, with_success

_log = logging.getLogger("tdmpc2")
_LARGEST = float(np.finfo(np.float32).max)
_OLD_GYM = (
    "; reset() must return (obs, info) and step() (obs, reward, terminated, truncated, info): wrap what has the "
    "interface of old gym in tdmpc2.envs.wrappers.OldGymEnv"
)
_UNSTABLE = "simulations that became unstable do this: try another seed, or end the episode before"


class EnvironmentFault(ValueError):
    """An environment raised an error, or returned what is no observation, reward or frame."""


class CheckedEnv(gymnasium.Wrapper[Observation, Action, Observation, Action]):
    """The environment of a task, whose faults are :class:`EnvironmentFault` and name task, seed and step.

    Every observation and reward is finite in float32, which is what networks compute with and data sets hold.

    Args:
        env: with Box spaces and flat float32 observations, as a family builds it, or a
            :class:`~tdmpc2.envs.pixels.PixelEnv`.
        task: its name.
        seed: what it was built with.
    """

    def __init__(self, env: Env, task: str, seed: int | None) -> None:
        super().__init__(env)
        self._task, self._seed = task, seed
        self._episode, self._step = 0, 0
        self._rendered = False
        self._state_dim = getattr(env, "state_dim", 0) if env.observation_space.dtype == np.uint8 else 0

    def reset(self, *, seed: int | None = None, options: Info | None = None) -> tuple[Observation, Info]:
        if seed is not None:
            self._seed, self._episode = seed, 0
        self._episode, self._step = self._episode + 1, 0
        with self._named():
            obs, info = self.env.reset(seed=seed, options=options)
            info = with_success(info)  # a family of one's own may not tell
        return self._checked(obs), info

    def step(self, action: Action) -> tuple[Observation, float, bool, bool, Info]:
        """Take one step.

        Raises:
            ValueError: the action has another shape, or is not finite.
            EnvironmentFault: the environment raised an error, or its observation or reward is not finite.
        """
        self._step += 1
        action = np.asarray(action)
        if action.shape != self.action_space.shape:
            raise ValueError(f"{self._at()}: action of shape {action.shape}; this task takes {self.action_space.shape}")
        if action.dtype.kind not in "biuf" or not np.isfinite(action).all():
            raise ValueError(f"{self._at()}: the action is {_short(action)}: actions are finite numbers in [-1, 1]")
        with self._named():
            obs, number, terminated, truncated, info = self.env.step(action)
            reward, info = float(number), with_success(info)
        if not abs(reward) <= _LARGEST:
            raise EnvironmentFault(f"{self._at()}: the reward is {reward}; {_UNSTABLE}")
        for task, other in info.get(TASK_REWARDS, {}).items():
            if not abs(other) <= _LARGEST:
                raise EnvironmentFault(f"{self._at()}: the reward for {task} is {other}; {_UNSTABLE}")
        return self._checked(obs), reward, terminated, truncated, info

    def render(self) -> Any:
        """Draw the current state; the first frame is checked."""
        with self._named():
            frame: Any = self.env.render()
        if self.render_mode == "rgb_array" and not self._rendered:
            is_image = isinstance(frame, np.ndarray) and frame.ndim == 3 and frame.shape[-1] in (1, 3, 4)
            if not (is_image and frame.dtype == np.uint8):
                raise EnvironmentFault(
                    f"{self._at()}: render() returned {_kind(frame)}: for render_mode='rgb_array' it has to return one "
                    "image, uint8 [height, width, 3]; or play without save_video"
                )
            self._rendered = True
        return frame

    def close(self) -> None:
        """Close the environment; an error of that is said and goes no further, since there may be another to report."""
        try:
            self.env.close()
        except Exception as error:  # the user's code
            _log.warning("%s: close() raised %s", self._at(), described(error))

    def _checked(self, obs: Observation) -> Observation:
        if obs.shape != self.observation_space.shape:
            raise EnvironmentFault(
                f"{self._at()}: an observation of {obs.size} numbers, but its observation_space declares "
                f"{int(np.prod(self.observation_space.shape or ()))}: make them agree"
            )
        numbers = obs[: 4 * self._state_dim].view(np.float32) if self._state_dim else obs
        if not np.isfinite(numbers).all():
            bad = int(np.argmin(np.isfinite(numbers)))
            raise EnvironmentFault(f"{self._at()}: entry {bad} of the observation is {numbers[bad]}; {_UNSTABLE}")
        return obs

    def _at(self) -> str:
        seed = "" if self._seed is None else f"seed {self._seed}, "
        episode = f"episode {self._episode}, " if self._episode > 1 else ""
        return f"{self._task} ({seed}{episode}step {self._step})"

    @contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except gymnasium.error.ResetNeeded:
            raise
        except Exception as error:  # the environment is the user's code: it can raise anything
            unpacked = isinstance(error, ValueError) and "values to unpack" in str(error) and not _of_user(error)
            hint = _OLD_GYM if unpacked else ""
            raise EnvironmentFault(f"{self._at()}: the environment raised {described(error)}{hint}") from error


def described(error: Exception) -> str:
    """Describe an error by type, text, file and line: what is left of a traceback in one line."""
    frames = list(traceback.extract_tb(error.__traceback__))
    frames = [frame for frame in frames if _is_of_user(frame)] or frames  # the newest is the user's, if there is any
    where = f" [{Path(frames[-1].filename).name}, line {frames[-1].lineno}]" if frames else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())}{where}"


def _is_of_user(frame: traceback.FrameSummary) -> bool:
    return not {"gymnasium", "tdmpc2"} & set(Path(frame.filename).parts)


def _of_user(error: Exception) -> bool:
    """Tell if code of neither Gymnasium nor this package raised an error."""
    return _is_of_user(traceback.extract_tb(error.__traceback__)[-1])


def _kind(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"an array {value.shape} of {value.dtype}"
    return "None" if value is None else f"a {type(value).__name__}"


def _short(action: np.ndarray) -> str:
    return f"of type {action.dtype}" if action.dtype.kind not in "biuf" else np.array2string(action, threshold=8)
