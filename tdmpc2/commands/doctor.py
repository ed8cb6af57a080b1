"""Say what works on this machine, what is missing and how to get it.

tdmpc2 doctor
tdmpc2 doctor --json

The exit code is 1 if something
is broken that every command needs, and 0 if only things are missing that one can do without.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
import sys
import tomllib
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from tdmpc2.commands.options import Option
from tdmpc2.commands.plain import read_options
from tdmpc2.support.cli import one_line_errors
from tdmpc2.support.extras import EXTRAS, install_hint, install_module, missing_packages
from tdmpc2.support.places import cache_dir
from tdmpc2.support.private_folder import why_not_private
from tdmpc2.support.version import DISTRIBUTION, source_tree, version

OK, ABSENT, MISSING, BROKEN = "ok", "absent", "missing", "broken"
OPTIONS = (Option("json", "print one JSON object", False, bool),)
#: Backend -> the package of Debian and Ubuntu that brings it.
_RENDERING = {"egl": "libegl1", "osmesa": "libosmesa6"}
_LITTLE_DISK = 5e9  # bytes; MT30 as a store takes more, a run and its caches less


class Finding(NamedTuple):
    """One thing that was looked at.

    Attributes:
        area: heading it stands under.
        name: of the thing.
        status: ``ok``; ``absent``, and nothing is to be done about it; ``missing``, one can do without it and the
            remedy brings it; or ``broken``, every command needs it.
        detail: what was found.
        remedy: what to do about it; empty if nothing is to be done.
    """

    area: str
    name: str
    status: str
    detail: str
    remedy: str = ""


@one_line_errors
def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line; exits with code 1 if something required is broken."""
    values, _ = read_options("doctor", __doc__, argv, OPTIONS)
    findings = examine()
    if values["json"]:
        print(json.dumps({"version": version(), "findings": [finding._asdict() for finding in findings]}, indent=1))
    else:
        print("\n".join(_lines(findings)))
    if any(finding.status == BROKEN for finding in findings):
        sys.exit(1)


def examine() -> list[Finding]:
    """Look at everything. Where required packages are broken, what is built on them is left out."""
    findings = list(packages())
    if not any(finding.status == BROKEN for finding in findings):
        for area in (processor, accelerators, environments, rendering):
            findings += _safely(area)
    return [*findings, *optional_packages(), *places()]


def packages() -> Iterator[Finding]:
    """Python and the required packages, their versions against what this version of the package needs."""
    from packaging.requirements import Requirement

    yield Finding("Versions", "tdmpc2", OK, version())
    yield Finding("Versions", "python", OK, f"{platform.python_version()}, {platform.platform()}")
    for requirement in map(Requirement, _required()):
        try:
            found = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            yield Finding("Versions", requirement.name, BROKEN, "not installed", f"pip install '{requirement}'")
            continue
        if requirement.specifier.contains(found, prereleases=True):
            yield Finding("Versions", requirement.name, OK, found)
        else:
            wanted = f"{found}, but {requirement.specifier} is needed"
            yield Finding("Versions", requirement.name, BROKEN, wanted, f"pip install '{requirement}'")


