"""Data sets of Minari, read from their files one episode at a time.

The library itself would build an environment that a file names where a space is missing; nothing of that kind happens
here.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tdmpc2.data.data_target import DataTarget
from tdmpc2.data.exchange.foreign import Episode, naming_damage
from tdmpc2.data.exchange.minari_readers import AGAIN, ENDS, Columns, arrow, hdf5
from tdmpc2.data.exchange.spaces import Leaf, flatten, read_space, to_unit
from tdmpc2.support.entries import check_entries, nothing_or, one_of, text, whole
from tdmpc2.support.files import read_json
from tdmpc2.support.text import cut
from tdmpc2.tracking.progress import progress

_FORMATS = ("hdf5", "arrow", "parquet")
_METADATA = {
    "total_episodes": whole(0, 2**31),
    "data_format": one_of(_FORMATS),
    "observation_space": text(r"(?s).+", "a space as JSON"),
    "action_space": text(r"(?s).+", "a space as JSON"),
    "env_spec": nothing_or(text(r"(?s).*")).optional,
    "tdmpc2_task": text(r"(?s).{1,300}").optional,
}
#: Id of the environment in the JSON of its specification.
_ENV_ID = re.compile(r'"id"\s*:\s*"([^"]{1,300})"')


@dataclass(frozen=True)
class MinariData:
    """An opened data set; one :class:`~tdmpc2.data.exchange.foreign.Foreign`.

    Attributes:
        path: the file that it is known by.
        task: the task that the data set itself names, if it does.
        observations, actions: the parts of each, in their order.
        lengths, terminated: of each episode.
    """

    path: Path
    task: str | None
    observations: tuple[Leaf, ...]
    actions: tuple[Leaf, ...]
    lengths: Sequence[int] = field(repr=False)
    terminated: Sequence[bool] = field(repr=False)
    reader: Any = field(repr=False)

    @classmethod
    def open(cls, source: str | os.PathLike[str], quiet: bool = False) -> MinariData:
        """Open a data set and look at the ends of all its episodes.

        Args:
            source: its directory, or its id, such as ``mujoco/hopper/expert-v0``, among those that Minari has
                downloaded or recorded (``MINARI_DATASETS_PATH``, by default ``~/.minari/datasets``).
            quiet: show no progress.

        Raises:
            ValueError: no data set, damaged, or not of vectors.
            ModuleNotFoundError: the library that reads its form is not installed.
        """
        root = find_data(source)
        record = root / "metadata.json"
        content = check_entries(str(record), read_json(record), _METADATA, AGAIN, others=True)
        spaces = [read_space(f"{record}: {name}", content[name]) for name in ("observation_space", "action_space")]
        to_unit(spaces[1], f"{record}: action_space")  # refuses at once
        reader = hdf5(root) if content["data_format"] == "hdf5" else arrow(root, content["data_format"])
        numbers = range(content["total_episodes"])
        with naming_damage(str(root)), reader:
            ends = [_end(root, number, reader) for number in (numbers if quiet else progress(numbers, "Reading ends"))]
        return cls(
            reader.file, _task_of(content), spaces[0], spaces[1], [length for length, _ in ends],
            [terminated for _, terminated in ends], reader,
        )  # fmt: skip

    def target(self, task: str | None, task_set: str | None) -> DataTarget:
        """Find the task that the data are of.

        Args:
            task: as the user says; None: as the data set says.
            task_set: the set that it is stored in; None: alone.

        Raises:
            ValueError: neither says, or it is unknown.
        """
        if task is not None:
            return DataTarget.of(task, task_set)
        if self.task is None:
            raise ValueError(f"{self.path.parent} does not say what task it is of: name it, task=NAME")
        try:
            return DataTarget.of(self.task, task_set, from_file=True)
        except ValueError as error:
            raise ValueError(
                f"{self.path.parent} is of '{cut(self.task, 80)}', which is not known here: name its task, task=NAME "
                f"({cut(str(error), 120)})"
            ) from error

    @property
    def files(self) -> list[Path]:
        """The files with the episodes."""
        files: list[Path] = self.reader.files(len(self.lengths))
        return files

    def opened(self) -> AbstractContextManager[object]:
        """Keep the file open."""
        opened: AbstractContextManager[object] = self.reader
        return opened

    def read(self, number: int) -> Episode:
        """Read an episode, while it is open."""
        origin = f"{self.path.parent}, episode {number}"
        steps = self.lengths[number]
        columns: Columns = self.reader.episode(number, origin)
        obs = flatten(self.observations, lambda leaf: columns.part("observations", leaf), steps + 1, origin)
        action = flatten(self.actions, lambda leaf: columns.part("actions", leaf), steps, origin)
        reward = columns.rewards().astype(np.float32)
        return Episode(obs, to_unit(self.actions, origin)(action), reward)


def find_data(source: str | os.PathLike[str]) -> Path:
    """Find the directory ``data`` of a data set by its path or id.

    Raises:
        ValueError: there is none.
    """
    named = Path(source).expanduser()
    root = Path(os.environ.get("MINARI_DATASETS_PATH") or Path.home() / ".minari" / "datasets").expanduser()
    for folder in (named, named / "data", root / named / "data"):
        if (folder / "metadata.json").is_file():
            return folder
    raise ValueError(
        f"{source} is no data set of Minari: expected a directory with data/metadata.json, or the id of one in {root} "
        f"(`minari download {source}` fetches it)"
    )


def _task_of(content: dict[str, Any]) -> str | None:
    if "tdmpc2_task" in content:
        return str(content["tdmpc2_task"])
    found = _ENV_ID.search(content.get("env_spec") or "")
    return found[1] if found else None


def _end(root: Path, number: int, reader: Any) -> tuple[int, bool]:
    """Read the length of an episode, and whether it terminated."""
    origin = f"{root}, episode {number}"
    columns = reader.episode(number, origin)
    rewards, (terminations, truncations) = columns.rewards(), map(columns.end, ENDS)
    for name, values in (("terminations", terminations), ("truncations", truncations)):
        if values.shape != rewards.shape or values.ndim != 1 or not len(values):
            raise ValueError(f"{origin}: {name} has the shape {values.shape}, rewards {rewards.shape}. {AGAIN}")
        if values[:-1].any():
            raise ValueError(f"{origin}: {name} has an end before the last step. {AGAIN}")
    return len(rewards), bool(terminations[-1])
