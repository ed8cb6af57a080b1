"""Weights & Biases: what is sent, and failures that do not disturb training."""

from __future__ import annotations

import contextlib
import io
import os
import re
import runpy
import signal
import subprocess
import sys
import threading
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import tdmpc2.tracking.logger
from tdmpc2.support.files import write_text
from tdmpc2.tracking.logger import Logger
from tdmpc2.tracking.sender import METRICS, Sender
from tdmpc2.tracking.wandb import WandbRun
from tests.helpers.tracking import OFF, Terminal, config, text_rows
from tests.helpers.wandb_reader import read_run


class FakeRun:
    """A stand-in for the part of a run that the logger uses; calls named in ``failing`` raise."""

    id, url, disabled, offline, dir = "abc", "https://example.org/run", False, False, "x/files"

    def __init__(self, failing: tuple[str, ...] = ()) -> None:
        self.failing = failing
        self.rows: list[dict[str, Any]] = []
        self.exit_code: int | None = None

    def define_metric(self, *args: Any, **kwargs: Any) -> None:
        pass

    def log(self, row: dict[str, Any]) -> None:
        if "log" in self.failing and self.rows:
            raise ConnectionResetError("Connection lost\nand a second line")
        self.rows.append(row)

    def log_artifact(self, artifact: Any, aliases: list[str]) -> None:
        raise OSError("disk quota exceeded")

    def finish(self, exit_code: int) -> None:
        self.exit_code = exit_code


@pytest.fixture
def fake_wandb(monkeypatch: pytest.MonkeyPatch) -> Iterator[types.SimpleNamespace]:
    artifact = types.SimpleNamespace(add_file=lambda path, name: None)
    fake = types.SimpleNamespace(Settings=dict, Artifact=lambda name, type: artifact)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


def test_wandb_without_project_is_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # importing it fails from here on
    runpy.run_path(tdmpc2.tracking.logger.__file__)
    for changes, line in (
        ({}, OFF),
        ({"wandb_project": "p", "disable_wandb": True}, "Weights & Biases: off (disable_wandb=true)"),
    ):
        stream = io.StringIO()
        with Logger(config(tmp_path, **changes), total_steps=1, stream=stream) as logger:
            logger.log_video(1, "video", "no.mp4")
            logger.save_artifact("no.pt", "x", "model")
            assert logger.run_id is None
        assert stream.getvalue() == line + "\n"


def test_wandb_failing_start_is_one_line_and_never_asks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fake_wandb: types.SimpleNamespace
) -> None:
    def init(**options: Any) -> None:
        assert not sys.stdin.isatty()
        input("Enter your choice: ")  # a login prompt

    monkeypatch.setattr(sys, "stdin", Terminal())
    stdin, stream = sys.stdin, io.StringIO()
    fake_wandb.init = init
    with Logger(config(tmp_path, wandb_project="p"), total_steps=1, stream=stream) as logger:
        assert sys.stdin is stdin
        logger.log(1, {"a": 1.0})
    first, _ = stream.getvalue().splitlines()
    assert first.startswith("Weights & Biases: off, it did not start (EOFError")
    assert len(text_rows(tmp_path / "train.csv")) == 1


def test_wandb_failing_metrics_turn_it_off_after_one_line(tmp_path: Path, fake_wandb: types.SimpleNamespace) -> None:
    run, stream = FakeRun(failing=("log",)), io.StringIO()
    fake_wandb.init = lambda **options: run
    with Logger(config(tmp_path, wandb_project="p"), total_steps=9, stream=stream) as logger:
        for step in range(1, 6):
            logger.log(step, {"a": 1.0})
    warnings = [line for line in stream.getvalue().splitlines() if "off after an error" in line]
    assert len(warnings) == 1
    assert "metrics off after an error (ConnectionResetError: Connection lost)" in warnings[0]
    assert len(run.rows) == 1
    assert len(text_rows(tmp_path / "train.csv")) == 5


