"""Demonstrations of MMBench (newt): a file ``TASK.pt`` for each task, a pickled TensorDict of rows.

Its rows are those of TD-MPC2's replay buffers: one for each observation, the first of an episode with an action, reward
and termination that are not a number, with the number of the row's episode beside them. Whatever else such a file has
(image features, values) is not read.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from tdmpc2.data.chunks import chunk_checksums, read_tensordict
from tdmpc2.data.data_target import DataTarget
from tdmpc2.data.exchange.foreign import Episode, naming_damage
from tdmpc2.tasks import TaskSpec

_FIELDS = ("obs", "action", "reward")
_AGAIN = "Download the file again"


@dataclass(frozen=True)
class Demonstrations:
    """An opened file; one :class:`~tdmpc2.data.exchange.foreign.Foreign`.

    Attributes:
        path: the file.
        spec: its task.
        lengths, terminated: of each episode.
        first: number of each episode's first row.
        rows: obs [R, O], action [R, A], reward [R], mapped from the file.
    """

    path: Path
    spec: TaskSpec
    lengths: Sequence[int] = field(repr=False)
    terminated: Sequence[bool] = field(repr=False)
    first: Sequence[int] = field(repr=False)
    rows: dict[str, Tensor] = field(repr=False)

    @classmethod
    def open(cls, source: str | os.PathLike[str], target: DataTarget) -> Demonstrations:
        """Open a file without running code from it.

        Raises:
            ValueError: damaged, or not of rows as above.
        """
        path = Path(source).expanduser()
        with naming_damage(str(path)):
            return cls._open(path, target.spec)

    @classmethod
    def _open(cls, path: Path, spec: TaskSpec) -> Demonstrations:
        rows = read_tensordict(path)
        if missing := [name for name in (*_FIELDS, "episode") if name not in rows]:
            raise ValueError(f"{path} has no field {missing[0]}: it is no file of demonstrations")
        number = _column(path, "episode", rows["episode"]).long()
        changes = (number.diff() != 0).nonzero().squeeze(1) + 1
        first = [0, *changes.tolist()]
        counts = torch.tensor([*first[1:], len(number)]) - torch.tensor(first)
        if len(set(number[first].tolist())) < len(first) or (counts < 2).any():
            raise ValueError(f"{path}: its rows are not those of one episode after another. {_AGAIN}")
        for name in _FIELDS:
            kind = rows[name].dtype
            if len(rows[name]) != len(number) or not kind.is_floating_point:
                raise ValueError(f"{path}: {name} has the shape {list(rows[name].shape)} of {kind}. {_AGAIN}")
        rows = {name: rows[name] for name in (*_FIELDS, "terminated") if name in rows}
        last = torch.tensor(first) + counts - 1
        ends = torch.zeros(len(first), dtype=torch.bool)
        if "terminated" in rows:
            marks = _column(path, "terminated", rows["terminated"]).nan_to_num(0) != 0
            ends = marks[last]
            if int(marks.sum()) != int(ends.sum()):
                raise ValueError(f"{path}: an episode terminates before its last row. {_AGAIN}")
        return cls(path, spec, (counts - 1).tolist(), ends.tolist(), first, rows)

    @property
    def files(self) -> list[Path]:
        """The file alone."""
        return [self.path]

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Compare the file with its CRC-32s once its episodes have been read."""
        with chunk_checksums(self.path) as sums:
            yield
            sums.finish()

    def read(self, number: int) -> Episode:
        """Read an episode, without the zeros that pad it to the sizes of all tasks."""
        own = slice(self.first[number], self.first[number] + self.lengths[number] + 1)
        obs = self._cut("obs", self.rows["obs"][own], self.spec.obs_dim, number)
        action = self._cut("action", self.rows["action"][own][1:], self.spec.action_dim, number)
        reward = _column(self.path, "reward", self.rows["reward"])[own][1:]
        return Episode(obs.float().numpy(), action.float().numpy(), reward.float().numpy())

    def _cut(self, name: str, values: Tensor, size: int, number: int) -> Tensor:
        if values.ndim != 2 or values.shape[1] < size or values[:, size:].any():
            raise ValueError(
                f"{self.path}, episode {number}: {name} has {values.shape[-1]} numbers, {self.spec.name} has {size}"
            )
        return values[:, :size].contiguous()


def task_of(source: str | os.PathLike[str], task: str | None, task_set: str | None) -> DataTarget:
    """Find the task of a file: as the user says, or by its name.

    Raises:
        ValueError: unknown.
    """
    if task is not None:
        return DataTarget.of(task, task_set)
    name = Path(source).stem
    try:
        return DataTarget.of(name, task_set, from_file=True)
    except ValueError as error:
        raise ValueError(
            f"{source} is not named after a task that is known here: name it, task=NAME ({error})"
        ) from error


def _column(path: Path, name: str, values: Tensor) -> Tensor:
    """A field of one number for each row, [R]."""
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim != 1:
        raise ValueError(f"{path}: {name} has the shape {list(values.shape)}, expected a number for each row. {_AGAIN}")
    return values
