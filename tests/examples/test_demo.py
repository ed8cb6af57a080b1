"""The demo's steps: a stopped demo goes on where it was, and a finished one is not overwritten."""

from __future__ import annotations

import importlib.util
import json
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tdmpc2.support.programs import run_in_terminal

FILE = Path(__file__).resolve().parents[2] / "examples" / "demo.py"


class Commands:
    """A stand-in for the demo's commands: it notes them, writes the files that the demo reads, and fails once."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        spec = importlib.util.spec_from_file_location("demo", FILE)
        assert spec is not None
        assert spec.loader is not None
        self.demo: ModuleType = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(self.demo)
        self.run: list[str] = []
        self.stopped = ""  # the evaluation that is stopped once
        monkeypatch.setattr(self.demo, "run_in_terminal", self)
        monkeypatch.setattr(self.demo, "random_returns", lambda: {"pendulum-spin": 1.0, "score": 0.1})
        monkeypatch.setattr(sys, "argv", ["demo.py"])

    def __call__(self, command: list[str]) -> int:
        script, *words = [word.removeprefix("student_config.") for word in command[1:]]
        keys = dict(word.split("=", 1) for word in words if "=" in word)
        self.run.append(f"{Path(script).stem} {Path(keys.get('work_dir', '')).name}".strip())
        out = Path(keys.get("work_dir", "demo/data"))
        out.mkdir(parents=True, exist_ok=True)
        (out / "model.pt").touch()
        (out / "model_int8.pt").touch()
        (out / "speed.csv").write_text("step,wall_seconds\n50,3\n400,7.0\n")
        if out.name == self.stopped:
            self.stopped = ""
            (out / "results.csv").touch()
            return 130
        if out.name.startswith("eval"):
            assert not (out / "results.csv").exists()  # else the evaluation would take another directory
            returns: dict[str, Any] = {"tasks": [{"task": "pendulum-spin", "return": 5.0}], "normalized_score": 0.5}
            (out / "results.json").write_text(json.dumps(returns))
        return 0


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Commands:
    monkeypatch.chdir(tmp_path)
    return Commands(monkeypatch)


def test_stopped_demo_goes_on_without_what_has_ended(commands: Commands, capsys: pytest.CaptureFixture[str]) -> None:
    """After Ctrl-C in the second evaluation, the first one is not repeated; training commands find nothing to do."""
    commands.stopped = "eval-student"
    with pytest.raises(SystemExit) as ended:
        commands.demo.main()
    assert ended.value.code == 130
    assert "the same command goes on" in capsys.readouterr().err
    commands.run.clear()
    commands.demo.main()
    assert commands.run[:3] == ["collect", "train teacher", "train student"]
    assert commands.run[-2:] == ["evaluate eval-student", "evaluate eval-student-int8"]
    assert "evaluate eval-teacher" not in commands.run
    assert "7 s" in capsys.readouterr().out  # of the training, not of the repeated command


@pytest.mark.parametrize("there", ["a finished demo", "something else"])
def test_demo_leaves_another_directory_alone(commands: Commands, there: str) -> None:
    if there == "a finished demo":
        commands.demo.main()
        commands.run.clear()
    else:
        Path("demo").mkdir()
    with pytest.raises(SystemExit, match="exists from an earlier demo"):
        commands.demo.main()
    assert not commands.run


def test_command_in_the_terminal_is_waited_for_when_it_saves_after_ctrl_c(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """subprocess.run would kill the command a quarter of a second after Ctrl-C, before it has saved."""
    wait, interrupted = subprocess.Popen.wait, []

    def interrupted_wait(self: subprocess.Popen[str], timeout: float | None = None) -> int:
        if not interrupted:
            interrupted.append(True)
            raise KeyboardInterrupt
        return wait(self, timeout)

    monkeypatch.setattr(subprocess.Popen, "wait", interrupted_wait)
    assert run_in_terminal([sys.executable, *shlex.split("-I -S -c 'raise SystemExit(75)'")]) == 75
    assert interrupted
    program = "import os, sys; print(os.getcwd(), flush=True); sys.exit('it failed')"
    with (tmp_path / "log").open("w") as log:
        assert run_in_terminal([sys.executable, "-I", "-S", "-c", program], cwd=tmp_path, output=log) == 1
    assert (tmp_path / "log").read_text().split("\n")[:2] == [str(tmp_path), "it failed"]
