"""Optional packages and the version: both are declared once, and installation hints work."""

from __future__ import annotations

import re
import tomllib
from importlib import metadata

import pytest

import tdmpc2
from tdmpc2.support import version as versions
from tdmpc2.support.extras import EXTRAS, install_hint, install_module, missing_packages
from tests.helpers.reference import REPO

PROJECT = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]


def test_extras_are_those_of_the_project_file() -> None:
    declared = {
        name: tuple(re.split(r"[<>=]", text)[0] for text in texts)
        for name, texts in PROJECT["optional-dependencies"].items()
        if name not in ("dev", "envs")  # groups of other extras
    }
    assert {name: extra.packages for name, extra in EXTRAS.items()} == declared


def test_hint_names_packages_that_exist() -> None:
    """The hints used to name an extra of a distribution that is on no package index."""
    assert install_hint("video") == "pip install imageio imageio-ffmpeg"
    for path in (REPO / "tdmpc2").rglob("*.py"):
        if path.name != "extras.py":
            assert "tdmpc2-opt[" not in path.read_text(), path


def test_myosuite_is_installed_as_in_the_clone() -> None:
    file = (REPO / "docker" / "myosuite.txt").read_text()
    packages = [line for line in file.splitlines() if not line.startswith("#")]
    words = install_module("myosuite").partition("--no-deps ")[2].partition("`")[0].split()
    assert words[0] == packages[0]
    assert [word.partition("==")[0] for word in words] == [line.partition("==")[0] for line in packages]


def test_missing_package_is_found_without_importing_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "imageio_ffmpeg" else object())
    assert missing_packages("video") == ["imageio-ffmpeg"]


def test_version_is_the_project_files() -> None:
    assert tdmpc2.__version__ == PROJECT["version"]


def test_version_of_an_installed_copy_is_the_distributions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "source_tree", lambda: None)
    monkeypatch.setattr(metadata, "version", {"tdmpc2-opt": "9.8.7"}.__getitem__)
    assert versions.version() == "9.8.7"


def test_types_are_declared_to_type_checkers() -> None:
    assert (REPO / "tdmpc2" / "py.typed").is_file()
