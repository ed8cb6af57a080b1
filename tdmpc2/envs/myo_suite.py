"""MyoSuite's ten hand tasks, as TD-MPC2 knows them: ``myo-reach``, ``myo-reach-hard`` and so on."""

from __future__ import annotations

import contextlib
import io
import warnings
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box
from gymnasium.wrappers import TimeLimit

from tdmpc2.envs.rendering import RenderedEnv, Renderer, View
from tdmpc2.envs.wrappers import Action, Env, Info, Observation
from tdmpc2.tasks import lookup

_IDS = {
    f"myo-{name}{suffix}": f"myoHand{hand}{start}-v0"
    for name, hand in {
        "reach": "Reach",
        "pose": "Pose",
        "obj-hold": "ObjHold",
        "key-turn": "KeyTurn",
        "pen-twirl": "PenTwirl",
    }.items()
    for suffix, start in {"": "Fixed", "-hard": "Random"}.items()
}
_CAMERA = "hand_side_inter"


def make(task: str, seed: int | None = None, render_mode: str | None = None) -> Env:
    """Build a task, such as ``myo-reach``, with its time limit."""
    return TimeLimit(MyoSuiteEnv(task, seed, render_mode), lookup(task).episode_length)


class MyoSuiteEnv(RenderedEnv):
    """One MyoSuite task, without a time limit; as in TD-MPC2 it goes on where the simulator would terminate.

    Observation: float32. Action: [-1, 1]^39, one number for each muscle. ``info["success"]`` tells if the task is
    solved at this step, so that an episode succeeds if its last step does.

    Args:
        task: name as in ``tdmpc2.tasks``.
        seed: of the first states, and of ``action_space``; None takes it from the operating system.
        render_mode: None or ``"rgb_array"``.

    Raises:
        ValueError: unknown task or render mode, or rendering without a working OpenGL backend.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 25}  # noqa: RUF012

    def __init__(self, task: str, seed: int | None = None, render_mode: str | None = None) -> None:
        super().__init__(task, render_mode)
        if task not in _IDS:
            raise ValueError(f"Unknown task '{task}': one of {', '.join(_IDS)}.")
        self._simulator = _simulator(_IDS[task])
        self._seed(seed)
        self.observation_space = Box(-np.inf, np.inf, self._simulator.observation_space.shape, np.float32)
        self.action_space = Box(-1.0, 1.0, self._simulator.action_space.shape, np.float32, seed=seed)
        self._running = False

    def _seed(self, seed: int | None) -> None:
        """Seed the simulator, whose own ``reset`` takes no notice of one."""
        self._simulator.seed(int(np.random.SeedSequence().generate_state(1)[0]) if seed is None else seed)

    def reset(self, *, seed: int | None = None, options: Info | None = None) -> tuple[Observation, Info]:
        super().reset(seed=seed)
        if seed is not None:
            self.action_space.seed(seed)
            self._seed(seed)
        obs, _ = self._simulator.reset()
        self._running = True
        return np.asarray(obs, np.float32), {"success": 0.0}

    def step(self, action: Action) -> tuple[Observation, float, bool, bool, Info]:
        """Take one step.

        Raises:
            gymnasium.error.ResetNeeded: no episode has begun.
        """
        if not self._running:
            raise gymnasium.error.ResetNeeded("Call reset() before step(): no episode has begun.")
        obs, reward, _, _, info = self._simulator.step(np.asarray(action, np.float32))
        return np.asarray(obs, np.float32), float(reward), False, False, {"success": float(info["solved"])}

    def view(self) -> View:
        simulation = self._simulator.sim
        return View(simulation.model.ptr, simulation.data.ptr, simulation.model.camera(_CAMERA).id)


class RegisteredMyoSuite(gymnasium.Wrapper[Any, Any, Any, Any]):
    """A MyoSuite environment under its registered id: it ends as MyoSuite ends it, not after TD-MPC2's 100 steps.

    ``reset(seed=...)`` seeds the simulator, which takes no notice of the argument, and ``info["success"]`` tells if the
    task is solved at this step. ``render()`` draws a frame whatever the render mode, as MyoSuite's own cannot.
    """

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        super().__init__(env)
        self._renderer: Renderer | None = None

    def reset(self, *, seed: int | None = None, options: Info | None = None) -> tuple[Any, Info]:
        if seed is not None:
            raw: Any = self.env.unwrapped
            raw.seed(seed)
            if hasattr(raw, "ref"):  # draws the target of each episode, and kept the generator from before
                raw.ref.np_random = raw.np_random
        return self.env.reset(seed=seed, options=options)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, Info]:
        *result, info = self.env.step(action)
        return *result, {**info, "success": float(info["solved"])}

    def render(self) -> Any:
        simulation = self.env.unwrapped.sim  # type: ignore[attr-defined]
        model = simulation.model.ptr
        if self._renderer is None:
            names = [model.camera(index).name for index in range(model.ncam)]
            self._renderer = Renderer(model, names.index(_CAMERA) if _CAMERA in names else -1)
        return self._renderer.frame(simulation.data.ptr)

    def close(self) -> None:
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None
        super().close()


def _simulator(name: str) -> Any:
    """Build MyoSuite's own environment; importing the package prints a banner and warnings about its registrations."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings(action="ignore"):
        import myosuite  # noqa: F401  # registers its environments

        return gymnasium.make(name).unwrapped
