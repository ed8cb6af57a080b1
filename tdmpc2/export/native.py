"""A folder with a model and the C++ sources that plan with it: docs/deployment.md, "Without Python"."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from tdmpc2.acceleration.cpu import build
from tdmpc2.export.native_model import read_source, write_model
from tdmpc2.export.request import Request
from tdmpc2.support.files import replacing, size_text
from tdmpc2.support.version import version

MODEL = "model.safetensors"
_HEADERS = ("tdmpc2.h", "tdmpc2.hpp")
_CMAKE = ("tdmpc2Config.cmake.in", "aarch64-linux.cmake")
_TOP = ("CMakeLists.txt", "README.md", build.EXAMPLE)


def export(request: Request) -> bool:
    """Write the folder, say so, and compare a library built from it with this program if that is asked for.

    Returns:
        False if a check found a difference that is too large.

    Raises:
        ValueError: bad input, existing files, the disk refused, or no library could be built to check.
    """
    folder = _folder(request)
    files = sources()
    if folder.is_file():
        raise ValueError(f"out={folder} is a file: --to native writes a folder, name another")
    request.check_free([folder / name for name in (*files, MODEL)])
    if request.envs != 1:
        raise ValueError(f"envs={request.envs}: --to native leaves their number to tdmpc2_open; leave it out")
    source = read_source(request)
    folder.mkdir(parents=True, exist_ok=True)
    write_model(folder / MODEL, source, overwrite=request.force)  # first: it is what can fail
    write_sources(folder, overwrite=request.force)
    size = size_text((folder / MODEL).stat().st_size)
    print(f"wrote {folder}: {request.precision}, {size}; to build: cmake -S {folder} -B {folder / 'build'} && "
          f"cmake --build {folder / 'build'}")  # fmt: skip
    if not request.check:
        return True
    from tdmpc2.export.native_check import check

    return check(request, source, folder)


def write_sources(folder: Path, *, overwrite: bool = False) -> None:
    """Write everything but the model."""
    for name, text in sources().items():
        with replacing(folder / name, overwrite=overwrite) as temporary:
            temporary.write_text(text, encoding="utf-8", newline="\n")


def sources() -> dict[str, str]:
    """Every file of the folder but the model: place in it -> text."""
    own = [
        path for path in build.NATIVE.iterdir() if path.suffix in (".cpp", ".h") and path.name not in (*_TOP, *_HEADERS)
    ]
    kernels = [
        path for path in build.FOLDER.iterdir() if path.suffix in (".cpp", ".h") and path.name not in build.FOR_TRAINING
    ]
    places: Mapping[str, Path] = {
        **{name: build.NATIVE / name for name in _TOP},
        **{f"include/{name}": build.NATIVE / name for name in _HEADERS},
        **{f"cmake/{name}": build.NATIVE / name for name in _CMAKE},
        **{f"src/{path.name}": path for path in sorted([*own, *kernels])},
    }
    texts = {place: path.read_text(encoding="utf-8") for place, path in places.items()}
    common = [*build.SHARED, *sorted(path.name for path in own if path.suffix == ".cpp")]
    return {**texts, "cmake/variants.cmake": _variants(common)}


def numeric_version() -> str:
    """Give the version in the form that CMake takes: numbers and dots, without what follows them."""
    found = re.match(r"\d+(\.\d+){0,3}", version())
    return found[0] if found else "0"


def _variants(common: list[str]) -> str:
    """List for CMake the sources and flags of the kernels, whose home is :mod:`tdmpc2.acceleration.cpu.build`."""
    flags = [flag for flag in build.FLAGS if not flag.startswith(("-std=", "-fPIC", "-W"))]
    lines = [
        "# Written by `tdmpc2 export`.",
        f"set(TDMPC2_VERSION {numeric_version()})",
        f"set(TDMPC2_SOURCES {build.sources_id()})",
        f"set(TDMPC2_FLAGS {' '.join(flags)} -DTDMPC2_ACTS_ONLY)",
        f"set(TDMPC2_PER_VARIANT {' '.join(name for name in build.PER_VARIANT if name not in build.FOR_TRAINING)})",
        f"set(TDMPC2_SHARED {' '.join(common)})",
    ]
    others: Mapping[str, tuple[str, ...]] = {build.SCALAR: build.SCALAR_FLAGS}
    for machine, variants in [*build.VARIANTS.items(), ("other", others)]:
        baseline = build.BASELINE.get(machine, ())
        lines.append(f"set(TDMPC2_VARIANTS_{machine} {' '.join(variants)})")
        lines.append(f"set(TDMPC2_BASELINE_{machine} {' '.join(baseline)})")
        lines += [f"set(TDMPC2_FLAGS_{machine}_{name} {' '.join((*baseline, *own))})" for name, own in variants.items()]
    return "\n".join(lines) + "\n"


def _folder(request: Request) -> Path:
    if request.out is not None:
        return request.out
    return request.default_folder / f"{request.stem(request.precision or '')}_native"
