"""Write an episode store block by block, and continue after a kill or a power cut.

The rows are in ``.<out>.partial`` (:mod:`tdmpc2.data.store.folders`), at their full size from the beginning, beside a
journal: the form of the store, then for each block that is safely on disk its SHA-256 and what it was made from.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tdmpc2.data.index import EpisodeIndex, used_rows
from tdmpc2.data.store.folders import beside, clean, discard, foreign, move_away
from tdmpc2.data.store.meta import StoreFile, StoreMeta
from tdmpc2.data.store.store import EpisodeStore, header
from tdmpc2.support.files import delete_leftovers, disk_bytes, replacing, reserve, sync_folder, write_text
from tdmpc2.support.reading import read_text
from tdmpc2.tracking.progress import open_console, print_line

_JOURNAL = "compared"  # blocks of older journals may not have been compared with the checksums of their sources
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
        form = [_JOURNAL, *form] if meta.rows is None else [_JOURNAL, *form, meta.rows]
        self._form = json.dumps(form)
        self.partial = beside(out, "partial")
        self._header = header(meta.shape, meta.row_format.record)
        self._size = len(self._header) + index.num_rows * meta.row_format.record.itemsize
        self.finished = self._read_journal()
        self._hash, self._in_block, self._intact = hashlib.sha256(), 0, True
        self._held: str | None = None  # SHA-256 of a block that is on disk and not yet in the journal
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
            self._write_journal()
            sync_folder(self.partial)  # the journal also says that this directory is of an import
            self._file = open(self._rows, "r+b" if self.finished else "xb", buffering=0)
            try:
                reserve(self._file.fileno(), self._size)
                self._file.write(self._header)
                done = int(self._index.counts[: self.first_episode].sum())
                self._file.seek(len(self._header) + done * self.meta.row_format.record.itemsize)
                os.fsync(self._file.fileno())
                sync_folder(self.partial)
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

    def write(self, records: Tensor, lengths: Tensor, hold: bool = False) -> None:
        """Append episodes [n, longest + 1, W] int32, hashing and writing them at the same time.

        A block's last episode must also be the last of a call.

        Args:
            records: rows beyond the end of an episode are not written.
            lengths: steps of each episode, [n].
            hold: a block that ends here is not finished before :meth:`finish_held`, as what it was read from is not
                verified yet.

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
            self._held = self._hash.hexdigest()
            self._hash, self._in_block = hashlib.sha256(), 0
            if not hold:
                self.finish_held()
        self._intact = True

    def finish_held(self) -> None:
        """Write into the journal that a block is finished that :meth:`write` held back, if there is one.

        Raises:
            OSError: the disk refused.
        """
        if self._held is None:
            return
        self._journal.write(f"{self._held} {self._origins[len(self.finished)]}\n")
        self._journal.flush()
        os.fsync(self._journal.fileno())
        self.finished.append(self._held)
        self._held = None

    def forget(self, episode: int) -> None:
        """Take the blocks that hold an episode or later ones out of the journal; nothing can be written afterwards.

        Raises:
            OSError: the disk refused.
        """
        self._intact, self._held = False, None
        self._journal.close()  # Windows renames onto no open file
        del self.finished[episode // self.meta.block :]
        self._write_journal()

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
        sync_folder(self.partial)
        self._check_partial()
        if self.out.exists():
            if not replaces:
                raise ValueError(f"{self.out} exists: move it away, and import again to put the finished store there")
            move_away(self.out)
        os.rename(self.partial, self.out)
        sync_folder(self.out.parent)
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

    def _write_journal(self) -> None:
        lines = (" ".join(pair) for pair in zip(self.finished, self._origins, strict=False))
        write_text(self._journal_path, "\n".join([self._form, *lines]) + "\n")

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


def say(text: str) -> None:
    """Print a line on the console that is shared with progress bars."""
    print_line(open_console(None), text)


def buffers(meta: StoreMeta, size: int, count: int, rows: int) -> list[Tensor]:
    """Make zeroed records [n, rows, W] for about ``size`` bytes of episodes each."""
    episodes = max(1, min(size // (rows * meta.row_format.record.itemsize), meta.block))
    shape = (episodes, rows, meta.row_format.words)
    return [torch.zeros(shape, dtype=torch.int32) for _ in range(count)]
