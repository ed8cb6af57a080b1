"""The episode store: one directory of memory-mapped arrays, opened at once whatever its size.

rows.npy    [N, L+1] records of obs, action and reward (:mod:`tdmpc2.data.rows`); row 0 holds the first observation,
            row t what the t-th step led to. Numpy alone reads it: ``np.load("rows.npy", mmap_mode="r")["obs"]``.
task.npy    [N] task id of each episode
meta.json   version, task names and sizes in id order, number of episodes, bytes and checksums of the other files

That is format 1, of episodes of one length that end at their time limit. Format 2 holds any others; in it the rows of
the episodes lie one after another, [R], and there are two more files::

    length.npy      [N] steps of each episode, one less than its rows
    terminated.npy  [N] 1 where the last step ended the episode for good, 0 where its time limit did
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import os
import warnings
import weakref
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from io import BytesIO, FileIO
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor

from tdmpc2.data.index import EpisodeIndex
from tdmpc2.data.store.meta import AGAIN, StoreMeta
from tdmpc2.support.reading import open_regular

_PIECE = 64  # episodes hashed at a time: 4 MB of MT30


@dataclass(frozen=True, eq=False)
class EpisodeStore:
    """Open store. Rows are read from disk when they are touched.

    Attributes:
        path: its directory.
        meta: what it holds.
        rows: [N, L+1, W] int32 records, or [R, W] where episodes have lengths of their own; mapped read-only: writing
            to them ends the process.
        index: task, length and end of each episode.
        file: ``rows.npy``, open as long as this object lives: another store may come under its name.
    """

    path: Path
    meta: StoreMeta
    rows: Tensor
    index: EpisodeIndex
    file: FileIO = field(repr=False)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> EpisodeStore:
        """Map a store into memory; its size does not matter.

        Raises:
            ValueError: not a store, or a file that is not as long or of the type that ``meta.json`` says.
        """
        root = Path(path).expanduser()
        meta = StoreMeta.read(root / "meta.json")
        mapped, offset, file = _map(root / "rows.npy", meta.shape, meta.row_format.record, meta.files["rows.npy"].bytes)
        try:
            index = read_index(root, meta, {name: _read_column(root / name, meta) for name in meta.columns})
        except BaseException:
            file.close()
            raise
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The given buffer is not writable")
            rows = torch.frombuffer(mapped, dtype=torch.int32, offset=offset).view(*meta.shape, meta.row_format.words)
        store = cls(root, meta, rows, index, file)
        weakref.finalize(store, file.close)
        return store

    @property
    def task(self) -> Tensor:
        """Task id of each episode, [N] int64."""
        return self.index.task

    @cached_property
    def checksum(self) -> str:
        """SHA-256 of the file checksums and what they are of: equal for equal data, whatever it was imported from."""
        plain = json.loads(self.meta.to_json())
        del plain["source"], plain["selection"]
        return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()

    def verifier(self) -> Callable[[Tensor], None]:
        """Make a function that compares the blocks of some episodes [n] with their checksums, each block once.

        It may be called in a thread beside one that reads.
        """
        done: set[int] = set()

        def verify(episodes: Tensor) -> None:
            for block in (episodes // self.meta.block).unique().tolist():
                if block not in done:
                    self._verify_block(block)
                    done.add(block)

        return verify

    def _verify_block(self, block: int) -> None:
        first, count, digest = block * self.meta.block, self.meta.block, hashlib.sha256()
        count = min(count, self.meta.episodes - first)
        for start in range(first, first + count, _PIECE):
            digest.update(self.read(start, min(_PIECE, first + count - start)).numpy().data)
        recorded = self.meta.files["rows.npy"].sha256[block]
        if (found := digest.hexdigest()) != recorded:
            raise ValueError(
                f"{self.path / 'rows.npy'}, episodes {first}-{first + count - 1}: checksum {found[:16]} instead of "
                f"{recorded[:16]}. {AGAIN}"
            )

    def read(self, first: int, count: int) -> Tensor:
        """Read episodes ``first`` to ``first + count - 1`` into memory in one sequential read.

        Returns:
            [count, L+1, W], or where episodes have lengths of their own [r, W], one after another.

        Raises:
            ValueError: the disk refused, or the file was cut.
        """
        words = self.rows.shape[-1]
        offset = (
            self.meta.files["rows.npy"].bytes - 4 * self.rows.numel() + 4 * words * int(self.index.first_rows[first])
        )
        values = np.empty(int(self.index.counts[first : first + count].sum()) * words, np.int32)
        rest = values.data.cast("B")
        try:
            while rest:
                if not (done := _read_at(self.file, rest, offset)):
                    raise ValueError(f"{self.path / 'rows.npy'} has become shorter. {AGAIN}")
                offset, rest = offset + done, rest[done:]
        except OSError as error:
            raise ValueError(f"{self.path / 'rows.npy'} cannot be read: {error}. {AGAIN}") from error
        return torch.from_numpy(values.reshape(-1, *self.rows.shape[1:]))


def header(shape: tuple[int, ...], dtype: np.dtype) -> bytes:
    """Write the first bytes of a ``.npy`` file."""
    text = BytesIO()
    np.lib.format.write_array_header_1_0(
        text, {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    )
    return text.getvalue()


def _read_column(path: Path, meta: StoreMeta) -> np.ndarray:
    """Read a file with a number for each episode, and compare it with its checksums."""
    dtype, file = meta.columns[path.name], meta.files[path.name]
    mapped, start, _ = _map(path, (meta.episodes,), dtype, file.bytes)
    values = np.frombuffer(mapped[start:], dtype)
    if path.name == "task.npy":  # which says more than a checksum: it may be of other tasks
        check_column(path, values, meta)
    for number, recorded in enumerate(file.sha256):
        first = number * meta.block
        own = values[first : first + meta.block]
        if (found := hashlib.sha256(own.data).hexdigest()) != recorded:
            raise ValueError(
                f"{path}, episodes {first}-{first + len(own) - 1}: checksum {found[:16]} instead of {recorded[:16]}. "
                f"{AGAIN}"
            )
    return values


def check_column(path: Path, values: np.ndarray, meta: StoreMeta, first: int = 0) -> None:
    """Require numbers that a file with one for each episode can hold; messages count episodes from ``first``.

    Raises:
        ValueError: a task that is not of the set, a length that no task has, or what is neither terminated nor not.
    """
    low, high, words = {
        "task.npy": (0, len(meta.tasks) - 1, "the task id"),
        "length.npy": (1, meta.layout.longest, "the number of steps"),
        "terminated.npy": (0, 1, "the mark of termination"),
    }[path.name]
    if len(bad := np.flatnonzero((values < low) | (values > high))):
        limits = f"names {len(meta.tasks)} tasks" if path.name == "task.npy" else f"allows {low} to {high}"
        raise ValueError(
            f"{path}: {words} is {values[bad[0]]} in episode {first + bad[0]}, but {path.with_name('meta.json')} "
            f"{limits}. {AGAIN}"
        )


def read_index(root: Path, meta: StoreMeta, columns: Mapping[str, np.ndarray]) -> EpisodeIndex:
    """Make the index of a store from its files with a number for each episode.

    Raises:
        ValueError: see :func:`check_column`; or the lengths do not add up to the rows that there are.
    """
    for name, values in columns.items():
        check_column(root / name, values, meta)
    task = torch.from_numpy(columns["task.npy"].astype(np.int64))
    if meta.rows is None:
        return EpisodeIndex.equal(task, meta.layout.rows - 1)
    lengths = torch.from_numpy(columns["length.npy"].astype(np.int64))
    index = EpisodeIndex(task, lengths, torch.from_numpy(columns["terminated.npy"].astype(bool)))
    if index.num_rows != meta.rows:
        raise ValueError(
            f"{root / 'length.npy'} is of {index.num_rows:,} rows, but {root / 'meta.json'} has {meta.rows:,}. {AGAIN}"
        )
    return index


def _read_at(file: FileIO, buffer: memoryview, offset: int) -> int:
    """Read from a position of a file that other threads and processes read from as well."""
    if hasattr(os, "preadv"):
        return os.preadv(file.fileno(), [buffer], offset)
    with open_regular(file.name) as own:
        own.seek(offset)
        return own.readinto(buffer) or 0


def _map(path: Path, shape: tuple[int, ...], dtype: np.dtype, size: int) -> tuple[mmap.mmap, int, FileIO]:
    start = header(shape, dtype)
    with ExitStack() as refused:
        try:
            file = cast(FileIO, open_regular(path).detach())
            refused.callback(file.close)
            found = os.fstat(file.fileno()).st_size
            if found != size:
                raise ValueError(f"{path} has {found:,} bytes instead of {size:,}. {AGAIN}")
            if file.read(len(start)) != start or size != len(start) + math.prod(shape) * dtype.itemsize:
                raise ValueError(f"{path} does not hold {shape} of {dtype} as its meta.json says. {AGAIN}")
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise ValueError(f"{path} cannot be read: {error}. {AGAIN}") from error
        refused.pop_all()  # it stays open
    if hasattr(mmap, "MADV_RANDOM"):  # slices are far apart: reading ahead would read 30 times as much
        mapped.madvise(mmap.MADV_RANDOM)
    return mapped, len(start), file
