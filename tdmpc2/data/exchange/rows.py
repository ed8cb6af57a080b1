"""Episodes of a store or of chunk files, one by one, for what is written of them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from tdmpc2.data.exchange.foreign import Floats
from tdmpc2.data.index import EpisodeIndex
from tdmpc2.data.source import Source, open_source
from tdmpc2.data.store.parts import Part
from tdmpc2.tasks import TaskSpec

_AT_ONCE = 64  # episodes read together


class Own(NamedTuple):
    """An episode of T steps, cut to the sizes of its task."""

    number: int
    spec: TaskSpec
    obs: Floats  # [T+1, O]
    action: Floats  # [T, A]
    reward: Floats  # [T]
    terminated: bool


@dataclass(frozen=True)
class OwnData:
    """Opened data.

    Attributes:
        source: where they are from.
        index: task, length and end of each episode.
    """

    source: Source
    index: EpisodeIndex

    @classmethod
    def open(cls, data_dir: str | os.PathLike[str], task: str | None = None) -> OwnData:
        """Open an episode store, or a directory of chunk files.

        Raises:
            ValueError: see :func:`tdmpc2.data.source.open_source`.
        """
        source = open_source(data_dir, task)
        return cls(source, source.index)

    @property
    def tasks(self) -> list[TaskSpec]:
        """The tasks that have episodes, in id order."""
        return [self.source.specs[number] for number in self.index.task.unique().tolist()]

    def episodes(self, task: TaskSpec | None = None) -> Iterator[Own]:
        """Read the episodes one by one, those of a task or all.

        What is read is compared with the checksums of its file, where it has some.

        Raises:
            ValueError: damage.
        """
        first = 0
        for part in self.source.parts:
            wanted = torch.arange(len(part.index))
            if task is not None:
                wanted = wanted[part.index.task == self.source.specs.index(task)]
            if len(wanted):
                with part.verifying() as verify:
                    for some in wanted.split(_AT_ONCE):
                        verify(some)
                        rows = part.read(some)
                        for place, number in enumerate(some.tolist()):
                            own = {name: values[place] for name, values in rows.items()}
                            yield self._cut(first + number, part, number, own)
            first += len(part.index)

    def episode(self, number: int) -> Own:
        """Read one episode, without comparing checksums.

        Raises:
            ValueError: there is no such episode.
        """
        if not 0 <= number < len(self.index):
            raise ValueError(f"episode={number}: {self.source.path} has the episodes 0 to {len(self.index) - 1}")
        return self._episode(number)

    def place(self, number: int) -> tuple[Part, int]:
        """Find the file of an episode, and its number there."""
        for part in self.source.parts:
            if number < len(part.index):
                break
            number -= len(part.index)
        return part, number

    def _episode(self, number: int) -> Own:
        part, place = self.place(number)
        rows = {name: values[0] for name, values in part.read(torch.tensor([place])).items()}
        return self._cut(number, part, place, rows)

    def _cut(self, number: int, part: Part, place: int, padded: dict[str, Tensor]) -> Own:
        """Cut rows that are padded to the longest episode and the sizes of all tasks."""
        spec, steps = self.source.specs[int(part.index.task[place])], int(part.index.lengths[place])
        rows = {name: values.float().numpy() for name, values in padded.items()}
        return Own(
            number,
            spec,
            rows["obs"][: steps + 1, : spec.obs_dim],
            rows["action"][1 : steps + 1, : spec.action_dim],
            rows["reward"][1 : steps + 1],
            bool(part.index.terminated[place]),
        )
