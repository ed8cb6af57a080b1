"""Appending to files of ours: only to regular ones, never through a link, and never half a row."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import BinaryIO

from tdmpc2.support.reading import check_regular


def open_append(path: Path) -> BinaryIO:
    """Open a file to append bytes at its end, unbuffered; it is made if there is none.

    Raises:
        OSError: it is a link or no regular file, or it may not be written.
    """
    if path.is_symlink():
        raise OSError(errno.ELOOP, "It is a link, and nothing is written through links", str(path))
    if path.exists():
        check_regular(path)
    names = ("O_WRONLY", "O_APPEND", "O_CREAT", "O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_BINARY")
    flags = 0
    for name in names:
        flags |= getattr(os, name, 0)  # some systems lack some
    return os.fdopen(os.open(path, flags, 0o666), "ab", 0)


def append_whole(file: BinaryIO, content: bytes) -> None:
    """Append all of ``content`` or nothing: what a full disk took of it is cut off again.

    Raises:
        OSError: the disk refused.
    """
    size = os.fstat(file.fileno()).st_size
    rest = memoryview(content)
    try:
        while rest:
            rest = rest[os.write(file.fileno(), rest) :]
    except OSError:
        os.ftruncate(file.fileno(), size)
        raise
