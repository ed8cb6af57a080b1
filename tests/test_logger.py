"""The logger's three outputs, how they survive kills and failures, and progress lines."""

from __future__ import annotations

import contextlib
import csv
import io
import itertools
import json
import math
import multiprocessing
import os
import re
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

import tdmpc2.tracking.logger
from tdmpc2.agent import TDMPC2
from tdmpc2.config import Config
from tdmpc2.play.evaluation import Evaluation, TaskResult
from tdmpc2.support.files import write_text
from tdmpc2.tracking.logger import Logger, Progress, progress, read_scalars
from tdmpc2.training import offline
from tests.wandb_reader import read_run

OFF = "Weights & Biases: off (set wandb_project to turn it on)"


class Terminal(io.StringIO):
    """A stream that says it is a terminal, and knows what one shows."""

    def isatty(self) -> bool:
        return True

    def screen(self) -> list[str]:
        """Lines that are visible in the end: carriage return, cursor up and erase line are followed."""
        lines, row = [""], 0
        for part in re.findall(r"\x1b\[[0-9;?]*[A-Za-z]|\n|\r|[^\x1b\n\r]+", self.getvalue()):
            if part == "\n":
                row += 1
                lines += [""] * (row == len(lines))
            elif part == "\x1b[2K":
                lines[row] = ""
            elif part == "\x1b[1A":
                row -= 1
            elif part[0] not in "\r\x1b":
                lines[row] += part
        return [line.rstrip() for line in lines if line]


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FORCE_COLOR", "NO_COLOR", "COLUMNS", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Time in seconds as the logger and the progress lines see it."""
    now = [0.0]
    monkeypatch.setattr("tdmpc2.tracking.logger.monotonic", lambda: now[0])
    monkeypatch.setattr("tdmpc2.tracking.progress.monotonic", lambda: now[0])
    return now


def config(directory: Path, **changes: Any) -> Config:
    return Config(task="walker-walk", work_dir=str(directory), **changes)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


# -- values -----------------------------------------------------------------------------------------------------------


class CountOps(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def test_device_values_are_read_in_one_transfer(monkeypatch: pytest.MonkeyPatch) -> None:
    transfers: list[torch.Size] = []
    tolist = torch.Tensor.tolist

    def counted(tensor: torch.Tensor) -> Any:
        transfers.append(tensor.shape)
        return tolist(tensor)

    monkeypatch.setattr(torch.Tensor, "tolist", counted)
    metrics: dict[str, Any] = {f"m{i}": torch.tensor(float(i), requires_grad=True) for i in range(5)}
    metrics |= {"count": 7, "half": torch.tensor([1.5], dtype=torch.bfloat16), "big": torch.tensor(1 / 3).double()}
    with CountOps() as ops:
        values = read_scalars(metrics)
    assert transfers == [(7,)]
    assert ops.names.count("_local_scalar_dense") == 0, "a value was read on its own"
    assert list(values) == list(metrics)
    assert values == {**{f"m{i}": float(i) for i in range(5)}, "count": 7, "half": 1.5, "big": values["big"]}
    assert values["big"] == pytest.approx(1 / 3, abs=1e-7)


def test_a_metric_that_is_no_scalar_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"'q' has shape \[2\]"):
        read_scalars({"q": torch.zeros(2)})


# -- console ----------------------------------------------------------------------------------------------------------


def test_plain_console_lines(tmp_path: Path, clock: list[float]) -> None:
    stream = io.StringIO()
    with Logger(config(tmp_path), total_steps=10_000, stream=stream) as logger:
        clock[0] = 4.0
        logger.log(1_000, {"pi_loss": 0.25, "total_loss": torch.tensor(1.5)})
        clock[0] = 6.0
        logger.log(2_000, {"pi_loss": 0.5, "total_loss": torch.tensor(1.25)})
        logger.log(2_000, {"score": 31.0625}, group="eval")
        logger.message("[saved] x.pt")
    assert stream.getvalue().splitlines() == [
        OFF,
        "step 1,000/10,000 (10%)   250.0 it/s   ETA 0:00:36   total_loss 1.5   pi_loss 0.25",
        "step 2,000/10,000 (20%)   500.0 it/s   ETA 0:00:24   total_loss 1.25   pi_loss 0.5",
        "eval: step 2,000   score 31.06",
        "[saved] x.pt",
    ]


