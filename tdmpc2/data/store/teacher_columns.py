"""Files of a frozen teacher's outputs for the episodes of a store: columns with one or more numbers for each row.

<store>/targets/<teacher>-<data>/reward.npy   [N, L+1] float32; row t is of the step that led to row t, as in the store;
                                              NaN: not computed yet (row 0, to which no step leads, stays so)
                                /reward.check.npy  [N, L+1] int16 check number of each of these numbers
                                /value.npy    the same of its value, with value.check.npy
                                /policy.npy   [N, L+1, 2A] of its policy prior: mean before tanh, log standard deviation
                                /plan.npy     [N, L+1, A] mean action of its plans, with plan.json: how they were made
                                /meta.json    whose outputs these are and of which data, with whole checksums
                <teacher>-<data>.lock         held while a file is made or computed

:mod:`tdmpc2.training.teacher_cache` fills them. A number once written is never changed, so that several runs may read
and fill one column at a time. One that does not fit its check number is damaged: it counts as missing, and is computed
again. Where several teachers teach a task each, <teacher> is a checksum of who teaches what, and the numbers of tasks
without a teacher are 0.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tdmpc2.data.store.column_making import check_made, write_made
from tdmpc2.data.store.store import EpisodeStore, header
from tdmpc2.support.entries import SHA256, check_entries, text, whole
from tdmpc2.support.files import check_free_disk, locked, replacing, write_text
from tdmpc2.support.mapped_files import FileChangedError
from tdmpc2.support.reading import load_json, open_regular
from tdmpc2.support.text import cut, shown

FORMAT = 1
#: Shape of what a column holds for each row, by its name, for actions of so many entries.
COLUMNS: dict[str, Callable[[int], tuple[int, ...]]] = {
    "reward": lambda actions: (),
    "value": lambda actions: (),
    "policy": lambda actions: (2 * actions,),
    "plan": lambda actions: (actions,),
}
_DTYPE = np.dtype("<f4")
_CHECK = np.dtype("<i2")
#: Entries of ``meta.json``.
_META = {"format": whole(1, FORMAT), "teacher": text(), "teacher_sha256": SHA256, "data_checksum": SHA256}
_BLOCK = 1 << 21  # numbers looked at at a time, 8 MB; checking them takes about ten times as much


@dataclass(frozen=True, eq=False)
class TeacherTargets:
    """Open column of a teacher's outputs.

    Attributes:
        store: the episodes it belongs to.
        path: its directory.
        name: which of :data:`COLUMNS`, see :func:`tdmpc2.distillation.outputs.teacher_columns`; a plan's is that of
            :mod:`tdmpc2.training.plan_labels`.
        values: [N, L+1] or [N, L+1, W] float32, mapped from the file. Use it as it is for a data set that is left on
            disk.
        checks: of the same shape, int16, mapped from the file beside it, see :func:`check_numbers`.
        writable: whether the file can be filled; otherwise what is written stays in this process.
    """

    store: EpisodeStore
    path: Path
    name: str
    values: Tensor
    checks: Tensor
    writable: bool

    @property
    def file(self) -> Path:
        """The column's file."""
        return self.path / f"{self.name}.npy"

    @property
    def check_file(self) -> Path:
        """The file of its check numbers."""
        return self.path / f"{self.name}.check.npy"

    def missing(self, episodes: Tensor | None = None) -> Tensor:
        """Mark the episodes that lack a number, [n] bool, among episodes [n] int64 (default: all)."""
        return torch.cat([block[:, 1:].isnan().flatten(1).any(1) for block in self._blocks(episodes)])

    def take(self, index: Tensor) -> Tensor:
        """Read the numbers of rows [...] of the store, [...] or [..., W], NaN where there is none or a damaged one.

        Raises:
            FileChangedError: a file has been cut: reading a page that it no longer has would end the process.
        """
        self._check_sizes()
        values = self.values.flatten(0, 1)[index]
        return values.masked_fill(self.checks.flatten(0, 1)[index] != check_numbers(values), torch.nan)

    def put(self, index: Tensor, numbers: Tensor) -> None:
        """Write numbers [...] or [..., W] to rows [...] of the store, where there is none or a damaged one."""
        found = self.take(index)
        rows = found.isnan().any(-1) if found.ndim > index.ndim else found.isnan()
        new = torch.where(found.isnan(), numbers, found)[rows]
        self.values.flatten(0, 1)[index[rows]] = new
        self.checks.flatten(0, 1)[index[rows]] = check_numbers(new)

    def complete(self, episodes: Tensor | None = None) -> bool:
        """Tell if all numbers of episodes [n] int64 (default: all) are there."""
        return not any(bool(block[:, 1:].isnan().any()) for block in self._blocks(episodes))

    def column(self, episodes: Tensor | None = None, device: torch.device | str = "cpu") -> Tensor:
        """Copy episodes [n] int64 (default: all) to the memory of a device, [n, L+1] or [n, L+1, W].

        Raises:
            ValueError: a number is missing.
        """
        count = len(self.values) if episodes is None else len(episodes)
        column = torch.empty(count, *self.values.shape[1:], dtype=torch.float32, device=device)
        done = 0
        for block in self._blocks(episodes):
            if block[:, 1:].isnan().any():
                raise ValueError(f"{self.file} is not complete: compute the rest with `distillation_cache=full`")
            column[done : done + len(block)] = block
            done += len(block)
        return column

    def flush(self) -> None:
        """Wait until all that was written is on the disk."""
        for path in (self.file, self.check_file):
            with open(path, "r+b") as file:
                os.fsync(file.fileno())

    def _check_sizes(self) -> None:
        for file, dtype in ((self.file, _DTYPE), (self.check_file, _CHECK)):
            size = _layout(self.name, self.store, dtype)[2]
            try:
                found = file.stat().st_size
            except OSError:
                continue  # what was deleted stays mapped
            if found < size:
                raise FileChangedError(f"{file} was cut from {size:,} to {found:,} bytes. {_again(self.path)}")

    def _blocks(self, episodes: Tensor | None) -> Iterator[Tensor]:
        """Yield copies of some episodes at a time, NaN where a number is missing or damaged."""
        block = episodes_at_once(self.values.shape)
        for own in (torch.arange(len(self.values)) if episodes is None else episodes.cpu()).split(block):
            self._check_sizes()
            values = self.values[own]
            yield values.masked_fill(self.checks[own] != check_numbers(values), torch.nan)


