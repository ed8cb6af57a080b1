"""Small Gymnasium environments as a user's package would have them: importing it registers them.

``tests.helpers.toy_envs:Falls-v0`` terminates, with success, at step 3 of at most 9;
``tests.helpers.toy_envs:Stands-v0`` is cut off at step 7. An observation tells the start state, the step and the last
action; a frame's brightness tells the step. ``tests.helpers.toy_envs:Point-v0`` can be learned in seconds.
``tests.helpers.toy_envs:Sees-v0`` observes two images and two vectors, and ``tests.helpers.toy_envs:Target-v0`` is the
point with a target that only its image shows.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict

FALLS, STANDS = "tests.helpers.toy_envs:Falls-v0", "tests.helpers.toy_envs:Stands-v0"
FALLS_AT, STANDS_FOR = 3, 7
SEES, SEES_FOR = "tests.helpers.toy_envs:Sees-v0", 7
TARGET, TARGET_STEPS = "tests.helpers.toy_envs:Target-v0", 20
POINT, POINT_STEPS = "tests.helpers.toy_envs:Point-v0", 20


class ToyEnv(gymnasium.Env[Any, Any]):
    metadata = {"render_modes": ["rgb_array"], "render_fps": 40}  # noqa: RUF012

    def __init__(self, falls_at: int | None = None, render_mode: str | None = None) -> None:
        self.falls_at, self.render_mode = falls_at, render_mode
        self.observation_space = Box(-np.inf, np.inf, (4,), np.float64)
        self.action_space = Box(-1, 1, (2,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.t, self.start = 0, self.np_random.uniform()
        return np.array([self.start, 0, 0, 0]), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.t += 1
        terminated = self.t == self.falls_at
        reward = self.start + 0.1 * self.t * float(action[0])
        return np.array([self.start, self.t, *action]), reward, terminated, False, {"success": terminated}

    def frame(self, size: int) -> Any:
        return np.full((size, size, 3), 20 * self.t + 10 * self.start, np.uint8)

    def render(self) -> Any:
        return np.full((48, 32, 3), 20 * self.t, np.uint8)


for _name, _limit, _kwargs in (("Falls-v0", 9, {"falls_at": FALLS_AT}), ("Stands-v0", STANDS_FOR, {})):
    if _name not in gymnasium.registry:
        gymnasium.register(_name, ToyEnv, max_episode_steps=_limit, kwargs=_kwargs)


class Counter(gymnasium.Env):
    """An environment that observes its last action and, as a matrix, how many steps it has made."""

    observation_space = Box(0, 10, (2, 3), np.float64)
    action_space = Box(-2, 6, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.steps = 0
        return np.zeros((2, 3)), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.steps += 1
        return np.full((2, 3), self.steps, float), float(action[0]), False, False, {"success": self.steps > 1}


class PointEnv(gymnasium.Env[Any, Any]):
    """A point that is pushed along a line; its reward is 1 at 0.5 and falls to 0 at a distance of 0.5."""

    observation_space = Box(-2, 2, (1,), np.float32)
    action_space = Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.x = self.np_random.uniform(-1, 1)
        return np.array([self.x], np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.x = float(np.clip(self.x + 0.3 * float(action[0]), -2, 2))
        return np.array([self.x], np.float32), max(1 - 2 * abs(self.x - 0.5), 0.0), False, False, {}


if "Point-v0" not in gymnasium.registry:
    gymnasium.register("Point-v0", PointEnv, max_episode_steps=POINT_STEPS)


class SeeingEnv(gymnasium.Env[Any, Any]):
    """An environment that observes two cameras, one of them grey, and two vectors; all of them tell the step."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 25}  # noqa: RUF012
    observation_space = Dict({
        "wrist": Dict({"camera": Box(0, 255, (40, 44, 3), np.uint8), "angle": Box(-9, 9, (2,), np.float64)}),
        "arm": Box(-9, 9, (3,), np.float32),
        "above": Box(0, 255, (40, 44), np.uint8),
    })  # fmt: skip
    action_space = Box(-1, 1, (2,), np.float32)
    bad: float | None = None

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.t, self.start = 0, self.np_random.uniform()
        return self._observed(np.zeros(2)), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.t += 1
        return self._observed(action), self.start + float(action[0]), False, False, {}

    def _observed(self, action: Any) -> dict[str, Any]:
        camera = np.full((40, 44, 3), [10 * self.t, 20 * self.t, 200], np.uint8)
        angle = np.array([self.t, self.start if self.bad is None else self.bad])
        above = np.full((40, 44), 5 * self.t, np.uint8)
        arm = np.array([self.t, *action], np.float32)
        return {"wrist": {"camera": camera, "angle": angle}, "arm": arm, "above": above}

    def render(self) -> Any:
        return np.full((48, 32, 3), 20 * self.t, np.uint8)


class TargetEnv(PointEnv):
    """The point of :class:`PointEnv` with a target, 0.5 or -0.5, that only the bright half of an image shows."""

    observation_space = Dict({"point": Box(-2, 2, (1,), np.float32), "view": Box(0, 255, (40, 40, 3), np.uint8)})

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        obs, info = super().reset(seed=seed)
        self.target = float(self.np_random.choice([-0.5, 0.5]))
        return self._seen(obs), info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        obs, *_ = super().step(action)
        return self._seen(obs), max(1 - 2 * abs(self.x - self.target), 0.0), False, False, {}

    def _seen(self, obs: Any) -> dict[str, Any]:
        view = np.zeros((40, 40, 3), np.uint8)
        view[:, slice(20, 40) if self.target > 0 else slice(20)] = 255
        return {"point": obs, "view": view}


for _name, _entry, _limit in (("Sees-v0", SeeingEnv, SEES_FOR), ("Target-v0", TargetEnv, TARGET_STEPS)):
    if _name not in gymnasium.registry:
        gymnasium.register(_name, _entry, max_episode_steps=_limit)
