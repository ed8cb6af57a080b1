"""Put a copy of the configuration files into the wheel; everything else about the package is in pyproject.toml.

The files themselves stay in the root, where users edit them: ``train.py`` reads them there, and ``tdmpc2 train`` of an
installed wheel reads the copy.
"""

from __future__ import annotations

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
TARGET = Path("tdmpc2", "commands", "yaml")


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


setup(cmdclass={"build_py": BuildWithConfiguration})
