"""The C++ libraries of the kernels: built once per machine with g++, and kept in the user's cache.

A library is code of this process, so it is loaded only from a folder that belongs to this user alone
(:mod:`tdmpc2.support.private_folder`); where the cache is no such folder, every process builds its own.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import logging
import os
import platform
import shlex
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch  # noqa: F401 - it brings the OpenMP runtime that the library then shares

from tdmpc2.support.places import cache_dir
from tdmpc2.support.private_folder import make_private, temporary_private_folder, why_not_own
from tdmpc2.support.programs import run_program

_log = logging.getLogger("tdmpc2")

#: The files of each library; the last one is compiled.
PLANNER, UPDATE = ("gemm.h", "planner.cpp"), ("norm_mish.cpp",)
_FLAGS = ("-std=c++17", "-O3", "-march=native", "-fopenmp", "-fPIC", "-shared")
#: What each library must have.
FUNCTIONS = {
    PLANNER: ("normed_linear", "estimate_value", "policy_rollout"),
    UPDATE: ("norm_mish", "norm_mish_backward"),
}
_BUILDING = "building-"
_BUILD_SECONDS, _ANSWER_SECONDS, _ABANDONED_SECONDS = 60.0, 10.0, 24 * 3600
_INSTRUCTIONS = ("avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni", "avx512_bf16")


def load(sources: tuple[str, ...] = PLANNER) -> ctypes.CDLL:
    """Load the library of these files, built on first use.

    Raises:
        RuntimeError: it is not available here, with :func:`reason`.
    """
    library, why = _load(sources)
    if library is None:
        raise RuntimeError(f"The CPU kernels are not available: {why}")
    return library


def reason(sources: tuple[str, ...] = PLANNER) -> str:
    """Say why the library is not available here, in one line; empty if it is. Builds it on first use."""
    return _load(sources)[1]


@functools.cache
def _load(sources: tuple[str, ...]) -> tuple[ctypes.CDLL | None, str]:
    try:
        _identity(sources)  # before a folder is made for it
        with usable_folder() as folder:
            return opened(build(folder, sources), FUNCTIONS[sources]), ""
    except (OSError, RuntimeError) as error:
        return None, " ".join(str(error).split())


def cached_path(sources: tuple[str, ...] = PLANNER) -> Path | None:
    """Find the library in the cache; None where it is built anew by every process."""
    try:
        return build(cache_dir(), sources) if not make_private(cache_dir()) else None
    except (OSError, RuntimeError):
        return None


@contextlib.contextmanager
def usable_folder() -> Iterator[Path]:
    """Choose where the library is built and loaded from: the user's cache, or a folder for this process alone.

    Raises:
        OSError: the cache cannot be made.
        RuntimeError: there is no home directory, or all places can be changed by other users.
    """
    if not (why := make_private(cache_dir())):
        yield cache_dir()
        return
    _log.warning("The CPU kernels are built for this process alone and not kept, since %s", why)
    with temporary_private_folder() as folder:
        yield folder


def opened(path: Path, functions: Iterable[str]) -> ctypes.CDLL:
    """Load a library from a private folder.

    Args:
        path: the file.
        functions: names that it must have.

    Raises:
        RuntimeError: others could have written the file, or a function is missing.
        OSError: it is no library.
    """
    if why := why_not_own(path):
        raise RuntimeError(why)
    library = ctypes.CDLL(str(path))
    if absent := [name for name in functions if not hasattr(library, name)]:
        path.unlink(missing_ok=True)
        raise RuntimeError(f"{path} has no function {absent[0]}, so the compiler that built it does not work (CXX)")
    return library


def build(directory: Path, sources: tuple[str, ...] = PLANNER) -> Path:
    """Build the library for this machine, or find it built.

    Args:
        directory: created if absent; several processes may build into it at once.
        sources: :data:`PLANNER` or :data:`UPDATE`.

    Raises:
        RuntimeError: the CPU or the compiler will not do, in one line.
        OSError: the directory cannot be written.
    """
    name, compiler = _identity(sources)
    for path in directory.glob(f"{name}-*.so"):
        if not why_not_own(path) and path.stem == f"{name}-{_sha256(path.read_bytes())}":  # a truncated one would kill
            return path
    directory.mkdir(parents=True, exist_ok=True)
    delete_abandoned(directory)
    with tempfile.TemporaryDirectory(dir=directory, prefix=_BUILDING) as own:
        built = Path(own) / "built.so"
        _run([*compiler, *_FLAGS, str(_files(sources)[-1]), "-o", str(built)])
        return built.replace(directory / f"{name}-{_sha256(built.read_bytes())}.so")


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def cpu_flags() -> frozenset[str]:
    """Read the instruction sets of an x86 CPU under Linux; none elsewhere."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return frozenset(next((line.partition(":")[2] for line in lines if line.startswith("flags")), "").split())


def _identity(sources: tuple[str, ...]) -> tuple[str, list[str]]:
    """Name of the library for this machine and compiler, and the compiler's command.

    Raises:
        RuntimeError: the CPU or the compiler will not do.
    """
    flags = cpu_flags()
    if missing := [name for name in _INSTRUCTIONS if name not in flags]:
        raise RuntimeError(f"this CPU ({platform.machine()}) has no {', '.join(missing)}")
    try:
        compiler = shlex.split(os.environ.get("CXX", "")) or ["g++"]
    except ValueError as error:
        raise RuntimeError(f"CXX={os.environ['CXX']}: {error}") from error
    if shutil.which(compiler[0]) is None:
        raise RuntimeError(f"no C++ compiler: '{compiler[0]}' is not installed (CXX names another)")
    version = _run([*compiler, "--version"], _ANSWER_SECONDS)
    files = _files(sources)
    key = [*(file.read_text() for file in files), *_FLAGS, *compiler, version, *sorted(flags)]
    return f"{files[-1].stem}-{_sha256(repr(key).encode())}", compiler


def _files(sources: tuple[str, ...]) -> list[Path]:
    return [Path(__file__).parent / name for name in sources]


def delete_abandoned(directory: Path) -> None:
    """Delete what builds left that were killed more than a day ago; older versions called it ``tmp...``."""
    for folder in (*directory.glob(f"{_BUILDING}*"), *directory.glob("tmp????????")):
        with contextlib.suppress(OSError):
            if not folder.is_symlink() and time.time() - folder.lstat().st_mtime > _ABANDONED_SECONDS:
                shutil.rmtree(folder)


def _run(command: list[str], seconds: float = _BUILD_SECONDS) -> str:
    result = run_program(command, seconds)
    if result.returncode:
        lines = (result.stderr or result.stdout).strip().splitlines() or [f"exit code {result.returncode}"]
        raise RuntimeError(f"{command[0]}: {next((line for line in lines if 'error' in line), lines[-1])}")
    return result.stdout
