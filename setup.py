"""Build what a wheel holds beside Python: the CPU kernels, and a copy of the configuration files.

Everything else about the package is in pyproject.toml. The configuration files stay in the root, where users edit them:
``train.py`` reads them there, and ``tdmpc2 train`` of an installed wheel reads the copy. The kernels are optional:
without a C++ compiler the package is installed all the same. They have nothing of Python's, so that one wheel serves
all versions.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py
from setuptools.errors import CompileError

ROOT = Path(__file__).resolve().parent
TARGET = Path("tdmpc2", "commands", "yaml")
KERNELS = Path("tdmpc2", "acceleration", "cpu")

sys.path.insert(0, str(ROOT / KERNELS))
import build as kernels  # noqa: E402 - a file of the package, which itself cannot be imported before its dependencies

sys.path.pop(0)


class BuildWithConfiguration(build_py):
    """The usual step, and the YAML files; an editable installation has no need of the copy."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        for source in (ROOT / "generic.yaml", *sorted((ROOT / "student_config").glob("*.yaml"))):
            target = Path(self.build_lib) / TARGET / source.relative_to(ROOT)
            self.mkpath(str(target.parent))
            self.copy_file(str(source), str(target))


class BuildKernels(build_ext):
    """One library for ctypes instead of a module for one version of Python."""

    def build_extension(self, ext: Extension) -> None:
        try:
            variants = kernels.build(Path(self.get_ext_fullpath(ext.name)))
        except (OSError, RuntimeError, subprocess.TimeoutExpired) as error:
            raise CompileError(f"The CPU kernels were not built, and planning will be slower: {error}") from error
        self.announce(f"CPU kernels for {', '.join(variants)}", level=3)

    def get_ext_filename(self, fullname: str) -> str:
        return str(Path(*fullname.split(".")[:-1], kernels.LIBRARY))


class WheelForAnyPython(bdist_wheel):
    """Named by the processor that the kernels are for; without kernels, for any."""

    def get_tag(self) -> tuple[str, str, str]:
        platform = super().get_tag()[2]
        if not (Path(self.get_finalized_command("build").build_lib) / KERNELS / kernels.LIBRARY).exists():
            return "py3", "none", "any"
        if not self.plat_name_supplied:  # a cross compiler's processor
            system, _, _ = platform.partition("_")
            platform = f"{system}_{kernels.target_machine()}" if system == "linux" else platform
        return "py3", "none", platform


setup(
    ext_modules=[Extension("tdmpc2.acceleration.cpu.kernels", [], optional=True)],
    cmdclass={"build_py": BuildWithConfiguration, "build_ext": BuildKernels, "bdist_wheel": WheelForAnyPython},
)
