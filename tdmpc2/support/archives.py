"""The zip archives that ``torch.save`` writes: their directory checked before loading, their CRC-32s while loading.

Torch itself reads compressed records of any size and compares no checksum.
"""

from __future__ import annotations

import contextlib
import os
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BufferedReader
from pathlib import Path
from typing import NamedTuple

import torch

_LOCAL_HEADER = 30  # bytes before a record's name
_PIECE = 1 << 20  # bytes read at a time: they stay in the CPU's cache for the checksum
_PARALLEL = 1 << 26  # bytes that are worth a second thread: each record costs waiting for the interpreter's lock
_MOST_RECORDS = 1_000_000


class Record(NamedTuple):
    """A stored record: where its values are in the file, and their CRC-32."""

    name: str
    offset: int
    size: int
    crc: int


def is_archive(file: BufferedReader) -> bool:
    """Tell by its first bytes if a file is an archive; older checkpoints are none, and have no checksums."""
    file.seek(0)
    return file.read(4) == b"PK\x03\x04"


def read_directory(path: Path, file: BufferedReader) -> list[Record]:
    """Read the directory of an archive, and check that loading it takes no more memory than the file has bytes.

    Args:
        path: its name, for messages.
        file: the file, open.

    Returns:
        Its records, in the order in which they lie in the file.

    Raises:
        ValueError: it is no archive, a record is compressed or encrypted, or records lie outside of the file or on one
            another, so that they are more than the file.
    """
    size = os.fstat(file.fileno()).st_size
    with zipfile.ZipFile(file) as archive:
        entries = sorted(archive.infolist(), key=lambda entry: entry.header_offset)
    if len(entries) > _MOST_RECORDS:
        raise ValueError(f"{path} is refused: it has {len(entries):,} records, more than any file of tensors")
    records: list[Record] = []
    end = 0
    for entry in entries:
        if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 0x1 or entry.file_size != entry.compress_size:
            raise ValueError(
                f"{path} is refused: its record {entry.filename[:80]!r} is compressed or encrypted, "
                f"{entry.file_size:,} bytes in memory; torch.save stores tensors as they are"
            )
        if entry.header_offset < end:
            raise ValueError(f"{path} is refused: its records lie on one another")
        file.seek(entry.header_offset)
        header = file.read(_LOCAL_HEADER)
        names = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
        offset = entry.header_offset + _LOCAL_HEADER + names
        end = offset + entry.file_size
        if len(header) < _LOCAL_HEADER or header[:4] != b"PK\x03\x04" or end > size:
            raise ValueError(
                f"{path} ({size:,} bytes) cannot be read: truncated, its record {entry.filename[:80]!r} ends beyond it"
            )
        records.append(Record(entry.filename, offset, entry.file_size, entry.CRC))
    if len({record.name for record in records}) < len(records):
        raise ValueError(f"{path} is refused: two of its records have one name")
    # Files can be saved without checksums (torch.serialization.set_crc32_options); all are 0 then.
    return records


def has_checksums(records: Sequence[Record]) -> bool:
    """Tell if an archive was saved with checksums."""
    return any(record.crc for record in records)


@contextlib.contextmanager
def checksums_on() -> Iterator[None]:
    """Let torch store the CRC-32 of each tensor, which a program can turn off for all files."""
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(True)
    try:
        yield
    finally:
        torch.serialization.set_crc32_options(before)


def check_records(path: Path, file: BufferedReader, records: Sequence[Record]) -> None:
    """Compare all values of an archive with its CRC-32s; large ones in several threads.

    Args:
        path: its name, for messages.
        file: the file, open; its position is not used.
        records: as from :func:`read_directory`.

    Raises:
        ValueError: a record is damaged; the message names it.
        OSError: the disk refused.
    """
    total = sum(record.size for record in records)
    parallel = total > _PARALLEL and hasattr(os, "preadv")  # elsewhere threads would share the file's position
    threads = min(4, os.cpu_count() or 1) if parallel else 1
    if threads == 1:
        Checksums(path, file, records).finish()
        return
    shares: list[list[Record]] = [[] for _ in range(threads)]
    for record in sorted(records, key=lambda record: -record.size):  # the largest first, to the emptiest share
        min(shares, key=lambda share: sum(own.size for own in share)).append(record)
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda share: Checksums(path, file, share).finish(), shares))


class Checksums:
    """The CRC-32s of some records of an archive, computed piece by piece as the values are used.

    Args:
        path: the archive's name, for messages.
        file: the archive, open.
        records: which.
    """

    def __init__(self, path: Path, file: BufferedReader, records: Sequence[Record]) -> None:
        self._path, self._read = path, _reader(file)
        self._records = records if has_checksums(records) else ()
        self._done = [(0, 0)] * len(self._records)  # bytes, and the CRC-32 of them
        self._buffer = memoryview(bytearray(_PIECE))

    def advance(self, share: float, meter: Callable[[int], None] | None = None) -> None:
        """Go on until a share of each record, from 0 to 1, has been read.

        Raises:
            ValueError: the file has become shorter.
            OSError: the disk refused.
        """
        for index, record in enumerate(self._records):
            done, crc = self._done[index]
            end = record.size if share >= 1 else int(record.size * share)
            while done < end:
                count = self._read(self._buffer[: min(_PIECE, end - done)], record.offset + done)
                if not count:
                    raise ValueError(f"{self._path} has become shorter while it was read")
                crc = zlib.crc32(self._buffer[:count], crc)
                done += count
                if meter:
                    meter(count)
            self._done[index] = done, crc

    def finish(self, meter: Callable[[int], None] | None = None) -> None:
        """Read what is left, and compare.

        Raises:
            ValueError: a record is damaged; the message names it.
            OSError: the disk refused.
        """
        if bad := self.damaged(meter):
            raise ValueError(bad[0])

    def damaged(self, meter: Callable[[int], None] | None = None) -> list[str]:
        """Read what is left, and describe each record that does not have its CRC-32."""
        self.advance(1, meter)
        return [
            f"{self._path}, record {record.name}: Bad CRC-32 {crc:08x} instead of {record.crc:08x}. "
            "Download or make the file again"
            for record, (_, crc) in zip(self._records, self._done, strict=True)
            if crc != record.crc
        ]


def _reader(file: BufferedReader) -> Callable[[memoryview, int], int]:
    """Read from any position of a file that other threads read from as well."""
    descriptor = file.fileno()
    if hasattr(os, "preadv"):
        return lambda buffer, offset: os.preadv(descriptor, [buffer], offset)
    lock = threading.Lock()

    def read(buffer: memoryview, offset: int) -> int:
        with lock:
            file.seek(offset)
            return file.readinto(buffer)

    return read