def test_wandb_failing_artifacts_leave_metrics_on(tmp_path: Path, fake_wandb: types.SimpleNamespace) -> None:
    run, stream = FakeRun(), io.StringIO()
    fake_wandb.init = lambda **options: run
    (tmp_path / "x.pt").write_bytes(b"weights")

    def train() -> None:
        with Logger(config(tmp_path, wandb_project="p"), total_steps=9, stream=stream) as logger:
            for step in (1, 2):
                logger.save_artifact(tmp_path / "x.pt", "student", "model")
                logger.log(step, {"a": 1.0})
            raise RuntimeError("diverged")

    with pytest.raises(RuntimeError, match="diverged"):
        train()
    assert [line for line in stream.getvalue().splitlines() if "W" in line] == [
        "Weights & Biases: https://example.org/run",
        "Weights & Biases: artifacts off after an error (OSError: disk quota exceeded). Training continues.",
    ]
    assert [(row["step"], row["train/a"]) for row in run.rows] == [(1, 1.0), (2, 1.0)]
    assert run.exit_code == 1, "a run that ends with an exception is marked as failed"
    assert {path.name for path in tmp_path.iterdir()} == {"train.csv", "speed.csv", "train.log", "x.pt"}, (
        "copies are gone"
    )


def test_wandb_failing_alert_is_one_line(tmp_path: Path, fake_wandb: types.SimpleNamespace) -> None:
    """The fake run has no alerts, as other versions of the package might not."""
    run, stream = FakeRun(), io.StringIO()
    fake_wandb.init = lambda **options: run
    with Logger(config(tmp_path, wandb_project="p"), total_steps=9, stream=stream) as logger:
        logger.alert("Training diverged", "at step 7")
        logger.alert("Training diverged", "at step 8")
        logger.log(9, {"a": 1.0})
    lines = stream.getvalue().splitlines()
    assert len([line for line in lines if "alerts off after an error (AttributeError" in line]) == 1
    assert len(run.rows) == 1


def test_wandb_missing_artifact_is_one_line(tmp_path: Path, fake_wandb: types.SimpleNamespace) -> None:
    run, stream = FakeRun(), io.StringIO()
    fake_wandb.init = lambda **options: run
    with Logger(config(tmp_path, wandb_project="p"), total_steps=9, stream=stream) as logger:
        for _ in range(2):
            logger.save_artifact(tmp_path / "none.pt", "student", "model")
    assert stream.getvalue().count("artifacts off after an error (FileNotFoundError") == 1


def test_wandb_uploads_the_file_of_that_moment(tmp_path: Path, fake_wandb: types.SimpleNamespace) -> None:
    """A file may be replaced while an earlier version of it waits to be sent."""
    run, release, uploaded = FakeRun(), threading.Event(), []
    fake_wandb.init = lambda **options: run

    def add_file(path: str, name: str) -> None:
        assert release.wait(60)
        uploaded.append((name, Path(path).read_bytes()))

    fake_wandb.Artifact = lambda name, type: types.SimpleNamespace(add_file=add_file)
    run.log_artifact = lambda artifact, aliases: None  # type: ignore[method-assign]
    with Logger(config(tmp_path, wandb_project="p"), total_steps=9, stream=io.StringIO()) as logger:
        for content in ("old", "new"):
            write_text(tmp_path / "best.pt", content)
            logger.save_artifact(tmp_path / "best.pt", "student", "model")
        release.set()
    assert uploaded == [("model.pt", b"old"), ("model.pt", b"new")]


