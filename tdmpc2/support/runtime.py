"""Devices, threads and abilities of the machine this runs on."""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import os
import platform
import shutil
import sys
import sysconfig
import tempfile
from pathlib import Path

import psutil
import torch

from tdmpc2.support.cgroups import quota_cores, quota_memory
from tdmpc2.support.programs import run_program
from tdmpc2.support.text import cut

_COMPILER_SECONDS = 60.0
#: More threads for each core are a mistake; where too many are asked for, the runtime ends the process by a signal.
_MOST_THREADS_PER_CORE = 8


def resolve_device(name: str) -> torch.device:
    """``auto`` is CUDA, else MPS, else the CPU; anything else is a torch device.

    Raises:
        ValueError: the device is not available here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type == "meta":
            raise RuntimeError("it holds no numbers")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"device={name} is not available here ({cut(str(error).splitlines()[0], 160)}); use device=auto"
        ) from error
    return device


def set_num_threads(count: int | None) -> int:
    """Use ``count`` CPU threads; None: what OMP_NUM_THREADS says, cut to what is possible, else its share of the cores.

    Raises:
        ValueError: more than this machine can make use of.
    """
    most = most_threads()
    if count is None:
        first = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()  # one number per level of nesting
        asked = int(first[:18]) if first.isascii() and first.isdigit() else 0
        count = min(asked, most) or max(1, usable_cores() // local_processes())
    elif count > most:
        raise ValueError(f"num_threads={count} must be at most {most} here, where there are {os.cpu_count()} cores")
    torch.set_num_threads(count)
    return count


def most_threads() -> int:
    """The largest number of threads that is not a mistake."""
    return _MOST_THREADS_PER_CORE * max(8, os.cpu_count() or 1)


def keep_freed_memory() -> bool:
    """Let the process keep what it frees of main memory in blocks of up to 32 MB, for its next use.

    Every update allocates the same tensors. By default glibc hands many of them back to the system, which clears each
    page before it gives it out again: 2,000 page faults, or 5 % of a compiled update.

    Returns:
        False where the C library is not glibc, which can be told.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    trim_threshold, top_pad, mmap_threshold = -1, -2, -3  # malloc.h
    mallopt = ctypes.CDLL(None).mallopt
    options = ((trim_threshold, 2**30), (top_pad, 2**26), (mmap_threshold, 2**25))
    return all(mallopt(option, value) for option, value in options)


def local_processes() -> int:
    """Processes of this run on this machine, as torchrun says."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def is_main_process() -> bool:
    """True in the process that writes files and prints: the only one, or rank 0 of those that torchrun started."""
    return os.environ.get("RANK", "0") == "0"


def usable_cores() -> int:
    """Cores of this process: its affinity mask, cut to a container's CPU quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, quota_cores() or cores)


def kernel_threads() -> int:
    """Threads of the CPU kernels: as many as torch's, cut to a container's CPU quota, of which torch does not know."""
    threads = torch.get_num_threads()
    return min(threads, quota_cores() or threads)


def too_many_threads() -> str:
    """Say that torch computes with more threads than a container's CPU quota lets run; empty if it does not."""
    allowed, threads = quota_cores(), torch.get_num_threads()
    if allowed is None or threads <= allowed:
        return ""
    few = f"torch.set_num_threads({allowed})"
    return f"torch uses {threads} threads where the CPU quota of this container is {allowed}, which is slow: call {few}"


def processor_name() -> str:
    """Name this machine's processor; on ARM, where Linux knows no name, by the numbers of its maker and design."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    numbers = [facts[key] for key in ("CPU implementer", "CPU part", "CPU variant") if key in facts]
    name = facts.get("model name") or platform.processor() or platform.machine()
    return " ".join([name, *numbers])


def available_memory(device: torch.device) -> int:
    """Count the bytes this process can still take on a device.

    A GPU is one process's alone. On a CPU it is the process's share of what the container's limit leaves.
    """
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    available, left = psutil.virtual_memory().available, quota_memory()
    return (available if left is None else min(available, left)) // local_processes()


def has_fast_bf16(device: torch.device) -> bool:
    """True if torch's bf16 matrix products are at least as fast as its float32 ones on this device."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == "cpu" and bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def has_fast_int8(device: torch.device) -> bool:
    """True if torch's int8 matrix products are faster than its float32 ones on this device.

    They are on no CPU that was tried (two to ten times slower); only the CPU kernels make int8 fast there.
    """
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


def can_compile(device: torch.device) -> bool:
    """True if torch.compile can build kernels for this device here; for a CPU the compiler is tried."""
    if device.type == "cuda":
        return importlib.util.find_spec("triton") is not None
    return device.type == "cpu" and has_cpp_compiler()


def has_cpp_compiler() -> bool:
    """True if torch.compile can build CPU kernels here: with Python's headers, and a compiler whose programs work."""
    if not (Path(sysconfig.get_path("include")) / "Python.h").exists():
        return False
    compiler = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")  # as torch chooses
    return shutil.which(compiler) is not None and _compiles(compiler)


@functools.cache
def _compiles(compiler: str) -> bool:
    """Let a compiler build a library, and call it: one may be broken, hang, or write something else."""
    with tempfile.TemporaryDirectory() as folder:
        source, built = Path(folder, "answer.cpp"), Path(folder, "answer.so")
        source.write_text('extern "C" int answer() { return 42; }\n')
        try:
            done = run_program([compiler, "-shared", "-fPIC", str(source), "-o", str(built)], _COMPILER_SECONDS)
            return done.returncode == 0 and bool(ctypes.CDLL(str(built)).answer() == 42)
        except (OSError, RuntimeError, AttributeError):
            return False
