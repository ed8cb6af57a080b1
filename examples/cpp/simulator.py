"""Simulate a task for a program that writes actions to standard input and reads observations from descriptor 3.

python examples/cpp/simulator.py walker-walk 100     # task and seed of the first episode; simulator.cpp starts it

After each action, and at the start of an episode, it writes float32 numbers: the reward, 1 if the episode is over, and
the observation. An episode that is over is followed by the start of the next, whose seed is one more.
"""

from __future__ import annotations

import sys
from typing import BinaryIO

import numpy as np

from tdmpc2 import make_env


def serve(task: str, seed: int, actions: BinaryIO, observations: BinaryIO) -> None:
    """Play episodes until there are no more actions."""
    env = make_env(task, seed=seed)
    assert env.action_space.shape is not None
    size = 4 * env.action_space.shape[0]

    def tell(reward: float, over: bool, obs: np.ndarray) -> None:
        observations.write(np.concatenate([[reward, over], obs]).astype(np.float32).tobytes())
        observations.flush()

    try:
        while True:
            tell(0.0, False, env.reset(seed=seed)[0])
            over = False
            while not over:
                if len(action := actions.read(size)) < size:
                    return
                obs, reward, terminated, truncated, _ = env.step(np.frombuffer(action, np.float32))
                over = terminated or truncated
                tell(float(reward), over, obs)
            seed += 1
    except BrokenPipeError:
        pass
    finally:
        env.close()


if __name__ == "__main__":
    with open(3, "wb") as reading:
        serve(sys.argv[1], int(sys.argv[2]), sys.stdin.buffer, reading)
