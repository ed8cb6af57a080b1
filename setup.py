"""Build what a wheel holds beside Python: the CPU kernels, the planner for C and C++, and copies of other files.

Everything else about the package is in pyproject.toml. The configuration files stay in the root, where users edit them:
``train.py`` reads them there, and ``tdmpc2 train`` of an installed wheel reads the copy. So do the models, which
``load_agent`` finds by name. Both libraries are optional: without a C++ compiler the package is installed all the same.
They have nothing of Python's, so that one wheel serves all versions.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py
from setuptools.errors import CompileError

ROOT = Path(__file__).resolve().parent
YAML = Path("tdmpc2", "commands", "yaml")
MODELS = Path("tdmpc2", "checkpoints", "models")
SHIPPED = Path("tdmpc2", "checkpoints", "shipped.py")  # which models come with the project
KERNELS = Path("tdmpc2", "acceleration", "cpu")
OLDEST_GLIBC = (2, 17)  # the oldest that pip knows by such a name
#: Newest GLIBCXX_3.4.N that a system has whose glibc is the one behind it (PEP 600, the tables of auditwheel).
GLIBC_OF_RUNTIME = {19: (2, 17), 24: (2, 27), 28: (2, 31), 29: (2, 34), 30: (2, 35), 32: (2, 38), 33: (2, 39)}
_ON_EVERY_LINUX = re.compile(r"lib(c|m|dl|rt|pthread|stdc\+\+|gcc_s)\.so\.\d|ld-linux-[\w-]+\.so\.\d")

sys.path.insert(0, str(ROOT / KERNELS))
import build as kernels  # noqa: E402 - a file of the package, which itself cannot be imported before its dependencies

sys.path.pop(0)


class BuildWithFiles(build_py):
    """The usual step, and the files of the root; an editable installation has no need of copies."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        yaml = (ROOT / "generic.yaml", *sorted((ROOT / "student_config").glob("*.yaml")))
        targets = {source: YAML / source.relative_to(ROOT) for source in yaml}
        rows = re.findall(r'Shipped\("([\w.-]+)"', (ROOT / SHIPPED).read_text(encoding="utf-8"))
        targets |= {ROOT / "models" / name: MODELS / name for name in rows}
        for source, place in targets.items():
            target = Path(self.build_lib) / place
            self.mkpath(str(target.parent))
            self.copy_file(str(source), str(target))


class BuildLibraries(build_ext):
    """Libraries for ctypes and for C++ instead of modules for one version of Python."""

    def build_extension(self, ext: Extension) -> None:
        target = Path(self.get_ext_fullpath(ext.name))
        native = target.name == kernels.NATIVE_LIBRARY
        if native and self.editable_mode:  # `tdmpc2 export --to native` writes what builds it
            return
        what = "planner for C++" if native else "kernels for CPUs"
        try:
            variants = kernels.build(target, native=native)
        except (OSError, RuntimeError) as error:
            loss = "" if native else ", and planning will be slower"
            raise CompileError(f"Without the {what}, which failed to build{loss}: {error}") from error
        self.announce(f"{what} for {', '.join(variants)}", level=3)

    def get_output_mapping(self) -> dict[str, str]:
        # An editable installation in strict mode links these, and optional ones may not be there.
        return {built: place for built, place in super().get_output_mapping().items() if Path(place).exists()}

    def get_ext_filename(self, fullname: str) -> str:
        *package, name = fullname.split(".")
        return str(Path(*package, f"{name}.so"))


class WheelForAnyPython(bdist_wheel):
    """Named by the processor that the libraries are for; without them, for any."""

    def get_tag(self) -> tuple[str, str, str]:
        platform = super().get_tag()[2]
        libraries = sorted(Path(self.get_finalized_command("build").build_lib).rglob("*.so*"))
        if not libraries:
            return "py3", "none", "any"
        if not self.plat_name_supplied and platform.startswith("linux"):  # the processor may be a cross compiler's
            platform = linux_platform(libraries, kernels.target_machine())
        return "py3", "none", platform


def linux_platform(libraries: list[Path], machine: str) -> str:
    """Name the systems that libraries run on, by the symbols that they need.

    ``manylinux_2_35_x86_64`` is Linux with glibc 2.35 or newer. A library that needs others than those of C and C++, or
    of which that cannot be told, makes it ``linux_x86_64``, which package indexes do not take.
    """
    newest = OLDEST_GLIBC
    for library in libraries:
        try:
            command = ["readelf", "--wide", "--dynamic", "--version-info", str(library)]
            text = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
        except (OSError, subprocess.SubprocessError):
            return f"linux_{machine}"
        needed = re.findall(r"\(NEEDED\).*\[(.+?)\]", text)
        runtime = max((int(version) for version in re.findall(r"\bGLIBCXX_3\.4\.(\d+)", text)), default=0)
        if not all(map(_ON_EVERY_LINUX.fullmatch, needed)) or runtime > max(GLIBC_OF_RUNTIME):
            return f"linux_{machine}"
        newest = max(newest, *((int(a), int(b)) for a, b in re.findall(r"\bGLIBC_(\d+)\.(\d+)", text)))
        newest = max(newest, next(glibc for version, glibc in GLIBC_OF_RUNTIME.items() if version >= runtime))
    return f"manylinux_{newest[0]}_{newest[1]}_{machine}"


setup(
    ext_modules=[
        Extension("tdmpc2.acceleration.cpu.kernels", [], optional=True),
        Extension("tdmpc2.native.libtdmpc2", [], optional=True),
    ],
    cmdclass={"build_py": BuildWithFiles, "build_ext": BuildLibraries, "bdist_wheel": WheelForAnyPython},
)
