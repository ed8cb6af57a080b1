"""Compiled libraries that a killed process left half written: torch would load them for ever after, and fail."""

from __future__ import annotations

import contextlib
import os
import struct
from pathlib import Path

from filelock import FileLock, Timeout

from tdmpc2.support.reading import open_regular


def delete_unfinished(cache: Path) -> list[Path]:
    """Delete the libraries of a cache of torch.compile that are not whole and that no process is writing.

    The linker writes a library under its final name, and torch takes one that exists as done. One that is being
    written is told by torch's own lock of it.

    Returns:
        Files that were deleted.
    """
    deleted = []
    for path in sorted(cache.glob("*/*.so")):
        if not _is_whole(path):
            with contextlib.suppress(Timeout, OSError), FileLock(_lock(cache, path), timeout=0):
                if not _is_whole(path):  # still, now that nobody writes it
                    path.unlink()
                    deleted.append(path)
    return deleted


def _lock(cache: Path, library: Path) -> Path:
    """Name torch's lock of a library; ``hash.main.so`` is built under ``locks/hash.lock``."""
    locks = cache / "locks"
    locks.mkdir(exist_ok=True)
    return locks / f"{library.name.partition('.')[0]}.lock"


def _is_whole(library: Path) -> bool:
    """Tell if the table that ends an ELF file is inside it; of other formats, if there is anything."""
    try:
        with open_regular(library) as file:
            header, size = file.read(64), os.fstat(file.fileno()).st_size
    except OSError:
        return True  # another process deletes it, or it is none that a linker wrote
    if len(header) < 64 or not any(header):  # GNU ld writes the header last
        return False
    if header[:5] != b"\x7fELF\x02":  # 64 bits
        return True
    order = "<" if header[5] == 1 else ">"
    (start,) = struct.unpack_from(f"{order}Q", header, 0x28)
    entry, count = struct.unpack_from(f"{order}HH", header, 0x3A)
    return start > 0 and start + entry * count <= size
