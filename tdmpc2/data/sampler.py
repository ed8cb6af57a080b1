"""Slices of episodes for training, drawn the same way by training and by a torchrl replay buffer.

Which slices make up a batch is a pure function of (seed, step): resuming needs no saved position, several threads may
draw different steps at a time, and several processes need no coordination.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchrl.data.replay_buffers.samplers import Sampler

from tdmpc2.data.batch import Batch
from tdmpc2.support.draws import numbered_generator
from tdmpc2.support.entries import check_entries, whole
from tdmpc2.support.files import read_json, write_text

Indices = NDArray[np.int64]


class Episodes(Protocol):
    """Episodes whose rows lie end to end; an :class:`~tdmpc2.data.dataset.EpisodeDataset` is one.

    In a :class:`~tdmpc2.data.ring.ReplayRing` they lie in a ring: row numbers count on beyond its end, and it is those
    numbers modulo the size of the ring that are read.
    """

    @property
    def task(self) -> Tensor:
        """Task id of each episode, [N] int64."""

    @property
    def first_rows(self) -> Tensor:
        """Number of each episode's first row, [N] int64."""

    @property
    def lengths(self) -> Tensor:
        """Steps of each episode, one less than its rows, [N] int64."""

    def gather(self, rows: Tensor) -> Batch:
        """Collect the batch of rows [H+1, B] int64."""


E = TypeVar("E", bound=Episodes)


def draw_slices(
    num_episodes: int | Indices, lengths: int | Indices, step: int, batch_size: int, horizon: int, seed: int
) -> tuple[Indices, Indices]:
    """Draw episode and first row of each slice of a batch: uniform over episodes, then over the starts 0 to L - H.

    What is drawn is a function of seed and step alone (:func:`~tdmpc2.support.draws.numbered_generator`).

    Args:
        num_episodes: N; or [T] numbers of episodes per task, to draw the task first, all equally likely. Episodes are
            then numbered task by task.
        lengths: L of all episodes, or [N] of each.
        step: number of the update, from 0.
        batch_size: B.
        horizon: H.
        seed: seed of the run.

    Returns:
        episode [B] and start [B], int64.

    Raises:
        ValueError: the horizon does not fit into the shortest episode.
    """
    shortest = lengths if isinstance(lengths, int) else int(lengths.min())
    if not 1 <= horizon <= shortest:
        raise ValueError(f"horizon={horizon} must be between 1 and {shortest}, the length of the shortest episode")
    generator = numbered_generator(seed, step)
    if isinstance(num_episodes, np.ndarray):
        task = generator.integers(len(num_episodes), size=batch_size)
        episode = np.cumsum(num_episodes)[task] - 1 - generator.integers(num_episodes[task])
    else:
        episode = generator.integers(num_episodes, size=batch_size)
    # The generator gives the same numbers for one bound and for many equal ones.
    starts = lengths[episode] if isinstance(lengths, np.ndarray) else lengths
    return episode, generator.integers(starts - horizon + 1, size=batch_size)


