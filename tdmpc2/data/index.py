"""The index of stored episodes: task, length and end of each; their rows lie one after another."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class EpisodeIndex:
    """Task, length and end of N episodes, on the host.

    Attributes:
        task: id of each, [N] int64.
        lengths: steps of each, one less than its rows, [N] int64.
        terminated: whether its last step ended it for good, and not merely a time limit, [N] bool.
    """

    task: Tensor
    lengths: Tensor
    terminated: Tensor

    @classmethod
    def equal(cls, task: Tensor, length: int) -> EpisodeIndex:
        """Describe episodes of one length without terminations, [N] task ids."""
        return cls(task, torch.full_like(task, length), torch.zeros(len(task), dtype=torch.bool))

    @classmethod
    def joined(cls, parts: list[EpisodeIndex]) -> EpisodeIndex:
        """Put episodes one after another."""
        return cls(*(torch.cat([getattr(part, name) for part in parts]) for name in ("task", "lengths", "terminated")))

    def __len__(self) -> int:
        """Count the episodes, N."""
        return len(self.task)

    @cached_property
    def counts(self) -> Tensor:
        """Rows of each episode, [N] int64."""
        return self.lengths + 1

    @property
    def num_rows(self) -> int:
        """Rows of all episodes, R."""
        return int(self.counts.sum())

    @cached_property
    def first_rows(self) -> Tensor:
        """Number of each episode's first row among all rows, [N] int64."""
        return self.counts.cumsum(0) - self.counts

    def take(self, episodes: Tensor) -> EpisodeIndex:
        """Keep some episodes, by their numbers [n] int64."""
        return EpisodeIndex(self.task[episodes], self.lengths[episodes], self.terminated[episodes])

    def rows_of(self, episodes: Tensor) -> Tensor:
        """Number the rows of some episodes [n], one after another, [r] int64."""
        counts = self.counts[episodes]
        own = torch.arange(int(counts.sum())) - (counts.cumsum(0) - counts).repeat_interleave(counts)
        return self.first_rows[episodes].repeat_interleave(counts) + own

    def is_equal(self, length: int) -> bool:
        """Tell if all episodes have this length and none terminated: then they need no index of their own."""
        return not bool(self.terminated.any()) and bool((self.lengths == length).all())

    def check_lengths(self, path: Path, most: int, remedy: str) -> None:
        """Require lengths that the task set allows.

        Raises:
            ValueError: an episode has no step, or more than ``most``.
        """
        if len(wrong := ((self.lengths < 1) | (self.lengths > most)).nonzero()):
            number = int(wrong[0])
            raise ValueError(
                f"{path}: episode {number} has {int(self.lengths[number])} steps, but the task set's have 1 to {most}. "
                f"{remedy}"
            )


def used_rows(lengths: Tensor, width: int | None = None) -> Tensor:
    """Mark the rows that episodes of some lengths [n] have in a table of ``width`` rows each, [n, width] bool."""
    counts = lengths + 1
    return torch.arange(int(counts.max()) if width is None else width) < counts[:, None]


def padded(rows: Tensor, lengths: Tensor) -> Tensor:
    """Lay rows [r, ...] of n episodes that follow one another out as [n, longest + 1, ...], zeros behind each end."""
    used = used_rows(lengths)
    table = torch.zeros(*used.shape, *rows.shape[1:], dtype=rows.dtype)
    table[used] = rows
    return table