def test_a_terminal_has_one_live_line(tmp_path: Path) -> None:
    stream = Terminal()
    with Logger(config(tmp_path), total_steps=100, stream=stream) as logger:
        for step in range(1, 101):
            logger.log(step, {f"loss{i}": 1 / step for i in range(20)})
        logger.log(100, {"score": 5.0}, group="eval")
    first, evaluation, live = stream.screen()
    assert (first, evaluation) == (OFF, "eval: step 100   score 5")
    assert live.startswith("step 100/100 (100%)")
    assert len(live) <= 80, "cut at the width of the terminal"


# -- CSV --------------------------------------------------------------------------------------------------------------


def test_csv_holds_exact_values_in_one_file_per_group(tmp_path: Path) -> None:
    third = torch.tensor(1 / 3)
    with Logger(config(tmp_path), total_steps=300, stream=io.StringIO()) as logger:
        logger.log(100, {"total_loss": third, "n": 3})
        assert len(rows(tmp_path / "train.csv")) == 1, "a row is on disk when log returns"
        logger.log(200, {"total_loss": float("nan"), "n": 4})
        logger.log(200, {"score": 12.5}, group="eval")
        logger.log_table(200, "eval/tasks", ["task", "score"], [["walker-walk", 12.5], ["a,b", None]])
    assert (tmp_path / "train.csv").read_text() == f"step,total_loss,n\n100,{third.item()!r},3\n200,nan,4\n"
    assert (tmp_path / "eval.csv").read_text() == "step,score\n200,12.5\n"
    assert rows(tmp_path / "eval_tasks.csv") == [
        {"step": "200", "task": "walker-walk", "score": "12.5"},
        {"step": "200", "task": "a,b", "score": ""},
    ]


def test_new_columns_are_added_to_earlier_rows(tmp_path: Path) -> None:
    with Logger(config(tmp_path), total_steps=3, stream=io.StringIO()) as logger:
        logger.log(1, {"a": 1.0})
        logger.log(2, {"b": 2.0, "a": 1.5})
        logger.log(3, {"b": 3.0})
    assert (tmp_path / "train.csv").read_text() == "step,a,b\n1,1.0,\n2,1.5,2.0\n3,,3.0\n"
    assert {path.name for path in tmp_path.iterdir()} == {"train.csv", "speed.csv"}


def test_speed_has_a_file_of_its_own(tmp_path: Path, clock: list[float]) -> None:
    """Not in train.csv: times would make equal runs differ. Their sum is the time of the steps that were kept."""
    with Logger(config(tmp_path), total_steps=300, stream=io.StringIO()) as logger:
        for step in (100, 200):
            clock[0] += 4.0
            logger.log(step, {"a": 1.0}, data_wait=0.5)
    with Logger(config(tmp_path), total_steps=300, start_step=100, stream=io.StringIO()) as logger:
        clock[0] += 2.0
        logger.log(200, {"a": 1.0})
    assert (tmp_path / "train.csv").read_text() == "step,a\n100,1.0\n200,1.0\n"
    assert (tmp_path / "speed.csv").read_text() == (
        "step,seconds,it_per_s,data_wait\n100,4.0,25.0,0.5\n200,2.0,50.0,\n"
    )


def test_save_csv_false_writes_no_file(tmp_path: Path) -> None:
    with Logger(config(tmp_path / "run", save_csv=False), total_steps=1, stream=io.StringIO()) as logger:
        logger.log(1, {"a": 1.0})
    assert list((tmp_path / "run").iterdir()) == []


def test_a_new_run_keeps_the_files_of_an_old_one(tmp_path: Path) -> None:
    for value in (1.0, 2.0, 3.0):
        with Logger(config(tmp_path), total_steps=1, stream=io.StringIO()) as logger:
            logger.log(1, {"a": value})
    found = {path.name: rows(path)[0]["a"] for path in tmp_path.glob("train*")}
    assert found == {"train.csv.1": "1.0", "train.csv.2": "2.0", "train.csv": "3.0"}


