"""Adapters between what environments return and what the agent expects."""

from __future__ import annotations

import math
from typing import Any, cast

import gymnasium
import numpy as np
from gymnasium.spaces import Box
from numpy.typing import NDArray

from tdmpc2.tasks import TaskSpec

#: Entry of a step's info: the rewards of other tasks of the same body, by their names. An environment's own
#: ``task_rewards`` may be anything.
TASK_REWARDS = "tdmpc2/task_rewards"

Observation = NDArray[np.float32]
Action = NDArray[np.floating[Any]]
Info = dict[str, Any]
Env = gymnasium.Env[Observation, Action]


class PadEnv(gymnasium.Wrapper[Observation, Action, Observation, Action]):
    """Zero-pads observations to ``obs_dim`` and cuts actions of length ``action_dim`` to the environment's own.

    Raises:
        ValueError: the environment is larger than the padded sizes.
    """

    def __init__(self, env: Env, obs_dim: int, action_dim: int) -> None:
        super().__init__(env)
        self._own_obs_dim, self._action_dim = sizes(env)
        if self._own_obs_dim > obs_dim or self._action_dim > action_dim:
            raise ValueError(
                f"An environment of observation size {self._own_obs_dim} and action size {self._action_dim} cannot be "
                f"padded to obs_dim={obs_dim}, action_dim={action_dim}: it belongs to another task set."
            )
        self.metadata = dict(env.metadata)  # vector environments write to it
        self.observation_space = Box(-np.inf, np.inf, (obs_dim,), np.float32)
        self.action_space = Box(-1.0, 1.0, (action_dim,), np.float32)

    def reset(self, *, seed: int | None = None, options: Info | None = None) -> tuple[Observation, Info]:
        if seed is not None:
            self.action_space.seed(seed)
        obs, info = self.env.reset(seed=seed, options=options)
        return self._pad(obs), info

    def step(self, action: Action) -> tuple[Observation, float, bool, bool, Info]:
        if np.shape(action) != self.action_space.shape:
            raise ValueError(f"action of shape {np.shape(action)}; padded ones are of {self.action_space.shape}")
        obs, reward, terminated, truncated, info = self.env.step(action[: self._action_dim])
        return self._pad(obs), float(reward), terminated, truncated, info

    def _pad(self, obs: Observation) -> Observation:
        padded = np.zeros(_shape(self.observation_space), np.float32)
        padded[: self._own_obs_dim] = obs
        return padded


class FlatEnv(gymnasium.Wrapper[Observation, Action, Any, Any]):
    """A Gymnasium environment with Box spaces in the form of this package's own.

    Observations are flattened to float32, actions are in [-1, 1], ``info["success"]`` is always there (it may be called
    ``is_success`` as well), and the first ``reset()`` starts from ``seed``. Numbers may be arrays of one element.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], seed: int | None) -> None:
        with np.errstate(over="ignore"):  # bounds of float64 on the way to float32
            super().__init__(gymnasium.wrappers.RescaleAction(_Bounded(env), np.float32(-1), np.float32(1)))
        self._first_seed = seed
        size = int(np.prod(_shape(env.observation_space)))
        self.observation_space = Box(-np.inf, np.inf, (size,), np.float32)
        self.action_space = Box(-1.0, 1.0, _shape(env.action_space), np.float32, seed=seed)

    def reset(self, *, seed: int | None = None, options: Info | None = None) -> tuple[Observation, Info]:
        if seed is not None:
            self.action_space.seed(seed)
        obs, info = self.env.reset(seed=self._first_seed if seed is None else seed, options=options)
        self._first_seed = None
        return _flat(obs), with_success(info)

    def step(self, action: Action) -> tuple[Observation, float, bool, bool, Info]:
        obs, reward, terminated, truncated, info = self.env.step(action)
        ends = bool(_number(terminated, "terminated")), bool(_number(truncated, "truncated"))
        return _flat(obs), _number(reward, "the reward"), *ends, with_success(info)


class _Bounded(gymnasium.ActionWrapper[Any, Action, Any]):
    """Keeps actions within the bounds that the environment declares: rescaling rounds, and may end beyond one."""

    def action(self, action: Action) -> Any:
        space = cast(Box, self.action_space)
        return np.clip(action, space.low, space.high).astype(space.dtype, copy=False)


class FreeActions(gymnasium.ActionWrapper[Any, Action, Any]):
    """Leaves out the entries of an action that can have one value only, and rounds where actions are whole numbers."""

    def __init__(self, env: gymnasium.Env[Any, Any], space: Box) -> None:
        super().__init__(env)
        self._space, self._free = space, space.low < space.high
        low, high = (bound[self._free].astype(np.float32) for bound in (space.low, space.high))
        self.action_space = Box(low, high, dtype=np.float32)

    @classmethod
    def around(cls, env: gymnasium.Env[Any, Any]) -> gymnasium.Env[Any, Any]:
        """Wrap an environment whose actions are a vector, unless all of them are free and real already."""
        space = env.action_space
        assert isinstance(space, Box)
        plain = np.issubdtype(space.dtype, np.floating) and bool((space.low < space.high).all())
        return env if plain else cls(env, space)

    def action(self, action: Action) -> Any:
        whole = self._space.low.copy()
        whole[self._free] = np.rint(action) if np.issubdtype(whole.dtype, np.integer) else action
        return np.clip(whole, self._space.low, self._space.high)


def declared_actions(env: Any) -> gymnasium.Space[Any]:
    """The action space of an environment as ``gymnasium.make`` gives it, before this package's wrappers."""
    while isinstance(env, gymnasium.Wrapper):
        if isinstance(env, _Bounded):
            made = env.env
            return (made.env if isinstance(made, FreeActions) else made).action_space
        env = env.env
    found: gymnasium.Space[Any] = env.action_space
    return found