def _required() -> list[str]:
    root = source_tree()
    if root is not None:
        return list(tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"])
    return [text.partition(";")[0] for text in metadata.requires(DISTRIBUTION) or [] if "extra ==" not in text]


def processor() -> Iterator[Finding]:
    """The CPU, and the ways of computing it offers."""
    import psutil
    import torch

    from tdmpc2.support.runtime import can_compile, processor_name, usable_cores
    from tdmpc2_start import SPIN_COUNT

    area, cpu = "Processor", torch.device("cpu")
    memory = psutil.virtual_memory()
    yield Finding(area, "processor", OK, f"{processor_name()}, {usable_cores()} cores for this process")
    yield Finding(area, "memory", OK, f"{memory.available / 1e9:.1f} GB free of {memory.total / 1e9:.1f} GB")
    yield _kernels(area)
    compiles = can_compile(cpu)
    yield Finding(
        area,
        "torch.compile",
        OK if compiles else MISSING,
        "C++ compiler and Python headers found" if compiles else "no C++ compiler, or no Python headers",
        "" if compiles else "apt-get install g++ python3-dev (CXX names another compiler)",
    )
    yield _precision(area)
    bounded = "commands let waiting threads sleep soon; for scripts of your own"
    yield Finding(area, "threads", OK, f"{bounded}: export GOMP_SPINCOUNT={SPIN_COUNT}")


def _kernels(area: str) -> Finding:
    """The variant of the CPU kernels in use, and the others."""
    from tdmpc2.acceleration.cpu import library

    if why := library.reason():
        if not library.is_built():
            return Finding(
                area, "CPU kernels", MISSING, why, "apt-get install g++, then make setup, or pip install again"
            )
        return Finding(area, "CPU kernels", ABSENT, f"{why}: planning uses torch.compile or plain PyTorch instead")
    used = library.load().name
    others = [variant.name for variant in library.variants() if variant.runs_here and variant.name != used]
    detail = f"{used} for fp32, bf16 and int8 ({library.VARIABLE} chooses another: {', '.join(others)})"
    return Finding(area, "CPU kernels", OK, detail)


def _precision(area: str) -> Finding:
    """Tell the formats that ``precision=auto`` takes on this CPU, by the times of the kernels."""
    import torch

    from tdmpc2.acceleration.cpu.speed import kernel_seconds
    from tdmpc2.precision import fastest_float, int8_is_fast

    cpu, seconds = torch.device("cpu"), kernel_seconds()
    floating = fastest_float("bf16", cpu, seconds)
    if not seconds:
        return Finding(area, "precision=auto", OK, f"{floating} for every file: without the kernels nothing is faster")
    integers = "int8" if int8_is_fast(floating, cpu, seconds) else floating
    times = ", ".join(f"{name} {1e3 * time:.2g} ms" for name, time in seconds.items())
    plans = f"plans int8 files in {integers}, fp16 and bf16 files in {floating}"
    return Finding(area, "precision=auto", OK, f"{plans} (processor time for a 1M model's samples: {times})")


def accelerators() -> Iterator[Finding]:
    """GPUs that PyTorch can use."""
    import torch

    area = "Accelerators"
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            facts = torch.cuda.get_device_properties(index)
            detail = f"{facts.name}, {facts.total_memory / 1e9:.1f} GB, CUDA {torch.version.cuda}"
            yield Finding(area, f"cuda:{index}", OK, detail)
    elif shutil.which("nvidia-smi"):
        built = f"PyTorch {torch.__version__} cannot use the GPU of this machine"
        yield Finding(area, "cuda", MISSING, built, "install a CUDA build of torch: https://pytorch.org/get-started")
    else:
        yield Finding(area, "cuda", ABSENT, "no GPU: everything runs on the CPU")
    if sys.platform == "darwin":
        works = torch.backends.mps.is_available()
        yield Finding(area, "mps", OK if works else ABSENT, "available" if works else "not available")


def rendering() -> Iterator[Finding]:
    """Ways to draw frames for videos, each tried in a process of its own."""
    from tdmpc2.envs.rendering import backend_works, backends

    working = [name for name in backends() if backend_works(name)]
    for name in backends():
        if name in working:
            yield Finding("Rendering", name, OK, "draws frames")
        elif working:
            yield Finding("Rendering", name, ABSENT, f"does not work here; {working[0]} is used instead")
        else:
            remedy = f"apt-get install {_RENDERING[name]}" if name in _RENDERING else "install a driver for the display"
            yield Finding("Rendering", name, MISSING, "does not work here", remedy)


def environments() -> Iterator[Finding]:
    """The families of environments, and the tasks of each that have a name of their own."""
    from tdmpc2.envs.registry import FAMILIES, family_of, offered_families
    from tdmpc2.tasks import TASKS

    for family in (*FAMILIES, *offered_families()):
        count = sum(family_of(name) is family for name in TASKS)
        tasks = [f"{count} named tasks"] * bool(count) + [family.more.lstrip(", ")] * bool(family.more)
        named = ", ".join(tasks) or f"tasks named {family.pattern}"
        if not family.installed:
            missing = f"{named}: {family.needs} not installed"
            yield Finding("Environments", family.name, MISSING, missing, install_module(family.needs))
            continue
        package = f"{family.needs} {_version_of(family.needs)}".strip() if family.needs else ""
        note = family.note if all(map(_is_installed, family.note_for)) else ""
        yield Finding("Environments", family.name, OK, named + (package and f", {package}") + (note and f"; {note}"))


def _version_of(module: str) -> str:
    """Look up the version of the distribution that brings a module; empty if none of them does."""
    root = module.partition(".")[0]
    with contextlib.suppress(metadata.PackageNotFoundError):
        return metadata.version(root)  # most have the name of their module; the others take seconds to find
    return next(map(metadata.version, metadata.packages_distributions().get(root, ())), "")


def _is_installed(requirement: str) -> bool:
    """Tell if a package is there in the version that is asked for, as in ``mujoco==3.3.0``."""
    name, _, wanted = requirement.partition("==")
    try:
        return metadata.version(name) == wanted
    except metadata.PackageNotFoundError:
        return False


def optional_packages() -> Iterator[Finding]:
    """Packages that add something."""
    for name, extra in EXTRAS.items():
        missing = missing_packages(name)
        detail = f"{extra.purpose}: {', '.join(missing)} not installed" if missing else extra.purpose
        yield Finding("Optional", name, MISSING if missing else OK, detail, install_hint(name) if missing else "")


def places() -> Iterator[Finding]:
    """Name the folders of caches, and say how much disk is free there and here."""
    from tdmpc2.acceleration.compile_cache import compile_cache
    from tdmpc2.commands.hydra_app import yaml_directory

    yield Finding("Places", "configuration files", OK, str(yaml_directory()))
    for name, place in (("cache", cache_dir()), ("torch.compile", compile_cache()), ("here", Path.cwd())):
        parent = next(folder for folder in (place, *place.parents) if folder.exists())
        free, writable = shutil.disk_usage(parent).free, os.access(parent, os.W_OK)
        detail = f"{place}, {free / 1e9:.1f} GB free" + ("" if writable else ", not writable")
        remedy = "" if free > _LITTLE_DISK else "free some disk, or work in another directory"
        if not writable:
            remedy = "change its permissions, or set XDG_CACHE_HOME and TORCHINDUCTOR_CACHE_DIR to another directory"
        elif name != "here" and place.exists() and (why := why_not_private(place)):
            detail, remedy = f"{detail}, not used: {why}", "code is loaded from it, so it must be your own alone"
        yield Finding("Places", name, MISSING if remedy else OK, detail, remedy)


def _safely(area: Callable[[], Iterator[Finding]]) -> list[Finding]:
    """The findings of an area; what fails there in an unforeseen way is itself a finding."""
    try:
        return list(area())
    except Exception as error:  # a broken installation can fail in any way, and this command must still report it
        detail = f"{type(error).__name__}: {' '.join(str(error).split())}"
        return [
            Finding(area.__name__.capitalize(), area.__name__, BROKEN, detail, "install the package it names again")
        ]


def _lines(findings: Sequence[Finding]) -> Iterator[str]:
    heading = ""
    for finding in findings:
        if finding.area != heading:
            yield f"{'' if not heading else chr(10)}{finding.area}"
            heading = finding.area
        sign = {OK: " ", ABSENT: " ", MISSING: "-", BROKEN: "!"}[finding.status]
        remedy = f"  ->  {finding.remedy}" if finding.remedy else ""
        yield f" {sign} {finding.name:20}{finding.detail}{remedy}"
    count = {status: sum(finding.status == status for finding in findings) for status in (MISSING, BROKEN)}
    yield ""
    yield f"{count[BROKEN]} broken (!), {count[MISSING]} missing that one can do without (-)"
