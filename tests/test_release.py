"""Releases: one version, a changelog, a citation, and workflows that do what .ci/run does."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import tomllib
from datetime import date
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import setuptools
import yaml

from tdmpc2.envs.registry import FAMILIES
from tests.helpers.reference import REPO

VERSION = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]["version"]
WORKFLOWS = {path.stem: yaml.safe_load(path.read_text()) for path in (REPO / ".github" / "workflows").glob("*.yml")}


def text_of(job: dict[str, Any]) -> str:
    return "\n".join(str(step.get("run", "")) for step in job["steps"])


def test_changelog_has_the_form_and_the_version() -> None:
    lines = re.findall(r"^## (.+)$", (REPO / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert lines[0] == "[Unreleased]"
    released = [re.fullmatch(r"\[(\d+\.\d+\.\d+)\] - (\d{4}-\d\d-\d\d)", line) for line in lines[1:]]
    assert all(released)
    dates = [date.fromisoformat(found[2]) for found in released if found]
    assert dates == sorted(dates, reverse=True)
    assert VERSION in [found[1] for found in released if found]
    kinds = set(re.findall(r"^### (.+)$", (REPO / "CHANGELOG.md").read_text(), re.MULTILINE))
    assert kinds <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def test_citation_has_the_title_of_the_paper_and_the_version() -> None:
    citation = yaml.safe_load((REPO / "CITATION.cff").read_text())
    assert citation["version"] == VERSION
    title = citation["preferred-citation"]["title"]
    assert title in " ".join((REPO / "README.md").read_text().split())
    assert "arXiv 2501.05329" in (REPO / "README.md").read_text()
    assert citation["preferred-citation"]["doi"].endswith("2501.05329")


def test_workflow_does_what_the_projects_own_run_does() -> None:
    jobs = WORKFLOWS["ci"]["jobs"]
    assert ".ci/run" in text_of(jobs["all"]).splitlines()
    assert "make docs" in text_of(jobs["all"])
    matrix = jobs["systems"]["strategy"]["matrix"]
    assert [name.split("-")[0] for name in matrix["os"]] == ["ubuntu", "macos", "windows"]
    assert matrix["python"] == ["3.11", "3.12", "3.13", "3.14"]


def test_what_workflows_call_exists() -> None:
    makefile = (REPO / "Makefile").read_text()
    for name, workflow in WORKFLOWS.items():
        said = "\n".join(text_of(job) for job in workflow["jobs"].values())
        targets = re.findall(r"\bmake ([a-z-]+)", said)
        assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets), name
        for package in re.findall(r"grep '\^(\w+==)' constraints.txt", said):
            assert re.search(rf"^{package}", (REPO / "constraints.txt").read_text(), re.MULTILINE)
    assert WORKFLOWS["release"][True]["push"]["tags"] == ["v*"]  # YAML reads the key `on` as True


def test_scheduled_workflow_tries_the_newest_versions_of_each_family_alone() -> None:
    workflow = WORKFLOWS["newest"]
    assert workflow[True]["schedule"]
    job = workflow["jobs"]["family"]
    assert job["strategy"]["fail-fast"] is False  # a broken family must not hide others
    rows = job["strategy"]["matrix"]["include"]
    lists = {path.stem: path.read_text() for path in (REPO / "docker" / "newest").glob("*.txt")}
    assert sorted(row["family"] for row in rows) == sorted(lists)
    assert "-r docker/newest/${{ matrix.family }}.txt" in text_of(job)
    for row in rows:
        assert all((REPO / word).exists() for word in row["tests"].split() if word.startswith("tests/"))
    needed = {line for text in lists.values() for line in text.splitlines() if not line.startswith("#")}
    assert not [line for line in needed if "=" in line or "<" in line], "a version is pinned"
    packages = {family.needs for family in FAMILIES if family.needs}
    assert packages <= {line.lower() for line in needed}


def test_release_takes_the_source_archive_from_one_job() -> None:
    """Of two archives of the same name, the one downloaded last would be published instead of the tested one."""
    job = WORKFLOWS["release"]["jobs"]["wheels"]
    uploads = [step for step in job["steps"] if "upload-artifact" in step.get("uses", "")]
    paths = {step["with"]["path"]: step.get("if", "") for step in uploads}
    assert paths == {"dist/*.whl": "", "dist/*.tar.gz": "runner.arch == 'X64'"}
    assert [row["runner"] for row in job["strategy"]["matrix"]["include"]].count("ubuntu-24.04") == 1
    assert len({step["with"]["name"] for step in uploads}) == len(uploads)
    assert all(step["with"]["name"].startswith("dist-") for step in uploads)  # what the next jobs download


@pytest.mark.parametrize("path", sorted((REPO / ".github" / "ISSUE_TEMPLATE").glob("*.yml")), ids=lambda p: p.stem)
def test_issue_template_asks_for_something(path: Path) -> None:
    form = yaml.safe_load(path.read_text())
    if path.stem == "config":
        return
    assert {"name", "description", "body"} <= form.keys()
    ids = [part["id"] for part in form["body"] if part["type"] != "markdown"]
    assert ids
    assert len(ids) == len(set(ids))


@pytest.fixture(scope="module")
def setup_file() -> Any:
    """Load the functions of setup.py without building anything."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(setuptools, "setup", lambda **_: None)
        spec = importlib.util.spec_from_file_location("setup_file", REPO / "setup.py")
        assert spec
        assert spec.loader
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("needed", "symbols", "platform"),
    [
        ("libc.so.6", "GLIBC_2.2.5 GLIBC_2.14", "manylinux_2_17_x"),
        ("libm.so.6", "GLIBC_2.2.5 GLIBC_2.34", "manylinux_2_34_x"),
        ("libstdc++.so.6", "GLIBC_2.17 GLIBCXX_3.4.30 GLIBCXX_3.4", "manylinux_2_35_x"),
        ("libstdc++.so.6", "GLIBC_2.38 GLIBCXX_3.4.19", "manylinux_2_38_x"),
        ("libstdc++.so.6", "GLIBC_2.17 GLIBCXX_3.4.99", "linux_x"),  # newer than any known system
        ("libgomp.so.1", "GLIBC_2.17", "linux_x"),  # not on every Linux
    ],
)
def test_wheel_is_named_by_what_its_library_needs(
    setup_file: Any, needed: str, symbols: str, platform: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = f" 0x01 (NEEDED)  Shared library: [{needed}]\n" + "\n".join(f"  Name: {name}" for name in symbols.split())
    monkeypatch.setattr(setup_file.subprocess, "run", lambda *_, **__: SimpleNamespace(stdout=text))
    assert setup_file.linux_platform([Path("kernels.so")], "x") == platform


def test_wheel_of_unknown_needs_promises_nothing(setup_file: Any, tmp_path: Path) -> None:
    (tmp_path / "broken.so").write_text("no library")
    assert setup_file.linux_platform([tmp_path / "broken.so"], "x") == "linux_x"


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_wheels_are_built_from_the_source_archive() -> None:
    lines = subprocess.check_output(["make", "-n", "wheels", "ARM=python3"], cwd=REPO, text=True).splitlines()
    built = [line for line in lines if " wheel " in line]
    assert len(built) == 2
    assert all(line.endswith("dist/*.tar.gz") for line in built)
    assert built[1].startswith("CXX=python3 ")
