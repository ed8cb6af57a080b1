"""The C++ libraries of the kernels: built once per machine with g++, and kept in the user's cache."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch  # noqa: F401 - it brings the OpenMP runtime that the library then shares

from tdmpc2.support.places import cache_dir

#: The files of each library; the last one is compiled.
PLANNER, UPDATE = ("gemm.h", "planner.cpp"), ("norm_mish.cpp",)
_FLAGS = ("-std=c++17", "-O3", "-march=native", "-fopenmp", "-fPIC", "-shared")
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
        return ctypes.CDLL(str(build(cache_dir(), sources))), ""
    except (OSError, RuntimeError) as error:
        return None, " ".join(str(error).split())


def build(directory: Path, sources: tuple[str, ...] = PLANNER) -> Path:
    """Build the library for this machine, or find it built.

    Args:
        directory: created if absent; several processes may build into it at once.
        sources: :data:`PLANNER` or :data:`UPDATE`.

    Raises:
        RuntimeError: the CPU or the compiler will not do, in one line.
        OSError: the directory cannot be written.
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
    version = _run([*compiler, "--version"])
    files = [Path(__file__).parent / name for name in sources]
    key = [*(file.read_text() for file in files), *_FLAGS, *compiler, version, *sorted(flags)]
    name = f"{files[-1].stem}-{_sha256(repr(key).encode())}"
    for path in directory.glob(f"{name}-*.so"):
        if path.stem == f"{name}-{_sha256(path.read_bytes())}":  # to load a truncated one would kill the process
            return path
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory) as own:
        built = Path(own) / "built.so"
        _run([*compiler, *_FLAGS, str(files[-1]), "-o", str(built)])
        return built.replace(directory / f"{name}-{_sha256(built.read_bytes())}.so")


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def cpu_flags() -> frozenset[str]:
    """Read the instruction sets of an x86 CPU under Linux; none elsewhere."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return frozenset(next((line.partition(":")[2] for line in lines if line.startswith("flags")), "").split())


def _run(command: list[str]) -> str:
    result = subprocess.run(command, capture_output=True, text=True, errors="replace")
    if result.returncode:
        lines = (result.stderr or result.stdout).strip().splitlines() or [f"exit code {result.returncode}"]
        raise RuntimeError(f"{command[0]}: {next((line for line in lines if 'error' in line), lines[-1])}")
    return result.stdout
