"""Data sets as others make them: random play recorded by Minari, and files in the form of newt's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from tensordict import TensorDict
from torch import Tensor

#: Task -> how many episodes and steps of it are recorded.
SETS = {"Hopper-v5": 3, "walker-walk": 2, "FetchReach-v4": 2}
STEPS = 40


def record(
    task: str, root: Path, monkeypatch: pytest.MonkeyPatch, form: str = "hdf5", episodes: int | None = None
) -> str:
    """Record a data set of a task into a folder of data sets and return its id."""
    import minari

    monkeypatch.setenv("MINARI_DATASETS_PATH", str(root))
    env = environment(task)
    dataset_id = f"{task.lower()}/random-v0"
    buffers = [play(env, seed) for seed in range(SETS[task] if episodes is None else episodes)]
    minari.create_dataset_from_buffers(
        dataset_id, buffers, env=env, data_format=form, action_space=env.action_space,
        observation_space=env.observation_space,
    )  # fmt: skip
    env.close()
    return dataset_id


def environment(task: str) -> gymnasium.Env[Any, Any]:
    """Build an environment as others do, and not by this package where there is another way."""
    if task == "walker-walk":
        from tdmpc2 import make_env

        return make_env(task, seed=0)
    if task.startswith("Fetch"):
        import gymnasium_robotics

        gymnasium.register_envs(gymnasium_robotics)
    return gymnasium.make(task)


def play(env: gymnasium.Env[Any, Any], seed: int) -> Any:
    """Play an episode of random actions as one of Minari's buffers; it may terminate or be cut off."""
    from minari.data_collector.episode_buffer import EpisodeBuffer

    obs, _ = env.reset(seed=seed)
    env.action_space.seed(seed)
    rows: list[Any] = [obs]
    actions, rewards, ends = [], [], []
    for step in range(STEPS):
        action = env.action_space.sample()
        obs, reward, terminated, truncated, _ = env.step(action)
        rows.append(obs)
        actions.append(action)
        rewards.append(reward)
        ends.append((terminated, truncated or (step == STEPS - 1 and not terminated)))
        if any(ends[-1]):
            break
    terminations, truncations = (np.array(marks, bool) for marks in zip(*ends, strict=True))
    return EpisodeBuffer(
        seed=seed, observations=_stacked(rows), actions=np.array(actions), rewards=np.array(rewards),
        terminations=terminations, truncations=truncations, infos={},
    )  # fmt: skip


def demonstrations(lengths: tuple[int, ...], dims: tuple[int, int], ended: int | None = None) -> dict[str, Tensor]:
    """Make the fields of a file of MMBench: random episodes of one task, padded; one may terminate."""
    generator = torch.Generator().manual_seed(1)
    counts = torch.tensor(lengths) + 1
    episode, first = torch.arange(len(lengths)).repeat_interleave(counts), counts.cumsum(0) - counts
    obs, action = torch.zeros(len(episode), 128), torch.zeros(len(episode), 16)
    obs[:, : dims[0]] = torch.randn(len(episode), dims[0], generator=generator)
    action[:, : dims[1]] = torch.rand(len(episode), dims[1], generator=generator) * 2 - 1
    reward, terminated = torch.rand(len(episode), generator=generator), torch.zeros(len(episode))
    if ended is not None:
        terminated[first[ended] + lengths[ended]] = 1
    action[first], reward[first], terminated[first] = torch.nan, torch.nan, torch.nan
    fields = {"obs": obs, "action": action, "reward": reward, "terminated": terminated, "episode": episode + 40}
    return {**fields, "feat": torch.zeros(len(episode), 768)}


def write_demonstrations(path: Path, lengths: tuple[int, ...], dims: tuple[int, int]) -> None:
    """Write a file of demonstrations in the form of MMBench."""
    fields = demonstrations(lengths, dims)
    torch.save(TensorDict(fields, batch_size=[len(fields["obs"])]), path)


def _stacked(rows: list[Any]) -> Any:
    if isinstance(rows[0], dict):
        return {key: _stacked([row[key] for row in rows]) for key in rows[0]}
    return np.stack(rows)