def test_a_run_that_ended_before_it_saved_starts_its_files_anew(tmp_path: Path) -> None:
    (tmp_path / "notes.csv").write_text("my,own\n1,2\n")
    for value in (1.0, 2.0):
        with Logger(config(tmp_path), total_steps=1, begun_before=value > 1, stream=io.StringIO()) as logger:
            logger.log(1, {"a": value})
    assert [row["a"] for row in rows(tmp_path / "train.csv")] == ["2.0"]
    assert not list(tmp_path.glob("*.csv.1"))
    assert (tmp_path / "notes.csv").read_text() == "my,own\n1,2\n"


def test_rows_survive_a_kill(tmp_path: Path) -> None:
    def child() -> None:
        logger = Logger(config(tmp_path), total_steps=9, stream=io.StringIO()).__enter__()
        for step in range(1, 8):
            logger.log(step, {"a": step / 3})
        os.kill(os.getpid(), signal.SIGKILL)

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert [(row["step"], float(row["a"])) for row in rows(tmp_path / "train.csv")] == [
        (str(step), step / 3) for step in range(1, 8)
    ]


def test_a_torn_last_row_is_dropped(tmp_path: Path) -> None:
    """Its number is whole to look at, but may be the start of a longer one."""
    (tmp_path / "train.csv").write_text("step,a\n100,1.0\n200,2.2")
    with Logger(config(tmp_path), total_steps=1000, start_step=200, stream=io.StringIO()) as logger:
        logger.log(300, {"a": 3.0})
    assert (tmp_path / "train.csv").read_text() == "step,a\n100,1.0\n300,3.0\n"


def test_resuming_leaves_foreign_files_alone(tmp_path: Path) -> None:
    foreign = "name,step\nx,900\n"
    (tmp_path / "notes.csv").write_text(foreign)
    (tmp_path / "train.csv.1").write_text("step,a\n900,1.0\n")
    (tmp_path / "eval.csv").write_text("step,a\n100,1.0\n900,1.0\n")
    with Logger(config(tmp_path), total_steps=1000, start_step=500, stream=io.StringIO()):
        pass
    assert (tmp_path / "notes.csv").read_text() == foreign
    assert (tmp_path / "train.csv.1").read_text() == "step,a\n900,1.0\n"
    assert (tmp_path / "eval.csv").read_text() == "step,a\n100,1.0\n"


HISTORY = st.lists(
    st.dictionaries(st.sampled_from(["a", "b,c", 'd "e"']), st.floats(), min_size=1), min_size=1, max_size=8
)


@settings(max_examples=60, deadline=None)
@given(history=HISTORY, data=st.data())
def test_a_run_killed_anywhere_and_resumed_equals_an_undisturbed_one(history: list[dict], data: st.DataObject) -> None:
    """The file is cut at any byte after the rows of the step that training resumes from."""

    def write(directory: Path, start: int, stop: int) -> bytes:
        with Logger(config(directory), total_steps=8, start_step=start, stream=io.StringIO()) as logger:
            for step in range(start + 1, stop + 1):
                logger.log(step, history[step - 1])
        return (directory / "train.csv").read_bytes()

    with tempfile.TemporaryDirectory() as name:
        undisturbed = write(Path(name) / "undisturbed", 0, len(history))
        killed_at = data.draw(st.integers(1, len(history)))
        resumed_from = data.draw(st.integers(1, killed_at))
        killed = Path(name) / "killed"
        text = write(killed, 0, killed_at)
        kept = sum(len(line) for line in text.splitlines(keepends=True)[: resumed_from + 1])
        (killed / "train.csv").write_bytes(text[: data.draw(st.integers(kept, len(text)))])
        if resumed_from == len(history):
            with Logger(config(killed), total_steps=8, start_step=resumed_from, stream=io.StringIO()):
                pass
            assert (killed / "train.csv").read_bytes() == undisturbed
        else:
            assert write(killed, resumed_from, len(history)) == undisturbed


# -- Weights & Biases -------------------------------------------------------------------------------------------------


class FakeRun:
    """The part of a run that the logger uses; the calls named in ``failing`` raise."""

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


