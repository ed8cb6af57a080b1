"""`make gpu`: what it does without a GPU, and its logic with benchmarks that are not run."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import _gpu
from tdmpc2.training.guards import STOPPED


def measured(name: str, words: Sequence[str]) -> tuple[str, str]:
    """Stand in for a benchmark and take no time; the one called evaluation fails."""
    assert list(words)[-3:] == ["--device", "cpu", "--quick"]
    if name == "evaluation":
        return "failed (exit code 1)", "Killed"
    times = {"plain_ms": 4.0, "fast_ms": 2.0} if name != "stacked" else {"alone_ms": 4.0, "stacked_ms": 2.0}
    return "done", json.dumps({"benchmark": name, "results": [{"name": "1M", **times, "speedup": 2.0}]})


def test_machine_without_a_gpu_is_named_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Without a GPU nothing is run or written, and the exit code is 1."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert _gpu.main(["--out", str(tmp_path / "gpu.json")], tests=lambda: pytest.fail("was run")) == 1
    assert len(capsys.readouterr().out.splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("code", "result"), [(0, "passed"), (1, "failed")])
def test_results_are_one_file_and_one_table(
    code: int, result: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A benchmark that fails costs only its own rows, and the exit code is 1."""
    words = ["--quick", "--device", "cpu", "--out", str(tmp_path / "gpu.json")]
    assert _gpu.main(words, tests=lambda: code, measure=measured) == 1
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert found["endings"]["tests"] == result
    assert found["endings"]["evaluation"] == "failed (exit code 1)"
    assert [one["benchmark"] for one in found["benchmarks"]] == ["plan", "update", "train", "train", "stacked"]
    table = capsys.readouterr().out
    for name in ("plan: 1M", "stacked: 1M"):
        assert [line.split() for line in table.splitlines() if line.startswith(name)] == [
            [*name.split(), "4.00", "2.00", "2.00"]
        ]


def test_specialists_are_taught_until_the_time_is_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the time is over, SIGTERM lets the specialists save; their scores are read from their tables."""
    told: list[int] = []

    class Teaching:
        def __init__(self, command: Sequence[str], **_: Any) -> None:
            assert list(command)[2:] == ["--out", str(tmp_path), "steps=9"]
            for name, rows in (("walker-walk", "9,12.5\n18,40.5\n"), ("cup-catch", "")):
                (tmp_path / name).mkdir()
                (tmp_path / name / "episodes.csv").write_text("step,return\n" + rows)

        def __enter__(self) -> Teaching:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def wait(self, seconds: float | None = None) -> int:
            if not told:
                raise subprocess.TimeoutExpired("specialists", seconds or 0)
            return STOPPED

        def send_signal(self, number: int) -> None:
            told.append(number)

    monkeypatch.setattr(subprocess, "Popen", Teaching)
    found = _gpu.teach(30, tmp_path, ["steps=9"])
    assert told == [signal.SIGTERM]
    assert found == {"minutes": 30, "tasks": {"walker-walk": {"step": 18, "return": 40.5}}}


def test_specialists_that_fail_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_gpu.sys, "executable", "false")
    with pytest.raises(ValueError, match="exit code 1"):
        _gpu.teach(1, tmp_path, [])


@pytest.mark.slow
def test_command_measures_and_teaches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The command runs one benchmark and teaches two specialists in processes, as it does on a GPU."""
    monkeypatch.setattr(_gpu, "PARTS", (("stacked", ("--agents", "2")),))
    keys = "model_size=null enc_dim=16 mlp_dim=16 latent_dim=16 num_q=2 num_samples=16 num_elites=4 num_pi_trajs=4"
    steps = "steps=515 seed_steps=510 utd=0.01 batch_size=8 iterations=1 compile=false num_threads=1"
    words = ["--teach", f"--tasks pendulum-spin cartpole-balance {steps} {keys}", "--minutes", "5"]
    places = ["--out", str(tmp_path / "gpu.json"), "--specialists", str(tmp_path / "out")]
    assert _gpu.main([*words, *places, "--quick", "--device", "cpu"], tests=lambda: 0) == 0
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert [row["name"] for row in found["benchmarks"][0]["results"]] == ["update, 2 agents", "plan, 2 agents"]
    assert {name: task["step"] for name, task in found["specialists"]["tasks"].items()} == {
        "pendulum-spin": 500, "cartpole-balance": 500,
    }  # fmt: skip
    assert "pendulum-spin" in capfd.readouterr().out
