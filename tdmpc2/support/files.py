"""Files that are at every moment either the old one or the complete new one; locks, free disk, JSON."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from tdmpc2.support.processes import has_ended, owner_of
from tdmpc2.support.reading import NotRegularError, load_json
from tdmpc2.support.text import cut, shown

_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}\.tmp", re.DOTALL)  # as :func:`replacing` calls them
_ROOM = 190  # bytes of a name beside the 50 that a temporary one adds; file systems take 255


@contextlib.contextmanager
def replacing(
    path: str | os.PathLike[str],
    *,
    overwrite: bool = True,
    errors: tuple[type[Exception], ...] = (OSError, RuntimeError),  # torch wraps what the disk says into RuntimeError
) -> Iterator[Path]:
    """Give a temporary name beside ``path`` to write to; at the end of the block it becomes ``path``, or is deleted.

    A killed process leaves its temporary file. On Linux the next one that writes ``path`` deletes it, since the name
    tells whose it is.

    Args:
        path: the file.
        overwrite: replace it if it exists.
        errors: those of writing, which become one line.

    Raises:
        ValueError: ``path`` exists and ``overwrite`` is false, or the disk refused; what was there is unchanged.
    """
    path = Path(path).expanduser()
    exists = f"{path} exists: choose another name, or allow replacing it (overwrite or force), if there is that option"
    if os.path.lexists(path) and not overwrite:
        raise ValueError(exists)
    owner = owner_of("self")
    temporary = path.with_name(f".{_shortened(path.name)}.{owner}{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if owner:
            _delete_orphans(path)
        mode = _mode(path)
        if mode is not None and not mode & 0o077:  # a private file stays private, while it is written too
            os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode | 0o600))
        yield temporary
        with open(temporary, "r+b") as file:  # Windows syncs only what may be written
            os.fsync(file.fileno())
        if overwrite:
            if mode is not None:
                os.chmod(temporary, mode)
            os.replace(temporary, path)
        elif not _renamed(temporary, path):
            raise ValueError(exists)
    except errors as error:
        reason = error.__context__ if isinstance(error.__context__, OSError) else error
        raise ValueError(f"Could not write {path}: {reason}. What was there before is unchanged") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def _mode(path: Path) -> int | None:
    """Permissions of a file that is to be replaced; None: there is none, or it is a link, whose own mean nothing."""
    with contextlib.suppress(OSError):
        found = os.lstat(path).st_mode
        return stat.S_IMODE(found) if stat.S_ISREG(found) else None
    return None


def _renamed(temporary: Path, path: Path) -> bool:
    """Give a file its name, unless there is one of that name by now."""
    try:
        os.link(temporary, path)  # unlike renaming, this replaces nothing
    except FileExistsError:
        return False
    except (OSError, NotImplementedError):  # a file system without second names
        if os.path.lexists(path):
            return False
        os.replace(temporary, path)
    return True


def _shortened(name: str) -> str:
    """Shorten a file name that leaves no room for what a temporary one adds; distinct names stay distinct."""
    content = os.fsencode(name)
    if len(content) <= _ROOM:
        return name
    return f"{content[: _ROOM - 20].decode(errors='ignore')}-{hashlib.sha256(content).hexdigest()[:16]}"


def _delete_orphans(path: Path) -> None:
    """Delete the temporary files of ``path`` whose processes have ended: they were killed."""
    pattern = re.compile(
        rf"\.{re.escape(_shortened(path.name))}\.([0-9a-f]{{8}}-)(\d{{1,10}})(-\d+\.)[0-9a-f]{{8}}\.tmp", re.DOTALL
    )
    own = owner_of("self").partition("-")[0] + "-"
    with contextlib.suppress(OSError):
        for entry in os.scandir(path.parent):
            found = pattern.fullmatch(entry.name)
            if found and found[1] == own and has_ended(int(found[2]), "".join(found.groups())):
                os.unlink(entry)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Replace a text file.

    Raises:
        ValueError: see :func:`replacing`.
    """
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="")


