"""Fixtures: running commands in forks of one process, and a folder made by typing commands."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

from tdmpc2.commands import data
from tests.helpers.commands import STUDENT, TASKS, Outcome, Run, good
from tests.helpers.forks import ForkServer
from tests.helpers.reference import REPO


@pytest.fixture(scope="package")
def run(forks: ForkServer) -> Run:
    """Run a command in a fork of a process that has everything imported."""

    def call(command: str, cwd: Path) -> Outcome:
        script, *arguments = command.split()
        job = forks.start([REPO / script, *arguments], cwd)
        return Outcome(job.wait(600), job.out.read_text(), job.err.read_text())

    return call


@pytest.fixture(scope="package")
def home(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a folder with data, a teacher, a student and its quantised copies by typing commands in it.

    Test processes that run side by side share the folder, so no test may write to it.
    """
    base = tmp_path_factory.getbasetemp()
    folder = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    with FileLock(folder / "home.lock"):
        if not (folder / "home").exists():
            _make_home(run, tmp_path_factory.mktemp("made")).rename(folder / "home")
    return folder / "home"


def _make_home(run: Run, cwd: Path) -> Path:
    good(run(f"collect.py {TASKS} episodes_per_task=2 data_dir=data num_threads=1", cwd))
    good(run(f"train.py {STUDENT} teacher_config=null student_config.exp_name=teacher student_config.num_q=3", cwd))
    good(run(f"train.py {STUDENT} teacher_config.checkpoint=logs/mt30/1/teacher/model.pt", cwd))
    good(run("quantize.py --checkpoint logs/mt30/1/default/model.pt --out quantised", cwd))
    shutil.copy(cwd / "logs/mt30/1/default/model.pt", cwd / "student.pt")
    return cwd


@pytest.fixture
def cwd(home: Path, tmp_path: Path) -> Path:
    """Copy the folder of ``home``, so that a test may write to it."""
    shutil.copytree(home, tmp_path / "home")
    return tmp_path / "home"


@pytest.fixture
def run_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Return a function that runs ``tdmpc2 data`` in an empty directory: exit code, stdout, stderr."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)

    def command(*arguments: object) -> tuple[int, str, str]:
        code = 0
        try:
            data.main([str(argument) for argument in arguments])
        except SystemExit as ended:
            code = int(ended.code or 0)
        return code, *capsys.readouterr()

    return command
