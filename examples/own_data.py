"""Train on logs of one's own: write episodes as data, look at them, train a small model on them.

python examples/own_data.py [DIRECTORY]     # default: own_data; a minute on two CPU cores

The logs here are made on the spot, by random torques on Gymnasium's Pendulum; those of a robot would be read from its
files instead. Twenty episodes and a hundred updates show that all fits together, and are far too few to learn from.
"""

from __future__ import annotations

import sys
from pathlib import Path

import gymnasium
import numpy as np

from tdmpc2 import load_agent, parse_cfg
from tdmpc2.data import EpisodeDataset, write_episodes
from tdmpc2.training.offline import train

TASK = "Pendulum-v1"
STEPS = 100
Episode = tuple[np.ndarray, np.ndarray, np.ndarray]


def log_episode(env: gymnasium.Env, seed: int) -> Episode:
    """Play one episode: obs [T+1, O] in the environment's units, torque [T, A] in newton metres, reward [T]."""
    observation, _ = env.reset(seed=seed)
    env.action_space.seed(seed)
    obs, torque, reward, over = [observation], [], [], False
    while not over:
        torque.append(env.action_space.sample())
        observation, gain, terminated, truncated, _ = env.step(torque[-1])
        obs.append(observation)
        reward.append(gain)
        over = terminated or truncated
    return np.array(obs), np.array(torque), np.array(reward)


def scaled(episode: Episode, low: np.ndarray, high: np.ndarray) -> Episode:
    """Scale the torques of an episode to [-1, 1], in which all actions are stored."""
    obs, torque, reward = episode
    return obs, 2 * (torque - low) / (high - low) - 1, reward


def main(directory: Path) -> None:
    """Write, read and train."""
    if not (directory / "data").exists():  # writing again would add the same episodes once more
        env = gymnasium.make(TASK)
        low, high = env.action_space.low, env.action_space.high  # type: ignore[attr-defined]
        logs = [scaled(log_episode(env, seed), low, high) for seed in range(20)]
        print("written:", write_episodes(directory / "data", TASK, logs))

    keys = {"task": TASK, "data_dir": str(directory / "data"), "work_dir": str(directory / "run")}
    cfg = parse_cfg({**keys, "steps": STEPS, "eval_freq": 0, "log_freq": STEPS // 4, "batch_size": 64})
    data = EpisodeDataset.load(cfg.data_dir, cfg.task_specs, cfg.task_ids)
    print(f"read: {len(data)} episodes, mean return {data.episode_returns()[0].mean():.0f}")

    agent = load_agent(train(cfg, None), device="cpu")
    print("trained; its action in the first state:", agent.act(data.obs[0, 0], t0=True, eval_mode=True))


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "own_data"))
