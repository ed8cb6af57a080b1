"""Data sets of Minari, read from their files: HDF5, Arrow and Parquet, one episode at a time.

The library itself would build an environment that a file names where a space is missing; nothing of that kind happens
here. Files that point to other files, which HDF5 can, are refused.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tdmpc2.data.exchange.foreign import Episode, Target, naming_damage
from tdmpc2.data.exchange.spaces import Leaf, flatten, read_space, to_unit
from tdmpc2.support.entries import check_entries, nothing_or, one_of, text, whole
from tdmpc2.support.extras import install_hint
from tdmpc2.support.files import read_json
from tdmpc2.support.reading import NotRegularError, check_regular
from tdmpc2.support.text import cut, shown
from tdmpc2.tracking.progress import progress

ENDS = ("terminations", "truncations")
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
_COLUMNS = ("observations", "actions", "rewards", "terminations", "truncations")
#: Bytes of numbers that a byte of a file may stand for; constant columns are compressed a thousand times.
_MOST_COMPRESSED = 2_000
_AGAIN = "Download or record the data set again"


class _Columns(Protocol):
    """The values of one episode."""

    def end(self, name: str) -> NDArray[Any]:
        """Marks [T] of terminations or truncations."""

    def rewards(self) -> NDArray[Any]:
        """Rewards [T]."""

    def part(self, kind: str, leaf: Leaf) -> NDArray[Any]:
        """A part of ``observations`` [T+1, ...] or ``actions`` [T, ...]."""


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
        content = check_entries(str(record), read_json(record), _METADATA, _AGAIN, others=True)
        spaces = [read_space(f"{record}: {name}", content[name]) for name in ("observation_space", "action_space")]
        to_unit(spaces[1], f"{record}: action_space")  # refuses at once
        reader = _hdf5(root) if content["data_format"] == "hdf5" else _arrow(root, content["data_format"])
        numbers = range(content["total_episodes"])
        with naming_damage(str(root)), reader:
            ends = [_end(root, number, reader) for number in (numbers if quiet else progress(numbers, "Reading ends"))]
        return cls(
            reader.file, _task_of(content), spaces[0], spaces[1], [length for length, _ in ends],
            [terminated for _, terminated in ends], reader,
        )  # fmt: skip

    def target(self, task: str | None, task_set: str | None) -> Target:
        """Find the task that the data are of.

        Args:
            task: as the user says; None: as the data set says.
            task_set: the set that it is stored in; None: alone.

        Raises:
            ValueError: neither says, or it is unknown.
        """
        if task is not None:
            return Target.of(task, task_set)
        if self.task is None:
            raise ValueError(f"{self.path.parent} does not say what task it is of: name it, task=NAME")
        try:
            return Target.of(self.task, task_set, from_file=True)
        except ValueError as error:
            raise ValueError(
                f"{self.path.parent} is of '{cut(self.task, 80)}', which is not known here: name its task, task=NAME "
                f"({cut(str(error), 120)})"
            ) from error

    def opened(self) -> AbstractContextManager[object]:
        """Keep the file open."""
        opened: AbstractContextManager[object] = self.reader
        return opened

    def read(self, number: int) -> Episode:
        """Read an episode, while it is open."""
        origin = f"{self.path.parent}, episode {number}"
        steps = self.lengths[number]
        columns = self.reader.episode(number, origin)
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
            raise ValueError(f"{origin}: {name} has the shape {values.shape}, rewards {rewards.shape}. {_AGAIN}")
        if values[:-1].any():
            raise ValueError(f"{origin}: {name} has an end before the last step. {_AGAIN}")
    return len(rewards), bool(terminations[-1])


# -- HDF5 -------------------------------------------------------------------------------------------------------------


class _Hdf5:
    """``main_data.hdf5``, open within a ``with`` block."""

    def __init__(self, root: Path, library: Any) -> None:
        self.file, self._library, self._open = root / "main_data.hdf5", library, None

    def __enter__(self) -> _Hdf5:
        try:
            check_regular(self.file)  # HDF5 would wait for a pipe
        except NotRegularError as error:
            raise ValueError(str(error)) from error
        try:
            self._open = self._library.File(self.file, "r")
        except OSError as error:
            raise ValueError(f"{self.file} cannot be read as HDF5 ({cut(str(error), 80)}). {_AGAIN}") from error
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()  # type: ignore[attr-defined]
        self._open = None

    def episode(self, number: int, origin: str) -> _Hdf5Episode:
        return _Hdf5Episode(_member(self._library, self._open, f"episode_{number}", origin), self._library, origin)


@dataclass(frozen=True)
class _Hdf5Episode:
    group: Any
    library: Any
    origin: str

    def end(self, name: str) -> NDArray[Any]:
        return self._values((name,))

    def rewards(self) -> NDArray[Any]:
        return self._values(("rewards",))

    def part(self, kind: str, leaf: Leaf) -> NDArray[Any]:
        return self._values((kind, *leaf.keys))

    def _values(self, keys: tuple[str, ...]) -> NDArray[Any]:
        found = self.group
        for key in keys:
            found = _member(self.library, found, key, self.origin)
        plain = isinstance(found, self.library.Dataset) and not found.is_virtual and found.external is None
        # What is declared but not stored costs the file nothing, and memory all.
        stored = plain and found.id.get_storage_size() * _MOST_COMPRESSED >= found.nbytes
        if not stored or found.dtype.kind not in "fiub" or found.size > 2**31:
            raise ValueError(f"{self.origin}: {'.'.join(keys)} is no array of numbers in this file. {_AGAIN}")
        return np.asarray(found[()])


def _member(library: Any, group: Any, name: str, origin: str) -> Any:
    """Open what a group holds itself; links to other files are not followed."""
    known = isinstance(group, library.Group) and "/" not in name and name not in (".", "..")
    link = group.get(name, getlink=True) if known else None  # a path would pass through links
    if not isinstance(link, library.HardLink):
        raise ValueError(f"{origin}: '{cut(name, 80)}' is missing or not in this file. {_AGAIN}")
    return group[name]


def _hdf5(root: Path) -> _Hdf5:
    try:
        import h5py
    except ImportError as error:
        raise ModuleNotFoundError(f"data sets in HDF5 need h5py: {install_hint('minari')}") from error
    return _Hdf5(root, h5py)


# -- Arrow and Parquet ------------------------------------------------------------------------------------------------


class _Arrow:
    """A directory with a folder for each episode."""

    def __init__(self, root: Path, form: str, library: Any) -> None:
        self.file, self._root, self._form, self._library = root / "metadata.json", root, form, library

    def __enter__(self) -> _Arrow:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def episode(self, number: int, origin: str) -> _ArrowEpisode:
        folder = self._root / str(number)
        files = sorted(path for path in folder.glob(f"*.{self._form}") if path.is_file() and not path.is_symlink())
        if not files:
            raise ValueError(f"{origin}: {folder} holds no .{self._form} file. {_AGAIN}")
        if len(files) > 1:
            raise ValueError(f"{origin}: {folder} holds {len(files)} files, expected one. {_AGAIN}")
        try:
            dataset = self._library.dataset(files[0], format=self._form)
            names = [name for name in _COLUMNS if name in dataset.schema.names]
            size = sum(_row_bytes(dataset.schema.field(name).type) for name in names) * dataset.count_rows()
            if size > max(files[0].stat().st_size * _MOST_COMPRESSED, 2**26):
                raise ValueError(f"{origin}: {folder} declares {size:,} bytes, more than its file can hold. {_AGAIN}")
            table = dataset.to_table(columns=names)
        except _NoNumbers as error:
            raise ValueError(f"{origin}: a column holds {error}, expected numbers. {_AGAIN}") from None
        except (OSError, self._library.ArrowException) as error:
            raise ValueError(f"{origin}: {folder} is damaged ({cut(str(error), 80)}). {_AGAIN}") from error
        return _ArrowEpisode(table.combine_chunks(), origin)


class _NoNumbers(Exception):
    """A type of Arrow's whose values take more memory than can be told from the number of rows."""


