"""Directories of the user that the package writes to unasked."""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir() -> Path:
    """Directory of what was built for this machine and can be built again; it need not exist."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tdmpc2"
