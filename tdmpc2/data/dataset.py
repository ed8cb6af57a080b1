"""Episodes of equal length in memory, and slices of them for training.

Which slices make up a batch is a pure function of (seed, step, rank): resuming needs no saved position and several
processes need no coordination.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tdmpc2.data.chunks import Layout, check_finite, check_layout, chunk_paths, episode_tasks, read_chunk
from tdmpc2.tasks import TaskSpec

_BLOCK = 256  # episodes copied at a time: 16 MB of MT30, small beside any chunk


class Batch(NamedTuple):
    """Slices of H steps, time-major; entry t of action and reward leads from obs[t] to obs[t+1]."""

    obs: Tensor  # [H+1, B, O] float32
    action: Tensor  # [H, B, A] float32
    reward: Tensor  # [H, B, 1] float32
    task: Tensor  # [B] int64

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        to_gpu = torch.device(device).type == "cuda"  # the other way, reading could begin before the copy has ended
        return Batch(*(tensor.to(device, non_blocking=to_gpu) for tensor in self))


@dataclass(frozen=True, eq=False)
class EpisodeDataset:
    """N episodes of L steps, in the row layout of :mod:`tdmpc2.data.chunks`.

    Attributes:
        obs: [N, L+1, O] float32.
        action: [N, L+1, A] float32; row 0 is filler.
        reward: [N, L+1] float32; row 0 is filler.
        task: [N] int64, ids in the task set.
    """

    obs: Tensor
    action: Tensor
    reward: Tensor
    task: Tensor

    def __post_init__(self) -> None:
        assert self.obs.shape[:2] == self.action.shape[:2] == self.reward.shape
        assert self.task.shape == self.reward.shape[:1]

    @classmethod
    def load(
        cls,
        data_dir: str | os.PathLike[str],
        specs: Sequence[TaskSpec],
        task_ids: Sequence[int],
        device: torch.device | str = "cpu",
        progress: Callable[[int, int], None] | None = None,
    ) -> EpisodeDataset:
        """Read the episodes of some tasks from all chunk files of a directory and check every row that is used.

        The memory it takes is the kept episodes' and one block of them more.

        Args:
            data_dir: directory of ``chunk_*.pt``.
            specs: tasks of the set, in id order.
            task_ids: ids of the tasks to keep.
            device: where the episodes are to live.
            progress: called with (episodes read, episodes to read) as the reading goes on.

        Raises:
            ValueError: no data, a damaged file, data of another task set, or a task without an episode.
        """
        layout = Layout.of(specs)
        wanted = torch.zeros(len(specs), dtype=torch.bool)
        wanted[list(task_ids)] = True
        paths = chunk_paths(data_dir)
        tasks = []
        for path in paths:
            chunk = read_chunk(path)
            check_layout(path, chunk, layout)
            tasks.append(episode_tasks(path, chunk["task"], layout.num_tasks))
        task = torch.cat([ids[wanted[ids]] for ids in tasks])
        if missing := set(task_ids) - set(task.unique().tolist()):
            names = ",".join(specs[index].name for index in sorted(missing))
            raise ValueError(
                f"data_dir={data_dir} has no episodes of {names}: collect some, or name only tasks it has (tasks=[...])"
            )

        total, done = len(task), 0
        columns = {
            "obs": torch.empty(total, layout.rows, layout.obs_dim, device=device),
            "action": torch.empty(total, layout.rows, layout.action_dim, device=device),
            "reward": torch.empty(total, layout.rows, device=device),
        }
        for path, ids in zip(paths, tasks, strict=True):
            chunk = read_chunk(path)
            for episodes in wanted[ids].nonzero().squeeze(1).split(_BLOCK):
                block = {name: chunk[name][episodes] for name in columns}
                check_finite(path, block, episodes)
                for name, column in columns.items():
                    column[done : done + len(episodes)] = block[name]
                done += len(episodes)
                if progress:
                    progress(done, total)
        return cls(**columns, task=task.to(device))

    def __len__(self) -> int:
        """Number of episodes N."""
        return len(self.task)

    @property
    def episode_length(self) -> int:
        """Steps per episode L."""
        return self.reward.shape[1] - 1

    def episode_returns(self) -> dict[int, Tensor]:
        """Task id -> return of each of its episodes, [n] float32, in the order they are stored."""
        returns = self.reward[:, 1:].sum(1)
        return {index: returns[self.task == index] for index in self.task.unique().tolist()}


def draw_slices(
    num_episodes: int, episode_length: int, step: int, batch_size: int, horizon: int, seed: int, rank: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Episode and first row of each slice of a batch: uniform over episodes, then over the starts 0 to L - H.

    The generator is counter-based, keyed with (seed, rank) and started at block ``step``: different triples read
    different, non-overlapping parts of its output.

    Returns:
        episode [B] and start [B], int64.

    Raises:
        ValueError: the horizon does not fit into an episode.
    """
    if not 1 <= horizon <= episode_length:
        raise ValueError(f"horizon={horizon} must be between 1 and {episode_length}, the length of an episode")
    key, counter = np.array([seed, rank], dtype=np.uint64), np.array([0, 0, 0, step], dtype=np.uint64)
    generator = np.random.Generator(np.random.Philox(key=key, counter=counter))
    episode = generator.integers(num_episodes, size=batch_size)
    start = generator.integers(episode_length - horizon + 1, size=batch_size)
    return episode, start


@dataclass(frozen=True)
class SliceSampler:
    """Uniform slices of a data set, each inside one episode."""

    dataset: EpisodeDataset

    def sample(self, step: int, batch_size: int, horizon: int, seed: int, rank: int = 0) -> Batch:
        """The batch of a training step, on the data set's device; the same arguments give the same batch.

        Args:
            step: number of the update, from 0.
            batch_size: B.
            horizon: H.
            seed: seed of the run.
            rank: number of the process; every rank draws from all the data.

        Raises:
            ValueError: see :func:`draw_slices`.
        """
        data = self.dataset
        episode, start = (
            torch.from_numpy(index).to(data.obs.device)
            for index in draw_slices(len(data), data.episode_length, step, batch_size, horizon, seed, rank)
        )
        first = episode * (data.episode_length + 1) + start  # in all rows, end to end
        rows = first + torch.arange(horizon + 1, device=first.device)[:, None]  # [H+1, B]

        def gather(column: Tensor, rows: Tensor) -> Tensor:
            flat = column.view(-1, *column.shape[2:])  # index_select: twice as fast as indexing with [episode, row]
            return flat.index_select(0, rows.flatten()).view(*rows.shape, -1)

        steps = rows[1:]  # what led to a row is stored with it
        return Batch(gather(data.obs, rows), gather(data.action, steps), gather(data.reward, steps), data.task[episode])
