"""Files that are mapped into memory: changed or cut short by others while they are read.

Reading a page that a file no longer has ends the process by SIGBUS, without a word.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

#: What is mapped, for the last words of a process; entries are never removed, since maps live as long.
_MAPPED: list[str] = []
_HANDLER: list[Callable[[int], None]] = []  # kept, or it would be freed while the system still calls it


class FileChangedError(ValueError):
    """A file that is being read is no longer the one that was opened."""


class UnchangedFile:
    """Watches an open file that nobody should change.

    Args:
        descriptor: the open file.
        path: its name, for messages.
    """

    def __init__(self, descriptor: int, path: Path) -> None:
        self._descriptor, self._path = descriptor, path
        self._facts = self._look()

    def check(self) -> None:
        """Raise :class:`FileChangedError` if the file has been cut, lengthened or written to; a microsecond."""
        size, written = self._look()
        if size < self._facts[0]:
            raise FileChangedError(
                f"{self._path} was cut from {self._facts[0]:,} to {size:,} bytes while it was read: restore it, and "
                "the same command goes on"
            )
        if (size, written) != self._facts:
            raise FileChangedError(
                f"{self._path} was written to while it was read: restore it, and the same command goes on"
            )

    def _look(self) -> tuple[int, int]:
        facts = os.fstat(self._descriptor)
        return facts.st_size, facts.st_mtime_ns


def name_bus_errors(path: Path) -> None:
    """Have a bus error end the process with one line that names what is mapped, and exit code 2.

    It comes where a page is read between two checks of :class:`UnchangedFile`, or where the disk itself fails.
    """
    _MAPPED.append(str(path))
    if _HANDLER or not hasattr(signal, "SIGBUS") or sys.platform == "win32":
        return
    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(_last_words)
    _HANDLER.append(handler)
    libc = ctypes.CDLL(None)
    libc.signal.restype = ctypes.c_void_p
    libc.signal.argtypes = (ctypes.c_int, ctypes.CFUNCTYPE(None, ctypes.c_int))
    libc.signal(signal.SIGBUS, handler)


def _last_words(_: int) -> None:
    """Called by the system in the middle of anything: it only writes and ends."""
    names = ", ".join(_MAPPED[-3:])
    line = (
        f"error: A mapped file was cut short or cannot be read any more: {names}. The last saved state is untouched\n"
    )
    os.write(2, line.encode(errors="replace"))
    os._exit(2)
