"""Fixtures of the tests of the promises: another user's hand, and a cache."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

NOBODY = 65534


@pytest.fixture
def foreign() -> Callable[[Path], None]:
    """Give a file to another user; only root can."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        pytest.skip("only root can give files to another user")

    def give(path: Path) -> None:
        os.chown(path, NOBODY, NOBODY, follow_symlinks=False)

    return give


@pytest.fixture
def cache_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own."""
    home = tmp_path / "cache"
    home.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_CACHE_HOME", str(home))
    return home
