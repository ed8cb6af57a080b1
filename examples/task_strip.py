"""Draw a strip of MT30 tasks: one frame of each, from the real environments after some random play.

python examples/task_strip.py assets/tasks.png
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib
import numpy as np
from numpy.typing import NDArray

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from tdmpc2.envs import make_env

#: One task of each body, with the number of random steps after which it is drawn.
TASKS = {
    "walker-run": 9, "cheetah-run": 12, "hopper-hop": 8, "acrobot-swingup": 25, "finger-spin": 12, "cup-catch": 10,
    "reacher-three-easy": 10, "fish-swim": 10, "cartpole-swingup": 20, "pendulum-spin": 30,
}  # fmt: skip
COLUMNS = 5


def frame(task: str, steps: int, seed: int = 1) -> NDArray[np.uint8]:
    """Play random actions for a while and return the picture of where that led, [height, width, 3]."""
    env = make_env(task, seed=seed, render_mode="rgb_array")
    try:
        env.reset(seed=seed)
        env.action_space.seed(seed)
        for _ in range(steps):
            env.step(env.action_space.sample())
        return np.asarray(env.render())
    finally:
        env.close()


def main(target: str) -> None:
    """Draw all tasks and write the picture."""
    rows = -(-len(TASKS) // COLUMNS)
    figure, axes = plt.subplots(rows, COLUMNS, figsize=(8, 1.78 * rows), facecolor="white", layout="constrained")
    for ax, (task, steps) in zip(axes.flat, TASKS.items(), strict=True):
        ax.imshow(frame(task, steps))
        ax.set_xlabel(task, fontsize=10, color="#1f2933", labelpad=3)
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
    Path(target).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=150, pil_kwargs={"optimize": True})
    print(target)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(f"usage: python {sys.argv[0]} FIGURE.png")
    main(sys.argv[1])
