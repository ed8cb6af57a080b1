"""Files that are at every moment either the old one or the complete new one."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str], *, overwrite: bool = True) -> Iterator[Path]:
    """A temporary name beside ``path`` to write to; when the block ends it becomes ``path``, or vanishes on an error.

    Raises:
        ValueError: ``path`` exists and ``overwrite`` is false, or the disk refused; what was there is unchanged.
    """
    path = Path(path).expanduser()
    exists = f"{path} exists: choose another name, or say that it may be replaced (overwrite)"
    if path.exists() and not overwrite:
        raise ValueError(exists)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with open(temporary, "r+b") as file:  # Windows syncs only what may be written
            os.fsync(file.fileno())
        if path.exists() and not overwrite:
            raise ValueError(exists)
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # torch wraps what the disk says into RuntimeError
        reason = error.__context__ if isinstance(error.__context__, OSError) else error
        raise ValueError(f"Could not write {path}: {reason}. What was there before is unchanged") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Replace a text file.

    Raises:
        ValueError: see :func:`replacing`.
    """
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="")