def episodes_at_once(shape: Sequence[int]) -> int:
    """Choose how many episodes of a column [N, L+1] or [N, L+1, W] are looked at at a time, at least one."""
    return max(1, _BLOCK // math.prod(shape[1:]))


def check_numbers(values: Tensor) -> Tensor:
    """Compute a check number of each float32 of [...], int16: another one if any single bit of it is another.

    A checksum of a whole file would not do for numbers that several processes write in any order.
    """
    bits = values.contiguous().view(torch.int32).long() & 0xFFFFFFFF
    mixed = ((bits ^ 0x5BD1E995) * 0x9E3779B1) & 0xFFFFFFFF  # zeros are not their own check number
    return (mixed >> 16).to(torch.int16)


def open_targets(
    store: EpisodeStore,
    teacher_sha256: str,
    teacher_name: str,
    name: str = "reward",
    made: Mapping[str, Any] | None = None,
) -> TeacherTargets:
    """Open a column of a teacher and a store; an empty one is made if there is none.

    Args:
        store: the episodes.
        teacher_sha256: checksum of the teacher's file, :func:`tdmpc2.checkpoints.files.file_sha256`.
        teacher_name: name of that file, for people who look into ``meta.json``.
        name: which column of :data:`COLUMNS`.
        made: how it is made, for a column that this does not follow from the teacher's file alone; plain values.

    Raises:
        ValueError: no room on the disk, a damaged column, one that was begun in another way, or episodes that have
            lengths of their own.
    """
    if store.meta.rows is not None:
        raise ValueError(
            f"{store.path}: a teacher's outputs are kept for episodes of one length, and these have lengths of their "
            "own: train with distillation_cache=off"
        )
    path = _path(store, teacher_sha256)
    if not all((path / f"{name}{ending}").exists() for ending in (".npy", ".check.npy")):
        meta = {"teacher": teacher_name, "teacher_sha256": teacher_sha256, "data_checksum": store.checksum}
        _create(path, name, store, meta, made)
    if made is not None:
        check_made(path, name, made)
    return open_column(path, name, store, teacher_sha256)


def find_targets(store: EpisodeStore, teacher_sha256: str, name: str) -> TeacherTargets | None:
    """Open a column as :func:`open_targets` does if it was begun; else there is none.

    Raises:
        ValueError: a damaged column.
    """
    path = _path(store, teacher_sha256)
    return open_column(path, name, store, teacher_sha256) if (path / f"{name}.npy").exists() else None


def _path(store: EpisodeStore, teacher_sha256: str) -> Path:
    return store.path / "targets" / _name(teacher_sha256, store.checksum)


def _layout(name: str, store: EpisodeStore, dtype: np.dtype = _DTYPE) -> tuple[tuple[int, ...], bytes, int]:
    """Shape [N, L+1] or [N, L+1, W], first bytes and size in bytes of a column or of its check numbers."""
    shape = (len(store.task), store.rows.shape[1], *COLUMNS[name](store.meta.layout.action_dim))
    start = header(shape, dtype)
    return shape, start, len(start) + math.prod(shape) * dtype.itemsize


def _create(
    path: Path, name: str, store: EpisodeStore, meta: dict[str, str], made: Mapping[str, Any] | None = None
) -> None:
    """Make an empty column, or the check numbers of one that an older version made.

    Every byte is written: a full disk would end a process that fills holes through a map.
    """
    shape, start, size = _layout(name, store)
    block, (episodes, *numbers) = episodes_at_once(shape), shape
    size += _layout(name, store, _CHECK)[2]
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(exist_ok=True)
        with one_process(path):
            if (path / f"{name}.npy").exists():
                if not (path / f"{name}.check.npy").exists():
                    _add_checks(path, name, store)
                return
            shutil.rmtree(temporary, ignore_errors=True)  # of a process that was killed here
            check_free_disk(path, size, "train with distillation_cache=off")
            try:
                temporary.mkdir()
                with open(temporary / f"{name}.npy", "wb") as file:
                    file.write(start)
                    for first in range(0, episodes, block):
                        file.write(np.full((min(block, episodes - first), *numbers), np.nan, _DTYPE).data)
                    file.flush()
                    os.fsync(file.fileno())
                _add_checks(temporary, name, store)
                if made is not None:
                    write_made(path if path.exists() else temporary, name, made)
                if path.exists():  # with other columns
                    os.rename(temporary / f"{name}.check.npy", path / f"{name}.check.npy")
                    os.rename(temporary / f"{name}.npy", path / f"{name}.npy")
                    return
                write_text(temporary / "meta.json", json.dumps({"format": FORMAT, **meta}, indent=1) + "\n")
                os.rename(temporary, path)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
    except (OSError, NotImplementedError) as error:  # the latter: a file system without locks
        raise ValueError(f"Could not make {path}: {error}. distillation_cache=off works without it") from error


def _add_checks(path: Path, name: str, store: EpisodeStore) -> None:
    """Write the check numbers of a column, as its numbers are now."""
    shape, start, size = _layout(name, store)
    column = path / f"{name}.npy"
    if column.stat().st_size != size:
        return  # opening it says so
    values = torch.from_numpy(np.memmap(column, _DTYPE, "c", len(start), shape))
    with replacing(path / f"{name}.check.npy") as temporary, open(temporary, "wb") as file:
        file.write(_layout(name, store, _CHECK)[1])
        for block in values.split(episodes_at_once(shape)):
            file.write(check_numbers(block).numpy().astype(_CHECK).data)


def open_column(path: Path, name: str, store: EpisodeStore, teacher_sha256: str | None = None) -> TeacherTargets:
    file = path / f"{name}.npy"
    try:
        meta = load_json(path / "meta.json")
        version, data, teacher = meta["format"], meta["data_checksum"], meta["teacher_sha256"]
        if type(version) is not int or version != FORMAT:
            raise ValueError(f"{path} has format {shown(version)}, this version reads {FORMAT}. {_again(path)}")
        check_entries(str(path / "meta.json"), meta, _META, _again(path))
        if data != store.checksum or teacher != (teacher_sha256 or teacher) or path.name != _name(teacher, data):
            raise ValueError(f"{path} is of other data or of another teacher than its name says. {_again(path)}")
        checked = path / f"{name}.check.npy"
        writable = os.access(file, os.W_OK) and (os.access(checked, os.W_OK) or not checked.exists())
        values = _map(name, file, store, _DTYPE, writable)
        checks = _map(name, checked, store, _CHECK, writable) if checked.exists() else None
    except _Wrong as error:
        raise ValueError(
            f"{error}. Delete {path / name}.npy and {name}.check.npy there: what they held is computed again by "
            f"training, and plans by `tdmpc2 targets ... columns={name}`"
        ) from error
    except (OSError, json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged [{type(error).__name__}: {cut(str(error))}]. {_again(path)}") from error
    except ValueError as error:
        if str(error).startswith(str(path)):
            raise
        raise ValueError(f"{path} is damaged [{cut(str(error))}]. {_again(path)}") from error
    if checks is None:  # of an older version, where nothing can be written
        checks = torch.cat([check_numbers(block) for block in values.split(episodes_at_once(values.shape))])
    return TeacherTargets(store, path, name, values, checks, writable)


class _Wrong(ValueError):
    """A file of another size or kind than its store needs."""


def _map(name: str, file: Path, store: EpisodeStore, dtype: np.dtype, writable: bool) -> Tensor:
    shape, start, size = _layout(name, store, dtype)
    with open_regular(file) as opened:
        if (found := os.fstat(opened.fileno()).st_size) != size:
            raise _Wrong(f"{file} has {found:,} bytes instead of {size:,}")
        if opened.read(len(start)) != start:
            raise _Wrong(f"{file} does not hold {shape} of {dtype.name}")
    return torch.from_numpy(np.memmap(file, dtype, "r+" if writable else "c", len(start), shape))


def _name(teacher_sha256: str, data_checksum: str) -> str:
    return f"{teacher_sha256[:16]}-{data_checksum[:16]}"


def _again(path: Path) -> str:
    return f"Delete the directory {path}: what it held is computed again"


def one_process(path: Path) -> AbstractContextManager[None]:
    """Let one process at a time make or compute the columns of a directory; the others wait for it."""
    return locked(
        path.with_name(f"{path.name}.lock"),
        f"Waiting for another process that is at work on {path}",
        wait=None,
        advice="distillation_cache=off works without it",
    )
