"""Folders from which code is loaded: they must belong to this user alone, or they are not used.

Whoever can put a file into such a folder, or another folder in its place, decides what this process executes.
"""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


def make_private(path: Path) -> str:
    """Make a folder that only this user can use, or find one.

    Args:
        path: the folder; parents that are missing are made, as private as itself.

    Returns:
        Why it must not be used, in one line; empty if it may.

    Raises:
        OSError: it cannot be made, or is a file.
    """
    missing = []
    for folder in (path, *path.parents):
        if os.path.lexists(folder):
            break
        missing.append(folder)
    for folder in reversed(missing):
        with contextlib.suppress(FileExistsError):  # another process was faster: it is looked at below
            folder.mkdir(mode=0o700)
    return why_not_private(path)


def why_not_private(path: Path) -> str:
    """Say why code must not be loaded from a folder, in one line; empty if it may.

    The folder is this user's own, is no link, and nobody else can write to it or rename it or a folder above it. Where
    a system has no owners (Windows), nothing is looked at.
    """
    if not hasattr(os, "geteuid"):
        return ""
    path = Path(os.path.abspath(path))
    facts = os.lstat(path)
    if stat.S_ISLNK(facts.st_mode):
        return f"{path} is a link"
    if not stat.S_ISDIR(facts.st_mode):
        raise NotADirectoryError(f"{path} exists and is not a directory")
    if facts.st_uid != os.geteuid():
        return f"{path} belongs to another user ({_owner(facts.st_uid)})"
    if facts.st_mode & _OTHERS_WRITE:
        return f"other users can write to {path} (chmod go-w, or delete it)"
    above = dict.fromkeys((*path.parents, *path.parent.resolve().parents, path.parent.resolve()))
    return next((reason for folder in above if (reason := _why_replaceable(folder))), "")


def foreign_entry(folder: Path) -> str:
    """Find something below a folder that is not this user's own, that others can write to, or that is a link elsewhere.

    Returns:
        Why the folder is not used; empty if it may be.
    """
    if not hasattr(os, "geteuid"):
        return ""
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(parent, name)
            with contextlib.suppress(FileNotFoundError):  # another process cleans up
                facts = os.lstat(path)
                if facts.st_uid != os.geteuid():
                    return f"{path} belongs to another user ({_owner(facts.st_uid)})"
                if stat.S_ISLNK(facts.st_mode) and not path.resolve().is_relative_to(folder.resolve()):
                    return f"{path} is a link to another place"
                if not stat.S_ISLNK(facts.st_mode) and _others_write(facts):
                    return f"other users can write to {path}"
    return ""


def _why_replaceable(folder: Path) -> str:
    """Say why others can rename what is in a folder; the sticky bit keeps them from it, and private groups are none."""
    facts = os.lstat(folder)
    if stat.S_ISLNK(facts.st_mode):  # what it leads to is looked at, and so is the folder that it lies in
        return ""
    if facts.st_uid not in (0, os.geteuid()):
        return f"{folder} belongs to another user ({_owner(facts.st_uid)})"
    if facts.st_mode & stat.S_ISVTX:
        return ""
    return f"other users can write to {folder}" if _others_write(facts) else ""


def _others_write(facts: os.stat_result) -> bool:
    """True if others than this user can; private groups have nobody else in them."""
    own_group = not facts.st_mode & stat.S_IWGRP or _is_private_group(facts.st_gid)
    return bool(facts.st_mode & stat.S_IWOTH) or not own_group


def _is_private_group(gid: int) -> bool:
    """True for root's group and for the group of the user's own name that many systems make, with nobody else in it."""
    import grp

    if gid == 0:
        return True
    try:
        group = grp.getgrgid(gid)
    except KeyError:
        return False
    own = _owner(os.geteuid())
    return group.gr_name == own and not set(group.gr_mem) - {own}


def _owner(uid: int) -> str:
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
