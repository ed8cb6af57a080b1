"""Meta-World's fifty tasks, as TD-MPC2's data and models know them: ``mw-reach`` and so on.

The tasks are those of version 3, which a goal that is drawn anew for every episode can be seen in.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box
from gymnasium.wrappers import TimeLimit
from metaworld.env_dict import ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE as SIMULATORS
from numpy.typing import NDArray

from tdmpc2.envs.rendering import RenderedEnv, View
from tdmpc2.envs.wrappers import Action, Env, Info, Observation
from tdmpc2.tasks import lookup

_ACTION_REPEAT = 2
_CAMERA, _CAMERA_POSITION = "corner2", (0.75, 0.075, 0.7)  # a corner of the table


def make(task: str, seed: int | None = None, render_mode: str | None = None) -> Env:
    """Build a task, such as ``mw-reach``, with its time limit."""
    return TimeLimit(MetaWorldEnv(task, seed, render_mode), lookup(task).episode_length)


class MetaWorldEnv(RenderedEnv):
    """One Meta-World task, without a time limit; it never terminates.

    Observation: float32 [39], the goal included. Action: [-1, 1]^4, held for two steps of the simulator, whose rewards
    are added. ``info["success"]`` is the simulator's after the second of them, so that an episode succeeds if its last
    step does; ``info["success_ever"]`` tells if any step of it did.

    As in TD-MPC2, an episode begins with the observation from before a step without action that the simulator has
    already taken.

    Args:
        task: name as in ``tdmpc2.tasks``.
        seed: of the goals and first states, and of ``action_space``; None takes it from the operating system.
        render_mode: None or ``"rgb_array"``.

    Raises:
        ValueError: unknown task or render mode, or rendering without a working OpenGL backend.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 40}  # noqa: RUF012

    def __init__(self, task: str, seed: int | None = None, render_mode: str | None = None) -> None:
        super().__init__(task, render_mode)
        simulator = f"{task.removeprefix('mw-')}-v3-goal-observable"
        if simulator not in SIMULATORS:
            raise ValueError(f"Unknown task '{task}': Meta-World has no {simulator}.")
        self._build: Any = SIMULATORS[simulator]
        self._load(seed)
        self.observation_space = Box(-np.inf, np.inf, (39,), np.float32)
        self.action_space = Box(-1.0, 1.0, (4,), np.float32, seed=seed)
        self._running = self._succeeded = False

    def _load(self, seed: int | None) -> None:
        if seed is None:
            seed = int(np.random.SeedSequence().generate_state(1)[0])
        self.close()
        self._simulator: Any = self._build(seed=seed)
        self._simulator.seeded_rand_vec = True  # draw from its own generator, not from numpy's global one
        self._simulator._freeze_rand_vec = False  # a new draw for every episode
        self._simulator.seed(seed)
        self._simulator.model.camera(_CAMERA).pos[:] = _CAMERA_POSITION

    def reset(self, *, seed: int | None = None, options: Info | None = None) -> tuple[Observation, Info]:
        """Begin an episode; with a seed, in a simulator that is built anew.

        Some tasks move parts of their model when an episode begins, so that a used simulator differs from a new one.
        """
        super().reset(seed=seed)
        if seed is not None:
            self.action_space.seed(seed)
            self._load(seed)
        obs, _ = self._simulator.reset()
        self._simulator.step(np.zeros(4, np.float32))
        self._running, self._succeeded = True, False
        return np.asarray(obs, np.float32), {"success": 0.0, "success_ever": 0.0}

    def step(self, action: Action) -> tuple[Observation, float, bool, bool, Info]:
        """Take one agent step.

        Raises:
            gymnasium.error.ResetNeeded: no episode has begun.
        """
        if not self._running:
            raise gymnasium.error.ResetNeeded("Call reset() before step(): no episode has begun.")
        reward = 0.0
        for _ in range(_ACTION_REPEAT):
            obs, gain, _, _, info = self._simulator.step(np.asarray(action, np.float32).copy())
            reward += float(gain)
            self._succeeded |= bool(info["success"])
        success = {"success": float(info["success"]), "success_ever": float(self._succeeded)}
        return np.asarray(obs, np.float32), reward, False, False, success

    def view(self) -> View:
        model = self._simulator.model
        return View(model, self._simulator.data, model.camera(_CAMERA).id)

    def frame(self, size: int) -> NDArray[np.uint8]:
        return np.ascontiguousarray(super().frame(size)[::-1])  # the camera hangs
