"""Fixtures of the tests of the promises: another user's hand, and libraries that tell when they are loaded."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tdmpc2.acceleration.cpu import library

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
def cache_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache of the test's own, with nothing loaded from it yet."""
    home = tmp_path / "cache"
    home.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_CACHE_HOME", str(home))
    library._load.cache_clear()
    yield home
    library._load.cache_clear()


def build_library(path: Path, functions: tuple[str, ...], canary: Path | None = None) -> Path:
    """Build a small library with these functions; loading it writes the canary."""
    source = path.with_suffix(".c")
    text = "#include <stdio.h>\n" + "".join(f"int {name}(void) {{ return 7; }}\n" for name in functions)
    if canary is not None:
        text += f'__attribute__((constructor)) static void tell(void) {{ fclose(fopen("{canary}", "w")); }}\n'
    source.write_text(text)
    subprocess.run(["g++", "-x", "c", "-shared", "-fPIC", str(source), "-o", str(path)], check=True)
    return path


def compiler(folder: Path, body: str) -> str:
    """A compiler that answers --version and then does this."""
    path = folder / "compiler"
    path.write_text(f'#!/bin/sh\n[ "$1" = --version ] && exit\n{body}\n')
    path.chmod(0o755)
    return str(path)
