"""Episodes of equal length, in memory or mapped from disk."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from tdmpc2.data.batch import Batch
from tdmpc2.data.chunks import (
    Layout,
    check_finite,
    check_layout,
    chunk_checksums,
    chunk_paths,
    episode_tasks,
    read_chunk,
)
from tdmpc2.data.rows import RowFormat
from tdmpc2.data.store.store import EpisodeStore
from tdmpc2.tasks import TaskSpec

_BLOCK = 256  # episodes copied at a time: 16 MB of MT30, small beside any chunk


@dataclass(frozen=True, eq=False)
class EpisodeDataset:
    """N episodes of L steps as records; row 0 of an episode has a first observation, its action and reward are filler.

    Attributes:
        row_format: what a record holds.
        rows: [N, L+1, W] int32 records, in memory, on a GPU or mapped from disk.
        task: [N] int64, ids in the task set, on the device of ``rows``.
        numbers: [N] numbers of the episodes in what they were read from; None: their own.
        targets: extra columns of a teacher's outputs by name, [N, L+1] float32; row t is of the step that led to row t.
    """

    row_format: RowFormat
    rows: Tensor
    task: Tensor
    numbers: Tensor | None = None
    targets: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        assert self.rows.ndim == 3
        assert self.rows.shape[2] == self.row_format.words
        assert self.task.shape == self.rows.shape[:1]
        assert all(column.shape == self.rows.shape[:2] for column in self.targets.values())

    @classmethod
    def of(cls, obs: Tensor, action: Tensor, reward: Tensor, task: Tensor) -> EpisodeDataset:
        """Join obs [N, L+1, O], action [N, L+1, A], reward [N, L+1] and task [N] into a data set."""
        row_format = RowFormat(obs.shape[2], action.shape[2])
        return cls(row_format, row_format.join(obs, action, reward), task)

    @classmethod
    def load(
        cls,
        data_dir: str | os.PathLike[str],
        specs: Sequence[TaskSpec],
        task_ids: Sequence[int],
        device: torch.device | str = "cpu",
        progress: Callable[[int], None] | None = None,
        max_per_task: int | None = None,
    ) -> EpisodeDataset:
        """Read the episodes of some tasks from all chunk files of a directory and check every row that is used.

        The memory it takes is the kept episodes' and one block of them more.

        Args:
            data_dir: directory of ``chunk_*.pt``.
            specs: tasks of the set, in id order.
            task_ids: ids of the tasks to keep.
            device: where the episodes are to live.
            progress: called with the number of episodes just read.
            max_per_task: that many episodes of each task, see :func:`select_episodes`.

        Raises:
            ValueError: no data, a damaged file, data of another task set, or a task without an episode.
        """
        layout = Layout.of(specs)
        paths, tasks, kept = select_from_chunks(data_dir, specs, task_ids, max_per_task)
        row_format = RowFormat(layout.obs_dim, layout.action_dim)
        rows = torch.empty(len(kept), layout.rows, row_format.words, dtype=torch.int32, device=device)
        done = first = 0
        with ThreadPoolExecutor(1) as thread:
            for path, ids in zip(paths, tasks, strict=True):
                own = kept[(kept >= first) & (kept < first + len(ids))] - first
                first += len(ids)
                if not len(own):
                    continue
                with chunk_checksums(path) as checksums:
                    verified = thread.submit(checksums.finish)
                    try:
                        chunk = read_chunk(path)
                        for episodes in own.split(_BLOCK):
                            block = {name: chunk[name][episodes] for name in ("obs", "action", "reward")}
                            check_finite(path, block, episodes)
                            rows[done : done + len(episodes)] = row_format.join(**block)
                            del block  # before the next
                            done += len(episodes)
                            if progress:
                                progress(len(episodes))
                    finally:
                        verified.exception()  # waits: the thread reads the file that is closed next
                    verified.result()
        return cls(row_format, rows, torch.cat(tasks)[kept].to(device), kept)

    @classmethod
    def read(
        cls,
        store: EpisodeStore,
        episodes: Tensor,
        device: torch.device | str = "cpu",
        progress: Callable[[int], None] | None = None,
    ) -> EpisodeDataset:
        """Copy episodes of a store into the memory of a device, reading its file from beginning to end.

        The blocks they are in are compared with the store's checksums.

        Args:
            store: the store.
            episodes: [n] int64, ascending.
            device: where they are to live.
            progress: called with the number of episodes just read.

        Raises:
            ValueError: a block is damaged, or the disk refused.
        """
        rows = torch.empty(len(episodes), *store.rows.shape[1:], dtype=torch.int32, device=device)
        done, verify = 0, store.verifier()
        with ThreadPoolExecutor(1) as thread:
            verified: Future[None] | None = None
            for first in range(0, len(store.rows), _BLOCK):
                own = episodes[(episodes >= first) & (episodes < first + _BLOCK)] - first
                if len(own):
                    if verified is not None:
                        verified.result()
                    verified = thread.submit(verify, own + first)
                    block = store.read(first, min(_BLOCK, len(store.rows) - first))
                    rows[done : done + len(own)] = block if len(own) == len(block) else block[own]
                    done += len(own)
                    if progress:
                        progress(len(own))
            if verified is not None:
                verified.result()
        return cls(store.meta.row_format, rows, store.task[episodes].to(device), episodes)

    @classmethod
    def map(cls, store: EpisodeStore) -> EpisodeDataset:
        """Take all episodes of a store and leave them on disk."""
        return cls(store.meta.row_format, store.rows, store.task)

    def __len__(self) -> int:
        """Count the episodes, N."""
        return len(self.task)

    @property
    def episode_length(self) -> int:
        """Steps per episode L."""
        return self.rows.shape[1] - 1

    @property
    def first_rows(self) -> Tensor:
        """Number of each episode's first row among all rows end to end, [N] int64 on the host."""
        return torch.arange(len(self)) * self.rows.shape[1]

    @property
    def lengths(self) -> Tensor:
        """Steps of each episode, [N] int64 on the host: all L."""
        return torch.full((len(self),), self.episode_length)

    def gather(self, rows: Tensor) -> Batch:
        """Collect the batch of rows [H+1, B], numbers among all rows end to end, on the data set's device."""
        rows = rows.to(self.rows.device)
        records = self.rows.view(-1, self.rows.shape[2]).index_select(0, rows.flatten()).view(*rows.shape, -1)
        obs, action, reward = (part.float() for part in self.row_format.split(records))
        steps = rows[1:]  # what led to a row is stored with it
        return Batch(
            obs.contiguous(),
            action[1:].contiguous(),
            reward[1:].unsqueeze(-1).contiguous(),
            self.task[rows[0] // self.rows.shape[1]],
            **{name: column.view(-1)[steps].unsqueeze(-1) for name, column in self.targets.items()},
        )

    @property
    def obs(self) -> Tensor:
        """Observations as stored, [N, L+1, O]."""
        return self.row_format.split(self.rows)[0]

    @property
    def action(self) -> Tensor:
        """Actions as stored, [N, L+1, A]; row 0 is filler."""
        return self.row_format.split(self.rows)[1]

    @property
    def reward(self) -> Tensor:
        """Rewards, [N, L+1] float32; row 0 is filler."""
        return self.row_format.split(self.rows)[2]

    def columns(self) -> dict[str, Tensor]:
        """View all rows end to end by column, as a torchrl buffer takes them: obs, action, reward."""
        parts = {"obs": self.obs, "action": self.action, "reward": self.reward}
        return {name: part.flatten(0, 1) for name, part in parts.items()}

    def episode_returns(self) -> dict[int, Tensor]:
        """Sum the rewards: task id -> return of each of its episodes, [n] float32, in the order they are stored."""
        returns = self.reward[:, 1:].sum(1)
        return {index: returns[self.task == index] for index in self.task.unique().tolist()}


def select_episodes(
    task: Tensor, specs: Sequence[TaskSpec], task_ids: Sequence[int], origin: str, max_per_task: int | None = None
) -> Tensor:
    """Select the episodes of some tasks: their numbers, [n] int64, ascending.

    Args:
        task: task id of each episode, [N].
        specs: tasks of the set, in id order.
        task_ids: ids of the tasks to keep.
        origin: where the episodes are from, for the message.
        max_per_task: keep at most so many of each task, evenly spaced: recordings often go from beginner to expert.

    Raises:
        ValueError: a task has no episode.
    """
    own = {task_id: (task == task_id).nonzero().squeeze(1) for task_id in task_ids}
    if missing := [specs[task_id].name for task_id, episodes in own.items() if not len(episodes)]:
        raise ValueError(
            f"data_dir={origin} has no episodes of {','.join(missing)}: collect some, or name only tasks it has "
            "(tasks=[...])"
        )
    if max_per_task is not None:
        for task_id, episodes in own.items():
            if len(episodes) > max_per_task:
                own[task_id] = episodes[torch.arange(max_per_task) * len(episodes) // max_per_task]
    return torch.cat(list(own.values())).sort().values


def select_from_chunks(
    data_dir: str | os.PathLike[str],
    specs: Sequence[TaskSpec],
    task_ids: Sequence[int],
    max_per_task: int | None = None,
) -> tuple[list[Path], list[Tensor], Tensor]:
    """Do as :func:`select_episodes` for a directory of chunk files.

    Returns:
        The files, the task id of each of their episodes, and the numbers of the kept episodes among all.

    Raises:
        ValueError: no data, a damaged file, data of another task set, or a task without an episode.
    """
    layout, tasks = Layout.of(specs), []
    paths = chunk_paths(data_dir)
    for path in paths:
        chunk = read_chunk(path)
        check_layout(path, chunk, layout)
        tasks.append(episode_tasks(path, chunk["task"], layout.num_tasks))
    return paths, tasks, select_episodes(torch.cat(tasks), specs, task_ids, str(data_dir), max_per_task)
