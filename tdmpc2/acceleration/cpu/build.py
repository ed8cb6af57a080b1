"""Build the library of the CPU kernels: one variant for each instruction set that the compiler knows, in one file.

python tdmpc2/acceleration/cpu/build.py        # beside its sources, as an editable installation wants it

`make setup` and `setup.py` call it, when nothing is installed yet: it needs the standard library alone. CXX names the
compiler, and with it the processor: CXX=aarch64-linux-gnu-g++ builds for ARM.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shlex
import shutil
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
LIBRARY = "kernels.so"
#: The planner without Python, which a wheel brings compiled; its sources are beside those of other uses.
NATIVE, NATIVE_LIBRARY = FOLDER.parents[1] / "native", "libtdmpc2.so"
#: Compiled once, and once for every variant.
SHARED, PER_VARIANT = ("dispatch.cpp", "threads.cpp", "refit.cpp"), ("planner.cpp", "norm_mish.cpp")
#: What is not needed with -DTDMPC2_ACTS_ONLY.
FOR_TRAINING, EXAMPLE = ("norm_mish.cpp", "variant.h"), "example.cpp"
SCALAR, SCALAR_FLAGS = "scalar", ("-DTDMPC2_SCALAR",)
_AVX512 = ("-mavx2", "-mfma", *(f"-mavx512{name}" for name in "f bw dq vl vnni".split()))
#: Processor -> variant -> flags; each is faster than those before it. Names: ``runs_here`` of dispatch.cpp.
VARIANTS = {
    "x86_64": {
        SCALAR: SCALAR_FLAGS,
        "avx2": ("-mavx2", "-mfma"),
        "avxvnni": ("-mavx2", "-mfma", "-mavxvnni"),
        "avx512vnni": _AVX512,
        "avx512": (*_AVX512, "-mavx512bf16"),
        "amx": (*_AVX512, "-mavx512bf16", "-mamx-tile", "-mamx-int8", "-mamx-bf16"),
    },
    "aarch64": {
        SCALAR: SCALAR_FLAGS,
        "neon": (),
        "dotprod": ("-march=armv8.2-a+dotprod",),
        "i8mm": ("-march=armv8.2-a+dotprod+i8mm+bf16",),
    },
}
#: What every processor of a kind has: CXX may name newer instructions, which the code that looks for them must not use.
BASELINE = {"x86_64": ("-march=x86-64",), "aarch64": ("-march=armv8-a",)}
_SYNONYMS = {"amd64": "x86_64", "arm64": "aarch64"}
#: Contraction would round differently on every instruction set; nothing here reads errno or floating-point exceptions.
FLAGS = (
    "-std=c++17", "-O3", "-fPIC", "-pthread", "-fvisibility=hidden", "-ffp-contract=off", "-fno-math-errno",
    "-fno-trapping-math", "-Wall", "-Wno-psabi", "-Wno-ignored-attributes", "-Wno-unknown-pragmas",
)  # fmt: skip
_SECONDS, _MOST_LINES = 600.0, 20


def sources_id(folder: Path = FOLDER) -> str:
    """Hash of everything that the library is built from, this file included."""
    files = sorted((*folder.glob("*.h"), *folder.glob("*.cpp"), folder / "build.py"))
    content = b"".join(file.name.encode() + b"\0" + file.read_bytes() for file in files)
    return hashlib.sha256(content).hexdigest()[:16]


def target_machine() -> str:
    """Name the processor that the compiler compiles for.

    Raises:
        RuntimeError: there is no compiler, or it does not say.
    """
    machine = _target().partition("-")[0]
    return _SYNONYMS.get(machine, machine)


def build(target: Path, more: Sequence[str] = (), *, native: bool = False) -> list[str]:
    """Build the library.

    Args:
        target: the file; it is there only when it is whole.
        more: flags for all sources.
        native: the planner without Python (``libtdmpc2``) instead of the kernels alone.

    Returns:
        Names of the variants in it.

    Raises:
        RuntimeError: there is no compiler, or it failed.
    """
    compiler, machine = _compiler(), target_machine()
    shared, per_variant = [FOLDER / name for name in SHARED], [FOLDER / name for name in PER_VARIANT]
    stays = ["-Wl,-z,nodelete"] if "linux" in _target() else []  # its threads sleep in it: threads.cpp
    if native:
        shared += sorted(path for path in NATIVE.glob("*.cpp") if path.name != EXAMPLE)
        per_variant = [path for path in per_variant if path.name not in FOR_TRAINING]
        more = ["-DTDMPC2_ACTS_ONLY", "-Wno-attributes", f"-I{FOLDER}", f"-I{NATIVE}", *more]
        stays += [f"-Wl,-soname,{NATIVE_LIBRARY}"] if stays else []
    variants, baseline = VARIANTS.get(machine, {SCALAR: SCALAR_FLAGS}), BASELINE.get(machine, ())
    target.parent.mkdir(parents=True, exist_ok=True)
    _delete_orphans(target.parent)
    owner = _support("processes").owner_of("self")
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f"building-{owner}") as own:
        variants = {name: flags for name, flags in variants.items() if _knows([*compiler, *baseline, *flags], own)}
        names = " ".join(f"F({name})" for name in variants)
        jobs = [(source, "", [f"-DTDMPC2_VARIANTS(F)={names}", f'-DTDMPC2_SOURCES="{sources_id()}"'])
                for source in shared]  # fmt: skip
        jobs += [(source, name, [f"-DTDMPC2_VARIANT={name}", *flags])
                 for name, flags in variants.items() for source in per_variant]  # fmt: skip
        objects = [str(Path(own, f"{name}{source.name}.o")) for source, name, _ in jobs]
        commands = [[*compiler, *FLAGS, *baseline, *flags, *more, "-c", str(source), "-o", made]
                    for (source, _, flags), made in zip(jobs, objects, strict=True)]  # fmt: skip
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(_run, commands))
        built = Path(own, target.name)
        _run([*compiler, "-shared", "-pthread", *stays, *objects, "-o", str(built)])
        built.replace(target)
    return list(variants)


def _support(name: str) -> Any:
    """Load a module of :mod:`tdmpc2.support` by its file: the package needs what is not installed yet."""
    spec = importlib.util.spec_from_file_location(name, FOLDER.parents[1] / "support" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _delete_orphans(folder: Path) -> None:
    """Delete what builds on this machine left that were killed; one that goes on beside this one keeps its own."""
    processes = _support("processes")
    own = processes.owner_of("self").partition("-")[0]
    for left in folder.glob("building-*"):
        found = re.match(r"building-(([0-9a-f]{8})-([0-9]{1,10})-[0-9]+\.)", left.name)
        if found and found[2] == own and processes.has_ended(int(found[3]), found[1]) and not left.is_symlink():
            shutil.rmtree(left, ignore_errors=True)


def _compiler() -> list[str]:
    try:
        named = shlex.split(os.environ.get("CXX", ""))
    except ValueError as error:
        raise RuntimeError(f"CXX={os.environ['CXX']}: {error}") from error
    for command in [named] if named else [["g++"], ["clang++"], ["c++"]]:
        if shutil.which(command[0]):
            return command
    raise RuntimeError(f"no C++ compiler: {named[0] if named else 'g++'} is not installed (CXX names another)")


def _target() -> str:
    return _run([*_compiler(), "-dumpmachine"])


def _knows(command: Sequence[str], folder: str) -> bool:
    """True if the compiler has these flags, and its assembler what they stand for."""
    try:
        _run([*command, "-c", str(FOLDER / "probe.cpp"), "-o", str(Path(folder, "probe.o"))])
    except RuntimeError:
        return False
    return True


def _run(command: Sequence[str]) -> str:
    """Return the output of a command.

    Raises:
        RuntimeError: it failed; the message begins with the compiler's first error.
    """
    done = _support("programs").run_program(command, _SECONDS)
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or [f"exit code {done.returncode}"]
        first = next((line for line in lines if "error" in line), lines[-1])
        raise RuntimeError("\n".join([f"{command[0]}: {first}", *lines[:_MOST_LINES]]))
    return done.stdout


if __name__ == "__main__":
    try:
        print(f"CPU kernels for {', '.join(build(FOLDER / LIBRARY))}")
    except (OSError, RuntimeError) as failure:
        sys.exit(f"The CPU kernels were not built: {failure}")