class SuccessAbove(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Reports success from the step on at which the return of the episode is above a number."""

    def __init__(self, env: gymnasium.Env[Any, Any], solved: float) -> None:
        super().__init__(env)
        self._solved, self._return = solved, 0.0

    def reset(self, *, seed: int | None = None, options: Info | None = None) -> tuple[Any, Info]:
        self._return = 0.0
        return self.env.reset(seed=seed, options=options)

    def step(self, action: Any) -> tuple[Any, Any, Any, Any, Info]:
        obs, reward, terminated, truncated, info = self.env.step(action)
        self._return += float(reward)
        return obs, reward, terminated, truncated, {**info, "success": float(self._return > self._solved)}


class OldGymEnv(gymnasium.Env[Any, Any]):
    """An environment of the old gym API, where ``reset()`` returns an observation and ``step`` four values.

    Register it to use it as a task::

        gymnasium.register("Mine-v0", entry_point=lambda **keys: OldGymEnv(MyOldEnv(), **keys), max_episode_steps=200)

    ``done`` is reported as terminated, unless ``info["TimeLimit.truncated"]`` says that it was the time limit.

    Raises:
        ValueError: a space without bounds ``low`` and ``high``, that is, not a Box.
    """

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012

    def __init__(self, env: Any, render_mode: str | None = None) -> None:
        self._env = env
        self.metadata = {**(getattr(env, "metadata", None) or {}), "render_modes": ["rgb_array"]}
        self.render_mode = render_mode
        self.observation_space = _box(env.observation_space)
        self.action_space = _box(env.action_space)

    def reset(self, *, seed: int | None = None, options: Info | None = None) -> tuple[Any, Info]:
        super().reset(seed=seed)
        if seed is not None and hasattr(self._env, "seed"):  # else its episodes cannot be repeated
            self._env.seed(seed)
        return self._env.reset(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, Info]:
        obs, reward, done, info = self._env.step(action)
        truncated = bool(done and info.get("TimeLimit.truncated", False))
        return obs, _number(reward, "the reward"), bool(done and not truncated), truncated, info

    def render(self) -> Any:
        return self._env.render(mode=self.render_mode) if self.render_mode is not None else None

    def close(self) -> None:
        self._env.close()


def frame_rate(env: Any) -> float:
    """Find how many pictures of an environment are a second of its time: what its metadata say, else 25."""
    declared = (env.metadata or {}).get("render_fps")
    return float(declared) if isinstance(declared, (int, float)) and declared > 0 else 25.0


def sizes(env: gymnasium.Env[Any, Any]) -> tuple[int, int]:
    """Find the lengths of the flat observation and of the action."""
    (obs_dim,), (action_dim,) = _shape(env.observation_space), _shape(env.action_space)
    return obs_dim, action_dim


def check_sizes(env: Env, spec: TaskSpec) -> None:
    """Close an environment and raise ``ValueError`` unless it has the sizes by which its task is known."""
    own, known = sizes(env), (spec.obs_dim, spec.action_dim)
    if own != known:
        env.close()
        raise ValueError(
            f"{spec.name} has {own[0]} observed numbers and {own[1]} actions here, but {known[0]} and {known[1]} where "
            "it was learned or recorded: the environment has changed since, and another one needs another name"
        )


def _shape(space: gymnasium.Space[Any]) -> tuple[int, ...]:
    assert space.shape is not None, space
    return space.shape


def _flat(obs: Any) -> Observation:
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, which is checked
        return np.asarray(obs, np.float32).ravel()


def _number(value: Any, name: str) -> float:
    """Read a number, a truth value, or an array of one element."""
    array = np.asarray(value)
    if array.size != 1 or array.dtype.kind not in "biuf":
        raise ValueError(f"{name} is {value!r:.60}, not a number")
    return float(array.reshape(()))


def with_success(info: Any) -> Info:
    """Complete what an environment tells of a step by ``success``: a finite number, 0 where it tells none.

    Raises:
        ValueError: it is no dict, or tells something else.
    """
    if not isinstance(info, dict):
        raise ValueError(f"info is {info!r:.60}, not a dict")
    success = info.get("success", info.get("is_success"))
    number = 0.0 if success is None else _number(success, "the success in info")
    return {**info, "success": number if math.isfinite(number) else 0.0}  # NaN: not decided yet


def _box(space: Any) -> Box:
    if not (hasattr(space, "low") and hasattr(space, "high")):
        raise ValueError(f"{space} has no bounds 'low' and 'high'; only Box spaces are supported.")
    return Box(space.low, space.high, dtype=space.dtype)
