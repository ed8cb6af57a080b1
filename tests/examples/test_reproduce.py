"""The command that makes teachers, data, a student and its copies, at toy size and killed midway."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tdmpc2.checkpoints.files import load_file

REPO = Path(__file__).resolve().parents[2]


def command(directory: Path, *words: str) -> list[str]:
    return [sys.executable, str(REPO / "examples" / "reproduce.py"), "--work-dir", str(directory), "--smoke", *words]


def run(directory: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(directory, *words), cwd=REPO, capture_output=True, text=True, timeout=600, check=False
    )


@pytest.mark.slow
def test_all_stages_are_taken_and_go_on_after_a_kill(tmp_path: Path) -> None:
    """Steps done before the kill are not repeated, and the final files have their cards."""
    work = tmp_path / "work"
    planned = run(work, "--plan")
    assert planned.stdout.count(" h  tdmpc2 ") == 29, planned.stderr
    assert not work.exists()
    first = subprocess.Popen(command(work), cwd=REPO, stdout=subprocess.PIPE, text=True)
    assert first.stdout is not None
    seen = next((line for line in first.stdout if line.startswith("  replay-pendulum: ")), None)
    first.kill()  # during the next step, whose command dies with it
    first.communicate()
    assert seen is not None
    begun = (work / "begun.json").read_text()
    taught = work / "teachers" / "pendulum" / "model.pt"
    before = taught.stat().st_mtime_ns

    done = run(work)
    assert done.returncode == 0, done.stderr
    assert "All 29 steps are done" in done.stdout
    assert taught.stat().st_mtime_ns == before
    assert (work / "begun.json").read_text() == begun

    student = load_file(work / "models" / "student.pt")
    assert student.card is not None
    assert [score["action"] for score in student.card["scores"]] == ["planner", "policy"]
    assert set(student.card["trust"]["tasks"]) == {"pendulum-swingup", "pendulum-spin", "cartpole-balance", "cup-catch"}
    assert student.card["start"] == "random weights"
    assert student.card["steps"] == 40, "of both rounds"
    copy = load_file(work / "models" / "student_int8.pt")
    assert copy.card is not None
    assert any(tensor.dtype == torch.int8 for tensor in torch.load(copy.origin, weights_only=True)["model"].values())

    again = run(work, "--plan")
    assert again.stdout.count(" done  tdmpc2 ") == 29
    assert "29 steps, 0.00 hours" in again.stdout


def test_cards_name_where_the_work_was_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Continued with fewer cores or without git, the command lines of the cards stay as they were."""
    monkeypatch.syspath_prepend(REPO / "examples")
    reproduce, lines = importlib.import_module("reproduce"), []
    for _ in range(2):
        origin = reproduce.origin_of(tmp_path)
        (tmp_path / "begun.json").write_text(json.dumps(origin._asdict()))
        lines.append([step.line for step in reproduce.steps_of(reproduce.SMOKE, "work", None, origin)])
        monkeypatch.setattr(reproduce, "usable_cores", lambda: 77)
        monkeypatch.setenv("PATH", str(tmp_path))
    assert lines[0] == lines[1]
    assert any("processor=" in line for line in lines[0])
    (tmp_path / "begun.json").unlink()
    assert reproduce.origin_of(tmp_path) == (f"{reproduce.processor_name()}, 77 cores", None)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--student", "nowhere.pt"], "--student nowhere.pt does not exist: README.md says where the published one is"),
        (["--student", "a b.pt"], "--student a b.pt: a name without spaces"),
    ],
)
def test_file_that_cannot_be_is_refused_before_anything_is_made(tmp_path: Path, words: list[str], message: str) -> None:
    refused = run(tmp_path / "work", *words)
    assert refused.returncode == 2
    assert message in refused.stderr
    assert not (tmp_path / "work").exists()
