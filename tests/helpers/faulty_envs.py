"""Small Gymnasium environments with faults; importing the module registers them.

``tests.helpers.faulty_envs:NAME-v0`` has its fault in step 3 of 8, and in episodes of other seeds than 101 as well
unless the name says so.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box

AT, LENGTH = 3, 8
PREFIX = "tests.helpers.faulty_envs:"


class FaultyEnv(gymnasium.Env[Any, Any]):
    metadata = {"render_modes": ["rgb_array"], "render_fps": 25}  # noqa: RUF012
    observation_space, action_space = Box(-np.inf, np.inf, (4,), np.float64), Box(-1, 1, (2,), np.float32)

    def __init__(self, change: dict[str, Any], frame: Any = None, only: int | None = None, render_mode: Any = None):
        self.change, self.frame, self.only, self.render_mode = change, frame, only, render_mode

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.t, self.seed = 0, seed
        return np.full(4, 0.1), {}

    def step(self, action: Any) -> Any:
        self.t += 1
        parts = {"obs": np.full(4, self.t / 10), "reward": 1.0, "terminated": False, "truncated": False, "info": {}}
        if self.t == self.change.get("at", AT) and self.only in (None, self.seed):
            if "error" in self.change:
                raise KeyError(self.change["error"])
            parts |= {name: value for name, value in self.change.items() if name in parts}
            if "values" in self.change:
                return tuple(parts.values())[: self.change["values"]]
        return tuple(parts.values())

    def render(self) -> Any:
        return self.frame


NAN, INF = float("nan"), float("inf")
_CHANGES: dict[str, dict[str, Any]] = {
    "Sound": {},
    "NanObs": {"obs": np.array([0, 0, NAN, 0])},
    "InfObs": {"obs": np.array([0, INF, 0, 0])},
    "HugeObs": {"obs": np.array([0, 0, 0, 1e300])},
    "NanReward": {"reward": NAN},
    "HugeReward": {"reward": 1e300},
    "LargeReward": {"reward": 1e30},
    "Raises": {"error": "joint 7"},
    "ShortObs": {"obs": np.zeros(3)},
    "OneObs": {"obs": np.zeros(1)},
    "TextObs": {"obs": "left"},
    "NoReward": {"reward": None},
    "TwoRewards": {"reward": np.ones(2)},
    "NoInfo": {"info": None},
    "FourValues": {"values": 4},
    "OneElement": {"at": LENGTH, "reward": np.array([1.0]), "info": {"success": np.array([True])}},
    "IsSuccess": {"at": LENGTH, "info": {"is_success": True}},
    "EarlySuccess": {"at": 4, "info": {"success": True}},
}
_FRAMES = {"NoFrame": None, "FrameList": [np.zeros((32, 48, 3), np.uint8)], "FloatFrame": np.zeros((32, 48, 3))}


def register(name: str, change: dict[str, Any], **keys: Any) -> None:
    if f"{name}-v0" not in gymnasium.registry:
        kwargs = {"change": change, **keys}
        limits = {"max_episode_steps": LENGTH, "disable_env_checker": True}
        gymnasium.register(f"{name}-v0", FaultyEnv, kwargs=kwargs, **limits)  # type: ignore[arg-type]


for _name, _change in _CHANGES.items():
    register(_name, _change)
for _name, _frame in _FRAMES.items():
    register(_name, {}, frame=_frame)
register("NanReward101", {"reward": NAN}, only=101)
