"""Directories of the user that the package writes to unasked."""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir() -> Path:
    """Directory of what was built for this machine and can be built again; it need not exist.

    A relative ``XDG_CACHE_HOME`` is ignored, as its specification says: it would be another one in every directory.

    Raises:
        RuntimeError: the user has no home directory.
    """
    home = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(home) if os.path.isabs(home) else Path.home() / ".cache") / "tdmpc2"
