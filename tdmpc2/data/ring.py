"""The replay buffer of learning online: a ring of whole episodes of any length."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from tdmpc2.data.batch import Batch
from tdmpc2.data.rows import FrameFormat, RowFormat
from tdmpc2.data.sampler import SliceSampler
from tdmpc2.support.files import reserve, size_text


class RingEpisode(NamedTuple):
    """An episode of T steps as it is stored; row 0 holds the first observation, its action and reward are filler."""

    rows: Tensor  # [T+1, W] int32 records
    task: int
    terminated: bool  # by its last step; a time limit does not terminate


class ReplayRing:
    """The newest whole episodes that ``capacity`` rows hold, in one preallocated table.

    A new episode drops as many of the oldest as it needs room for; rows that are partly overwritten are never drawn. An
    episode of fewer than ``horizon`` steps is kept like any other and counted in :attr:`num_short`, but no slice fits
    into it, so it is not among the episodes that are drawn from.

    ``sampler`` draws: an episode, all equally likely whatever their lengths (or first a task, all equally likely, then
    one of its episodes), then a start.

    Args:
        row_format: what a record holds.
        capacity: rows, first rows of episodes included.
        horizon: H of the slices.
        balance: ``episodes`` or ``tasks``, as of :class:`~tdmpc2.data.sampler.SliceSampler`.
        seed: seed of the slices that a torchrl buffer samples.
        device: where the rows are to lie.
        terminations: whether batches tell which steps terminated.
        file: keep the rows in this file, mapped, instead of in memory. Its room on the disk is taken at once, and its
            name is taken away, so that nothing is left of it when the process ends.

    Raises:
        ValueError: the disk has no room for the file.
    """

    def __init__(
        self,
        row_format: RowFormat | FrameFormat,
        capacity: int,
        horizon: int,
        *,
        balance: str = "episodes",
        seed: int = 1,
        device: torch.device | str = "cpu",
        terminations: bool = False,
        file: Path | None = None,
    ) -> None:
        self.row_format, self.capacity, self.horizon = row_format, capacity, horizon
        self._terminations = terminations
        shape = (capacity, row_format.words)
        if file is None:
            self.rows = torch.empty(shape, dtype=torch.int32, device=device)
        else:
            _make(file, 4 * capacity * row_format.words)
            flat = torch.from_file(str(file), shared=True, size=capacity * row_format.words, dtype=torch.int32)
            self.rows = flat.view(shape)
            with contextlib.suppress(OSError):  # it lives as long as the map, however the process ends
                file.unlink()
        self._row_first = torch.zeros(capacity, dtype=torch.int64, device=self.rows.device)  # of the row's episode
        self._row_task = torch.zeros(capacity, dtype=torch.int32, device=self.rows.device)
        self._row_terminated = torch.zeros(capacity, dtype=torch.bool, device=self.rows.device)
        self._index = np.zeros((0, 3), np.int64)  # first row, steps and task of each episode, from _oldest on
        self._oldest = self._end = 0  # positions in _index
        self.num_added = 0  # episodes since the ring was made
        self.num_rows = 0  # that hold an episode
        self._next_row = 0  # counts on beyond the capacity
        self.sampler = SliceSampler(self, balance=balance, horizon=horizon, seed=seed)

    def __repr__(self) -> str:
        return (
            f"ReplayRing({len(self):,} episodes, {self.num_rows:,} of {self.capacity:,} rows, "
            f"{self.num_dropped:,} episodes dropped, {self.num_short:,} too short to be drawn)"
        )

    def __len__(self) -> int:
        """Count the episodes that are there, too short ones included."""
        return self._end - self._oldest

    @property
    def num_dropped(self) -> int:
        """Count the episodes that had to make room: numbers below it are gone."""
        return self.num_added - len(self)

    @property
    def num_short(self) -> int:
        """Count the episodes that are there and too short for a slice."""
        return len(self) - len(self.task)

    # -- writing ------------------------------------------------------------------------------------------------------

    def add(self, obs: ArrayLike, action: ArrayLike, reward: ArrayLike, task: int = 0, terminated: bool = False) -> int:
        """Store an episode of T steps, dropping the oldest ones where there is no room.

        Args:
            obs: [T+1, O], padded; images uint8 [T+1, C, height, width]; both as bytes, uint8 [T+1, P].
            action: [T+1, A], padded; row 0 is filler.
            reward: [T+1]; row 0 is filler.
            task: its id.
            terminated: by its last step, and not merely by a time limit.

        Returns:
            Number of the episode, from 0.

        Raises:
            ValueError: it has no step, or more rows than the ring.
        """
        columns = (torch.as_tensor(np.asarray(part)) for part in (obs, action, reward))
        return self.add_rows(RingEpisode(self.row_format.join(*columns), task, terminated))

    def add_rows(self, episode: RingEpisode) -> int:
        """Store an episode as :meth:`add` does, from its records."""
        count = len(episode.rows)
        if count < 2:
            raise ValueError("an episode without a step cannot be stored")
        if count > self.capacity:
            raise ValueError(
                f"buffer_size={self.capacity} is less than the {count:,} rows of an episode of {count - 1:,} steps"
            )
        while self.num_rows + count > self.capacity:
            self.num_rows -= int(self._index[self._oldest, 1]) + 1
            self._oldest += 1
        first = self._next_row
        terminated = torch.zeros(count, dtype=torch.bool)
        terminated[-1] = episode.terminated
        for column, values in (
            (self.rows, episode.rows),
            (self._row_first, torch.full((count,), first)),
            (self._row_task, torch.full((count,), episode.task, dtype=torch.int32)),
            (self._row_terminated, terminated),
        ):
            start = first % self.capacity
            before_seam = min(count, self.capacity - start)
            column[start : start + before_seam] = values[:before_seam].to(column.device)
            column[: count - before_seam] = values[before_seam:].to(column.device)
        self._append(first, count - 1, episode.task)
        self._next_row += count
        self.num_rows += count
        self.num_added += 1
        self.sampler.extend(torch.arange(first, first + count))
        return self.num_added - 1

    def _append(self, *entry: int) -> None:
        if self._end == len(self._index):  # full: keep what is alive, in twice the room that it takes
            alive = self._index[self._oldest : self._end]
            self._index = np.concatenate([alive, np.zeros((max(len(alive), 64), 3), np.int64)])
            self._oldest, self._end = 0, len(alive)
        self._index[self._end] = entry
        self._end += 1

    def skip(self, count: int) -> None:
        """Count episodes as added and dropped, so that the numbers of a continued run go on."""
        assert not len(self)
        self.num_added += count

    # -- reading ------------------------------------------------------------------------------------------------------

    def episode(self, number: int) -> RingEpisode:
        """Copy an episode that has not been dropped, by its number."""
        first, steps, task = self._index[self._oldest + number - self.num_dropped].tolist()
        rows = torch.arange(first, first + steps + 1, device=self.rows.device) % self.capacity
        return RingEpisode(self.rows[rows].cpu(), task, bool(self._row_terminated[rows[-1]]))

    def _drawn(self, column: int) -> Tensor:
        alive: NDArray[np.int64] = self._index[self._oldest : self._end]
        return torch.from_numpy(alive[alive[:, 1] >= self.horizon, column])

    @property
    def first_rows(self) -> Tensor:
        """Number of the first row of each episode that is drawn from, [N] int64, counting on beyond the capacity."""
        return self._drawn(0)

    @property
    def lengths(self) -> Tensor:
        """Steps of each episode that is drawn from, [N] int64."""
        return self._drawn(1)

    @property
    def task(self) -> Tensor:
        """Task id of each episode that is drawn from, [N] int64."""
        return self._drawn(2)

    def gather(self, rows: Tensor) -> Batch:
        """Collect the batch of rows [H+1, B], numbers that may count on beyond the capacity, on the ring's device."""
        numbers = rows.to(self.rows.device)
        rows = numbers % self.capacity
        records = self.rows.index_select(0, rows.flatten()).view(*rows.shape, -1)
        obs, action, reward = self.row_format.split(records)
        if isinstance(self.row_format, FrameFormat):
            obs = self._stacked(numbers, self.row_format)
            if self.row_format.state_dim:
                state = self.row_format.states(records).contiguous().view(torch.uint8)
                obs = torch.cat([state, obs.flatten(2)], -1)
        else:
            obs = obs.float().contiguous()
        return Batch(
            obs,
            action[1:].float().contiguous(),
            reward[1:].unsqueeze(-1).contiguous(),
            self._row_task[rows[0]].long(),
            terminated=self._row_terminated[rows[1:]].float().unsqueeze(-1) if self._terminations else None,
        )

    def _stacked(self, numbers: Tensor, row_format: FrameFormat) -> Tensor:
        """Put the newest frames of rows [H+1, B] side by side, uint8 [H+1, B, C, height, width]."""
        first, frames = self._row_first[numbers % self.capacity], self.rows[:, : row_format.frame_words]
        stack = []
        for age in reversed(range(row_format.stacked)):
            rows = torch.maximum(numbers - age, first) % self.capacity
            stack.append(row_format.frames(frames.index_select(0, rows.flatten())).view(*rows.shape, *row_format.frame))
        return torch.cat(stack, 2)

    def columns(self) -> dict[str, Tensor]:
        """View all rows by column, as a torchrl buffer takes them; ``terminated`` only if it is told."""
        obs, action, reward = self.row_format.split(self.rows)
        columns = {"obs": obs, "action": action, "reward": reward}
        return columns | ({"terminated": self._row_terminated} if self._terminations else {})


def _make(file: Path, size: int) -> None:
    """Make a file of ``size`` bytes; writing through a map into a full disk would end the process."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("wb") as opened:
            reserve(opened.fileno(), size)
    except OSError as error:
        file.unlink(missing_ok=True)
        raise ValueError(
            f"No room for the replay buffer in {file} ({size_text(size)}): {error}. Make room, or set buffer_size lower"
        ) from error
