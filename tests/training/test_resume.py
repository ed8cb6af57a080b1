"""Runs that are stopped, refused, guarded and continued; their best and last checkpoints."""

from __future__ import annotations

import json
import math
import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tdmpc2.acceleration.fast_planner import FastPlanner
from tdmpc2.agent import TDMPC2
from tdmpc2.checkpoints.files import load_file
from tdmpc2.config import Config
from tdmpc2.play import evaluation
from tdmpc2.training import offline, preflight, run_dir
from tdmpc2.training.guards import STOPPED, FiniteGuard, stop_on_signal
from tdmpc2.training.offline import train
from tests.helpers.forks import ForkServer
from tests.helpers.reference import REPO
from tests.helpers.runs import TASKS, TINY, equal, rows, snapshot

CPU = torch.device("cpu")


# -- resume -----------------------------------------------------------------------------------------------------------


def test_resume_must_and_never_are_kept(cfg: Config) -> None:
    with pytest.raises(ValueError, match=r"resume=must, but .*run has no state\.pt to continue from"):
        train(cfg.replace(resume="must"), None)
    assert not cfg.run_dir.exists()
    train(cfg.replace(resume="never", steps=10), None)
    before = snapshot(cfg.run_dir)
    with pytest.raises(ValueError, match=r"resume=never, but .*run holds a run: set exp_name"):
        train(cfg.replace(resume="never"), None)
    assert snapshot(cfg.run_dir) == before
    train(cfg.replace(resume="must"), None)
    assert load_file(cfg.run_dir / "model.pt").step == 20


def test_resume_names_allowed_changes(cfg: Config, capsys: pytest.CaptureFixture[str]) -> None:
    train(cfg.replace(steps=10), None)
    train(cfg.replace(log_freq=2), None)
    line = "Continuing with other settings: log_freq: 5 there, 2 now; steps: 10 there, 20 now"
    assert line in capsys.readouterr().out


def test_run_directory_used_by_another_process_is_refused(cfg: Config) -> None:
    with run_dir.lock(cfg.run_dir), pytest.raises(ValueError, match=r"Another process is training in .*run: wait for"):
        train(cfg, None)
    train(cfg, None)


# -- stopping ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stop_on_signal_is_a_request(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with stop_on_signal() as stop:
        assert not stop
        signal.raise_signal(number)
        assert stop.signal == number
        assert signal.getsignal(number) == before  # a second signal acts at once
    assert signal.getsignal(number) == before


@pytest.mark.slow
def test_train_stopped_by_signal_saves_and_continues(cfg: Config, tmp_path: Path, forks: ForkServer) -> None:
    straight = train(cfg.replace(steps=400, work_dir=str(tmp_path / "straight")), None)
    settings = {**TINY, "tasks": f"[{','.join(TINY['tasks'])}]", "steps": 400, "model_size": "null"}
    settings |= {"data_dir": cfg.data_dir, "work_dir": str(cfg.run_dir), "save_freq": 100_000}
    command = [REPO / "train.py", "teacher_config=null", *(f"{key}={value}" for key, value in settings.items())]
    job = forks.start(command, tmp_path)
    job.wait_for("step ")
    job.send_signal(signal.SIGTERM)
    assert job.wait() == STOPPED
    said = job.out.read_text()
    assert re.search(r"Stopped by SIGTERM at step \d+, everything is saved; the same command goes on", said)
    step = load_file(cfg.run_dir / "model.pt").step
    assert 0 < step < 400
    assert forks.start(command, tmp_path).wait() == 0
    assert equal(cfg.run_dir / "model.pt", straight)
    assert (cfg.run_dir / "train.csv").read_bytes() == (tmp_path / "straight" / "train.csv").read_bytes()


# -- guards -----------------------------------------------------------------------------------------------------------


def test_guard_remembers_first_bad_step() -> None:
    guard = FiniteGuard(CPU)
    for step, value in enumerate((1.0, 2.0, math.inf, 1.0, math.nan), 1):
        assert guard.first_bad_step() == (None if step < 4 else 3)
        guard.watch(step, {"total_loss": torch.tensor(0.5), "grad_norm": torch.tensor(value)})


