"""Files of a frozen teacher's outputs for the episodes of a store: columns with one number for each row.

<store>/targets/<teacher>-<data>/reward.npy   [N, L+1] float32; row t is of the step that led to row t, as in the store;
                                              NaN: not computed yet (row 0, to which no step leads, stays so)
                                /value.npy    the same of its value
                                /meta.json    whose outputs these are and of which data, with whole checksums
                <teacher>-<data>.lock         held while a file is made or computed

:mod:`tdmpc2.training.teacher_cache` fills them. A number once written is never changed, so that several runs may read
and fill one column at a time.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tdmpc2.data.store.store import EpisodeStore, header
from tdmpc2.support.files import check_free_disk, locked, write_text

FORMAT = 1
COLUMNS = ("reward", "value")
_DTYPE = np.dtype("<f4")
_BLOCK = 4096  # episodes looked at at a time: 8 MB of MT30


@dataclass(frozen=True, eq=False)
class TeacherTargets:
    """Open column of a teacher's outputs.

    Attributes:
        store: the episodes it belongs to.
        path: its directory.
        name: ``reward`` or ``value``, decoded, see :func:`tdmpc2.distillation.outputs.teacher_columns`.
        values: [N, L+1] float32, mapped from the file. Use it as it is for a data set that is left on disk.
        writable: whether the file can be filled; otherwise what is written stays in this process.
    """

    store: EpisodeStore
    path: Path
    name: str
    values: Tensor
    writable: bool

    @property
    def file(self) -> Path:
        """The column's file."""
        return self.path / f"{self.name}.npy"

    def missing(self, episodes: Tensor | None = None) -> Tensor:
        """Mark the episodes that lack a number, [n] bool, among episodes [n] int64 (default: all)."""
        return torch.cat([block[:, 1:].isnan().any(1) for block in self._blocks(episodes)])

    def complete(self, episodes: Tensor | None = None) -> bool:
        """Tell if all numbers of episodes [n] int64 (default: all) are there."""
        return not any(bool(block[:, 1:].isnan().any()) for block in self._blocks(episodes))

    def column(self, episodes: Tensor | None = None, device: torch.device | str = "cpu") -> Tensor:
        """Copy episodes [n] int64 (default: all) to the memory of a device, [n, L+1].

        Raises:
            ValueError: a number is missing.
        """
        count = len(self.values) if episodes is None else len(episodes)
        column = torch.empty(count, self.values.shape[1], dtype=torch.float32, device=device)
        done = 0
        for block in self._blocks(episodes):
            if block[:, 1:].isnan().any():
                raise ValueError(f"{self.file} is not complete: compute the rest with `distillation_cache=full`")
            column[done : done + len(block)] = block
            done += len(block)
        return column

    def _blocks(self, episodes: Tensor | None) -> Iterator[Tensor]:
        if episodes is None:
            yield from self.values.split(_BLOCK)
        else:
            for own in episodes.cpu().split(_BLOCK):
                yield self.values[own]


def open_targets(store: EpisodeStore, teacher_sha256: str, teacher_name: str, name: str = "reward") -> TeacherTargets:
    """Open a column of a teacher and a store; an empty one is made if there is none.

    Args:
        store: the episodes.
        teacher_sha256: checksum of the teacher's file, :func:`tdmpc2.checkpoints.files.file_sha256`.
        teacher_name: name of that file, for people who look into ``meta.json``.
        name: which column, ``reward`` or ``value``.

    Raises:
        ValueError: no room on the disk, or a damaged column.
    """
    path = store.path / "targets" / _name(teacher_sha256, store.checksum)
    if not (path / f"{name}.npy").exists():
        meta = {"teacher": teacher_name, "teacher_sha256": teacher_sha256, "data_checksum": store.checksum}
        _create(path, name, store, meta)
    return _open(path, name, store, teacher_sha256)


def verify_targets(store: EpisodeStore) -> list[str]:
    """List damage of the columns of a store, one line each; reads them whole."""
    problems = []
    for path in sorted((store.path / "targets").glob("[!.]*/")):
        for name in [name for name in COLUMNS if (path / f"{name}.npy").exists()] or COLUMNS[:1]:
            try:
                targets = _open(path, name, store)
            except ValueError as error:
                problems.append(str(error))
                break
            for number, block in enumerate(targets.values.split(_BLOCK)):
                wrong = block.isinf()
                wrong[:, 0] = ~block[:, 0].isnan()
                if wrong.any():
                    own, row = wrong.nonzero()[0].tolist()
                    where = f"episode {number * _BLOCK + own}, row {row}"
                    problems.append(f"{targets.file} holds {block[own, row]} in {where}. {_again(path)}")
                    break
    return problems


def _layout(store: EpisodeStore) -> tuple[tuple[int, int], bytes, int]:
    """Shape [N, L+1], first bytes and size in bytes of a column."""
    shape = (len(store.task), store.rows.shape[1])
    start = header(shape, _DTYPE)
    return shape, start, len(start) + shape[0] * shape[1] * _DTYPE.itemsize


def _create(path: Path, name: str, store: EpisodeStore, meta: dict[str, str]) -> None:
    """Make an empty column. Every byte is written: a full disk would end a process that fills holes through a map."""
    (episodes, rows), start, size = _layout(store)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(exist_ok=True)
        with one_process(path):
            if (path / f"{name}.npy").exists():
                return
            shutil.rmtree(temporary, ignore_errors=True)  # of a process that was killed here
            check_free_disk(path, size, "train with distillation_cache=off")
            try:
                temporary.mkdir()
                with open(temporary / f"{name}.npy", "wb") as file:
                    file.write(start)
                    for first in range(0, episodes, _BLOCK):
                        file.write(np.full((min(_BLOCK, episodes - first), rows), np.nan, _DTYPE).data)
                    file.flush()
                    os.fsync(file.fileno())
                if path.exists():  # with other columns
                    os.rename(temporary / f"{name}.npy", path / f"{name}.npy")
                    return
                write_text(temporary / "meta.json", json.dumps({"format": FORMAT, **meta}, indent=1) + "\n")
                os.rename(temporary, path)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
    except (OSError, NotImplementedError) as error:  # the latter: a file system without locks
        raise ValueError(f"Could not make {path}: {error}. distillation_cache=off works without it") from error


def _open(path: Path, name: str, store: EpisodeStore, teacher_sha256: str | None = None) -> TeacherTargets:
    shape, start, size = _layout(store)
    file = path / f"{name}.npy"
    try:
        meta = json.loads((path / "meta.json").read_text(encoding="utf-8"))
        version, data, teacher = meta["format"], meta["data_checksum"], meta["teacher_sha256"]
        if version != FORMAT:
            raise ValueError(f"{path} has format {version}, this version reads {FORMAT}. {_again(path)}")
        if data != store.checksum or teacher != (teacher_sha256 or teacher) or path.name != _name(teacher, data):
            raise ValueError(f"{path} is of other data or of another teacher than its name says. {_again(path)}")
        if (found := file.stat().st_size) != size:
            raise ValueError(f"{file} has {found:,} bytes instead of {size:,}. {_again(path)}")
        with open(file, "rb") as opened:
            if opened.read(len(start)) != start:
                raise ValueError(f"{file} does not hold {shape} of float32. {_again(path)}")
        writable = os.access(file, os.W_OK)
        values = np.memmap(file, _DTYPE, "r+" if writable else "c", len(start), shape)
    except (OSError, json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged [{type(error).__name__}: {error}]. {_again(path)}") from error
    return TeacherTargets(store, path, name, torch.from_numpy(values), writable)


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
