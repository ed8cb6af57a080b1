"""Fixtures: running commands in forks of one process, and a folder made by typing commands."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tdmpc2.commands import data
from tests.helpers.commands import SERVER, STUDENT, TASKS, Outcome, Run, environment, good
from tests.helpers.reference import REPO


@pytest.fixture(scope="package")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """Run a command in a fork of a process that has everything imported."""
    folder = tmp_path_factory.mktemp("streams")
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER], env=environment(), cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    assert server.stdin is not None
    assert server.stdout is not None
    jobs = iter(range(10_000))

    def call(command: str, cwd: Path) -> Outcome:
        script, *arguments = command.split()
        files = {f"stream{i}": str(folder / f"{next(jobs)}") for i in (1, 2)}
        job = {"argv": [str(REPO / script), *arguments], "cwd": str(cwd), **files}
        server.stdin.write(json.dumps(job) + "\n")
        server.stdin.flush()
        return Outcome(int(server.stdout.readline()), *(Path(file).read_text() for file in files.values()))

    yield call
    server.stdin.close()
    assert server.wait(30) == 0


@pytest.fixture(scope="package")
def home(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data, a teacher, a student and its quantised copies, made by typing commands in it."""
    cwd = tmp_path_factory.mktemp("home")
    good(run(f"collect.py {TASKS} episodes_per_task=2 data_dir=data num_threads=1", cwd))
    good(run(f"train.py {STUDENT} teacher_config=null student_config.exp_name=teacher student_config.num_q=3", cwd))
    good(run(f"train.py {STUDENT} teacher_config.checkpoint=logs/mt30/1/teacher/model.pt", cwd))
    good(run("quantize.py --checkpoint logs/mt30/1/default/model.pt --out quantised", cwd))
    shutil.copy(cwd / "logs/mt30/1/default/model.pt", cwd / "student.pt")
    return cwd


@pytest.fixture
def cwd(home: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    shutil.copytree(home, tmp_path / "home")
    return tmp_path / "home"


@pytest.fixture
def run_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Run the command line in an empty directory: exit code, standard output, standard error."""
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
