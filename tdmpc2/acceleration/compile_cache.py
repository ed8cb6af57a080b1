"""The cache of torch.compile: in a folder of this user's alone, since what lies there is executed.

By default torch keeps pickles and libraries in the system's temporary directory, under a name that anybody can take
before the user does.
"""

from __future__ import annotations

import atexit
import logging
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tdmpc2.acceleration.unfinished import delete_unfinished
from tdmpc2.support.places import cache_dir
from tdmpc2.support.private_folder import foreign_entry, make_private, why_not_private

#: Variables that name the caches of torch.compile; Triton's lies inside the first one unless it is set.
VARIABLES = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")
_PREPARED: set[tuple[str, ...]] = set()  # choices of folders that have been looked through in this process
_log = logging.getLogger("tdmpc2")


def compile_cache() -> Path:
    """Folder where torch.compile is to keep what it builds, unless the user names another one; it need not exist."""
    named = _named()
    return Path(named) if named else cache_dir() / "torchinductor"


def use_private_cache() -> None:
    """Make torch.compile keep what it builds in a folder that only this user can use.

    Call it before anything is compiled. A folder that the user has named is used if it is such a folder; else one line
    says why it is not, and this process has one for itself. Child processes inherit the choice. The folders are looked
    through once in a process, however many functions it compiles.
    """
    if _chosen() in _PREPARED:
        return
    by_default = not _named()
    for name in VARIABLES:
        if by_default and name == VARIABLES[0]:
            os.environ[name] = _usable(compile_cache, "")
        elif named := os.environ.get(name):
            os.environ[name] = _usable(lambda named=named: Path(named), f"{name}=")  # type: ignore[misc]
    folder = Path(os.environ[VARIABLES[0]])
    _move_headers(folder)
    for path in delete_unfinished(folder):
        _log.warning("Deleted %s, which a process that was killed had left half written: it is compiled again", path)
    _PREPARED.add(_chosen())


def _chosen() -> tuple[str, ...]:
    return tuple(os.environ.get(name, "") for name in VARIABLES)


def _named() -> str:
    """The folder that the user named: torch sets the variable itself, as soon as parts of it are imported."""
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    named = os.environ.get(VARIABLES[0], "")
    return "" if named == default_cache_dir() else named


def _usable(chosen: Callable[[], Path], origin: str) -> str:
    """The folder that was chosen, if it may be used, or a new one for this process."""
    try:
        folder = Path(os.path.abspath(chosen()))
        why = make_private(folder) or foreign_entry(folder)
    except (OSError, RuntimeError) as error:
        folder, why = Path(), str(error)
    if not why:
        return str(folder)
    own = tempfile.mkdtemp(prefix="tdmpc2-torchinductor-")
    if worse := why_not_private(Path(own)):
        raise RuntimeError(f"torch.compile has nowhere to keep what it builds: {worse}")
    _log.warning("%storch.compile keeps nothing after this process, since %s", origin and f"{origin}{folder}: ", why)
    atexit.register(_delete, own, os.getpid())
    return own


def _delete(folder: str, process: int) -> None:
    if os.getpid() == process:  # not a child that was forked
        shutil.rmtree(folder, ignore_errors=True)


def _move_headers(folder: Path) -> None:
    """Move the compiled headers as well, for which torch takes the temporary directory whatever the variables say."""
    from torch._inductor import codecache

    module: Any = codecache
    if hasattr(module, "_HEADER_DIR"):
        module._HEADER_DIR = str(folder / "precompiled_headers")
        module._HEADER_LOCK_DIR = str(folder / "precompiled_headers" / "locks")
