"""Fixtures for the tests of docs/trust.md: files of another user, a cache and a fake compiler."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

NOBODY = 65534
Give = Callable[[Path], None]
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="builds a small library with g++")


@pytest.fixture
def foreign() -> Give:
    """Give a file to another user; only root can."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        pytest.skip("only root can give files to another user")

    def give(path: Path) -> None:
        os.chown(path, NOBODY, NOBODY, follow_symlinks=False)

    return give


@pytest.fixture
def cache_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give the test a cache of its own."""
    home = tmp_path / "cache"
    home.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_CACHE_HOME", str(home))
    return home


def compiler(folder: Path, body: str) -> str:
    """Write a fake compiler that answers --version and otherwise runs the body."""
    path = folder / "compiler"
    path.write_text(f'#!/bin/sh\n[ "$1" = --version ] && exit\n{body}\n')
    path.chmod(0o755)
    return str(path)
