"""Fixtures: an exported model and a library built from it, once for all tests."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

from tdmpc2.export import native
from tdmpc2.export.native_library import NativeLibrary, build
from tests.helpers.native import agent_program, models_of, runnable


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Export a folder with a model in each precision, named by it; all processes of a test run share it."""
    root = tmp_path_factory.getbasetemp()
    root = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root
    with FileLock(root / "native.lock"):
        models_of(root / "native")
        if not (root / "native" / "src").exists():
            native.write_sources(root / "native")
    return root / "native"


@pytest.fixture(scope="session")
def episodic(folder: Path) -> Path:
    """Export a folder with a model of tasks that may terminate, in each precision."""
    found = folder / "episodic"
    with FileLock(folder.with_name("native.lock")):
        models_of(found, episodic=True)
    return found


@pytest.fixture(scope="session")
def built(folder: Path) -> Path:
    """Build a library with the variants that run here, and the program that tests it."""
    if not (shutil.which("cmake") and shutil.which("g++")):
        pytest.skip("builds with cmake and g++")
    with FileLock(folder.with_name("native.lock")):
        made = build(folder, f"TDMPC2_VARIANTS={';'.join(runnable())}", target="all")
        if not (made / "agent").exists():
            agent_program(folder, made, "-DCOUNT")
    return made


@pytest.fixture(scope="session")
def opened(built: Path) -> NativeLibrary:
    return NativeLibrary(built / "libtdmpc2.so")


@pytest.fixture(scope="session")
def run(built: Path) -> Callable[..., str]:
    """Run the program of agent.cpp, and return what it prints."""

    def call(*words: object) -> str:
        done = subprocess.run(
            [built / "agent", *map(str, words)], capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return call
