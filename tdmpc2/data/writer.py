"""An episode store in the making: written block by block, and continued after a kill or a power cut.

<out>.lock      held by the one process that writes; it means nothing once that process has ended
<out>.partial/  rows.npy at its full size from the beginning, and
                journal: what the store is made from, then the SHA-256 of each block that is safely on disk
<out>.old/      the store that <out> replaces, while it does
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import Tensor

from tdmpc2.data.store import EpisodeStore, StoreFile, StoreMeta, header
from tdmpc2.files import replacing, write_text
from tdmpc2.progress import open_console, print_line

_OWN = {"rows.npy", "task.npy", "meta.json", "journal", "targets"}  # nothing else is ever deleted
_HASH = re.compile(r"[0-9a-f]{64}")


class StoreWriter:
    """Writes a store to ``<out>.partial`` and renames it to ``out`` when it is complete.

    Only one process may use it at a time, see :func:`locked`.

    Args:
        out: directory of the store.
        meta: what it is to hold, without ``files``.
        task: task id of each episode, [N].
        origin: a line of text that says what the store is made from; with another one it starts afresh.

    Attributes:
        finished: SHA-256 of the blocks that are already there.

    Raises:
        ValueError: ``<out>.partial`` holds files of something else.
    """

    def __init__(self, out: Path, meta: StoreMeta, task: Tensor, origin: str) -> None:
        self.out, self.meta, self._task, self._origin = out, meta, task.numpy().astype("<i4"), origin
        self.partial = beside(out, "partial")
        self._shape = (meta.episodes, meta.layout.rows)
        self._header = header(self._shape, meta.row_format.record)
        self._size = len(self._header) + meta.episodes * meta.episode_bytes
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
        return max(self._size + 8 * self.meta.episodes - there, 0)

    def __enter__(self) -> StoreWriter:
        """Reserve the disk space and open the files.

        Raises:
            OSError: the disk refused; unless there were finished blocks, nothing is left behind.
        """
        if not self.finished:
            discard(self.partial)
        try:
            self.partial.mkdir(exist_ok=True)
            for temporary in self.partial.glob(".*.tmp"):  # of a process that was killed
                temporary.unlink()
            self._file = open(self._rows, "r+b" if self.finished else "xb", buffering=0)
            try:
                reserve(self._file.fileno(), self._size)
                self._file.write(self._header)
                self._file.seek(len(self._header) + self.first_episode * self.meta.episode_bytes)
                os.fsync(self._file.fileno())
                write_text(self._journal_path, "\n".join([self._origin, *self.finished]) + "\n")
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

    def write(self, records: Tensor) -> None:
        """Append episodes [n, L+1, W] int32, hashing and writing them at the same time.

        A block's last episode must also be the last of a call.

        Raises:
            OSError: the disk refused. What was finished stays, and nothing more can be written.
        """
        assert self._intact
        self._intact = False  # a block with a gap must never be recorded
        values = records.numpy().data.cast("B")
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
            self._journal.write(f"{self._hash.hexdigest()}\n")
            self._journal.flush()
            os.fsync(self._journal.fileno())
            self.finished.append(self._hash.hexdigest())
            self._hash, self._in_block = hashlib.sha256(), 0
        self._intact = True

    def finish(self) -> None:
        """Complete the store and give it its name; a store of that name is replaced.

        Raises:
            OSError, ValueError: the disk refused.
        """
        assert self.first_episode == self.meta.episodes
        task_header, block = header(self._shape[:1], self._task.dtype), self.meta.block
        blocks = [self._task[first : first + block].tobytes() for first in range(0, len(self._task), block)]
        with replacing(self.partial / "task.npy") as temporary:
            temporary.write_bytes(task_header + b"".join(blocks))
        files = {
            "rows.npy": StoreFile(self._size, tuple(self.finished)),
            "task.npy": StoreFile(
                len(task_header) + self._task.nbytes, tuple(hashlib.sha256(values).hexdigest() for values in blocks)
            ),
        }
        write_text(self.partial / "meta.json", replace(self.meta, files=files).to_json())
        _sync_directory(self.partial)
        discard(beside(self.out, "old"))
        if self.out.exists():
            os.rename(self.out, beside(self.out, "old"))
        os.rename(self.partial, self.out)
        _sync_directory(self.out.parent)
        clean(self.out)

    def discard(self) -> None:
        """Delete what was written."""
        self.__exit__()
        discard(self.partial)

    def is_finished(self) -> bool:
        """Whether ``out`` is the store that this writer was to make.

        Raises:
            ValueError: ``out`` is there, but damaged.
        """
        if not (self.out / "meta.json").exists():
            return False
        store = EpisodeStore.open(self.out)
        return replace(store.meta, files={}) == self.meta and np.array_equal(store.task.numpy(), self._task)

    @property
    def _rows(self) -> Path:
        return self.partial / "rows.npy"

    @property
    def _journal_path(self) -> Path:
        return self.partial / "journal"

    def _read_journal(self) -> list[str]:
        try:
            lines = self._journal_path.read_bytes().decode(errors="replace").split("\n")
            if lines[0] != self._origin or self._rows.stat().st_size != self._size:
                return []
        except FileNotFoundError:
            return []
        finished = []
        for line in lines[1:-1]:  # the last one was not written to its end, or is empty
            if not _HASH.fullmatch(line):
                break
            finished.append(line)
        return finished


def beside(out: Path, ending: str) -> Path:
    """``<out>.<ending>``."""
    return out.with_name(f"{out.name}.{ending}")


@contextlib.contextmanager
def locked(out: Path, quiet: bool = False) -> Iterator[None]:
    """Hold ``<out>.lock``; where another process does, say so and wait for it.

    Raises:
        ValueError: the directory of ``out`` cannot be written to.
    """
    lock = FileLock(beside(out, "lock"))
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            if not quiet:
                say(f"Another process is writing {out}: waiting for it")
            lock.acquire()
    except OSError as error:
        raise ValueError(f"Could not write {out}: {error}. Name a directory that can be written to") from error
    try:
        yield
    finally:
        lock.release()


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
    """Bytes of disk that a file takes; 0 if it is not there."""
    if not path.exists():
        return 0
    stat = path.stat()
    return 512 * stat.st_blocks if hasattr(stat, "st_blocks") else stat.st_size


def discard(path: Path) -> None:
    """Delete a directory of a store, if it is there; nothing is deleted if it holds anything else.

    Raises:
        ValueError: it holds something else.
    """
    if not path.exists():
        return
    found = {entry.name for entry in path.iterdir()}
    if other := {name for name in found - _OWN if not re.fullmatch(r"\..+\.[0-9a-f]{8}\.tmp", name)}:
        raise ValueError(f"{path} holds {min(other)}, which is not of an episode store: move it away")
    shutil.rmtree(path)


def clean(out: Path) -> None:
    """Delete what a kill at the last moment can leave of a finished store: its journal and the store it replaced."""
    discard(beside(out, "old"))
    (out / "journal").unlink(missing_ok=True)


def has_leftovers(out: Path) -> bool:
    """Whether :func:`clean` has something to do."""
    return (out / "journal").exists() or beside(out, "old").exists()


def say(text: str) -> None:
    """A line on the console that is shared with progress bars."""
    print_line(open_console(None), text)


def buffers(meta: StoreMeta, size: int, count: int) -> list[Tensor]:
    """Zeroed records [n, L+1, W] for about ``size`` bytes of episodes each."""
    episodes = max(1, min(size // meta.episode_bytes, meta.block))
    shape = (episodes, meta.layout.rows, meta.row_format.words)
    return [torch.zeros(shape, dtype=torch.int32) for _ in range(count)]


def _sync_directory(path: Path) -> None:
    if os.name != "nt":  # Windows cannot open directories
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