def sync_folder(path: Path) -> None:
    """Wait until the names of the files in a folder are on the disk.

    Raises:
        OSError: the disk refused.
    """
    if os.name != "nt":  # Windows cannot open folders
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def delete_leftovers(directory: Path, name: str = "*") -> None:
    """Delete the temporary files that killed processes left of :func:`replacing`.

    Call it only where no other process can be writing, as under a lock.

    Args:
        directory: where to look.
        name: only leftovers of the file of this name; a glob pattern.
    """
    for temporary in directory.glob(f".{_shortened(name)}.*.tmp"):
        if _TEMPORARY.fullmatch(temporary.name) and not temporary.is_dir():  # others' files may end in .tmp as well
            temporary.unlink(missing_ok=True)


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


def read_json(path: Path, absent: dict[str, Any] | None = None) -> dict[str, Any]:
    """Read the JSON object that a file holds, or ``absent`` if there is no file.

    Raises:
        ValueError: no file, or it is damaged; the message names it.
    """
    if absent is not None and not path.exists():
        return absent
    try:
        content = load_json(path)
    except FileNotFoundError as error:
        raise ValueError(f"{path} does not exist") from error
    except PermissionError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    except NotRegularError as error:
        raise ValueError(str(error)) from error
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is damaged [{type(error).__name__}: {cut(str(error))}]") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is damaged [it holds {shown(content)}, not an object]")
    return content


def json_text(content: Any, indent: int | None = None, instead: Callable[[float], str | None] = lambda _: None) -> str:
    """Write JSON that every reader takes; numbers that are not finite, for which it has no word, become ``instead``."""
    return json.dumps(_finite(content, instead), indent=indent, allow_nan=False)


def _finite(content: Any, instead: Callable[[float], str | None]) -> Any:
    if isinstance(content, float):
        return content if math.isfinite(content) else instead(content)
    if isinstance(content, Mapping):
        return {key: _finite(item, instead) for key, item in content.items()}
    return [_finite(item, instead) for item in content] if isinstance(content, (list, tuple)) else content


def free_disk(path: Path) -> int:
    """Count the free bytes of the disk that ``path`` is on, or will be on when it is made."""
    there = next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.exists())
    return shutil.disk_usage(there).free


def check_free_disk(path: Path, needed: int, advice: str, free: int | None = None) -> None:
    """Require room for ``needed`` bytes before anything is written.

    Args:
        path: what is to be written.
        needed: its bytes.
        advice: what else may help than making room.
        free: bytes of the disk, if it is not simply what :func:`free_disk` says.

    Raises:
        ValueError: the disk is too small; the message has both sizes and the advice.
    """
    free = free_disk(path) if free is None else free
    if needed > free:
        raise ValueError(
            f"{path} needs {size_text(needed)} more and its disk has {size_text(free)} free: make room, or {advice}. "
            "Nothing was written"
        )


def size_text(size: int) -> str:
    """Write a number of bytes for people: ``900 bytes``, ``12.9 MB``, ``43.12 GB``."""
    if size < 1e5:
        return f"{size:,} bytes"
    return f"{size / 1e6:,.1f} MB" if size < 1e8 else f"{size / 1e9:,.2f} GB"


@contextlib.contextmanager
def locked(
    path: Path, busy: str, *, wait: float | None = 0, advice: str = "Name a directory that can be written to"
) -> Iterator[None]:
    """Hold a lock file; the lock ends with this process, however that ends.

    Args:
        path: the lock file; its directory is made.
        busy: what is the matter while another process holds it.
        wait: seconds to wait for that process before it is an error; None: print ``busy`` and wait for its end.
        advice: what to do where no lock can be had.

    Raises:
        ValueError: another process holds it, the directory cannot be written to, or its file system has no locks.
    """
    lock = FileLock(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=wait or 0)
        except Timeout:
            if wait is not None:
                raise ValueError(busy) from None
            if busy:
                print(busy, flush=True)
            lock.acquire()
    except (OSError, NotImplementedError) as error:  # the latter: a file system without locks
        raise ValueError(f"Could not write {path}: {error}. {advice}") from error
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def directory_locked(directory: Path, busy: str) -> Iterator[None]:
    """Lock a directory itself, by whatever path it is reached, where that is possible; nothing is left in it.

    Args:
        directory: it may not be there yet, and then is not locked.
        busy: what is the matter while another process holds it.

    Raises:
        ValueError: another process holds it.
    """
    try:
        import fcntl

        descriptor = os.open(directory, os.O_RDONLY)
    except (ImportError, OSError):
        yield
        return
    try:
        with contextlib.suppress(OSError):  # a file system that locks no directories
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ValueError(busy) from None
        yield
    finally:
        os.close(descriptor)
