"""Write an episode store block by block, and continue after a kill or a power cut.

.<out>.lock       held by the one process that writes; it means nothing once that process has ended
.<out>.partial/   rows.npy at its full size from the beginning, and
                  journal: the form of the store, then for each block that is safely on disk its SHA-256 and what it
                  was made from
.<out>.replaced/  the store that <out> replaces, while it does; a file in it says so
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tdmpc2.data.index import EpisodeIndex, used_rows
from tdmpc2.data.store.meta import COLUMNS, UNEQUAL, StoreFile, StoreMeta
from tdmpc2.data.store.store import EpisodeStore, header
from tdmpc2.support import files
from tdmpc2.support.files import delete_leftovers, replacing, write_text
from tdmpc2.support.reading import read_text
from tdmpc2.tracking.progress import open_console, print_line

_MARK = "replaced-by-import"  # in a store that may be deleted as soon as its successor is complete
_OWN = {"rows.npy", *COLUMNS[UNEQUAL], "meta.json", "journal", "targets", _MARK}  # nothing else is ever deleted
_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}\.tmp")
_LINE = re.compile(r"[0-9a-f]{64} [0-9a-f]{64}")


class StoreWriter:
    """Writes a store to ``.<out>.partial`` and renames it to ``out`` when it is complete.

    Only one process may use it at a time, see :func:`locked`.

    Args:
        out: directory of the store.
        meta: what it is to hold, without ``files``.
        index: task, length and end of each episode.
        origins: SHA-256 of what each block is made from; it continues with the first that differs from before.

    Attributes:
        finished: SHA-256 of the blocks that are already there.
    """

    def __init__(self, out: Path, meta: StoreMeta, index: EpisodeIndex, origins: Sequence[str]) -> None:
        self.out, self.meta, self._index, self._origins = out, meta, index, origins
        form: list[Any] = [spec.plain() for spec in meta.tasks] + [meta.episodes, meta.dtype, meta.block]
        self._form = json.dumps(form if meta.rows is None else [*form, meta.rows])
        self.partial = beside(out, "partial")
        self._header = header(meta.shape, meta.row_format.record)
        self._size = len(self._header) + index.num_rows * meta.row_format.record.itemsize
        self.finished = self._read_journal()
        self._hash, self._in_block, self._intact = hashlib.sha256(), 0, True
        self._thread = ThreadPoolExecutor(1)

    @property
    def first_episode(self) -> int:
        """The first episode that is not there yet."""
        return min(len(self.finished) * self.meta.block, self.meta.episodes)

    @property
    def bytes_to_reserve(self) -> int:
        """Bytes of disk that are still to be taken."""
        there = disk_bytes(self._rows) if self.finished else 0
        return max(self._size + 8 * len(self.meta.columns) * self.meta.episodes - there, 0)

    def __enter__(self) -> StoreWriter:
        """Reserve the disk space and open the files.

        Raises:
            OSError: the disk refused; unless there were finished blocks, nothing is left behind.
            ValueError: ``.<out>.partial`` holds files of something else.
        """
        if not self.finished:
            discard(self.partial)
        try:
            self.partial.mkdir(exist_ok=True)
            delete_leftovers(self.partial)
            lines = (" ".join(pair) for pair in zip(self.finished, self._origins, strict=False))
            write_text(self._journal_path, "\n".join([self._form, *lines]) + "\n")
            _sync_directory(self.partial)  # the journal also says that this directory is of an import
            self._file = open(self._rows, "r+b" if self.finished else "xb", buffering=0)
            try:
                reserve(self._file.fileno(), self._size)
                self._file.write(self._header)
                done = int(self._index.counts[: self.first_episode].sum())
                self._file.seek(len(self._header) + done * self.meta.row_format.record.itemsize)
                os.fsync(self._file.fileno())
                _sync_directory(self.partial)
                self._journal = open(self._journal_path, "a", encoding="utf-8")
            except BaseException:
                self._file.close()
                raise
        except (OSError, ValueError):
            if not self.finished:
                discard(self.partial)
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown()
        self._file.close()
        self._journal.close()

    def write(self, records: Tensor, lengths: Tensor) -> None:
        """Append episodes [n, longest + 1, W] int32, hashing and writing them at the same time.

        A block's last episode must also be the last of a call.

        Args:
            records: rows beyond the end of an episode are not written.
            lengths: steps of each episode, [n].

        Raises:
            OSError: the disk refused. What was finished stays, and nothing more can be written.
        """
        assert self._intact
        self._intact = False  # a block with a gap must never be recorded
        rows = records if self.meta.rows is None else records[used_rows(lengths, records.shape[1])]
        values = rows.numpy().data.cast("B")
        hashing = self._thread.submit(self._hash.update, values)
        begin, rest = self._file.tell(), values
        while rest:
            rest = rest[self._file.write(rest) :]
        if hasattr(os, "posix_fadvise"):  # the disk begins to write now and not only when the block is complete
            os.posix_fadvise(self._file.fileno(), begin, len(values), os.POSIX_FADV_DONTNEED)
        hashing.result()
        self._in_block += len(records)
        if self._in_block == min(self.meta.block, self.meta.episodes - self.first_episode):
            os.fsync(self._file.fileno())  # before the journal says so
            self._journal.write(f"{self._hash.hexdigest()} {self._origins[len(self.finished)]}\n")
            self._journal.flush()
            os.fsync(self._journal.fileno())
            self.finished.append(self._hash.hexdigest())
            self._hash, self._in_block = hashlib.sha256(), 0
        self._intact = True

    def finish(self, replaces: bool) -> None:
        """Complete the store and give it its name.

        Args:
            replaces: whether a store of that name is deleted.

        Raises:
            OSError, ValueError: the disk refused, or ``out`` exists and is not to be replaced.
        """
        assert self.first_episode == self.meta.episodes
        self._check_partial()
        files = {"rows.npy": StoreFile(self._size, tuple(self.finished))}
        block = self.meta.block
        for name, values in self._columns().items():
            start = header(values.shape, values.dtype)
            blocks = [values[first : first + block].tobytes() for first in range(0, len(values), block)]
            with replacing(self.partial / name) as temporary:
                temporary.write_bytes(start + b"".join(blocks))
            sums = tuple(hashlib.sha256(content).hexdigest() for content in blocks)
            files[name] = StoreFile(len(start) + values.nbytes, sums)
        write_text(self.partial / "meta.json", replace(self.meta, files=files).to_json())
        _sync_directory(self.partial)
        self._check_partial()
        if self.out.exists():
            if not replaces:
                raise ValueError(f"{self.out} exists: move it away, and import again to put the finished store there")
            _move_away(self.out)
        os.rename(self.partial, self.out)
        _sync_directory(self.out.parent)
        clean(self.out, replaces)

    def _columns(self) -> dict[str, np.ndarray]:
        """Numbers of each episode, by the name of their file."""
        index = self._index
        values = {"task.npy": index.task, "length.npy": index.lengths, "terminated.npy": index.terminated}
        return {name: values[name].numpy().astype(dtype) for name, dtype in self.meta.columns.items()}

    def _check_partial(self) -> None:
        """Raise unless the rows that were written are still where they were."""
        there = os.fstat(self._file.fileno())
        try:
            found = self._rows.stat()
        except OSError:
            found = None
        if found is None or (found.st_dev, found.st_ino) != (there.st_dev, there.st_ino):
            if found is None and self.partial.exists() and not foreign(self.partial):
                for name in (*self.meta.columns, "meta.json"):  # which this call may have written anew
                    (self.partial / name).unlink(missing_ok=True)
                with contextlib.suppress(OSError):
                    self.partial.rmdir()
            self.finished.clear()
            raise ValueError(f"{self.partial} was removed while it was written: import again")

    def is_finished(self) -> bool:
        """Tell if ``out`` is the store that this writer was to make.

        Raises:
            ValueError: ``out`` is there, but damaged.
        """
        if not (self.out / "meta.json").exists():
            return False
        store = EpisodeStore.open(self.out)
        own, there = self._index, store.index
        pairs = (own.task, there.task), (own.lengths, there.lengths), (own.terminated, there.terminated)
        return replace(store.meta, files={}) == self.meta and all(torch.equal(*pair) for pair in pairs)

    @property
    def _rows(self) -> Path:
        return self.partial / "rows.npy"

    @property
    def _journal_path(self) -> Path:
        return self.partial / "journal"

    def _read_journal(self) -> list[str]:
        try:
            lines = read_text(self._journal_path, errors="replace").split("\n")
            if lines[0] != self._form or self._rows.stat().st_size != self._size:
                return []
        except FileNotFoundError:
            return []
        finished = []
        for line, origin in zip(lines[1:-1], self._origins, strict=False):  # the last one is empty or not complete
            if not _LINE.fullmatch(line) or not line.endswith(origin):
                break
            finished.append(line[:64])
        return finished


def beside(out: Path, ending: str) -> Path:
    """Name the file ``.<out>.<ending>``."""
    return out.with_name(f".{out.name}.{ending}")


def locked(out: Path, quiet: bool = False, **advice: str) -> AbstractContextManager[None]:
    """Hold ``.<out>.lock``; where another process does, print a line and wait (:func:`tdmpc2.support.files.locked`)."""
    busy = "" if quiet else f"Another process is writing {out}: waiting for it"
    return files.locked(beside(out, "lock"), busy, wait=None, **advice)


def reserve(descriptor: int, size: int) -> None:
    """Take ``size`` bytes of disk for a file, so that it cannot run out later; its content is kept.

    Raises:
        OSError: the disk refused.
    """
    there = os.fstat(descriptor).st_size
    try:
        os.posix_fallocate(descriptor, 0, size)
        return
    except AttributeError:  # not on this system
        pass
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            raise
    zeros = bytes(1 << 20)
    position = os.lseek(descriptor, 0, os.SEEK_CUR)
    os.lseek(descriptor, there, os.SEEK_SET)
    while there < size:
        there += os.write(descriptor, zeros[: size - there])
    os.lseek(descriptor, position, os.SEEK_SET)


def disk_bytes(path: Path) -> int:
    """Count the bytes of disk that a file takes; 0 if it is not there."""
    if not path.exists():
        return 0
    stat = path.stat()
    return 512 * stat.st_blocks if hasattr(stat, "st_blocks") else stat.st_size


def discard(path: Path) -> None:
    """Delete the directory of an unfinished import, if it is there.

    Raises:
        ValueError: it holds something else.
    """
    if not path.exists():
        return
    if other := foreign(path):
        raise ValueError(f"{path} holds {other}, which is not of an episode store: move it away")
    left = {entry.name for entry in path.iterdir() if not _TEMPORARY.fullmatch(entry.name)}
    if left and "journal" not in left:
        raise ValueError(f"{path} holds {min(left)}, but no journal of an import: move it away")
    _delete(path, "journal")


def foreign(path: Path) -> str | None:
    """Find a file in a directory that no episode store has."""
    names = {entry.name for entry in path.iterdir()} - _OWN
    return min((name for name in names if not _TEMPORARY.fullmatch(name)), default=None)


def clean(out: Path, replaces: bool) -> None:
    """Delete what a kill at the last moment can leave of a finished store.

    Args:
        out: the store.
        replaces: whether the store it replaced, if there is one, is deleted as well.
    """
    for name in ("journal", _MARK):
        (out / name).unlink(missing_ok=True)
    replaced = beside(out, "replaced")
    if replaces and _is_replaced(replaced):
        _delete(replaced, _MARK)


def has_leftovers(out: Path) -> bool:
    """Tell if :func:`clean` has something to do."""
    return (out / "journal").exists() or (out / _MARK).exists() or _is_replaced(beside(out, "replaced"))


def _move_away(out: Path) -> None:
    if not any(out.iterdir()):
        out.rmdir()
        return
    check_may_move_away(out)
    replaced = beside(out, "replaced")
    if replaced.exists():  # left by a kill
        _delete(replaced, _MARK)
    write_text(out / _MARK, "The store that replaces this one was complete.\n")
    os.rename(out, replaced)


def check_may_move_away(out: Path) -> None:
    """Require that ``.<out>.replaced`` is free, or may be deleted.

    Raises:
        ValueError: it is neither.
    """
    replaced = beside(out, "replaced")
    if replaced.exists() and not _is_replaced(replaced):
        raise ValueError(f"{replaced} is in the way, and was not put there by an import: move it away")


def _is_replaced(path: Path) -> bool:
    return path.is_dir() and ((path / _MARK).exists() or not any(path.iterdir()))


def _delete(path: Path, last: str) -> None:
    """Delete a directory, and last the file that says that it may be deleted: the next call can continue."""
    for entry in path.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        elif entry.name != last:
            entry.unlink()
    shutil.rmtree(path)


def say(text: str) -> None:
    """Print a line on the console that is shared with progress bars."""
    print_line(open_console(None), text)


def buffers(meta: StoreMeta, size: int, count: int, rows: int) -> list[Tensor]:
    """Make zeroed records [n, rows, W] for about ``size`` bytes of episodes each."""
    episodes = max(1, min(size // (rows * meta.row_format.record.itemsize), meta.block))
    shape = (episodes, rows, meta.row_format.words)
    return [torch.zeros(shape, dtype=torch.int32) for _ in range(count)]


def _sync_directory(path: Path) -> None:
    if os.name != "nt":  # Windows cannot open directories
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