def test_wandb_is_not_imported_unless_a_project_is_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_a_failing_start_is_one_line_and_never_asks(
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
    assert len(rows(tmp_path / "train.csv")) == 1


def test_failing_metrics_turn_wandb_off_after_one_line(tmp_path: Path, fake_wandb: types.SimpleNamespace) -> None:
    run, stream = FakeRun(failing=("log",)), io.StringIO()
    fake_wandb.init = lambda **options: run
    with Logger(config(tmp_path, wandb_project="p"), total_steps=9, stream=stream) as logger:
        for step in range(1, 6):
            logger.log(step, {"a": 1.0})
    warnings = [line for line in stream.getvalue().splitlines() if "off after an error" in line]
    assert len(warnings) == 1
    assert "metrics off after an error (ConnectionResetError: Connection lost)" in warnings[0]
    assert len(run.rows) == 1
    assert len(rows(tmp_path / "train.csv")) == 5


def test_failing_artifacts_leave_metrics_on(tmp_path: Path, fake_wandb: types.SimpleNamespace) -> None:
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
    assert {path.name for path in tmp_path.iterdir()} == {"train.csv", "speed.csv", "x.pt"}, "copies are gone"


def test_a_failing_alert_is_one_line(tmp_path: Path, fake_wandb: types.SimpleNamespace) -> None:
    """The fake run has none, as other versions might not."""
    run, stream = FakeRun(), io.StringIO()
    fake_wandb.init = lambda **options: run
    with Logger(config(tmp_path, wandb_project="p"), total_steps=9, stream=stream) as logger:
        logger.alert("Training diverged", "at step 7")
        logger.alert("Training diverged", "at step 8")
        logger.log(9, {"a": 1.0})
    lines = stream.getvalue().splitlines()
    assert len([line for line in lines if "alerts off after an error (AttributeError" in line]) == 1
    assert len(run.rows) == 1


def test_an_artifact_that_is_not_there_is_one_line(tmp_path: Path, fake_wandb: types.SimpleNamespace) -> None:
    run, stream = FakeRun(), io.StringIO()
    fake_wandb.init = lambda **options: run
    with Logger(config(tmp_path, wandb_project="p"), total_steps=9, stream=stream) as logger:
        for _ in range(2):
            logger.save_artifact(tmp_path / "none.pt", "student", "model")
    assert stream.getvalue().count("artifacts off after an error (FileNotFoundError") == 1


def test_what_is_uploaded_is_the_file_of_that_moment(tmp_path: Path, fake_wandb: types.SimpleNamespace) -> None:
    """Files are replaced while earlier ones wait to be sent."""
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


def test_a_service_that_hangs_delays_nothing(
    tmp_path: Path, fake_wandb: types.SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = threading.Event()
    run, stream = FakeRun(), io.StringIO()
    run.log = lambda row: release.wait(60)  # type: ignore[method-assign, assignment, return-value]
    fake_wandb.init = lambda **options: run
    monkeypatch.setenv("WANDB_FINISH_TIMEOUT", "0.1")
    monkeypatch.setattr("tdmpc2.tracking.wandb._WAITING", 50)
    began = time.monotonic()
    with Logger(config(tmp_path, wandb_project="p"), total_steps=100, stream=stream) as logger:
        for step in range(1, 101):
            logger.log(step, {"a": 1.0})
    assert time.monotonic() - began < 30
    release.set()
    *_, gave_up, dropped = stream.getvalue().splitlines()
    assert gave_up == "Weights & Biases: gave up after 0.1 s, 50 records were not sent"
    assert re.fullmatch(r"Weights & Biases: (49|50) records were dropped, it was too slow", dropped)
    assert len(rows(tmp_path / "train.csv")) == 100


def test_offline_run_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    for name in ("DATA", "CACHE", "CONFIG"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / name.lower()))
    cfg = config(tmp_path / "run", wandb_project="proj", wandb_silent=True, seed=7)
    cfg = cfg.replace(teacher_score=40.5, control_score=18.93)
    teacher = config(tmp_path, model_size=5)
    checkpoint = tmp_path / "student.pt"
    checkpoint.write_bytes(b"weights")
    stream = io.StringIO()
    with Logger(cfg, teacher=teacher, total_steps=40_000, stream=stream) as logger:
        for step in range(100, 40_001, 100):  # enough records for several blocks of the file
            metrics = {"total_loss": torch.tensor(1 / step), "distillation_loss": 3.0, "distillation_value_loss": 4.0}
            logger.log(step, metrics, data_wait=0.25)
        for step, value in ((20_000, 31.5), (40_000, 32.5)):
            logger.log(step, {"score": value}, group="eval")
            table = [["walker-walk", value], ["walker-run", None]]
            logger.log_table(step, "eval/tasks", ["task", "score"], table, curve="score")
        logger.save_artifact(checkpoint, "student", "model")
        logger.save_artifact(checkpoint, "student", "model", ["step-40000", "best"])
        logger.alert("Training diverged", "at step 7")
        run_id = logger.run_id
    wandb.teardown()  # the service has written everything when it has gone
    (path,) = (tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb")
    assert f"Weights & Biases: offline, `wandb sync {path.parent}` uploads it" in stream.getvalue()

    run = read_run(path)
    assert path.stat().st_size > 2 * 32 * 1024
    assert (run.run_id, run.project, run.exit_code) == (run_id, "proj", 0)
    assert run.config["student"] == json.loads(json.dumps(cfg.to_dict()))
    assert run.config["teacher"]["model_size"] == 5
    assert set(run.tags) == {"walker-walk", "1M", "distilled"}
    assert run.step_metrics == {"step": "", "*": "step"}
    expected = [(step, torch.tensor(1 / step).item()) for step in range(100, 40_001, 100)]
    assert run.series("train/total_loss") == expected
    assert len(run.series("speed/it_per_s")) == 400
    assert run.series("speed/data_wait")[-1] == (40_000, 0.25)
    assert run.series("distill/distillation_loss")[0] == (100, 3.0)
    assert run.series("distill/distillation_value_loss")[0] == (100, 4.0)
    assert not run.series("train/distillation_loss")
    assert run.series("eval/score") == [(20_000, 31.5), (40_000, 32.5)]
    assert run.series("eval/walker-walk") == [(20_000, 31.5), (40_000, 32.5)]
    assert run.series("eval/teacher_score") == [(0, 40.5), (20_000, 40.5), (40_000, 40.5)]
    assert run.series("eval/control_score") == [(0, 18.93), (20_000, 18.93), (40_000, 18.93)]
    groups = {name.partition("/")[0] for row in run.history for name in row if "/" in name}
    assert groups == {"train", "distill", "eval", "speed"}
    columns = ["step", "total_loss", "distillation_loss", "distillation_value_loss"]
    assert list(rows(tmp_path / "run" / "train.csv")[0]) == columns
    (_, (step, table_path)) = run.series("eval/tasks.path")
    found = json.loads((path.parent / "files" / table_path).read_text())
    assert (step, found["columns"], found["data"]) == (
        40_000,
        ["task", "score"],
        [["walker-walk", 32.5], ["walker-run", None]],
    )
    assert run.artifacts["student"] == "model"
    own = [set(aliases) for name, aliases in run.aliases if name == "student"]
    assert own == [{"latest"}, {"latest", "step-40000", "best"}]
    assert ("model.pt",) in run.contents
    assert run.alerts == [("Training diverged", "at step 7", "ERROR")]


def test_a_run_of_train_offline(cfg: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What training sends: curves per task, the best checkpoint, and an alert when it diverges."""
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    for name in ("DATA", "CACHE", "CONFIG"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / name.lower()))
    scores = iter((30.0, 20.0))

    def scored(*_: Any, **__: Any) -> Evaluation:
        return Evaluation((TaskResult("pendulum-spin", (1,), (10 * next(scores),), (0.0,), False),))

    update, calls = TDMPC2.update, itertools.count(1)

    def poisoned(self: TDMPC2, batch: Any) -> Any:
        return update(self, batch._replace(obs=batch.obs * math.nan) if next(calls) == 23 else batch)

    monkeypatch.setattr(offline, "evaluate", scored)
    monkeypatch.setattr(TDMPC2, "update", poisoned)
    cfg = cfg.replace(steps=30, eval_freq=10, save_freq=10, wandb_project="p", wandb_silent=True, exp_name="e")
    with pytest.raises(ValueError, match="not finite at step 23") as error:
        offline.train(cfg, None)
    wandb.teardown()
    (path,) = (cfg.run_dir / "wandb").glob("offline-run-*/*.wandb")
    run = read_run(path)
    assert run.exit_code == 1
    assert run.alerts == [("Training diverged", str(error.value), "ERROR")]
    assert run.series("eval/normalized_score") == [(10, 30.0), (20, 20.0)]
    assert run.series("eval/pendulum-spin") == [(10, 300.0), (20, 200.0)]
    own = [set(aliases) for name, aliases in run.aliases if name == "mt30-e"]
    assert own == [{"latest", "step-10"}, {"latest", "step-10", "best"}, {"latest", "step-20"}]
    assert [step for step, _ in run.series("train/total_loss")] == [5, 10, 15, 20, 25]
    assert len(run.series("speed/it_per_s")) == len(run.series("speed/data_wait")) == 5
    assert not list(cfg.run_dir.glob(".wandb-*"))


@pytest.mark.slow
def test_a_stopped_wandb_process_delays_nothing(tmp_path: Path) -> None:
    """Its own service process is stopped in the middle of an offline run: every row is in the CSV file, and it ends."""
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
    environment = {**os.environ, "WANDB_MODE": "offline", "WANDB_FINISH_TIMEOUT": "1", "OMP_NUM_THREADS": "1"}
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
        assert len(rows(tmp_path / "run" / "train.csv")) == 8999
    finally:
        process.kill()
        for pid in stopped:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


# -- progress ---------------------------------------------------------------------------------------------------------


def test_progress_lines_every_tenth_with_rate_and_remaining_time(clock: list[float]) -> None:
    stream = io.StringIO()
    with Progress(2_000, "Evaluating", stream=stream) as bar:
        for _ in range(200):
            clock[0] += 0.05
            bar.update(10, text="walker-walk [812]")
    lines = stream.getvalue().splitlines()
    assert len(lines) == 10
    assert lines[0] == "Evaluating: 200/2,000 steps (10%), 200.0/s, ETA 0:00:09, walker-walk [812]"
    assert lines[-1] == "Evaluating: done, 2,000 steps in 0:00:10 (200.0/s)"


def test_slow_progress_shows_a_line_every_30_seconds(clock: list[float]) -> None:
    stream = io.StringIO()

    def work() -> None:
        with Progress(None, "Importing", unit="episodes", stream=stream) as bar:
            for _ in range(7):
                clock[0] += 10.0
                bar.update(5)
            raise KeyError("chunk_3")

    with pytest.raises(KeyError, match="chunk_3"):
        work()
    assert stream.getvalue().splitlines() == [
        "Importing: 15 episodes, 0.5/s",
        "Importing: 30 episodes, 0.5/s",
        "Importing: stopped, 35 episodes in 0:01:10 (0.5/s)",
    ]


def test_progress_over_items(clock: list[float]) -> None:
    stream = io.StringIO()
    assert list(progress([3, 1, 2], "Reading", unit="files", stream=stream)) == [3, 1, 2]
    assert list(progress(iter("ab"), "Reading", stream=stream)) == ["a", "b"]
    lines = stream.getvalue().splitlines()
    assert [line.split(" in ")[0] for line in lines if "done" in line] == [
        "Reading: done, 3 files",
        "Reading: done, 2 items",
    ]


def test_progress_bar_inside_a_live_logger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: list[float]) -> None:
    """Evaluation shows its bar while the training line is on the same terminal, and leaves only its last line."""
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    with Logger(config(tmp_path), total_steps=10) as logger:
        clock[0] = 2.5
        logger.log(5, {"total_loss": 1.0})
        with Progress(100, "Evaluating", unit="episodes") as bar:
            for _ in range(100):
                clock[0] += 0.1
                bar.update(text="walker-walk 812")
        print("a line from somewhere else")
        assert not any("━" in line for line in terminal.screen()), "the bar is gone with its work"
        logger.log(6, {"total_loss": 0.5})
    assert "50/100 episodes (50%), 10.0/s, ETA 0:00:05, walker-walk 812" in terminal.getvalue()
    assert terminal.screen() == [
        OFF,
        "Evaluating: done, 100 episodes in 0:00:10 (10.0/s)",
        "a line from somewhere else",
        "step 6/10 (60%)   0.1 it/s   ETA 0:00:08   total_loss 0.5",
    ]
    assert sys.stdout is terminal
