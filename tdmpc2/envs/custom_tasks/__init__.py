"""The custom dm_control tasks: 11 of MT30 and 17 more on the same robots."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from tdmpc2.envs.custom_tasks import models
from tdmpc2.envs.custom_tasks.rewards import REWARDS, Reward
from tdmpc2.envs.custom_tasks.starts import CupSpin, FishObstacles
from tdmpc2.envs.headless import control, suite

_STOCK_TASK = {"walker": "run", "cheetah": "run", "hopper": "hop", "pendulum": "swingup"}
_FLOOR = {"walker": ("floor", 500.0), "cheetah": ("ground", 200.0)}
_CONTROL_STEPS = 1000


class RewardTask(suite.base.Task):
    """Stock task with another reward."""

    def __init__(self, stock: suite.base.Task, reward: Reward) -> None:
        super().__init__(random=stock.random)
        self._stock, self._reward = stock, reward

    def initialize_episode(self, physics: Any) -> None:
        self._stock.initialize_episode(physics)

    def get_observation(self, physics: Any) -> dict[str, Any]:
        return self._stock.get_observation(physics)

    def get_reward(self, physics: Any) -> float:
        return self._reward(physics)


def _rewarded(seed: int | None, *, domain: str, reward: Reward) -> control.Environment:
    stock = suite.load(domain, _STOCK_TASK[domain], task_kwargs={"random": seed})
    if domain in _FLOOR:  # only drawn: the stock floor ends just behind a robot that runs backwards
        name, half_length = _FLOOR[domain]
        stock.physics.named.model.geom_size[name, 0] = half_length
    return _environment(stock.physics, RewardTask(stock.task, reward), stock.control_timestep())


def _reacher(seed: int | None, *, joints: int, length: float, target: float) -> control.Environment:
    physics = suite.reacher.Physics.from_xml_string(models.reacher_xml(joints, length), suite.common.ASSETS)
    return _environment(physics, suite.reacher.Reacher(target_size=target, random=seed), 0.02)


def _cup_spin(seed: int | None) -> control.Environment:
    physics = suite.ball_in_cup.Physics.from_xml_string(*suite.ball_in_cup.get_model_and_assets())
    return _environment(physics, CupSpin(random=seed), 0.02)


def _fish_obstacles(seed: int | None) -> control.Environment:
    physics = suite.fish.Physics.from_xml_string(models.fish_obstacles_xml(), suite.common.ASSETS)
    return _environment(physics, FishObstacles(random=seed), 0.04)


def _environment(physics: Any, task: suite.base.Task, control_timestep: float) -> control.Environment:
    time_limit = _CONTROL_STEPS * control_timestep
    return control.Environment(physics, task, time_limit=time_limit, control_timestep=control_timestep)


_BUILDERS: dict[tuple[str, str], Callable[[int | None], control.Environment]] = {
    **{(domain, task): partial(_rewarded, domain=domain, reward=reward) for (domain, task), reward in REWARDS.items()},
    ("reacher", "three_easy"): partial(_reacher, joints=3, length=0.09, target=0.05),
    ("reacher", "three_hard"): partial(_reacher, joints=3, length=0.09, target=0.015),
    ("reacher", "four_easy"): partial(_reacher, joints=4, length=0.06, target=0.05),
    ("reacher", "four_hard"): partial(_reacher, joints=4, length=0.06, target=0.015),
    ("ball_in_cup", "spin"): _cup_spin,
    ("fish", "obstacles"): _fish_obstacles,
}
CUSTOM_TASKS: tuple[tuple[str, str], ...] = tuple(_BUILDERS)


def load(domain: str, task: str, seed: int | None = None) -> control.Environment:
    """Load a custom task as a dm_control environment, e.g. ``load("cheetah", "jump", seed=1)``.

    ``seed`` starts the task's RandomState, which is used for first states only.

    Raises:
        KeyError: (domain, task) is not in ``CUSTOM_TASKS``.
    """
    return _BUILDERS[domain, task](seed)
