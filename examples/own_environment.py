"""Learn an environment of one's own, from nothing to a trained agent and a video of it.

python examples/own_environment.py [DIRECTORY] [KEY=VALUE ...]     # default: own_environment

The environment is a puck on a table: pushed by a force, it has to come to a target and stay there. The agent learns
from position, velocity and the way to the target, by acting. Everything that TD-MPC-Opt needs of an environment is in
the class below and in the line that registers it; keys behind the directory are those of train.py.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box
from numpy.typing import NDArray

from tdmpc2.support.programs import run_in_terminal

TASK = "own_environment:Puck-v0"
TRAINING = {
    "model_size": 1,
    "steps": 3000,  # thirty episodes
    "seed_steps": 500,
    "batch_size": 128,
    "utd": 0.5,
    "collect_num_samples": 64,
    "collect_iterations": 3,
    "eval_freq": 0,
}
EVALUATION = {"eval_episodes": 5, "num_samples": 128, "iterations": 4, "save_video": True}


class Puck(gymnasium.Env[NDArray[np.float32], NDArray[np.float32]]):
    """A puck on a table of 2 x 2 metres, pushed by a force of up to one newton along each axis.

    The observation is its position, its velocity, and the way to the target; the reward of a step is 1 at the target
    and half of it 0.2 metres away.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012
    observation_space = Box(-np.inf, np.inf, (6,), np.float32)
    action_space = Box(-1, 1, (2,), np.float32)

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode
        self._position = self._velocity = self._target = np.zeros(2)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        super().reset(seed=seed)
        self._position, self._target = self.np_random.uniform(-0.8, 0.8, (2, 2))
        self._velocity = np.zeros(2)
        return self._observation(), {}

    def step(self, action: NDArray[np.float32]) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        self._velocity = 0.9 * self._velocity + 0.05 * np.clip(action, -1, 1)  # friction, force
        self._position = self._position + 0.2 * self._velocity
        self._velocity[np.abs(self._position) > 1] = 0  # the table's edge
        self._position = np.clip(self._position, -1, 1)
        distance = float(np.linalg.norm(self._target - self._position))
        return self._observation(), 2 ** -(distance / 0.2), False, False, {}

    def render(self) -> NDArray[np.uint8]:  # type: ignore[override]
        y, x = np.mgrid[1:-1:256j, -1:1:256j]  # metres
        picture = np.full((256, 256, 3), 235, np.uint8)
        for (px, py), radius, colour in ((self._target, 0.1, (230, 160, 60)), (self._position, 0.06, (40, 90, 170))):
            picture[np.hypot(x - px, y - py) < radius] = colour
        return picture

    def _observation(self) -> NDArray[np.float32]:
        return np.concatenate([self._position, self._velocity, self._target - self._position]).astype(np.float32)


gymnasium.register("Puck-v0", entry_point=Puck, max_episode_steps=100)


def main(directory: Path, *keys: str) -> None:
    """Train, then play and film, by two commands that a user could type as well."""
    run = directory / "run"
    typed = dict(key.split("=", 1) for key in keys)
    _command("train", f"task={TASK}", f"work_dir={run}", *_words({**TRAINING, **typed}))
    played = directory / "played"
    keys = {name: typed.get(name, value) for name, value in EVALUATION.items()}
    _command("evaluate", f"checkpoint={run / 'model.pt'}", f"task={TASK}", f"work_dir={played}", *_words(keys))


def _words(keys: dict[str, Any]) -> list[str]:
    return [f"{key}={value}" for key, value in keys.items()]


def _command(*words: str) -> None:
    """Run a command of TD-MPC-Opt where it can import this file."""
    print("\n$ PYTHONPATH=examples tdmpc2", *words, flush=True)
    path = os.pathsep.join([str(Path(__file__).resolve().parent), os.environ.get("PYTHONPATH", "")])
    if code := run_in_terminal([sys.executable, "-m", "tdmpc2", *words], env={**os.environ, "PYTHONPATH": path}):
        sys.exit(code)  # the command has said why


if __name__ == "__main__":
    arguments = sys.argv[1:]
    if "-h" in arguments or "--help" in arguments:
        sys.exit(__doc__)
    named = [word for word in arguments if "=" not in word]
    main(Path(named[0] if named else "own_environment"), *(word for word in arguments if "=" in word))
