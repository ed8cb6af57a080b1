"""The library of CPU kernels: building it, loading it, and choosing the variant for this processor."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tdmpc2.acceleration.cpu import build, library
from tdmpc2.acceleration.cpu.library import Kernels, Variant
from tdmpc2.support.runtime import has_cpp_compiler
from tests.helpers.cpu_kernels import needs_library
from tests.helpers.reference import REPO


@pytest.fixture
def undecided() -> Iterator[None]:
    """Forget the chosen variant before and after the test."""
    library._load.cache_clear()
    yield
    library._load.cache_clear()


class Named(Kernels):
    """Kernels with a name and without functions."""

    def __init__(self, name: str) -> None:
        self.name = name


def variant(name: str, *, runs: bool = True, agrees: bool = True) -> Variant:
    return Variant(name, Named(name), lambda: runs, lambda: agrees)


def chosen(monkeypatch: pytest.MonkeyPatch, *variants: Variant, wanted: str = "") -> str:
    """Return the name of the variant in use, or why there is none."""
    monkeypatch.setattr(library, "variants", lambda: variants)
    monkeypatch.setenv(library.VARIABLE, wanted)
    library._load.cache_clear()
    return library.reason() or library.load().name


# -- choosing ---------------------------------------------------------------------------------------------------------

SCALAR, AVX2, AVX512 = (variant(name) for name in ("scalar", "avx2", "avx512"))


def test_fastest_variant_that_runs_here_is_chosen(undecided: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert chosen(monkeypatch, SCALAR, AVX2, AVX512) == "avx512"
    assert chosen(monkeypatch, SCALAR, AVX2, variant("avx512", runs=False)) == "avx2"


def test_scalar_variant_is_chosen_by_name_alone(undecided: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch is faster where only the scalar variant runs, so that one is used only if it is asked for."""
    old = SCALAR, variant("avx2", runs=False)
    assert chosen(monkeypatch, *old) == "this processor has none of the instructions of avx2"
    assert chosen(monkeypatch, *old, wanted="scalar") == "scalar"


@pytest.mark.parametrize("wanted", ["avx512", "sse9"])
def test_variant_that_is_not_there_gives_a_reason(
    undecided: None, monkeypatch: pytest.MonkeyPatch, wanted: str
) -> None:
    why = chosen(monkeypatch, SCALAR, AVX2, variant("avx512", runs=False), wanted=wanted)
    assert why == f"TDMPC2_KERNELS={wanted} is not among the variants that run here: scalar, avx2, off"


def test_kernels_switched_off_are_not_even_loaded(undecided: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "variants", lambda: pytest.fail("loaded"))
    monkeypatch.setenv(library.VARIABLE, "off")
    assert library.reason() == "TDMPC2_KERNELS=off"
    with pytest.raises(RuntimeError, match="CPU kernels are not available: TDMPC2_KERNELS=off"):
        library.load()