def _row_bytes(kind: Any) -> int:
    """Tell how many bytes a row of a column takes in memory.

    Raises:
        _NoNumbers: it holds text, lists of unequal lengths, or the like.
    """
    if hasattr(kind, "list_size"):
        return int(kind.list_size) * _row_bytes(kind.value_type)
    if hasattr(kind, "num_fields") and kind.num_fields and not hasattr(kind, "value_type"):
        return sum(_row_bytes(kind.field(i).type) for i in range(kind.num_fields))
    if hasattr(kind, "value_type"):  # a list without a size, or numbers that stand for text
        raise _NoNumbers(cut(str(kind), 80))
    try:
        return -(-int(kind.bit_width) // 8)
    except ValueError:  # text
        raise _NoNumbers(cut(str(kind), 80)) from None


@dataclass(frozen=True)
class _ArrowEpisode:
    """One row more than steps; the last one's action, reward and marks are filler."""

    table: Any
    origin: str

    def end(self, name: str) -> NDArray[Any]:
        return self._numbers(self._column(name))[:-1]

    def rewards(self) -> NDArray[Any]:
        return self._numbers(self._column("rewards"))[:-1]

    def part(self, kind: str, leaf: Leaf) -> NDArray[Any]:
        column = self._column(kind)
        for key in leaf.keys:
            names = [column.type.field(i).name for i in range(column.type.num_fields)]
            if key not in names:
                raise ValueError(f"{self.origin}: {kind} has no part {shown(key)}. {_AGAIN}")
            column = column.field(key)
        values = self._numbers(column.flatten() if hasattr(column.type, "list_size") else column)
        rows = self.table.num_rows
        if values.size != rows * leaf.size:
            raise ValueError(f"{self.origin}: {kind} has {values.size:,} numbers in {rows:,} rows. {_AGAIN}")
        values = values.reshape(rows, *leaf.shape)
        return values if kind == "observations" else values[:-1]

    def _column(self, name: str) -> Any:
        if name not in self.table.column_names:
            raise ValueError(f"{self.origin}: {name} is missing. {_AGAIN}")
        return self.table.column(name).combine_chunks()

    def _numbers(self, column: Any) -> NDArray[Any]:
        values = np.asarray(column.to_numpy(zero_copy_only=False))
        if values.dtype.kind not in "fiub":
            raise ValueError(f"{self.origin}: a column holds {values.dtype}, expected numbers. {_AGAIN}")
        return values


def _arrow(root: Path, form: str) -> _Arrow:
    try:
        import pyarrow
        import pyarrow.dataset
    except ImportError as error:
        raise ModuleNotFoundError(f"data sets in {form} need pyarrow: {install_hint('lerobot')}") from error

    class Library:
        dataset = staticmethod(pyarrow.dataset.dataset)
        ArrowException = pyarrow.ArrowException

    return _Arrow(root, form, Library)
