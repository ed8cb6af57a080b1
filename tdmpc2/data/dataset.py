"""Stored episodes, in memory or mapped from disk."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from tdmpc2.data.batch import Batch
from tdmpc2.data.chunk_form import Layout, check_finite
from tdmpc2.data.chunks import chunk_checksums, chunk_paths, read_chunk
from tdmpc2.data.index import EpisodeIndex, used_rows
from tdmpc2.data.rows import RowFormat
from tdmpc2.data.store.store import EpisodeStore
from tdmpc2.data.unequal import chunk_episodes, chunk_index
from tdmpc2.tasks import TaskSpec

_BLOCK = 256  # episodes copied at a time: 16 MB of MT30, small beside any chunk


@dataclass(frozen=True, eq=False)
class EpisodeDataset:
    """N episodes as records; row 0 of an episode has a first observation, its action and reward are filler.

    Attributes:
        row_format: what a record holds.
        rows: [N, L+1, W] int32 records, in memory, on a GPU or mapped from disk; [R, W], one episode after another,
            where they have lengths of their own.
        task: [N] int64, ids in the task set, on the device of ``rows``.
        numbers: [N] numbers of the episodes in what they were read from; None: their own.
        targets: extra columns of a teacher's outputs by name, float32, [N, L+1] or [N, L+1, W]; row t is of the step
            that led to row t.
        own_lengths: steps of each episode, [N] int64 on the host; None: all have L.
        terminated: which episodes their last step terminated, [N] bool on the device of ``rows``; None: batches do not
            tell.
    """

    row_format: RowFormat
    rows: Tensor
    task: Tensor
    numbers: Tensor | None = None
    targets: Mapping[str, Tensor] = field(default_factory=dict)
    own_lengths: Tensor | None = None
    terminated: Tensor | None = None

    def __post_init__(self) -> None:
        assert self.rows.ndim == (3 if self.own_lengths is None else 2)
        assert self.rows.shape[-1] == self.row_format.words
        assert self.task.shape == (self.rows.shape[:1] if self.own_lengths is None else self.own_lengths.shape)
        assert all(column.shape[: self.rows.ndim - 1] == self.rows.shape[:-1] for column in self.targets.values())

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
        terminations: bool = False,
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
            terminations: whether batches are to tell which steps terminated.

        Raises:
            ValueError: no data, a damaged file, data of another task set, or a task without an episode.
        """
        layout = Layout.of(specs)
        paths, indices, kept = select_from_chunks(data_dir, specs, task_ids, max_per_task)
        row_format = RowFormat(layout.obs_dim, layout.action_dim)
        index = EpisodeIndex.joined(indices).take(kept)
        rows = torch.empty(index.num_rows, row_format.words, dtype=torch.int32, device=device)
        done = first = 0
        with ThreadPoolExecutor(1) as thread:
            for path, there in zip(paths, indices, strict=True):
                own = kept[(kept >= first) & (kept < first + len(there))] - first
                first += len(there)
                if not len(own):
                    continue
                with chunk_checksums(path) as checksums:
                    verified = thread.submit(checksums.finish)
                    try:
                        chunk = read_chunk(path)
                        for episodes in own.split(_BLOCK):
                            block = chunk_episodes(chunk, there, episodes)
                            check_finite(path, block, episodes)
                            records = row_format.join(**block)
                            used = used_rows(there.lengths[episodes])
                            records = records.flatten(0, 1) if used.all() else records[used]
                            rows[done : done + len(records)] = records
                            done += len(records)
                            del block, records  # before the next
                            if progress:
                                progress(len(episodes))
                    finally:
                        verified.exception()  # waits: the thread reads the file that is closed next
                    verified.result()
        return cls._of_rows(row_format, rows, index, kept, layout, terminations)

    @classmethod
    def read(
        cls,
        store: EpisodeStore,
        episodes: Tensor,
        device: torch.device | str = "cpu",
        progress: Callable[[int], None] | None = None,
        terminations: bool = False,
    ) -> EpisodeDataset:
        """Copy episodes of a store into the memory of a device, reading its file from beginning to end.

        The blocks they are in are compared with the store's checksums.

        Args:
            store: the store.
            episodes: [n] int64, ascending.
            device: where they are to live.
            progress: called with the number of episodes just read.
            terminations: whether batches are to tell which steps terminated.

        Raises:
            ValueError: a block is damaged, or the disk refused.
        """
        index = store.index.take(episodes)
        rows = torch.empty(index.num_rows, store.rows.shape[-1], dtype=torch.int32, device=device)
        done, verify = 0, store.verifier()
        with ThreadPoolExecutor(1) as thread:
            verified: Future[None] | None = None
            for first in range(0, len(store.index), _BLOCK):
                begin, end = torch.searchsorted(episodes, torch.tensor([first, first + _BLOCK])).tolist()
                own = episodes[begin:end] - first
                if len(own):
                    if verified is not None:
                        verified.result()
                    verified = thread.submit(verify, own + first)
                    counts = store.index.counts[first : first + _BLOCK]
                    block = store.read(first, len(counts)).flatten(0, -2)
                    if len(own) < len(counts):
                        taken = torch.zeros(len(counts), dtype=torch.bool)
                        taken[own] = True
                        block = block[taken.repeat_interleave(counts)]
                    rows[done : done + len(block)] = block
                    done += len(block)
                    if progress:
                        progress(len(own))
            if verified is not None:
                verified.result()
        return cls._of_rows(store.meta.row_format, rows, index, episodes, store.meta.layout, terminations)

    @classmethod
    def _of_rows(
        cls,
        row_format: RowFormat,
        rows: Tensor,
        index: EpisodeIndex,
        numbers: Tensor,
        layout: Layout,
        terminations: bool,
    ) -> EpisodeDataset:
        """Take rows [R, W] of episodes that follow one another."""
        equal = bool((index.lengths == layout.rows - 1).all())
        return cls(
            row_format,
            rows.view(-1, layout.rows, row_format.words) if equal else rows,
            index.task.to(rows.device),
            numbers,
            own_lengths=None if equal else index.lengths,
            terminated=index.terminated.to(rows.device) if terminations else None,
        )

    @classmethod
    def map(cls, store: EpisodeStore, terminations: bool = False) -> EpisodeDataset:
        """Take all episodes of a store and leave them on disk; ``terminations`` as of :meth:`read`."""
        return cls(
            store.meta.row_format,
            store.rows,
            store.task,
            own_lengths=None if store.meta.rows is None else store.index.lengths,
            terminated=store.index.terminated if terminations else None,
        )

    def __len__(self) -> int:
        """Count the episodes, N."""
        return len(self.task)

    @property
    def lengths(self) -> Tensor:
        """Steps of each episode, [N] int64 on the host."""
        return torch.full((len(self),), self.rows.shape[1] - 1) if self.own_lengths is None else self.own_lengths

    @cached_property
    def first_rows(self) -> Tensor:
        """Number of each episode's first row among all rows end to end, [N] int64 on the host."""
        counts = self.lengths + 1
        return counts.cumsum(0) - counts

    @cached_property
    def _ends(self) -> tuple[Tensor, Tensor]:
        """First and last row of each episode, [N] each on the device of the rows."""
        first = self.first_rows.to(self.rows.device)
        return first, first + self.lengths.to(self.rows.device)

    def episode_of(self, rows: Tensor) -> Tensor:
        """Find the episodes that rows [...], numbers among all rows end to end, are of."""
        return torch.searchsorted(self._ends[0], rows.to(self.rows.device), right=True) - 1

    def gather(self, rows: Tensor) -> Batch:
        """Collect the batch of rows [H+1, B], numbers among all rows end to end, on the data set's device."""
        rows = rows.to(self.rows.device)
        records = self.rows.view(-1, self.rows.shape[-1]).index_select(0, rows.flatten()).view(*rows.shape, -1)
        obs, action, reward = (part.float() for part in self.row_format.split(records))
        steps = rows[1:]  # what led to a row is stored with it
        episode = self.episode_of(rows[0])
        terminated = None
        if self.terminated is not None:
            terminated = ((steps == self._ends[1][episode]) & self.terminated[episode]).float().unsqueeze(-1)
        return Batch(
            obs.contiguous(),
            action[1:].contiguous(),
            reward[1:].unsqueeze(-1).contiguous(),
            self.task[episode],
            **{name: column.view(self.rows.shape[:-1].numel(), -1)[steps] for name, column in self.targets.items()},
            terminated=terminated,
        )

    @property
    def obs(self) -> Tensor:
        """Observations as stored, [N, L+1, O] or [R, O]."""
        return self.row_format.split(self.rows)[0]

    @property
    def action(self) -> Tensor:
        """Actions as stored, [N, L+1, A] or [R, A]; row 0 of an episode is filler."""
        return self.row_format.split(self.rows)[1]

    @property
    def reward(self) -> Tensor:
        """Rewards, [N, L+1] or [R] float32; row 0 of an episode is filler."""
        return self.row_format.split(self.rows)[2]

    def columns(self) -> dict[str, Tensor]:
        """View all rows end to end by column, as a torchrl buffer takes them; ``terminated`` only if it is told."""
        obs, action, reward = self.row_format.split(self.rows.view(-1, self.rows.shape[-1]))
        columns = {"obs": obs, "action": action, "reward": reward}
        if self.terminated is not None:
            columns["terminated"] = torch.zeros(len(reward), dtype=torch.bool, device=reward.device)
            columns["terminated"][self._ends[1]] = self.terminated
        return columns

    def episode_returns(self) -> dict[int, Tensor]:
        """Sum the rewards: task id -> return of each of its episodes, [n] float32, in the order they are stored."""
        if self.own_lengths is None:
            returns = self.reward[:, 1:].sum(1)
        else:
            parts = self.reward.cpu().split((self.own_lengths + 1).tolist())
            returns = torch.stack([part[1:].sum() for part in parts]).to(self.task.device)
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
            f"{origin} has no episodes of {','.join(missing)}: collect some, or name only tasks it has (tasks=[...])"
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
) -> tuple[list[Path], list[EpisodeIndex], Tensor]:
    """Do as :func:`select_episodes` for a directory of chunk files.

    Returns:
        The files, the index of the episodes of each, and the numbers of the kept episodes among all.

    Raises:
        ValueError: no data, a damaged file, data of another task set, or a task without an episode.
    """
    paths = chunk_paths(data_dir)
    indices = [chunk_index(path, Layout.of(specs)) for path in paths]
    tasks = torch.cat([index.task for index in indices])
    return paths, indices, select_episodes(tasks, specs, task_ids, str(data_dir), max_per_task)
