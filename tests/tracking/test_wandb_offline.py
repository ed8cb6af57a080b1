"""Weights & Biases: the content of an offline run's file."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from tdmpc2.agent import TDMPC2
from tdmpc2.config import Config
from tdmpc2.play.evaluation import Evaluation, TaskResult
from tdmpc2.tracking.logger import Logger
from tdmpc2.training import offline
from tests.helpers.tracking import config, text_rows
from tests.helpers.wandb_reader import OfflineRun, read_run


class Recorded(NamedTuple):
    """An offline run of 400 records, read back from its file."""

    cfg: Config
    path: Path
    run_id: str | None
    printed: str
    run: OfflineRun


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    wandb = pytest.importorskip("wandb")
    root = tmp_path_factory.mktemp("wandb")
    cfg = config(root / "run", wandb_project="proj", wandb_silent=True, seed=7)
    cfg = cfg.replace(teacher_score=40.5, control_score=18.93)
    checkpoint = root / "student.pt"
    checkpoint.write_bytes(b"weights")
    stream = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        for name in ("DATA", "CACHE", "CONFIG"):
            patch.setenv(f"WANDB_{name}_DIR", str(root / name.lower()))
        with Logger(cfg, teacher=config(root, model_size=5), total_steps=40_000, stream=stream) as logger:
            for step in range(100, 40_001, 100):  # enough records for several blocks of the file
                losses = {"distillation_loss": 3.0, "distillation_value_loss": 4.0}
                logger.log(step, {"total_loss": torch.tensor(1 / step), **losses}, data_wait=0.25)
            for step, value in ((20_000, 31.5), (40_000, 32.5)):
                logger.log(step, {"score": value}, group="eval")
                table = [["walker-walk", value], ["walker-run", None]]
                logger.log_table(step, "eval/tasks", ["task", "score"], table, curve="score")
            logger.save_artifact(checkpoint, "student", "model")
            logger.save_artifact(checkpoint, "student", "model", ["step-40000", "best"])
            logger.alert("Training diverged", "at step 7")
            run_id = logger.run_id
        with contextlib.suppress(ConnectionResetError):  # the service has already ended
            wandb.teardown()  # once it has ended, everything is written
    (path,) = (root / "run" / "wandb").glob("offline-run-*/*.wandb")
    return Recorded(cfg, path, run_id, stream.getvalue(), read_run(path))


def test_wandb_offline_run_says_how_it_is_uploaded(recorded: Recorded) -> None:
    assert f"Weights & Biases: offline, `wandb sync {recorded.path.parent}` uploads it" in recorded.printed
    assert recorded.path.stat().st_size > 2 * 32 * 1024


def test_wandb_offline_run_knows_its_configuration(recorded: Recorded) -> None:
    run = recorded.run
    assert (run.run_id, run.project, run.exit_code) == (recorded.run_id, "proj", 0)
    assert run.config["student"] == json.loads(json.dumps(recorded.cfg.to_dict()))
    assert run.config["teacher"]["model_size"] == 5
    assert set(run.tags) == {"walker-walk", "1M", "distilled"}


def test_wandb_offline_run_has_every_training_row(recorded: Recorded) -> None:
    run = recorded.run
    assert run.step_metrics == {"step": "", "*": "step"}
    expected = [(step, torch.tensor(1 / step).item()) for step in range(100, 40_001, 100)]
    assert run.series("train/total_loss") == expected
    assert run.series("distill/reward_loss")[0] == (100, 3.0)
    assert run.series("distill/value_loss")[0] == (100, 4.0)
    assert not run.series("train/distillation_loss")
    groups = {name.partition("/")[0] for row in run.history for name in row if "/" in name}
    assert groups == {"train", "distill", "eval", "speed"}


def test_wandb_offline_run_has_its_speed(recorded: Recorded) -> None:
    run = recorded.run
    assert len(run.series("speed/it_per_s")) == len(run.series("speed/wall_hours")) == 400
    assert run.series("speed/data_wait")[-1] == (40_000, 0.25)


def test_wandb_offline_run_has_scores_beside_those_of_teacher_and_control(recorded: Recorded) -> None:
    run = recorded.run
    assert run.series("eval/score") == [(20_000, 31.5), (40_000, 32.5)]
    assert run.series("eval/walker-walk") == [(20_000, 31.5), (40_000, 32.5)]
    assert run.series("eval/teacher_score") == [(0, 40.5), (20_000, 40.5), (40_000, 40.5)]
    assert run.series("eval/control_score") == [(0, 18.93), (20_000, 18.93), (40_000, 18.93)]
    (_, (step, table_path)) = run.series("eval/tasks.path")
    found = json.loads((recorded.path.parent / "files" / table_path).read_text())
    rows = [["walker-walk", 32.5], ["walker-run", None]]
    assert (step, found["columns"], found["data"]) == (40_000, ["task", "score"], rows)


def test_wandb_offline_run_renames_no_column_of_the_csv_file(recorded: Recorded) -> None:
    columns = ["step", "total_loss", "distillation_loss", "distillation_value_loss"]
    assert list(text_rows(recorded.cfg.run_dir / "train.csv")[0]) == columns


def test_wandb_offline_run_has_artifacts_and_alerts(recorded: Recorded) -> None:
    run = recorded.run
    assert run.artifacts["student"] == "model"
    own = [set(aliases) for name, aliases in run.aliases if name == "student"]
    assert own == [{"latest"}, {"latest", "step-40000", "best"}]
    assert ("model.pt",) in run.contents
    assert run.alerts == [("Training diverged", "at step 7", "ERROR")]


def test_wandb_offline_run_of_train_has_its_metrics(
    cfg: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training sends curves per task, the best checkpoint, and an alert when it diverges."""
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
    own = [set(aliases) for name, aliases in run.aliases if name == "mt30-e-1"]
    assert own == [{"latest", "step-10"}, {"latest", "step-10", "best"}, {"latest", "step-20"}]
    assert [step for step, _ in run.series("train/total_loss")] == [5, 10, 15, 20, 25]
    assert len(run.series("speed/it_per_s")) == len(run.series("speed/data_wait")) == 5
    assert not list(cfg.run_dir.glob(".wandb-*"))
