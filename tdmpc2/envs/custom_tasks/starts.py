"""Custom tasks that also choose their first states."""

from __future__ import annotations

from typing import Any

import numpy as np

from tdmpc2.envs.custom_tasks.rewards import above
from tdmpc2.envs.headless import suite


class CupSpin(suite.ball_in_cup.BallInCup):
    """Swing the ball around the cup, far out and fast. Nine episodes in ten start with the ball inside the cup."""

    def initialize_episode(self, physics: Any) -> None:
        anywhere = self.random.uniform() < 0.1
        accepted = False
        while not accepted:
            physics.named.data.qpos["ball_x"] = self.random.uniform(-0.2, 0.2)
            physics.named.data.qpos["ball_z"] = self.random.uniform(0.2, 0.5)
            physics.after_reset()
            accepted = physics.data.ncon == 0 and (anywhere or bool(physics.in_target()))

    def get_reward(self, physics: Any) -> float:
        distance = float(np.linalg.norm(physics.ball_to_target()))
        speed = float(np.linalg.norm(physics.named.data.qvel[["ball_x", "ball_z"]]))
        far = above(distance, 0.5, margin=0.25, linear=0.5)
        fast = above(speed, 6, margin=3, linear=0.5)
        return (1 - physics.in_target()) * (far + 2 * fast) / 3


class FishObstacles(suite.fish.Swim):
    """Swim to the target without coming near a wall."""

    _WALLS = ("wall0", "wall1", "wall2", "wall3")

    def initialize_episode(self, physics: Any) -> None:
        super().initialize_episode(physics)
        physics.after_reset()
        while self._near_wall(physics, "target", 0.08):
            super().initialize_episode(physics)
            physics.after_reset()

    def get_reward(self, physics: Any) -> float:
        return 0.0 if self._near_wall(physics, "torso", 0.06) else super().get_reward(physics)

    def _near_wall(self, physics: Any, geom: str, clearance: float) -> bool:
        """True in a strip around each wall: along *one* axis, x or y, the centres are closer than ``clearance``."""
        positions = physics.named.data.geom_xpos
        offsets = np.abs(positions[list(self._WALLS), :2] - positions[geom, :2])
        return bool((offsets < clearance).any())
