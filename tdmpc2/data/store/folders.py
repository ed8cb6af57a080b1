"""The folders beside an episode store while it is made, and which of them may be deleted.

.<out>.lock       held by the one process that writes; it means nothing once that process has ended
.<out>.partial/   what is there so far of the new store
.<out>.replaced/  the store that <out> replaces, while it does; a file in it says so
"""

from __future__ import annotations

import os
import re
import shutil
from contextlib import AbstractContextManager
from pathlib import Path

from tdmpc2.data.store.meta import COLUMNS, UNEQUAL
from tdmpc2.support import files
from tdmpc2.support.files import write_text

_MARK = "replaced-by-import"  # in a store that may be deleted as soon as its successor is complete
_OWN = {"rows.npy", *COLUMNS[UNEQUAL], "meta.json", "journal", "targets", _MARK}  # nothing else is ever deleted
_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}\.tmp")


def beside(out: Path, ending: str) -> Path:
    """Name the file ``.<out>.<ending>``."""
    return out.with_name(f".{out.name}.{ending}")


def locked(out: Path, quiet: bool = False, **advice: str) -> AbstractContextManager[None]:
    """Hold ``.<out>.lock``; where another process does, print a line and wait (:func:`tdmpc2.support.files.locked`)."""
    busy = "" if quiet else f"Another process is writing {out}: waiting for it"
    return files.locked(beside(out, "lock"), busy, wait=None, **advice)


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


def move_away(out: Path) -> None:
    """Make room for the successor of a store, which is deleted once that has its name."""
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
