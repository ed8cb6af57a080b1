"""The files of Minari's data sets: HDF5, Arrow and Parquet.

Files that point to other files, which HDF5 can, are refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tdmpc2.data.exchange.spaces import Leaf
from tdmpc2.support.extras import install_hint
from tdmpc2.support.reading import NotRegularError, check_regular
from tdmpc2.support.text import cut, shown

ENDS = ("terminations", "truncations")
AGAIN = "Download or record the data set again"
_COLUMNS = ("observations", "actions", "rewards", *ENDS)
#: Bytes of numbers that a byte of a file may stand for; constant columns are compressed a thousand times.
_MOST_COMPRESSED = 2_000


class Columns(Protocol):
    """The values of one episode."""

    def end(self, name: str) -> NDArray[Any]:
        """Marks [T] of terminations or truncations."""

    def rewards(self) -> NDArray[Any]:
        """Rewards [T]."""

    def part(self, kind: str, leaf: Leaf) -> NDArray[Any]:
        """A part of ``observations`` [T+1, ...] or ``actions`` [T, ...]."""


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
            raise ValueError(f"{self.file} cannot be read as HDF5 ({cut(str(error), 80)}). {AGAIN}") from error
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()  # type: ignore[attr-defined]
        self._open = None

    def files(self, _: int) -> list[Path]:
        return [self.file]

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
            raise ValueError(f"{self.origin}: {'.'.join(keys)} is no array of numbers in this file. {AGAIN}")
        return np.asarray(found[()])


def _member(library: Any, group: Any, name: str, origin: str) -> Any:
    """Open what a group holds itself; links to other files are not followed."""
    known = isinstance(group, library.Group) and "/" not in name and name not in (".", "..")
    link = group.get(name, getlink=True) if known else None  # a path would pass through links
    if not isinstance(link, library.HardLink):
        raise ValueError(f"{origin}: '{cut(name, 80)}' is missing or not in this file. {AGAIN}")
    return group[name]


def hdf5(root: Path) -> _Hdf5:
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

    def files(self, episodes: int) -> list[Path]:
        return [self.file, *(path for number in range(episodes) for path in self._of(number))]

    def _of(self, number: int) -> list[Path]:
        folder = self._root / str(number)
        return sorted(path for path in folder.glob(f"*.{self._form}") if path.is_file() and not path.is_symlink())

    def episode(self, number: int, origin: str) -> _ArrowEpisode:
        folder, files = self._root / str(number), self._of(number)
        if not files:
            raise ValueError(f"{origin}: {folder} holds no .{self._form} file. {AGAIN}")
        if len(files) > 1:
            raise ValueError(f"{origin}: {folder} holds {len(files)} files, expected one. {AGAIN}")
        try:
            dataset = self._library.dataset(files[0], format=self._form)
            names = [name for name in _COLUMNS if name in dataset.schema.names]
            size = sum(_row_bytes(dataset.schema.field(name).type) for name in names) * dataset.count_rows()
            if size > max(files[0].stat().st_size * _MOST_COMPRESSED, 2**26):
                raise ValueError(f"{origin}: {folder} declares {size:,} bytes, more than its file can hold. {AGAIN}")
            table = dataset.to_table(columns=names)
        except _NoNumbers as error:
            raise ValueError(f"{origin}: a column holds {error}, expected numbers. {AGAIN}") from None
        except (OSError, self._library.ArrowException) as error:
            raise ValueError(f"{origin}: {folder} is damaged ({cut(str(error), 80)}). {AGAIN}") from error
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
                raise ValueError(f"{self.origin}: {kind} has no part {shown(key)}. {AGAIN}")
            column = column.field(key)
        values = self._numbers(column.flatten() if hasattr(column.type, "list_size") else column)
        rows = self.table.num_rows
        if values.size != rows * leaf.size:
            raise ValueError(f"{self.origin}: {kind} has {values.size:,} numbers in {rows:,} rows. {AGAIN}")
        values = values.reshape(rows, *leaf.shape)
        return values if kind == "observations" else values[:-1]

    def _column(self, name: str) -> Any:
        if name not in self.table.column_names:
            raise ValueError(f"{self.origin}: {name} is missing. {AGAIN}")
        return self.table.column(name).combine_chunks()

    def _numbers(self, column: Any) -> NDArray[Any]:
        values = np.asarray(column.to_numpy(zero_copy_only=False))
        if values.dtype.kind not in "fiub":
            raise ValueError(f"{self.origin}: a column holds {values.dtype}, expected numbers. {AGAIN}")
        return values


def arrow(root: Path, form: str) -> _Arrow:
    try:
        import pyarrow
        import pyarrow.dataset
    except ImportError as error:
        raise ModuleNotFoundError(f"data sets in {form} need pyarrow: {install_hint('lerobot')}") from error

    class Library:
        dataset = staticmethod(pyarrow.dataset.dataset)
        ArrowException = pyarrow.ArrowException

    return _Arrow(root, form, Library)
