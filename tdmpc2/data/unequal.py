"""Chunk files whose episodes have lengths of their own, and what is the same for both forms of chunk files.

In such a file the rows of N episodes lie one after another: a ``TensorDict`` of batch shape [R] with the fields of
other chunks, the number of each row's episode in the file, and whether the episode terminated with the row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from tdmpc2.data.chunk_form import Layout, check_fields, check_finite, check_layout, episode_tasks
from tdmpc2.data.chunks import read_chunk, save_chunk, write_chunk
from tdmpc2.data.index import EpisodeIndex, padded, used_rows

VALUES = ("obs", "action", "reward")
_TASK_PIECE = 1 << 16  # episodes whose task ids are read at a time: 131 MB of MT30
_AGAIN = "Download or collect the file again"


class Recorded(NamedTuple):
    """An episode of T steps; row 0 holds the first observation, its action and reward are NaN."""

    obs: Tensor  # [T+1, O] float32
    action: Tensor  # [T+1, A] float32
    reward: Tensor  # [T+1] float32
    terminated: bool  # by its last step; a time limit does not terminate


def is_unequal(chunk: Mapping[str, Tensor]) -> bool:
    """Tell if the episodes of a chunk have lengths of their own."""
    return "episode" in chunk


def chunk_index(path: Path, layout: Layout) -> EpisodeIndex:
    """Read task, length and end of each episode of a chunk file.

    Raises:
        ValueError: the file is damaged or of another task set; the message names the episode.
    """
    chunk = read_chunk(path)
    check_layout(path, chunk, layout)
    if is_unequal(chunk):
        return _unequal_index(path, chunk, layout)
    ids = []
    for first in range(0, len(chunk["task"]), _TASK_PIECE):
        chunk = read_chunk(path)  # anew: pages of a mapping that is kept count as this process's memory
        ids.append(episode_tasks(path, chunk["task"][first : first + _TASK_PIECE], layout.num_tasks, first))
    return EpisodeIndex.equal(torch.cat(ids), layout.rows - 1)


def _unequal_index(path: Path, chunk: Mapping[str, Tensor], layout: Layout) -> EpisodeIndex:
    number, marks = chunk["episode"].long(), chunk["terminated"].view(torch.uint8)
    steps = number.diff()
    if number[0] != 0 or ((steps != 0) & (steps != 1)).any():
        raise ValueError(f"{path}: its rows are not those of episodes 0, 1, ... one after another. {_AGAIN}")
    counts = number.bincount()
    last = counts.cumsum(0) - 1
    task = chunk["task"].long()
    ids = episode_tasks(path, task[last, None], layout.num_tasks)
    if (changed := (task != ids[number]).nonzero()).numel():
        raise ValueError(f"{path}: the task id changes in episode {int(number[changed[0, 0]])}. {_AGAIN}")
    within = marks.clone()
    within[last] = 0
    if (marks > 1).any() or within.any():
        row = int(((marks > 1) | (within > 0)).nonzero()[0])
        raise ValueError(f"{path}: episode {int(number[row])} terminates before its last row. {_AGAIN}")
    index = EpisodeIndex(ids, counts - 1, chunk["terminated"][last])
    index.check_lengths(path, layout.longest, _AGAIN)
    return index


def chunk_episodes(chunk: Mapping[str, Tensor], index: EpisodeIndex, episodes: Tensor) -> dict[str, Tensor]:
    """Read obs [n, L+1, O], action [n, L+1, A] and reward [n, L+1] of some episodes, [n] int64, ascending.

    Where episodes have lengths of their own, L is the longest one's, and zeros follow the end of the others.
    """
    first, last = int(episodes[0]), int(episodes[-1])
    contiguous = last - first + 1 == len(episodes)
    if not is_unequal(chunk):
        return {name: chunk[name][first : last + 1] if contiguous else chunk[name][episodes] for name in VALUES}
    begin, end = int(index.first_rows[first]), int(index.first_rows[last] + index.counts[last])
    rows = index.rows_of(episodes)
    return {
        name: padded(chunk[name][begin:end] if contiguous else chunk[name][rows], index.lengths[episodes])
        for name in VALUES
    }


def write_unequal(
    path: Path, obs: Tensor, action: Tensor, reward: Tensor, task: Tensor, episode: Tensor, terminated: Tensor
) -> None:
    """Write episodes of any lengths as :func:`~tdmpc2.data.chunks.write_chunk` does, from their rows end to end.

    Args:
        path: ``.../chunk_<number>.pt``.
        obs: [R, O] float32.
        action: [R, A] float32, NaN in the first row of an episode.
        reward: [R] float32, NaN in the first row of an episode.
        task: [R] int32.
        episode: number of the row's episode in the file, [R] int32.
        terminated: whether the episode terminated with the row, [R] bool.

    Raises:
        ValueError: the file exists, the name or the data would be refused on reading, or the disk refused.
    """
    chunk = {"obs": obs, "action": action, "reward": reward, "task": task, "episode": episode, "terminated": terminated}
    check_fields(path, chunk)
    largest = torch.iinfo(torch.int32).max
    index = _unequal_index(path, chunk, Layout(0, obs.shape[1], action.shape[1], largest, largest))
    for own in torch.arange(len(index)).split(256):
        check_finite(path, chunk_episodes(chunk, index, own), own)
    save_chunk(path, chunk, index.first_rows)


def unequal_fields(index: EpisodeIndex) -> dict[str, Tensor]:
    """Make the fields task, episode and terminated [R] of a chunk from an index."""
    number = torch.arange(len(index)).repeat_interleave(index.counts)
    terminated = torch.zeros(index.num_rows, dtype=torch.bool)
    terminated[index.first_rows + index.lengths] = index.terminated
    return {"task": index.task[number].int(), "episode": number.int(), "terminated": terminated}


def write_recorded(path: Path, episodes: Sequence[Recorded], task_id: int, length: int) -> None:
    """Write episodes of a task: as an ordinary chunk if all have ``length`` steps and none terminated.

    Raises:
        ValueError: see :func:`~tdmpc2.data.chunks.write_chunk`.
    """
    lengths = torch.tensor([len(episode.reward) - 1 for episode in episodes])
    index = EpisodeIndex(
        torch.full_like(lengths, task_id), lengths, torch.tensor([episode.terminated for episode in episodes])
    )
    columns = {name: [getattr(episode, name) for episode in episodes] for name in VALUES}
    if index.is_equal(length):
        write_chunk(path, **{name: torch.stack(parts) for name, parts in columns.items()}, task=index.task)
    else:
        write_unequal(path, **{name: torch.cat(parts) for name, parts in columns.items()}, **unequal_fields(index))


def count_not_finite(block: Mapping[str, Tensor], lengths: Tensor) -> int:
    """Count the episodes of a block, [n, L+1, ...], that have a value that is not finite in a row that is used."""
    used = used_rows(lengths, block["reward"].shape[1])
    bad = torch.zeros(len(lengths), dtype=torch.bool)
    for name in VALUES:
        wrong = ~block[name].isfinite()
        rows = wrong if wrong.ndim == 2 else wrong.any(2)
        rows = rows & used
        bad |= (rows if name == "obs" else rows[:, 1:]).any(1)
    return int(bad.sum())
