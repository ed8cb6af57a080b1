"""Opening and reading files that may be anything: only regular files, no more than fits, and text that parses.

A named pipe would make its reader wait for ever, a device may have no end, and both can stand where a file is expected.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from io import BufferedReader
from pathlib import Path
from typing import Any

#: Bytes of the largest text that is read: a log of ten million rows has about as much.
MOST_TEXT = 1 << 30
#: Bytes of the largest record (``run.json``, ``meta.json`` and the like); those written here have some kilobytes.
MOST_RECORD = 1 << 26

_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


class NotRegularError(OSError):
    """A directory, named pipe, device or socket stands where a file is expected."""


def open_regular(path: str | os.PathLike[str]) -> BufferedReader:
    """Open a regular file for reading bytes, without waiting and without touching anything else.

    Args:
        path: the file; links to it are followed.

    Raises:
        NotRegularError: it is something else.
        OSError: it is missing, a link that leads nowhere, or may not be read; the message names it.
    """
    path = Path(path)
    try:
        check_regular(path)
        # Checked again once it is open, since another file may have come under the name; the flag keeps even a named
        # pipe that did so from waiting for a writer.
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
        descriptor = os.open(path, flags)
    except FileNotFoundError as error:
        if path.is_symlink():
            text = f"No such file: it is a link to {os.readlink(path)}, which is not there"
            raise FileNotFoundError(errno.ENOENT, text, str(path)) from error
        raise
    try:
        _check_mode(path, os.fstat(descriptor).st_mode)
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def check_regular(path: Path) -> None:
    """Raise as :func:`open_regular` does unless a path is a regular file, or a link to one."""
    _check_mode(path, path.stat().st_mode)


def _check_mode(path: Path, mode: int) -> None:
    if not stat.S_ISREG(mode):
        kind = _KINDS.get(stat.S_IFMT(mode), "something else")
        raise NotRegularError(f"{path} is {kind}, not a file: move it away, or name another file")


def read_bytes(path: str | os.PathLike[str], most: int = MOST_RECORD) -> bytes:
    """Read a regular file whole.

    Args:
        path: the file.
        most: bytes that it may have.

    Raises:
        OSError: see :func:`open_regular`.
        ValueError: it is larger.
    """
    with open_regular(path) as file:
        content = file.read(min(most, os.fstat(file.fileno()).st_size) + 1)  # a byte more if it grows or is larger
        if len(content) > most:
            raise ValueError(f"{path} has more than {most:,} bytes, which no file of its kind has")
        return content + file.read(most - len(content))


def read_text(path: str | os.PathLike[str], most: int = MOST_RECORD, errors: str = "strict") -> str:
    """Read a regular file as UTF-8; the arguments and errors are those of :func:`read_bytes`.

    Args:
        path: the file.
        most: bytes that it may have.
        errors: ``replace`` takes what is no text as a question mark.

    Raises:
        OSError, ValueError: see there; or it is no text.
    """
    return read_bytes(path, most).decode("utf-8", errors)


def load_json(path: str | os.PathLike[str]) -> Any:
    """Read what a JSON file holds, whatever it is.

    Raises:
        OSError: see :func:`open_regular`.
        ValueError: it is no JSON, nested too deeply, or has a number that no computer holds.
    """
    text = read_text(path)
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply to be a record") from None
