"""The CPU kernels built for x86-64 and for ARM compute the same bits; ARM's are cross-compiled and emulated."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path

import pytest

from tdmpc2.acceleration.cpu import build
from tests.helpers.reference import REPO

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("g++") is None, reason="builds the kernels with g++"),
    pytest.mark.skipif(platform.system() != "Linux", reason="emulates a Linux program"),
]
CHECK = REPO / "tests" / "native" / "check.cpp"
ARM_COMPILER, ARM_EMULATOR, ARM_ROOT = "aarch64-linux-gnu-g++", "qemu-aarch64", "/usr/aarch64-linux-gnu"
needs_arm = pytest.mark.skipif(
    not (shutil.which(ARM_COMPILER) and shutil.which(ARM_EMULATOR)),
    reason=f"needs {ARM_COMPILER} and {ARM_EMULATOR} (apt-get install g++-aarch64-linux-gnu qemu-user)",
)


def checked(folder: Path, compiler: str, *emulator: str) -> dict[str, dict[str, str]]:
    """Build the kernels and the program that checks them, run it, and return variant -> what -> checksum."""
    program, library = folder / "check", folder / build.LIBRARY
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CXX", compiler)
        build.build(library)
    flags = ["-std=c++17", "-I", str(build.FOLDER), str(CHECK), "-o", str(program), "-ldl"]
    subprocess.run([compiler, *flags], check=True, timeout=300)
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
    assert arm.keys() == {"scalar", "neon", "dotprod"}
    for variant, sums in arm.items():
        assert without_bf16(sums) == without_bf16(here["scalar"]), variant