class SliceSampler(Sampler, Generic[E]):
    """Uniform slices of episodes of any lengths, each inside one episode.

    Training calls :meth:`rows` and :meth:`gather`, or :meth:`draw`. The same object is the ``sampler`` of a torchrl
    buffer, whose batch number ``step`` has the same rows (:func:`~tdmpc2.data.replay_buffer.replay_buffer`).

    Args:
        dataset: the episodes.
        episodes: numbers of those to draw from, [n] int64; all by default.
        balance: ``episodes`` draws an episode uniformly; ``tasks`` draws a task uniformly, then one of its episodes.
        horizon: H of the slices a torchrl buffer samples.
        seed: seed of the slices a torchrl buffer samples; the buffer's own generator is not used.
        step: number of the first batch a torchrl buffer samples.
    """

    def __init__(
        self,
        dataset: E,
        episodes: Tensor | None = None,
        balance: str = "episodes",
        *,
        horizon: int = 3,
        seed: int = 1,
        step: int = 0,
    ) -> None:
        super().__init__()
        self.dataset, self.selection = dataset, (episodes, balance)
        self.horizon, self.seed, self.step = horizon, seed, step
        self._read_index()

    def _read_index(self) -> None:
        """Note where the episodes lie: first rows [n], lengths ([n], or L of all) and counts as of draw_slices."""
        episodes, balance = self.selection
        self._stale = False
        task = self.dataset.task.cpu()
        order = torch.arange(len(task)) if episodes is None else episodes.cpu()
        self._counts: int | Indices = len(order)
        if balance == "tasks":
            order = order[task[order].argsort(stable=True)]
            self._counts = task[order].unique(return_counts=True)[1].numpy()
        self._episodes = order
        self._first_rows = self.dataset.first_rows[order]
        lengths = self.dataset.lengths[order].numpy()
        equal = len(lengths) > 0 and (lengths == lengths[0]).all()
        self._lengths: int | Indices = int(lengths[0]) if equal else lengths

    def __len__(self) -> int:
        """Count the episodes that are drawn from."""
        if self._stale:
            self._read_index()
        return len(self._episodes)

    def __repr__(self) -> str:
        """Name what is drawn from and what a torchrl buffer samples next."""
        return (
            f"SliceSampler({len(self):,} episodes, balance={self.selection[1]}, horizon={self.horizon}, "
            f"seed={self.seed}, step={self.step})"
        )

    def over(self, dataset: E) -> SliceSampler[E]:
        """Draw the same slices from another form of the same episodes, such as one with a teacher's columns."""
        return SliceSampler(dataset, *self.selection, horizon=self.horizon, seed=self.seed, step=self.step)

    def rows(self, step: int, batch_size: int, horizon: int, seed: int) -> Tensor:
        """Draw the numbers of a batch's rows among all rows: [H+1, B] int64 on the host; arguments as :meth:`draw`'s.

        Raises:
            ValueError: see :func:`draw_slices`.
        """
        return self._rows(*self._slices(step, batch_size, horizon, seed), horizon)

    def draw(self, step: int, batch_size: int, horizon: int, seed: int) -> Batch:
        """Draw the batch of a training step, on the data set's device; the same arguments give the same batch.

        Args:
            step: number of the update, from 0.
            batch_size: B.
            horizon: H.
            seed: seed of the run.

        Raises:
            ValueError: see :func:`draw_slices`.
        """
        return self.gather(self.rows(step, batch_size, horizon, seed))

    def gather(self, rows: Tensor) -> Batch:
        """Collect the batch of rows [H+1, B], on the data set's device."""
        return self.dataset.gather(rows)

    def _slices(self, step: int, batch_size: int, horizon: int, seed: int) -> tuple[Tensor, Tensor]:
        """Positions in ``_episodes`` and starts of a batch, [B] each."""
        if self._stale:
            self._read_index()
        episode, start = draw_slices(self._counts, self._lengths, step, batch_size, horizon, seed)
        return torch.from_numpy(episode), torch.from_numpy(start)

    def _rows(self, position: Tensor, start: Tensor, horizon: int) -> Tensor:
        return self._first_rows[position] + start + torch.arange(horizon + 1)[:, None]

    # -- what a torchrl buffer calls ----------------------------------------------------------------------------------

    def sample(self, storage: Any, batch_size: int) -> tuple[Tensor, dict[str, Any]]:
        """Draw the next batch for a torchrl buffer.

        Args:
            storage: the buffer's rows, in the order of the data set's.
            batch_size: rows of all slices together, B (H + 1), as for torchrl's own slice samplers.

        Returns:
            Row numbers [B (H+1)], slice by slice, and the columns ``task`` and ``episode`` of the same shape.

        Raises:
            ValueError: no whole number of slices, or see :func:`draw_slices`.
        """
        slices, rest = divmod(batch_size, self.horizon + 1)
        if rest:
            raise ValueError(f"batch_size={batch_size} is no multiple of the {self.horizon + 1} rows of a slice")
        position, start = self._slices(self.step, slices, self.horizon, self.seed)
        self.step += 1
        episode = self._episodes[position].repeat_interleave(self.horizon + 1).to(self.dataset.task.device)
        rows = self._rows(position, start, self.horizon).T.flatten().to(episode.device) % len(storage)
        return rows, {"task": self.dataset.task[episode], "episode": episode}

    def add(self, index: int) -> None:
        """Note that a row was written: the episodes may be others now."""
        self._stale = True  # read anew when it is drawn from: a buffer is filled with many at once

    def extend(self, index: Tensor) -> None:
        """Note that rows were written: the episodes may be others now."""
        self._stale = True

    def state_dict(self) -> dict[str, Any]:
        """Give seed and step: all that decides what a buffer samples next."""
        return {"seed": self.seed, "step": self.step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from :meth:`state_dict`."""
        self.seed, self.step = state_dict["seed"], state_dict["step"]

    def dumps(self, path: str | Path) -> None:
        """Write :meth:`state_dict` into the directory ``path``."""
        write_text(Path(path) / "slices.json", json.dumps(self.state_dict()))

    def loads(self, path: str | Path) -> None:
        """Continue from what :meth:`dumps` wrote."""
        file = Path(path) / "slices.json"
        self.load_state_dict(check_entries(str(file), read_json(file), {"seed": whole(0, 2**64), "step": whole()}))

    def _empty(self) -> None:
        self.step = 0
