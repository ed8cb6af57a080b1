"""Playing episodes into chunk files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from tdmpc2.agent import TDMPC2
from tdmpc2.config import Config
from tdmpc2.data.chunks import write_chunk
from tdmpc2.evaluation import agent_actor
from tdmpc2.progress import Progress
from tdmpc2.rollout import Actor, Episode, Job, play

_AT_ONCE = 16  # environments that play together


def random_actor(cfg: Config, seed: int) -> Actor:
    """Uniform actions in [-1, 1] on each task's own dimensions, zero on the padding."""
    rng = np.random.default_rng(seed)
    sizes = np.array([spec.action_dim for spec in cfg.task_specs])

    def act(obs: np.ndarray, t0: np.ndarray, task_ids: np.ndarray) -> np.ndarray:
        action = rng.uniform(-1, 1, (len(obs), cfg.action_dim)).astype(np.float32)
        return action * (np.arange(cfg.action_dim) < sizes[task_ids, None])

    return act


def collect(
    cfg: Config, agent: TDMPC2 | None, data_dir: Path, report: Callable[[str, np.ndarray], None] | None = None
) -> list[Path]:
    """Add ``episodes_per_task`` episodes of each task to a directory, one chunk file per task.

    Where episode lengths differ (MT80), long episodes are cut to the shortest, as the chunk format needs.
    Existing files stay. Chunk n is a pure function of the configuration, the agent and n: the seeds of its environments
    are drawn from (seed, n), so a repeated command adds new episodes, not the same ones.

    Args:
        cfg: tasks, ``seed`` and ``episodes_per_task``.
        agent: acts with exploration noise; None for uniformly random actions.
        data_dir: directory of the chunk files.
        report: called with a task's name and the returns of its episodes, [n].

    Raises:
        ValueError: an episode ended early, which the chunk format cannot hold, or a file could not be written.
    """
    length = min(spec.episode_length for spec in cfg.task_specs)
    total = len(cfg.task_ids) * cfg.episodes_per_task * length
    paths = []
    with Progress(total, "Collecting", unit="steps") as bar:
        for task_id in cfg.task_ids:
            number = next_chunk(data_dir)
            draws, *seeds = np.random.SeedSequence((cfg.seed, number)).generate_state(cfg.episodes_per_task + 1).tolist()
            if agent is not None:
                agent.generator.manual_seed(draws)
            actor = random_actor(cfg, draws) if agent is None else agent_actor(agent, noise=True)
            jobs = [Job(task_id, seed) for seed in seeds]
            episodes: list[Episode] = []
            for first in range(0, len(jobs), _AT_ONCE):
                episodes += play(cfg, actor, jobs[first : first + _AT_ONCE], max_steps=length, on_step=bar.update)
            name = cfg.task_specs[task_id].name
            if short := next((e for e in episodes if len(e.reward) != length + 1), None):
                raise ValueError(
                    f"An episode of {name} ended after {len(short.reward) - 1} of {length} steps (seed {short.job.seed}); "
                    "offline data needs episodes of equal length"
                )
            path = data_dir / f"chunk_{number}.pt"
            obs, action, reward = (
                torch.from_numpy(np.stack([getattr(episode, column) for episode in episodes]))
                for column in ("obs", "action", "reward")
            )
            write_chunk(path, obs, action, reward, torch.full((len(episodes),), task_id))
            paths.append(path)
            if report:
                report(name, np.array([e.episode_return for e in episodes]))
    return paths


def next_chunk(data_dir: Path) -> int:
    """The first number after those of the chunk files in a directory."""
    numbers = [int(p.stem.removeprefix("chunk_")) for p in data_dir.glob("chunk_*.pt") if p.stem[6:].isdigit()]
    return max(numbers, default=-1) + 1
