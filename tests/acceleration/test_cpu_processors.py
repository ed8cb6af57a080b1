"""The CPU kernels built for x86-64 and for ARM compute the same bits.

ARM's are cross-compiled and emulated. The tiles of AMX are emulated as well, in C++, since few machines have them.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from tdmpc2.acceleration.cpu import build
from tests.helpers.reference import REPO

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("g++") is None, reason="builds the kernels with g++"),
    pytest.mark.skipif(platform.system() != "Linux", reason="emulates a Linux program"),
]
CHECK, TILES = (REPO / "tests" / "native" / name for name in ("check.cpp", "software_tiles.h"))
ARM_COMPILER, ARM_EMULATOR, ARM_ROOT = "aarch64-linux-gnu-g++", "qemu-aarch64", "/usr/aarch64-linux-gnu"
needs_arm = pytest.mark.skipif(
    not (shutil.which(ARM_COMPILER) and shutil.which(ARM_EMULATOR)),
    reason=f"needs {ARM_COMPILER} and {ARM_EMULATOR} (apt-get install g++-aarch64-linux-gnu qemu-user)",
)


def checked(folder: Path, compiler: str, *emulator: str, flags: Sequence[str] = ()) -> dict[str, dict[str, str]]:
    """Build the kernels and the program that checks them, run it, and return variant -> what -> checksum."""
    program, library = folder / "check", folder / build.LIBRARY
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CXX", compiler)
        build.build(library, flags)
    compile_check = [compiler, "-std=c++17", "-I", str(build.FOLDER), str(CHECK), "-o", str(program), "-ldl"]
    subprocess.run(compile_check, check=True, timeout=300)
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    command = [*emulator, str(program), str(library)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, dict[str, str]] = {}
    for line in done.stdout.splitlines():
        variant, _, rest = line.partition(" ")
        what, _, checksum = rest.rpartition(" ")
        assert found.setdefault(variant, {}).setdefault(what, checksum) == checksum  # with any number of threads
    return found


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    return checked(tmp_path_factory.mktemp("here"), "g++")


def without_bf16(sums: dict[str, str]) -> dict[str, str]:
    return {what: value for what, value in sums.items() if not what.startswith("bf16")}


def test_all_variants_that_run_here_compute_the_same_bits(here: dict[str, dict[str, str]]) -> None:
    assert here["scalar"]["self-check"] == "passed"
    assert {"fp32 values", "int8 values", "int8 actions", "norm_mish gradient"} < here["scalar"].keys()
    for name in ("fp32", "int8"):  # the episodic model only adds a head that ends some sequences
        assert here["scalar"][f"{name} episodic values"] != here["scalar"][f"{name} values"]
        assert here["scalar"][f"{name} episodic actions"] == here["scalar"][f"{name} actions"]
    for variant, sums in here.items():
        assert without_bf16(sums) == without_bf16(here["scalar"]), variant


@needs_arm
def test_arm_computes_the_same_bits_as_this_processor(here: dict[str, dict[str, str]], tmp_path: Path) -> None:
    """A student that was evaluated on a workstation acts the same on the robot."""
    arm = checked(tmp_path, ARM_COMPILER, ARM_EMULATOR, "-L", ARM_ROOT)
    assert arm.keys() == {"scalar", "neon", "dotprod", "i8mm"}
    for variant, sums in arm.items():
        assert sums["self-check"] == "passed", variant  # bf16 within its tolerance
        assert without_bf16(sums) == without_bf16(here["scalar"]), variant


# -- AMX --------------------------------------------------------------------------------------------------------------


def test_amx_computes_the_same_bits_as_the_scalar_variant(here: dict[str, dict[str, str]], tmp_path: Path) -> None:
    """All of the variant but the tiles' instructions, most of which are compared with the compiler's own below.

    What configures the tiles is held to the layout of Intel's manual when it is compiled, and no further.
    """
    if "avx512" not in here:
        pytest.skip("this processor has no AVX-512 with BF16, which the variant of AMX uses, too")
    found = checked(tmp_path, "g++", flags=[f'-DTDMPC2_TILES="{TILES}"'])
    if "amx" not in found:
        pytest.skip("this compiler does not know AMX")
    amx = found["amx"]
    assert amx["self-check"] == "passed"
    assert without_bf16(amx) == without_bf16(here["scalar"])
    assert amx["bf16 values"] != here["avx512"]["bf16 values"]  # summed in tiles, in another order


OURS = """
#include "tiles.h"
using namespace tdmpc2::TDMPC2_VARIANT;
void tiles(char* at, long row_bytes) {
    configure_tiles();
    clear_tile<3>(), load_tile<4>(at, row_bytes), multiply_bytes<1, 4, 6>(), multiply_bf16<2, 5, 7>();
    store_tile<1>(at, row_bytes), release_tiles();
}
"""
THE_COMPILERS = """
#include <immintrin.h>
void tiles(char* at, long row_bytes) {
    _tile_loadconfig(at);
    _tile_zero(3); _tile_loadd(4, at, row_bytes); _tile_dpbusd(1, 4, 6); _tile_dpbf16ps(2, 5, 7);
    _tile_stored(1, at, row_bytes); _tile_release();
}
"""


def test_instructions_of_amx_are_those_of_the_compilers_functions(tmp_path: Path) -> None:
    """The order of operands is what no machine here can test."""
    if build.target_machine() != "x86_64" or not build._knows(["g++", *build.VARIANTS["x86_64"]["amx"]], str(tmp_path)):
        pytest.skip("AMX is of x86-64, and of compilers that know it")
    found = []
    for name, text in {"ours.cpp": OURS, "compilers.cpp": THE_COMPILERS}.items():
        source, assembly = tmp_path / name, tmp_path / f"{name}.s"
        source.write_text(text)
        flags = [*build.VARIANTS["x86_64"]["amx"], "-DTDMPC2_VARIANT=amx", "-I", str(build.FOLDER), "-Wno-psabi"]
        subprocess.run(["g++", "-std=c++17", "-O2", *flags, "-S", str(source), "-o", str(assembly)], check=True)
        lines = re.findall(r"^\s*(?:tile|tdp|ldtile).*", assembly.read_text(), re.MULTILINE)
        found.append([re.sub(r"^ldtilecfg .*", "ldtilecfg", " ".join(line.split())) for line in lines])
    assert len(found[0]) == 7
    assert found[0] == found[1]
