"""A family of environments of one's own: a point on a line, a square or a cube that has to reach a target.

Installed beside TD-MPC-Opt, its tasks work like all others:

pip install ./examples/own_family
python train.py task=target-2 model_size=1 steps=5000
python train.py task=targets mode=online steps=15000
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box
from gymnasium.wrappers import TimeLimit

from tdmpc2.envs.registry import Family
from tdmpc2.envs.wrappers import Env, FlatEnv
from tdmpc2.tasks import TaskSpec

STEPS = 50


class Target(gymnasium.Env[Any, Any]):
    """A point in ``size`` dimensions; the reward is 1 at the target and falls with the distance from it."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 25}  # noqa: RUF012

    def __init__(self, size: int, render_mode: str | None = None) -> None:
        self.size, self.render_mode = size, render_mode
        self.observation_space = Box(-np.inf, np.inf, (2 * size,), np.float32)
        self.action_space = Box(-1.0, 1.0, (size,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.point, self.target = self.np_random.uniform(-1, 1, (2, self.size))
        return self._observed(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.point = np.clip(self.point + 0.1 * np.asarray(action), -1, 1)
        distance = float(np.linalg.norm(self.point - self.target))
        return self._observed(), float(np.exp(-4 * distance)), False, False, {"success": distance < 0.05}

    def render(self) -> Any:
        frame = np.zeros((64, 64, 3), np.uint8)
        for position, colour in ((self.target, (255, 80, 80)), (self.point, (255, 255, 255))):
            x, y = (28 * np.append(position, [0.0])[:2] + 32).astype(int)
            frame[y - 2 : y + 3, x - 2 : x + 3] = colour
        return frame

    def _observed(self) -> Any:
        return np.concatenate((self.point, self.target)).astype(np.float32)


def make(name: str, seed: int | None, render_mode: str | None) -> Env:
    """Build one task; the wrapper gives any Gymnasium environment the form that all others have."""
    return FlatEnv(TimeLimit(Target(_size(name), render_mode), STEPS), seed)


def spec(name: str) -> TaskSpec:
    """Say what a model has to know of a task, without building it."""
    return TaskSpec(name, obs_dim=2 * _size(name), action_dim=_size(name), episode_length=STEPS, success_score=True)


def _size(name: str) -> int:
    return int(name.rpartition("-")[2])


FAMILY = Family(
    "Targets",
    r"target-[123]",
    make="target_tasks:make",
    spec="target_tasks:spec",
    score="success",
    tells_success=True,
    more="target-1, target-2, target-3",
)
SETS = {"targets": ["target-1", "target-2", "target-3"]}
