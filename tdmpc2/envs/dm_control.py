"""dm_control tasks, stock and custom, as Gymnasium environments."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any, cast

import gymnasium
import numpy as np
from gymnasium.spaces import Box

from tdmpc2.envs import quadruped
from tdmpc2.envs.custom_tasks import CUSTOM_TASKS, load
from tdmpc2.envs.headless import control, suite
from tdmpc2.envs.rendering import RenderedEnv, View
from tdmpc2.envs.wrappers import TASK_REWARDS, Action, Env, Info, Observation, sizes
from tdmpc2.tasks import BODIES, TASK_SETS, TASKS, TaskSpec, nearest

_ALIASES = {"cup": "ball_in_cup", "pointmass": "point_mass"}
_PAIRS = {f"{domain}_{task}": (domain, task) for domain, task in (*suite.ALL_TASKS, *CUSTOM_TASKS)}
_ACTION_REPEAT = 2
EPISODE_LENGTH = 500  # agent steps: all tasks of the suite last 1000 control steps


def resolve(name: str) -> tuple[str, str]:
    """Find (domain, task) of a name; ``_`` and ``-`` are the same, ``cup`` and ``pointmass`` stand for their domains.

    Raises:
        ValueError: no such task; the message suggests the nearest name.
    """
    if (pair := _PAIRS.get(_key(name))) is None:
        known = [*TASKS, *TASK_SETS, *(pair.replace("_", "-") for pair in _PAIRS)]
        raise ValueError(
            f"Unknown task '{name}'.{nearest(name, known)} "
            "An environment of your own is named by its Gymnasium id, e.g. 'my_package:Name-v0'."
        )
    return pair


def _key(name: str) -> str:
    domain, _, task = name.replace("-", "_").partition("_")
    return f"{_ALIASES.get(domain, domain)}_{task}"


def make(name: str, seed: int | None = None, render_mode: str | None = None) -> Env:
    """Build one task with its time limit (500 agent steps, reported as ``truncated``)."""
    return gymnasium.wrappers.TimeLimit(DMControlEnv(name, seed, render_mode), EPISODE_LENGTH)


def spec(name: str) -> TaskSpec:
    """Measure any task of the suite; another spelling of a task of the table is that task."""
    pair = resolve(name)
    for known in TASKS.values():
        if _PAIRS.get(_key(known.name)) == pair:
            return known
    env = DMControlEnv(name)
    return TaskSpec(name, *sizes(env), EPISODE_LENGTH)


class DMControlEnv(RenderedEnv):
    """One dm_control task, without a time limit.

    Observation: the task's observations flattened and concatenated, float32 [obs_dim]. Action: [-1, 1]^action_dim,
    scaled to the range of each actuator and held for two control steps, whose rewards are added. Nothing clips it.

    The task's random stream starts at ``seed`` and decides first states only. ``reset(seed=s)`` starts it again at s,
    as in a new environment; ``reset()`` goes on to its next episode.

    After :meth:`score_also`, ``info[TASK_REWARDS]`` of a step holds the rewards of other tasks of the same body.

    Args:
        task: name as in ``tdmpc2.tasks``, or any task of dm_control's suite.
        seed: start of the random stream and of ``action_space``; None takes it from the operating system.
        render_mode: None or ``"rgb_array"``.

    Raises:
        ValueError: unknown task or render mode, or rendering without a working OpenGL backend.
    """

    def __init__(self, task: str, seed: int | None = None, render_mode: str | None = None) -> None:
        super().__init__(task, render_mode)
        self._name = task
        self._domain, self._task_name = resolve(task)
        self._load(seed)
        self._substeps = round(self._env.control_timestep() / self.physics.timestep())
        self.metadata = {**self.metadata, "render_fps": round(1 / (_ACTION_REPEAT * self._env.control_timestep()))}

        actions = self._env.action_spec()
        limited = self.physics.model.actuator_ctrllimited.astype(bool)
        self._low = np.where(limited, actions.minimum, -1.0)  # actuators without a range (lqr) take the action as it is
        self._half_range = np.where(limited, (actions.maximum - actions.minimum) / 2, 1.0)
        obs_dim = sum(int(np.prod(spec.shape)) for spec in self._env.observation_spec().values())
        self.observation_space = Box(-np.inf, np.inf, (obs_dim,), np.float32)
        self.action_space = Box(-1.0, 1.0, actions.shape, np.float32, seed=seed)

        self._camera = min(2 if self._domain == "quadruped" else 0, self.physics.model.ncam - 1)
        self._running = False
        self._others: dict[str, Callable[[Any], float]] = {}

    def _load(self, seed: int | None) -> None:
        self._env = _loaded(self._domain, self._task_name, seed)
        self.physics, self.task = self._env.physics, self._env.task

    @property
    def facts(self) -> Info:
        """Describe the task for programs that drive it without this package: plain values, which JSON holds.

        ``observations`` are in the order in which they stand in an observation, ``actuators`` in that of an action;
        ``low`` and ``high`` are what an actuator does at -1 and at 1.
        """
        high = self._low + 2 * self._half_range
        names = [self.physics.model.id2name(index, "actuator") for index in range(self.physics.model.nu)]
        return {
            "library": "dm_control",
            "domain": self._domain,
            "task": self._task_name,
            "action_repeat": _ACTION_REPEAT,
            "seconds": _ACTION_REPEAT * self._env.control_timestep(),
            "observations": {name: int(np.prod(spec.shape)) for name, spec in self._env.observation_spec().items()},
            "actuators": [
                {"name": name, "low": float(low), "high": float(top)}
                for name, low, top in zip(names, self._low, high, strict=True)
            ],
        }

    def score_also(self, tasks: Sequence[str]) -> None:
        """Score every step for other tasks as well, from the state that it leads to and without another simulation.

        ``info[TASK_REWARDS]`` of a step then has the reward that each of them pays in its own environment.

        Raises:
            ValueError: one of them is not of this body.
        """
        own = self._domain, self._task_name
        body = next((pairs for names in BODIES if own in (pairs := [resolve(name) for name in names])), [own])
        for task in tasks:
            if resolve(task) not in body:
                raise ValueError(f"'{self._name}' cannot be scored as '{task}': they are not one body.")
        self._others = {task: _reward_of(*resolve(task)) for task in tasks}

    def reset(self, *, seed: int | None = None, options: Info | None = None) -> tuple[Observation, Info]:
        super().reset(seed=seed)
        if seed is not None:
            self.action_space.seed(seed)
            if self._domain == "lqr":  # its model is drawn from the stream as well
                self.close()
                self._load(seed)
            else:
                self.task.random.seed(seed)
        self._running = True
        return _flat(self._env.reset().observation), {"success": 0.0}

    def step(self, action: Action) -> tuple[Observation, float, bool, bool, Info]:
        """One agent step.

        Raises:
            ValueError: the action has another shape.
            gymnasium.error.ResetNeeded: there is no episode to go on with.
        """
        if not self._running:
            raise gymnasium.error.ResetNeeded("Call reset() before step(): no episode has begun, or it has terminated.")
        if np.shape(action) != self.action_space.shape:
            raise ValueError(f"Action of shape {np.shape(action)}; this task takes {self.action_space.shape}.")
        native = self._low + self._half_range * (np.asarray(action, np.float64) + 1)
        reward, others = 0.0, dict.fromkeys(self._others, 0.0)
        # The body of dm_control's Environment.step, without computing the observation between the two control steps.
        for _ in range(_ACTION_REPEAT):
            self.task.before_step(native, self.physics)
            self.physics.step(self._substeps)
            self.task.after_step(self.physics)
            reward += float(self.task.get_reward(self.physics))
            for name, paid in self._others.items():
                others[name] += float(paid(self.physics))
            self._running = self.task.get_termination(self.physics) is None
            if not self._running:
                break
        obs = _flat(self.task.get_observation(self.physics))
        info = {"success": 0.0, TASK_REWARDS: others} if others else {"success": 0.0}
        return obs, reward, not self._running, False, info

    def view(self) -> View:
        return View(self.physics.model.ptr, self.physics.data.ptr, self._camera)


def _loaded(domain: str, task: str, seed: int | None) -> control.Environment:
    if (domain, task) in CUSTOM_TASKS:
        env = load(domain, task, seed)
    else:
        env = suite.load(domain, task, task_kwargs={"random": seed})
    if domain == "quadruped":
        quadruped.repair(env.physics, task)
    return env


@cache
def _reward_of(domain: str, task: str) -> Callable[[Any], float]:
    """Make the reward of a task a function of any physics of its body."""
    env = _loaded(domain, task, None)
    env.reset()  # some tasks measure their body at the start of an episode, and all of a body find the same
    if domain != "reacher":
        return cast(Callable[[Any], float], env.task.get_reward)
    return partial(_with_target, env.physics.named.model.geom_size["target", 0].item(), env.task)


def _with_target(radius: float, task: suite.base.Task, physics: Any) -> float:
    """Score with a target of the task's own size, which nothing but the reward and a picture depends on."""
    sizes = physics.named.model.geom_size
    own = sizes["target", 0]
    sizes["target", 0] = radius
    try:
        return float(task.get_reward(physics))
    finally:
        sizes["target", 0] = own


def _flat(observation: dict[str, Any]) -> Observation:
    return np.concatenate([np.ravel(value) for value in observation.values()]).astype(np.float32)