def test_variant_that_computes_something_else_is_refused(
    undecided: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A miscompiled variant or a broken emulator must not decide how a robot moves."""
    assert chosen(monkeypatch, SCALAR, AVX2, variant("avx512", agrees=False)) == "avx2"
    assert caplog.messages == ["The avx512 kernels compute something else than the scalar ones here and are not used"]


# -- loading ----------------------------------------------------------------------------------------------------------


def test_library_that_was_not_built_gives_a_reason(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="not built when tdmpc2 was installed"):
        library.opened(tmp_path / build.LIBRARY)


@pytest.mark.parametrize("content", [b"", b"garbage"])
def test_library_that_is_none_gives_a_reason(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / build.LIBRARY
    path.write_bytes(content)
    with pytest.raises(RuntimeError, match=r"kernels.so.*make setup"):
        library.opened(path)


@pytest.mark.skipif(not has_cpp_compiler(), reason="no C++ compiler")
def test_library_without_the_functions_gives_a_reason(tmp_path: Path) -> None:
    """Another program's library of the same name, or one that was built halfway, is refused with a reason."""
    path = tmp_path / build.LIBRARY
    (tmp_path / "empty.cpp").write_text("int nothing;\n")
    build._run([*build._compiler(), "-shared", "-fPIC", str(tmp_path / "empty.cpp"), "-o", str(path)])
    with pytest.raises(RuntimeError, match=r"tdmpc2_sources.*make setup"):
        library.opened(path)


@needs_library
def test_library_of_other_sources_asks_for_make_setup(tmp_path: Path) -> None:
    """A developer who edits a source must not go on measuring the old library."""
    for path in (*build.FOLDER.glob("*.h"), *build.FOLDER.glob("*.cpp"), build.FOLDER / "build.py", library._PATH):
        shutil.copy(path, tmp_path)
    assert library.opened(tmp_path / build.LIBRARY)
    with (tmp_path / "planner.cpp").open("a") as file:
        file.write("// edited\n")
    with pytest.raises(RuntimeError, match="built from other sources than those beside it: make setup"):
        library.opened(tmp_path / build.LIBRARY)


@needs_library
def test_library_needs_no_openmp_runtime() -> None:
    """A second OpenMP runtime beside PyTorch's would let its threads spin on the same cores."""
    content = library._PATH.read_bytes()
    assert not [name for name in (b"libgomp", b"libiomp", b"libomp") if name in content]


@needs_library
@pytest.mark.parametrize("found", library.variants() if not library.reason() else [], ids=lambda found: found.name)
def test_variant_of_the_library_agrees_with_the_scalar_one(found: Variant) -> None:
    if not found.runs_here:
        pytest.skip(f"this processor has no {found.name}")
    assert found.agrees()


# -- building ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("compiler", "expected"),
    [
        ("no-such-compiler", "no C++ compiler: no-such-compiler is not installed"),
        ("{broken}", "error: out of cheese"),
        ("{silent}", "exit code 3"),
        ("'unbalanced", "CXX='unbalanced: No closing quotation"),
    ],
)
def test_build_with_broken_compiler_gives_a_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compiler: str, expected: str
) -> None:
    scripts = {
        "broken": "echo note; echo 'x.cpp:1: error: out of cheese'; echo 'compilation terminated.'; exit 1",
        "silent": "exit 3",
    }
    for name, body in scripts.items():
        machine = '[ "$1" = -dumpmachine ] && echo x86_64-linux && exit'
        (tmp_path / name).write_text(f"#!/bin/sh\n{machine}\n{{ {body}; }} >&2\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("CXX", compiler.format(**{name: tmp_path / name for name in scripts}))
    with pytest.raises(RuntimeError) as raised:
        build.build(tmp_path / "built" / build.LIBRARY)
    assert expected in str(raised.value).splitlines()[0]
    assert not (tmp_path / "built" / build.LIBRARY).exists()


def test_build_leaves_out_variants_that_the_compiler_does_not_know(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Older compilers know no BF16 instructions and still build all other variants."""
    script = tmp_path / "old"
    script.write_text(
        '#!/bin/sh\n[ "$1" = -dumpmachine ] && echo x86_64-linux && exit\n'
        'case "$*" in *avx512*) exit 1;; esac\nfor last; do :; done\necho "$*" > "$last"\n'
    )
    script.chmod(0o755)
    monkeypatch.setenv("CXX", str(script))
    target = tmp_path / "built" / build.LIBRARY
    assert build.build(target) == ["scalar", "avx2", "avxvnni"]
    assert target.read_text().startswith("-shared")
    assert list(target.parent.iterdir()) == [target]  # nothing temporary is left


def _runs(number: int) -> bool:
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def _endless_build(tmp_path: Path) -> tuple[Path, int, subprocess.Popen[bytes]]:
    """Begin a build whose compiler never ends; return its target, the compiler's process id and the build."""
    os.mkfifo(said := tmp_path / "said")
    compiler = tmp_path / "endless"
    compiler.write_text(
        f'#!/bin/sh\n[ "$1" = -dumpmachine ] && echo x86_64-linux && exit\necho $$ > {said}\nexec sleep 600\n'
    )
    compiler.chmod(0o755)
    target = tmp_path / "built" / build.LIBRARY
    code = f"from tdmpc2.acceleration.cpu import build; from pathlib import Path; build.build(Path({str(target)!r}))"
    env = {**os.environ, "CXX": str(compiler)}
    process = subprocess.Popen(
        [sys.executable, "-c", code], env=env, cwd=REPO, start_new_session=True, stderr=subprocess.DEVNULL
    )
    return target, int(said.read_text()), process


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="tells by /proc whether a process has ended")
def test_killed_build_takes_its_compiler_along_and_the_next_one_deletes_what_it_left(tmp_path: Path) -> None:
    """A killed `make setup` used to leave its compilers running for minutes and its folder behind."""
    target, number, process = _endless_build(tmp_path)
    with process:
        process.kill()
    (left,) = target.parent.iterdir()
    assert left.name.startswith("building-")
    while _runs(number):
        os.sched_yield()  # its supervisor kills the compiler; if not, the tests' time limit ends this loop
    machine, _, ended = left.name.removeprefix("building-").partition("-")
    others = {"building-of-mine.x", f"building-{'0' * len(machine)}-{ended}"}  # the second one is of another machine
    for name in others:
        (target.parent / name).mkdir()
    build._delete_orphans(target.parent)
    assert {path.name for path in target.parent.iterdir()} == others


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_ctrl_c_ends_the_compiler_of_a_build(tmp_path: Path) -> None:
    """After Ctrl-C the compiler used to go on in its own session, and the build waited for it."""
    target, number, process = _endless_build(tmp_path)
    with process:
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait() != 0
    while _runs(number):
        os.sched_yield()
    assert not list(target.parent.iterdir())


@pytest.mark.skipif(not has_cpp_compiler(), reason="no C++ compiler")
def test_scalar_variant_is_scalar_whatever_the_compiler_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """CXX="g++ -march=native" used to vectorise the scalar variant too, which the others are compared with."""
    monkeypatch.setenv("CXX", "g++ -march=x86-64-v3")
    if (machine := build.target_machine()) != "x86_64":
        pytest.skip(f"the compiler is one for {machine}")
    for name, macro in (("scalar", False), ("avx2", True)):
        flags = [*build.BASELINE[machine], *build.VARIANTS[machine][name]]
        defined = build._run([*build._compiler(), *flags, "-dM", "-E", "-x", "c++", os.devnull])
        assert ("__AVX2__" in defined) == macro