def test_wandb_hanging_service_delays_nothing(
    tmp_path: Path, fake_wandb: types.SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = threading.Event()
    run, stream = FakeRun(), io.StringIO()
    run.log = lambda row: release.wait(60)  # type: ignore[method-assign, assignment, return-value]
    fake_wandb.init = lambda **options: run
    monkeypatch.setenv("WANDB_FINISH_TIMEOUT", "0.1")
    monkeypatch.setattr(WandbRun, "capacity", 50)
    began = time.monotonic()
    with Logger(config(tmp_path, wandb_project="p"), total_steps=100, stream=stream) as logger:
        for step in range(1, 101):
            logger.log(step, {"a": 1.0})
    assert time.monotonic() - began < 30
    release.set()
    *_, gave_up, dropped = stream.getvalue().splitlines()
    assert gave_up == "Weights & Biases: gave up after 0.1 s, 50 records were not sent"
    assert re.fullmatch(r"Weights & Biases: (49|50) records were dropped, it was too slow", dropped)
    assert len(text_rows(tmp_path / "train.csv")) == 100


def own_service() -> dict[str, str]:
    """Return variables for a process that starts its own service, whatever an earlier test left."""
    return {**{key: value for key, value in os.environ.items() if key != "WANDB_SERVICE"}, "OMP_NUM_THREADS": "1"}


@pytest.mark.slow
def test_wandb_run_after_killed_service_is_recorded(tmp_path: Path) -> None:
    """Runs of a process share a service; one that was killed must not cost the later runs."""
    pytest.importorskip("wandb")
    script = f"""
import os, psutil
from pathlib import Path
from tdmpc2.config import Config
from tdmpc2.tracking.logger import Logger
for name, timeout in (("killed", "1"), ("later", "60")):  # the first waits for a process that is gone
    os.environ["WANDB_FINISH_TIMEOUT"] = timeout
    cfg = Config(task="walker-walk", work_dir=str(Path({str(tmp_path)!r}, name)), wandb_project="p", wandb_silent=True)
    with Logger(cfg, total_steps=2) as logger:
        logger.log(1, {{"a": 1.0}})
        if name == "killed":
            for process in psutil.Process().children(recursive=True):
                if process.name().startswith("wandb-"):
                    process.kill()
                    process.wait()
                    print("killed", flush=True)
    os.environ.pop("WANDB_SERVICE", None)  # as by a caller that restores its environment
"""
    environment = {**own_service(), "WANDB_MODE": "offline"}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, check=False, timeout=300, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "killed" in lines
    assert sum(line.startswith("Weights & Biases: offline") for line in lines) == 2
    (path,) = (tmp_path / "later" / "wandb").glob("offline-run-*/*.wandb")
    assert read_run(path).series("train/a") == [(1, 1.0)]


@pytest.mark.slow
def test_wandb_run_below_a_killed_service_is_recorded(tmp_path: Path) -> None:
    """The variable by which a parent process shares its service may outlive that service."""
    pytest.importorskip("wandb")
    script = f"""
from tdmpc2.config import Config
from tdmpc2.tracking.logger import Logger
cfg = Config(task="walker-walk", work_dir={str(tmp_path)!r}, wandb_project="p", wandb_silent=True)
with Logger(cfg, total_steps=2) as logger:
    logger.log(1, {{"a": 1.0}})
"""
    gone = f"3-{os.getpid()}-unix-{tmp_path / 'socket'}"
    environment = {**os.environ, "WANDB_MODE": "offline", "WANDB_SERVICE": gone, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", script], env=environment, check=True, timeout=300)
    (path,) = (tmp_path / "wandb").glob("offline-run-*/*.wandb")
    assert read_run(path).series("train/a") == [(1, 1.0)]


@pytest.mark.slow
def test_wandb_stopped_process_delays_nothing(tmp_path: Path) -> None:
    """If the service stops during an offline run, every row is in the CSV file and the run still ends."""
    pytest.importorskip("wandb")
    script = f"""
import signal
import psutil
from tdmpc2.config import Config
from tdmpc2.tracking.logger import Logger
cfg = Config(task="walker-walk", work_dir={str(tmp_path / "run")!r}, wandb_project="p", wandb_silent=True)
with Logger(cfg, total_steps=9000) as logger:
    logger.log(1, {{"a": 1.0}})
    for process in psutil.Process().children(recursive=True):
        print("stopped", process.pid, flush=True)
        process.send_signal(signal.SIGSTOP)
    for step in range(2, 9000):
        logger.log(step, {{"a": 1.0}})
"""
    environment = {**own_service(), "WANDB_MODE": "offline", "WANDB_FINISH_TIMEOUT": "1"}
    process = subprocess.Popen([sys.executable, "-c", script], env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    stopped = []
    try:
        output = []
        for line in process.stdout:
            stopped += [int(line.split()[1])] if line.startswith("stopped") else []
            output.append(line)
            if "gave up" in line:
                break
        assert stopped
        assert "gave up after 1 s" in output[-1]
        assert process.wait(60) == 0
        assert len(text_rows(tmp_path / "run" / "train.csv")) == 8999
    finally:
        process.kill()
        for pid in stopped:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def test_service_is_told_of_the_end_after_a_metric_has_failed() -> None:
    """The run of a sweep stayed open until the process ended, since its end was held for one more metric."""
    told: list[str] = []

    def fails(handle: Any) -> None:
        raise OSError("no network")

    sender = Sender("Weights & Biases", "the run", lambda line: None)
    sender.call(METRICS, fails)
    assert sender.finish(told.append, 60)
    assert told == ["the run"]
