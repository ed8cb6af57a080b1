"""Building and loading the library of CPU kernels."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from pathlib import Path

import pytest

from tdmpc2.acceleration.cpu import library
from tests.helpers.cpu_kernels import needs_library


@pytest.fixture
def uncached(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A cache directory of the test's own, in which nothing is built."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    library._load.cache_clear()
    yield tmp_path / "tdmpc2"
    library._load.cache_clear()


@needs_library
def test_library_built_by_several_processes_loads_in_all(uncached: Path) -> None:
    with multiprocessing.get_context("fork").Pool(2) as pool:
        paths = pool.map(library.build, [uncached] * 2, chunksize=1)
    assert paths[0] == paths[1]
    assert list(uncached.iterdir()) == [paths[0]]  # nothing temporary is left
    built = paths[0].stat().st_mtime_ns
    assert library.reason() == ""
    assert paths[0].stat().st_mtime_ns == built


@needs_library
@pytest.mark.parametrize("left", [0, 4000])
def test_library_damaged_on_disk_is_built_anew(uncached: Path, left: int) -> None:
    path = library.build(uncached, library.UPDATE)
    whole = path.read_bytes()
    path.write_bytes(whole[:left])
    assert library.build(uncached, library.UPDATE).read_bytes() == whole


@needs_library
def test_library_loaded_adds_no_second_openmp_runtime() -> None:
    maps = Path("/proc/self/maps").read_text().split()
    assert len({path for path in maps if "libgomp" in path or "libiomp" in path or "libomp" in path}) == 1


@pytest.mark.parametrize(
    ("compiler", "expected"),
    [
        ("no-such-compiler", "no C++ compiler: 'no-such-compiler' is not installed"),
        ("{broken}", "error: out of cheese"),
        ("{silent}", "exit code 3"),
        ("'unbalanced", "CXX='unbalanced: No closing quotation"),
    ],
)
def test_library_with_broken_compiler_gives_a_reason(
    uncached: Path, monkeypatch: pytest.MonkeyPatch, compiler: str, expected: str
) -> None:
    monkeypatch.setattr(library, "cpu_flags", lambda: frozenset(library._INSTRUCTIONS))
    scripts = {
        "broken": "echo note; echo 'x.cpp:1: error: out of cheese'; echo 'compilation terminated.'; exit 1",
        "silent": "exit 3",
    }
    for name, body in scripts.items():
        path = uncached.parent / name
        path.write_text(f'#!/bin/sh\n[ "$1" = --version ] && exit\n{{ {body}; }} >&2\n')
        path.chmod(0o755)
    monkeypatch.setenv("CXX", compiler.format(**{name: uncached.parent / name for name in scripts}))
    assert expected in library.reason()
    assert "\n" not in library.reason()
    with pytest.raises(RuntimeError, match="CPU kernels are not available"):
        library.load()
    assert not list(uncached.glob("*"))


def test_library_unsupported_gives_a_reason(uncached: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "cpu_flags", lambda: frozenset(library._INSTRUCTIONS) - {"avx512_bf16"})
    assert "has no avx512_bf16" in library.reason()
    library._load.cache_clear()
    monkeypatch.setattr(library, "cpu_flags", lambda: frozenset(library._INSTRUCTIONS))
    uncached.write_text("a file where the directory should be")
    assert "exists" in library.reason() or "no C++ compiler" in library.reason()