def test_train_diverging_names_step_and_episodes(cfg: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    update = TDMPC2.update

    def poisoned(self: TDMPC2, batch: Any) -> Any:
        poisoned.calls += 1  # type: ignore[attr-defined]
        return update(self, batch._replace(obs=batch.obs * math.nan) if poisoned.calls == 12 else batch)  # type: ignore[attr-defined]

    poisoned.calls = 0  # type: ignore[attr-defined]
    monkeypatch.setattr(TDMPC2, "update", poisoned)
    with pytest.raises(ValueError, match="not finite at step 12") as error:
        train(cfg.replace(save_freq=10), None)
    text = str(error.value)
    assert re.search(r"Its batch has \d episodes: (\d, )*\d of ", text)
    assert f"{cfg.run_dir / 'model.pt'} is of step 10, before it. A lower lr" in text
    assert load_file(cfg.run_dir / "model.pt").step == 10
    assert rows(cfg.run_dir / "train.csv")[-1]["step"] == 15  # the bad values are logged


# -- checkpoints ------------------------------------------------------------------------------------------------------


def test_train_keeps_last_checkpoints(cfg: Config) -> None:
    train(cfg.replace(save_freq=4, keep_last=3), None)
    assert {path.name for path in cfg.run_dir.glob("*.pt")} == {
        "state.pt", "model.pt", "model_12.pt", "model_16.pt", "model_20.pt"
    }  # fmt: skip
    assert [load_file(cfg.run_dir / f"model_{step}.pt").step for step in (12, 16, 20)] == [12, 16, 20]
    assert (cfg.run_dir / "model_20.pt").read_bytes() == (cfg.run_dir / "model.pt").read_bytes()
    (cfg.run_dir / "model_20.pt").rename(cfg.run_dir / "model_8.pt")  # as after a kill before the copy of the last save
    train(cfg.replace(save_freq=4, keep_last=3), None)
    assert {path.name for path in cfg.run_dir.glob("model_*.pt")} == {"model_12.pt", "model_16.pt", "model_20.pt"}
    shutil.copy(cfg.run_dir / "model_12.pt", cfg.run_dir / "model_8.pt")  # as after a kill before deleting the oldest
    train(cfg.replace(save_freq=4, keep_last=3), None)
    assert {path.name for path in cfg.run_dir.glob("model_*.pt")} == {"model_12.pt", "model_16.pt", "model_20.pt"}


class Scores:
    """A stand-in for evaluations with a given score for each call, or None to end the run."""

    def __init__(self, scores: dict[int, float | None]) -> None:
        self.scores, self.calls = scores, 0

    def __call__(self, agent: TDMPC2, cfg: Config, **_: Any) -> evaluation.Evaluation:
        self.calls += 1
        score = self.scores[self.calls]
        if score is None:
            raise KeyboardInterrupt
        task = evaluation.TaskResult("pendulum-spin", (1,), (10 * score,), (0.0,), False)
        return evaluation.Evaluation((task,))


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    def use(scores: dict[int, float | None]) -> Scores:
        monkeypatch.setattr(offline, "evaluate", result := Scores(scores))
        return result

    return use


def test_best_checkpoint_has_highest_score(cfg: Config, scored: Any) -> None:
    scored({1: 3.0, 2: 7.0, 3: 7.0, 4: 5.0})
    train(cfg.replace(eval_freq=5), None)
    assert load_file(cfg.run_dir / "best.pt").step == 10
    assert json.loads((cfg.run_dir / "evaluations.json").read_text()) == {"5": 3.0, "10": 7.0, "15": 7.0, "20": 5.0}


def test_train_repeats_evaluation_that_was_cut_off(cfg: Config, scored: Any, tmp_path: Path) -> None:
    cfg = cfg.replace(eval_freq=5)
    scored({1: 3.0, 2: 7.0, 3: 6.0, 4: 5.0})
    train(cfg.replace(work_dir=str(tmp_path / "straight")), None)
    scored({1: 3.0, 2: None})
    with pytest.raises(KeyboardInterrupt):
        train(cfg, None)
    assert load_file(cfg.run_dir / "model.pt").step == 10
    again = scored({1: 7.0, 2: 6.0, 3: None})
    with pytest.raises(KeyboardInterrupt):
        train(cfg, None)  # this one diverges at the last step
    last = scored({1: 5.0})
    train(cfg, None)
    assert (again.calls, last.calls) == (3, 1)
    names = ("model.pt", "best.pt", "evaluations.json", "train.csv", "eval.csv", "eval_tasks.csv")
    for name in names:
        assert (cfg.run_dir / name).read_bytes() == (tmp_path / "straight" / name).read_bytes(), name


def test_train_does_not_double_rows_of_cut_off_evaluation(
    cfg: Config, scored: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run is killed between writing an evaluation's rows and recording its score."""
    cfg = cfg.replace(eval_freq=10)
    scored({1: 3.0})
    record = run_dir.record_score

    def killed(*_: Any) -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr(run_dir, "record_score", killed)
    with pytest.raises(KeyboardInterrupt):
        train(cfg, None)
    monkeypatch.setattr(run_dir, "record_score", record)
    scored({1: 3.0, 2: 4.0})
    train(cfg, None)
    for name in ("eval.csv", "eval_tasks.csv"):
        assert [row.split(",")[0] for row in (cfg.run_dir / name).read_text().splitlines()] == ["step", "10", "20"]


# -- before a run -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("begun", [False, True])
def test_dry_run_estimates_and_writes_nothing(
    cfg: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], begun: bool
) -> None:
    """The planner is only asked about compiling, which would take most of a minute."""
    asked: list[tuple[str, int]] = []
    monkeypatch.setattr(FastPlanner, "speed_up", lambda self, wanted, plans: asked.append((wanted, plans)) or "")
    if begun:
        train(cfg.replace(steps=10), None)
    there = {path: path.stat().st_mtime_ns for path in cfg.run_dir.parent.rglob("*")}
    capsys.readouterr()
    train(cfg.replace(dry_run=True, steps=1000, eval_freq=250, eval_episodes=2), None)
    assert {path: path.stat().st_mtime_ns for path in cfg.run_dir.parent.rglob("*")} == there
    text = capsys.readouterr().out
    assert ("continues at step 10" in text) == begun
    updates = re.search(r"updates     ([\d,]+) x (\d+\.\d) ms = 0:0\d:\d\d", text)
    assert updates is not None
    assert updates[1] == ("990" if begun else "1,000")
    assert float(updates[2]) > 0
    assert "evaluation  4 x 2,000 plans" in text
    assert asked == [("auto", 2000)]
    assert "teacher     none" in text
    assert re.search(r"data        chunk files, 0\.\d\d GB on cpu", text)
    assert re.search(r"memory      about 0\.\d\d GB .*\ndisk        0\.\d\d GB .*\nin all      about 0:", text)


def test_dry_run_refuses_what_the_run_would(cfg: Config) -> None:
    with pytest.raises(ValueError, match=r"training cannot start.*\n  data_dir: nowhere is not a directory"):
        train(cfg.replace(dry_run=True, data_dir="nowhere"), None)


def test_train_on_disk_without_room_for_checkpoints_is_refused(cfg: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "free_disk", lambda path: 1000)
    with pytest.raises(
        ValueError, match=r"needs 0\.5 MB more and its disk has 1,000 bytes free: make room, or set work_dir"
    ):
        train(cfg, None)
    assert not cfg.run_dir.exists()


def test_run_goes_on_where_its_own_checkpoints_are_what_fills_the_disk(
    cfg: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Room was asked for once more for files that a save replaces."""
    train(cfg.replace(steps=2), None)
    there = sum(path.stat().st_size for path in cfg.run_dir.glob("*.pt"))
    missing = preflight.checkpoint_bytes(TDMPC2(cfg), cfg) - there
    assert there > 10_000
    monkeypatch.setattr(preflight, "free_disk", lambda path: missing - 1)
    with pytest.raises(ValueError, match="more and its disk has"):
        train(cfg, None)
    monkeypatch.setattr(preflight, "free_disk", lambda path: missing)
    train(cfg, None)


def test_dry_run_beyond_the_steps_of_the_run_counts_no_negative_evaluations(
    cfg: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    train(cfg.replace(steps=10), None)
    train(cfg.replace(steps=4, eval_freq=2, eval_episodes=1, dry_run=True), None)
    assert "evaluation  -" not in capsys.readouterr().out


def test_checkpoint_size_estimate_is_an_upper_bound(cfg: Config) -> None:
    cfg = cfg.replace(model_size=1, steps=2, save_freq=1, keep_last=2)
    train(cfg, None)
    written = sum(path.stat().st_size for path in cfg.run_dir.glob("*.pt"))
    assert written <= preflight.checkpoint_bytes(TDMPC2(cfg), cfg) < 3 * written


@pytest.mark.parametrize("teachers", [False, True])
def test_dry_run_counts_import_and_cache(
    cfg: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str], teachers: bool
) -> None:
    """The estimates hold for one teacher of all tasks and for teachers of single tasks."""
    file = str(train(cfg.replace(steps=1, work_dir=str(tmp_path / "teacher")), None))
    taught = cfg.replace(teachers=dict.fromkeys(TASKS, file)) if teachers else cfg
    capsys.readouterr()
    train(
        taught.replace(dry_run=True, distillation_cache="full", data_device="disk"),
        None if teachers else cfg.replace(checkpoint=file),
    )
    text = capsys.readouterr().out
    assert re.search(r"data        chunk files, to be imported into .*store first, 0\.\d\d GB on disk", text)
    assert re.search(r"import      0\.\d\d GB at 300 MB/s = 0:00:00", text)
    rows = re.search(r"cache       at most ([\d,]+) rows x (\d+\.\d) us", text)
    assert rows is not None
    assert int(rows[1].replace(",", "")) == 6 * 501
    assert re.search(r"GB for checkpoints, .*; 0\.\d\d GB beside the data, ", text)
    assert not (Path(cfg.data_dir) / "store").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_before_first_update_ends_run_at_once(
    cfg: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: signal.Signals
) -> None:
    def loading(*_: Any) -> None:
        signal.raise_signal(number)
        raise AssertionError("went on")

    monkeypatch.setattr(offline, "open_data", loading)
    with pytest.raises(SystemExit) as ended:
        train(cfg, None)
    assert ended.value.code == STOPPED
    assert f"Stopped by {number.name} before the first update" in capsys.readouterr().out
    monkeypatch.undo()
    train(cfg, None)


def test_signal_while_compiling_ends_run_at_once(
    cfg: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def compiling(*_: Any) -> None:
        signal.raise_signal(signal.SIGTERM)
        raise AssertionError("went on")

    monkeypatch.setattr(TDMPC2, "update_compiled", True)
    monkeypatch.setattr(TDMPC2, "update", compiling)
    with pytest.raises(SystemExit) as ended:
        train(cfg, None)
    assert ended.value.code == STOPPED
    assert "Stopped by SIGTERM before the first update" in capsys.readouterr().out
    monkeypatch.undo()
    train(cfg, None)


def test_train_removes_leftovers_of_a_killed_save(cfg: Config) -> None:
    train(cfg.replace(steps=5), None)
    (cfg.run_dir / ".state.pt.0123abcd.tmp").write_bytes(b"half")
    train(cfg, None)
    assert not list(cfg.run_dir.glob(".*.tmp"))


def test_divergence_numbers_episodes_as_in_the_files(cfg: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    update = TDMPC2.update
    monkeypatch.setattr(TDMPC2, "update", lambda self, batch: update(self, batch._replace(obs=batch.obs * math.nan)))
    with pytest.raises(ValueError, match=r"Its batch has 3 episodes: 3, 4, 5 of ") as error:
        train(cfg.replace(tasks=("cartpole-balance",), batch_size=64), None)
    assert "Nothing was saved before" in str(error.value)
